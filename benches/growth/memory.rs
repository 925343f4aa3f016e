//! Memory of a whole run, as `dfka-engine check` forecasts it and as the program then needs it: the largest `VmHWM`
//! that the system reports for its process. It only grows, so that reading it every millisecond misses no more than what
//! the last one adds.

use crate::row::{Row, Vary, config_file};
use dfka_engine::error::{Error, Result};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Images that the generator is trained on: enough for a full bank, also of the smallest batch.
const IMAGES: usize = 8192;

/// The program's exit code for a student whose verdict is *failed*, as it must be after so few steps.
const POOR: i32 = 7;

/// The memory of one value, in MB.
pub struct Memory {
    pub value: usize,
    /// Tensors that outlive a step.
    pub store: f64,
    /// The largest step's.
    pub arena: f64,
    /// The forecast of the whole process.
    pub forecast: f64,
    /// The most that the process had.
    pub peak: f64,
}

/// Forecasts and measures a short run of all stages with this value.
pub fn measure(vary: Vary, value: usize, folder: &Path) -> Result<Memory> {
    let row = Row::with(vary, value);
    let out = folder.join("run");
    let mut sets = row.sets(folder);
    sets.push(format!("generator.steps={}", IMAGES / row.number(Vary::Batch)));
    sets.push("dual.steps=[5,5,5,5]".into());
    // Random teachers recognise nothing, and the run goes on all the same.
    let limits = ["diversity", "entropy", "information", "found"];
    sets.extend(limits.iter().map(|l| format!("loss.least_{l}=0")));
    let program = |command: &str, more: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_dfka-engine"));
        program.arg(command).arg(config_file()).args(["--device", "cpu", "--threads"]);
        program.arg(row.number(Vary::Threads).to_string()).args(more);
        program.args(sets.iter().flat_map(|set| ["--set", set]));
        program
    };
    let failed = |e: &dyn std::fmt::Display| Error::Run(format!("{}={value}: {e}", vary.name()));

    let check = program("check", &["--json"]).output().map_err(|e| failed(&e))?;
    let found: serde_json::Value = serde_json::from_slice(&check.stdout)
        .map_err(|e| failed(&format!("check: {e}: {}", String::from_utf8_lossy(&check.stderr))))?;
    let forecast = |name: &str| found["forecast"][name].as_f64().unwrap_or(f64::NAN) / 1e6;

    let mut run = program("run", &["--quiet"]);
    let mut run = run
        .arg("--out")
        .arg(&out)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(&e))?;
    let mut peak = 0;
    let status = loop {
        peak = peak.max(peak_bytes(run.id()));
        if let Some(status) = run.try_wait().map_err(|e| failed(&e))? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    if !matches!(status.code(), Some(0 | POOR)) {
        let mut text = String::new();
        let read = run.stderr.take().map(|mut e| std::io::Read::read_to_string(&mut e, &mut text));
        return Err(failed(&format!("run: {status}, {text} ({read:?})")));
    }
    std::fs::remove_dir_all(&out).map_err(|e| failed(&e))?;
    let [store, arena, forecast] = ["store_bytes", "arena_bytes", "peak_bytes"].map(forecast);
    Ok(Memory { value, store, arena, forecast, peak: peak as f64 / 1e6 })
}

/// The most memory that a process has held so far; 0 where `/proc` does not say it, and after its end.
fn peak_bytes(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok());
    kilobytes.unwrap_or(0) * 1024
}
