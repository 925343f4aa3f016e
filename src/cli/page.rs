//! `report`: a run's page again from its folder; and what `run` leaves there for the page beside its results.

use std::path::{Path, PathBuf};

use clap::Args;

use super::device;
use crate::error::Result;
use crate::pipeline::spec::RunSpec;
use crate::report::origin::{Call, Origin, WeightsFile};
use crate::report::{self, Gathered};

#[derive(Args)]
pub struct PageArgs {
    /// The output folder of a run: finished, failed or still going on
    folder: PathBuf,
}

/// Writes the page; says where it is and what it could not show.
pub fn rebuild(args: &PageArgs) -> Result<String> {
    let Gathered { is_finished, damaged, .. } = report::rebuild(&args.folder)?;
    let page = args.folder.join(report::HTML);
    let mut text = format!("{}", page.display());
    if !is_finished {
        text += ", of an unfinished run";
    }
    text += "\n";
    damaged.iter().for_each(|d| text += &format!("left out: {d}\n"));
    Ok(text)
}

/// The record of a run's calls in its folder.
pub struct Record {
    folder: PathBuf,
    origin: Origin,
    /// What a person should know who resumes.
    pub note: Option<String>,
}

impl Record {
    /// Notes this call, behind earlier ones where a run is resumed.
    pub fn begin(folder: &Path, spec: &RunSpec, files: &[WeightsFile], is_resumed: bool) -> Result<Record> {
        let earlier = if is_resumed { Origin::read(folder)? } else { None };
        let mut origin = Origin { weights: files.to_vec(), failure: None, ..earlier.unwrap_or_default() };
        let now = Call::now(&device::name(spec.device.choice));
        let note = origin.calls.last().and_then(|earlier| differs(earlier, &now));
        origin.calls.push(now);
        origin.write(folder)?;
        Ok(Record { folder: folder.into(), origin, note })
    }

    /// Passes a run's result on; a failure is noted, and the page shows how far the run came.
    pub fn end<T>(mut self, result: Result<T>) -> Result<T> {
        if let Err(e) = &result {
            self.origin.failure = Some(e.into());
            // The failure that brought us here is the one to report; another one adds nothing.
            let _ = self.origin.write(&self.folder).and_then(|()| report::rebuild(&self.folder));
        }
        result
    }
}

/// What of two calls keeps the second from making the bits that the first would have made. Threads do not.
fn differs(earlier: &Call, now: &Call) -> Option<String> {
    let of = |c: &Call| [c.device.clone(), format!("version {}", c.version), c.system.clone()];
    let (was, is) = of(earlier).into_iter().zip(of(now)).find(|(was, is)| was != is)?;
    Some(format!(
        "begun on {was}, resumed on {is}: the student will not have the bits of a run without a break"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_resumes_elsewhere_is_told() {
        let cpu = Call { threads: 2, ..Call::now("cpu") };
        assert_eq!(differs(&cpu, &Call { threads: 1, started: 7, ..cpu.clone() }), None);
        let note = differs(&cpu, &Call { device: "cuda:0, H200".into(), ..cpu.clone() }).unwrap();
        assert!(note.starts_with("begun on cpu, resumed on cuda:0, H200: "), "{note}");
        let note = differs(&Call { version: "0.0.1".into(), ..cpu.clone() }, &cpu).unwrap();
        assert!(note.contains("begun on version 0.0.1, resumed on version "), "{note}");
    }
}
