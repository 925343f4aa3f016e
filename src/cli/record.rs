//! Writes `run.json`: the calls of the program that made a run, and the files that its bits depend on.

use std::path::{Path, PathBuf};

use super::device;
use crate::error::Result;
use crate::pipeline::spec::RunSpec;
use crate::report;
use crate::report::origin::{Call, Origin, WeightsFile};

/// The record of a run's calls in its folder.
pub struct Record {
    folder: PathBuf,
    origin: Origin,
    /// A warning to print when the run is resumed on another device, version or system.
    pub note: Option<String>,
}

impl Record {
    /// Records this call of the program, after the earlier ones if the run is resumed.
    ///
    /// Errors: a `run.json` that cannot be read or written.
    pub fn begin(folder: &Path, spec: &RunSpec, files: &[WeightsFile], is_resumed: bool) -> Result<Record> {
        let earlier = if is_resumed { Origin::read(folder)? } else { None };
        let mut origin = Origin { weights: files.to_vec(), failure: None, ..earlier.unwrap_or_default() };
        let now = Call::now(&device::name(spec.device.choice));
        let note = origin.calls.last().and_then(|earlier| difference(earlier, &now));
        origin.calls.push(now);
        origin.write(folder)?;
        Ok(Record { folder: folder.into(), origin, note })
    }

    /// Returns the run's result unchanged. A failure is recorded, and the page is written to show how far the
    /// run came.
    pub fn end<T>(mut self, result: Result<T>) -> Result<T> {
        if let Err(e) = &result {
            self.origin.failure = Some(e.into());
            // Report the run's own failure, not one of recording it.
            let _ = self.origin.write(&self.folder).and_then(|()| report::rebuild(&self.folder));
        }
        result
    }
}

/// A warning if two calls differ in something that changes the student's bits. The number of threads does
/// not.
fn difference(earlier: &Call, now: &Call) -> Option<String> {
    let of = |c: &Call| [c.device.clone(), format!("version {}", c.version), c.system.clone()];
    let (was, is) = of(earlier).into_iter().zip(of(now)).find(|(was, is)| was != is)?;
    Some(format!(
        "started on {was}, resumed on {is}: the student will differ in its bits from that of an uninterrupted run"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resuming_on_another_device_or_version_gives_a_warning() {
        let cpu = Call { threads: 2, ..Call::now("cpu") };
        assert_eq!(difference(&cpu, &Call { threads: 1, started: 7, ..cpu.clone() }), None);
        let note = difference(&cpu, &Call { device: "cuda:0, H200".into(), ..cpu.clone() }).unwrap();
        assert!(note.starts_with("started on cpu, resumed on cuda:0, H200: "), "{note}");
        let note = difference(&Call { version: "0.0.1".into(), ..cpu.clone() }, &cpu).unwrap();
        assert!(note.contains("started on version 0.0.1, resumed on version "), "{note}");
    }
}
