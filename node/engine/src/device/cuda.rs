//! Finds and opens NVIDIA GPUs. The driver and CUDA's libraries are linked: without them, the process does not start.

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use cudarc::driver::CudaContext;

use crate::frame::DeviceInfo;

/// Returns how many GPUs can be used: none if the driver knows of none, or is too old.
pub(super) fn count() -> usize {
    let count = CudaContext::device_count().ok();
    count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

pub(super) fn open(number: usize) -> Result<(Device, DeviceInfo)> {
    let count = count();
    ensure!(
        number < count,
        "there is no GPU {number}, the driver knows of {count}: choose another, or run on the CPU"
    );
    let context = CudaContext::new(number).with_context(|| format!("cannot open GPU {number}"))?;
    let info = DeviceInfo {
        kind: "cuda".to_owned(),
        name: context.name().context("cannot read the GPU's name")?,
        memory_bytes: context.total_mem().context("cannot read the GPU's memory")? as u64,
    };
    let device = Device::new_cuda(number).with_context(|| format!("cannot compute on GPU {number}"))?;
    Ok((device, info))
}
