//! What a run leaves for people: the final table, `summary.json`, image grids and `report.html`.

mod chart;
pub mod experiment;
mod grid;
mod html;
pub mod metrics;
mod table;

use std::fs;
use std::io::{self, Write};
use std::path::Path;

pub use grid::grid_png;
pub use html::{Page, html};
pub use table::{duration, final_table, score_table};

use crate::error::{Error, Result};
use crate::summary::Summary;
use crate::weights::write_atomic;

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
    write_atomic(folder.join(SUMMARY), |w| {
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
    write_atomic(folder.join(HTML), |w| w.write_all(html(&page).as_bytes()))
}

/// A run's summary, if the folder has one.
///
/// Errors: one that does not parse.
pub fn read_summary(folder: &Path) -> Result<Option<Summary>> {
    let path = folder.join(SUMMARY);
    let Some(bytes) = optional(&path)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| Error::data(&path, format!("not a run's summary: {e}")))
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
