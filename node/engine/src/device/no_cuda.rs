//! Stands for the GPUs in a build that cannot use any.

use anyhow::{Result, bail};
use candle_core::Device;

use crate::frame::DeviceInfo;

pub(super) fn count() -> usize {
    0
}

pub(super) fn open(number: usize) -> Result<(Device, DeviceInfo)> {
    bail!("this build cannot use GPU {number}: build with `--features cuda`, or run on the CPU");
}
