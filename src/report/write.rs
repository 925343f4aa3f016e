//! Writes and reads a run's results in its folder: `summary.json` and `report.html`.

use std::fs;
use std::io::Write;
use std::path::Path;

use super::card;
use super::files::{CAPTIONS, HTML, LABEL_STATISTICS, ORIGIN, SUMMARY, read_if_present, step_of_samples};
use super::page::page_html;
use super::run_folder::RunFolder;
use super::tensorboard;
use crate::error::{Error, Result};
use crate::summary::Summary;
use crate::weights::write_atomic;

/// Removes the files of an earlier run whose names vary or that a new run may not write: snapshots,
/// `run.json`, label statistics, captions, the model card and event files.
pub fn remove_old(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?.filter_map(|e| e.ok()) {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if step_of_samples(&name).is_some() || [ORIGIN, LABEL_STATISTICS, CAPTIONS].contains(&&*name) {
            fs::remove_file(entry.path()).map_err(|e| Error::io("replace", entry.path(), e))?;
        }
    }
    card::remove(folder)?;
    let events = folder.join(tensorboard::TENSORBOARD);
    for entry in fs::read_dir(&events).into_iter().flatten().filter_map(|e| e.ok()) {
        if tensorboard::is_event_file(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path()).map_err(|e| Error::io("replace", entry.path(), e))?;
        }
    }
    Ok(())
}

/// Writes `summary.json`, the model card if there is a student, then `report.html` from the contents of the folder.
pub fn write(folder: &Path, summary: &Summary) -> Result<()> {
    let json = serde_json::to_vec_pretty(summary)
        .map_err(|e| Error::Run(format!("cannot write the summary as JSON: {e}")))?;
    write_atomic(folder.join(SUMMARY), |w| {
        w.write_all(&json)?;
        w.write_all(b"\n")
    })?;
    card::write(folder, summary)?;
    rebuild(folder).map(|_| ())
}

/// Writes `report.html` from the contents of a run's folder, which it returns. The run need not have
/// finished.
///
/// Errors: a folder that is not a run's, or that cannot be read or written.
pub fn rebuild(folder: &Path) -> Result<RunFolder> {
    let found = RunFolder::read(folder)?;
    write_atomic(folder.join(HTML), |w| w.write_all(page_html(&found).as_bytes()))?;
    Ok(found)
}

/// Reads a run's summary, if the folder has one.
///
/// Errors: a summary that does not parse, or whose figures no run can produce.
pub fn read_summary(folder: &Path) -> Result<Option<Summary>> {
    let path = folder.join(SUMMARY);
    let Some(bytes) = read_if_present(&path)? else { return Ok(None) };
    let summary = serde_json::from_slice(&bytes).map_err(|e| e.to_string());
    let summary = summary.and_then(|s: Summary| s.validate().map(|()| s));
    summary.map(Some).map_err(|e| Error::data(&path, format!("not a run's summary: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_to_an_empty_folder_leaves_exactly_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let summary = Summary { name: "bare".into(), ..Summary::default() };
        write(dir.path(), &summary).unwrap();
        let back: Summary = serde_json::from_slice(&fs::read(dir.path().join(SUMMARY)).unwrap()).unwrap();
        assert_eq!(back, summary);
        assert!(fs::read_to_string(dir.path().join(HTML)).unwrap().contains("bare"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
