//! `doctor`: the devices, libraries and processor features of this machine.

use super::args::start_threads;
use super::output::pretty;
use super::version::VERSION;
use crate::device::Choice;
use crate::device::gpu::{self, cuda, emu::Emu, nvrtc::Nvrtc};
use crate::error::Result;
use clap::Args;
use serde_json::{Map, Value};
use std::fs;

#[derive(Args)]
pub struct DoctorArgs {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// One row per property.
pub fn doctor(args: &DoctorArgs) -> Result<String> {
    start_threads(None)?;
    let rows = rows();
    if args.json {
        let all: Map<String, Value> =
            rows.into_iter().map(|(name, value)| (name.replace(' ', "_"), value.into())).collect();
        return pretty(&Value::Object(all));
    }
    Ok(rows.iter().map(|(name, value)| format!("{name:<15} {value}\n")).collect())
}

fn rows() -> Vec<(&'static str, String)> {
    let threads = std::thread::available_parallelism().map_or("unknown".into(), |n| n.to_string());
    vec![
        ("version", format!("dfka-engine {}", VERSION)),
        ("system", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
        ("cpu", cpu_name()),
        ("cpu features", cpu_features()),
        ("threads", format!("{threads} available, {} used", rayon::current_num_threads())),
        ("memory", memory()),
        ("cuda devices", cuda_devices()),
        ("emulator", emulator()),
        ("kernels", kernels()),
        ("nvidia driver", driver()),
        ("libcuda", cuda::driver_file().unwrap_or("none opened, see the row of CUDA devices").into()),
        ("first kernel", first_kernel()),
        ("libnvrtc", nvrtc()),
        ("kernel cache", cuda::cache_folder().display().to_string()),
    ]
}

/// Lines about the kernels and about the device that a run uses.
pub fn of_device(choice: Choice) -> Vec<String> {
    let count = rayon::current_num_threads();
    let threads = format!("{count} thread{}", if count == 1 { "" } else { "s" });
    let mut lines = match choice {
        Choice::Cpu => vec![format!("cpu: {} ({}), {threads}", cpu_name(), cpu_features())],
        Choice::Cuda(_) => vec![
            format!("kernels: {}", kernels()),
            format!("NVRTC on this machine: {}", nvrtc()),
            format!("CUDA devices: {}", cuda_devices()),
            format!("NVIDIA driver: {}", driver()),
        ],
        Choice::Emu => {
            vec![format!("kernels: {}", kernels()), format!("emulator: {}, {threads}", emulator())]
        }
    };
    lines.push(format!("memory: {}", memory()));
    lines
}

fn emulator() -> String {
    Emu::open(0).map_or_else(|e| e.to_string(), |e| e.name())
}

/// The devices that the driver finds, and whether they can run the kernels.
fn cuda_devices() -> String {
    let (driver, found) = match cuda::devices() {
        Ok(all) => all,
        Err(e) => return format!("none: {e}"),
    };
    let device = |(i, d): (usize, &cuda::Found)| {
        let (major, minor) = d.capability;
        let runs =
            if d.capability >= cuda::LEAST_CAPABILITY { "" } else { ", too old: the kernels need 8.0" };
        format!("cuda:{i} {} ({major}.{minor}, {:.0} GB{runs})", d.name, d.memory_bytes as f64 / 1e9)
    };
    let list: Vec<String> = found.iter().enumerate().map(device).collect();
    let list = if list.is_empty() { "none".into() } else { list.join("; ") };
    format!("{list}; driver for CUDA {}.{}", driver / 1000, driver % 1000 / 10)
}

/// Whether the device that `--device auto` chooses runs a kernel.
fn first_kernel() -> String {
    let Ok((_, found)) = cuda::devices() else { return "no CUDA device".into() };
    match found.iter().position(|d| d.capability >= cuda::LEAST_CAPABILITY) {
        None => "no CUDA device that can run it".into(),
        Some(index) => match Choice::Cuda(index).try_kernel() {
            Ok(_) => format!("ran on cuda:{index}, with the right result"),
            Err(e) => format!("failed on cuda:{index}: {e}"),
        },
    }
}

/// The kernels in this program, and the targets for which it has them compiled.
fn kernels() -> String {
    let targets: Vec<&str> = gpu::MODULES[0].images.iter().map(|i| i.target).collect();
    let count = format!("{} in {} files", gpu::KERNELS.len(), gpu::MODULES.len());
    if targets.is_empty() {
        return format!(
            "{count}, as source (built without NVRTC); NVRTC compiles them at their first launch"
        );
    }
    format!(
        "{count}, compiled by NVRTC {} for {}, and as PTX for newer devices",
        env!("DFKA_BUILT_WITH_NVRTC"),
        targets.join(" and ")
    )
}

fn nvrtc() -> String {
    let found = Nvrtc::open().and_then(|c| Ok((c.version()?, c.path)));
    found.map_or_else(|e| e, |((major, minor), path)| format!("{major}.{minor}, {}", path.display()))
}

fn driver() -> String {
    match fs::read_to_string("/proc/driver/nvidia/version") {
        Ok(text) => text.lines().next().unwrap_or_default().trim().into(),
        Err(_) => "not loaded (no /proc/driver/nvidia/version)".into(),
    }
}

fn cpu_name() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    name.map_or("unknown".into(), |(_, name)| name.trim().into())
}

fn cpu_features() -> String {
    #[cfg(target_arch = "x86_64")]
    let features = [
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("f16c", std::is_x86_feature_detected!("f16c")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
        ("avx512bw", std::is_x86_feature_detected!("avx512bw")),
        ("avx512vl", std::is_x86_feature_detected!("avx512vl")),
        ("avx512bf16", std::is_x86_feature_detected!("avx512bf16")),
    ];
    #[cfg(target_arch = "aarch64")]
    let features = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("sve", std::arch::is_aarch64_feature_detected!("sve")),
        ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let features: [(&str, bool); 0] = [];
    let names: Vec<&str> = features.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect();
    if names.is_empty() { "none of those that this program uses".into() } else { names.join(" ") }
}

fn memory() -> String {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let gib = |key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
        let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib / 1024.0 / 1024.0)
    };
    let (Some(total), Some(free)) = (gib("MemTotal"), gib("MemAvailable")) else { return "unknown".into() };
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|l| l.trim().parse::<f64>().ok()).map(|l| l / 1024f64.powi(3));
    let limit = limit.map_or(String::new(), |l| format!(", limited to {l:.1} GiB"));
    format!("{total:.1} GiB, {free:.1} GiB available{limit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_every_row() {
        let text = doctor(&DoctorArgs { json: false }).unwrap();
        let json = doctor(&DoctorArgs { json: true }).unwrap();
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json.as_object().unwrap().len(), text.lines().count());
        assert!(
            json["first_kernel"].is_string() && json["version"].as_str().unwrap().contains("dfka-engine")
        );
        for row in
            ["version ", "cpu features ", "threads ", "memory ", "libcuda ", "first kernel ", "libnvrtc "]
        {
            assert!(text.lines().any(|l| l.starts_with(row)), "{row}\n{text}");
        }
    }
}
