//! What a run leaves for people: the final table, `summary.json`, image grids and `report.html`.

mod chart;
mod grid;
mod html;
pub mod metrics;
mod table;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

pub use grid::grid_png;
pub use html::{Page, html};
pub use table::{duration, final_table, score_table};

use crate::error::{Error, Result};
use crate::pipeline::summary::Summary;

/// Names in a run's folder.
pub const CONFIG: &str = "resolved.toml";
pub const METRICS: &str = "metrics.jsonl";
pub const SUMMARY: &str = "summary.json";
pub const SAMPLES: &str = "samples.png";
pub const HTML: &str = "report.html";

/// Writes `summary.json`, and `report.html` from it and from what the folder holds: the config, the metrics and the
/// sample grid, each left out of the page when absent.
pub fn write(folder: &Path, summary: &Summary) -> Result<()> {
    let json = serde_json::to_vec_pretty(summary)
        .map_err(|e| Error::Run(format!("cannot write the summary as JSON: {e}")))?;
    write_atomic(&folder.join(SUMMARY), |w| {
        w.write_all(&json)?;
        w.write_all(b"\n")
    })?;
    let config = optional(&folder.join(CONFIG))?.unwrap_or_default();
    let grid = optional(&folder.join(SAMPLES))?;
    let stages = match optional(&folder.join(METRICS))? {
        Some(bytes) => metrics::parse(&String::from_utf8_lossy(&bytes)),
        None => Vec::new(),
    };
    let page = Page {
        summary,
        stages: &stages,
        grid_png: grid.as_deref(),
        config: &String::from_utf8_lossy(&config),
    };
    write_atomic(&folder.join(HTML), |w| w.write_all(html(&page).as_bytes()))
}

fn optional(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// Writes `path` whole or not at all: a temporary file beside it, flushed to the disk and renamed over it.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let replace = || -> io::Result<()> {
        let mut w = BufWriter::new(File::create(&temporary)?);
        fill(&mut w)?;
        w.flush()?;
        w.get_ref().sync_all()?;
        fs::rename(&temporary, path)
    };
    replace().map_err(|e| {
        // The failure that brought us here is the one to report.
        let _ = fs::remove_file(&temporary);
        Error::io("write", path, e)
    })
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

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, |w| w.write_all(b"old")).unwrap();
        assert!(write_atomic(&path, |_| Err(io::Error::other("disk full"))).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
