//! Finds and opens NVIDIA GPUs.

use std::panic::catch_unwind;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use cudarc::driver::CudaContext;

use crate::frame::DeviceInfo;

/// Returns how many GPUs can be used: none without a driver.
pub(super) fn count() -> usize {
    // Without the driver's library, loading it panics.
    let count = catch_unwind(CudaContext::device_count);
    count.ok().and_then(Result::ok).and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

pub(super) fn open(number: usize) -> Result<(Device, DeviceInfo)> {
    let count = count();
    ensure!(number < count, "there is no GPU {number}, only {count}: choose another, or run on the CPU");
    let context = CudaContext::new(number).with_context(|| format!("cannot open GPU {number}"))?;
    let info = DeviceInfo {
        kind: "cuda".to_owned(),
        name: context.name().context("cannot read the GPU's name")?,
        memory_bytes: context.total_mem().context("cannot read the GPU's memory")? as u64,
    };
    let device = Device::new_cuda(number).with_context(|| format!("cannot compute on GPU {number}"))?;
    Ok((device, info))
}
