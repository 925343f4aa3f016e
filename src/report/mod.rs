//! What a run leaves for people: the final table, `summary.json`, pictures, `report.html` and TensorBoard's files.

mod asked;
mod bars;
mod blocks;
mod chart;
mod costs;
pub mod experiment;
mod gather;
mod grid;
mod html;
mod images;
pub mod metrics;
pub mod origin;
mod table;
pub mod tensorboard;
mod verdict;

use std::fs;
use std::io::{self, Write};
use std::path::Path;

pub use gather::Gathered;
pub use grid::{STRIP_IMAGES, grid_png, small_grid_png};
pub use html::html;
pub use table::{duration, final_table, score_table};

use crate::error::{Error, Result};
use crate::summary::Summary;
use crate::weights::write_atomic;

/// Names in a run's folder.
pub const CONFIG: &str = "resolved.toml";
pub const ORIGIN: &str = "run.json";
pub const METRICS: &str = "metrics.jsonl";
pub const LABEL_STATISTICS: &str = "label_statistics.json";
pub const SUMMARY: &str = "summary.json";
pub const SAMPLES: &str = "samples.png";
pub const HTML: &str = "report.html";

/// The picture that was taken after so many steps of stage one.
pub fn samples_at(step: u64) -> String {
    format!("samples-{step}.png")
}

/// Removes what an earlier run left here under names of its own.
pub fn remove_old(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?.filter_map(|e| e.ok()) {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let step = name.strip_prefix("samples-").and_then(|n| n.strip_suffix(".png"));
        if step.is_some_and(|step| step.parse::<u64>().is_ok())
            || [ORIGIN, LABEL_STATISTICS].contains(&&*name)
        {
            fs::remove_file(entry.path()).map_err(|e| Error::io("replace", entry.path(), e))?;
        }
    }
    let events = folder.join(tensorboard::TENSORBOARD);
    for entry in fs::read_dir(&events).into_iter().flatten().filter_map(|e| e.ok()) {
        if tensorboard::is_event_file(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path()).map_err(|e| Error::io("replace", entry.path(), e))?;
        }
    }
    Ok(())
}

/// Writes `summary.json`, and `report.html` from all that the folder holds.
pub fn write(folder: &Path, summary: &Summary) -> Result<()> {
    let json = serde_json::to_vec_pretty(summary)
        .map_err(|e| Error::Run(format!("cannot write the summary as JSON: {e}")))?;
    write_atomic(folder.join(SUMMARY), |w| {
        w.write_all(&json)?;
        w.write_all(b"\n")
    })?;
    rebuild(folder).map(|_| ())
}

/// Writes `report.html` from what the folder of a run holds, be the run finished or not; returns what that is.
///
/// Errors: a folder that holds nothing of a run, or cannot be read or written to.
pub fn rebuild(folder: &Path) -> Result<Gathered> {
    let found = Gathered::read(folder)?;
    write_atomic(folder.join(HTML), |w| w.write_all(html(&found).as_bytes()))?;
    Ok(found)
}

/// A run's summary, if the folder has one.
///
/// Errors: one that does not parse, or holds what no run writes.
pub fn read_summary(folder: &Path) -> Result<Option<Summary>> {
    let path = folder.join(SUMMARY);
    let Some(bytes) = optional(&path)? else { return Ok(None) };
    let summary = serde_json::from_slice(&bytes).map_err(|e| e.to_string());
    let summary = summary.and_then(|s: Summary| s.validate().map(|()| s));
    summary.map(Some).map_err(|e| Error::data(&path, format!("not a run's summary: {e}")))
}

fn optional(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_folder_gives_both_files_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let summary = Summary { name: "bare".into(), ..Summary::default() };
        write(dir.path(), &summary).unwrap();
        let back: Summary = serde_json::from_slice(&fs::read(dir.path().join(SUMMARY)).unwrap()).unwrap();
        assert_eq!(back, summary);
        assert!(fs::read_to_string(dir.path().join(HTML)).unwrap().contains("bare"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
