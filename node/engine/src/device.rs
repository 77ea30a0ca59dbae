//! Chooses what a model runs on; the only place that knows whether this build can use a GPU.

use anyhow::Result;
use candle_core::Device;

use crate::frame::DeviceInfo;
use crate::options::DeviceChoice;

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "device/no_cuda.rs"]
mod cuda;

/// Opens the chosen device and says what it is.
pub fn open(choice: DeviceChoice) -> Result<(Device, DeviceInfo)> {
    match choice {
        DeviceChoice::Cpu => Ok((Device::Cpu, cpu())),
        DeviceChoice::Cuda(number) => cuda::open(number),
        DeviceChoice::Auto if cuda::count() == 0 => Ok((Device::Cpu, cpu())),
        DeviceChoice::Auto => cuda::open(0).or_else(|error| {
            tracing::warn!(error = %format!("{error:#}"), "Cannot use the GPU: using the CPU");
            Ok((Device::Cpu, cpu()))
        }),
    }
}

fn cpu() -> DeviceInfo {
    DeviceInfo { kind: "cpu".to_owned(), name: cpu_name(), memory_bytes: memory_bytes() }
}

fn cpu_name() -> String {
    let name = field("/proc/cpuinfo", "model name");
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn memory_bytes() -> u64 {
    let kibibytes = field("/proc/meminfo", "MemTotal");
    kibibytes.and_then(|text| text.strip_suffix(" kB")?.parse::<u64>().ok()).map_or(0, |number| number * 1024)
}

/// Reads a field of a file that only Linux has.
fn field(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_there() {
        let (device, info) = open(DeviceChoice::Cpu).expect("a CPU");
        assert!(device.is_cpu());
        assert_eq!(info.kind, "cpu");
        assert!(!info.name.is_empty());
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_that_says_what_to_do() {
        let error = open(DeviceChoice::Cuda(usize::MAX)).expect_err("no machine has so many");
        assert!(error.to_string().contains("CPU"), "{error}");
    }
}
