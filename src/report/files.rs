//! The names of the files in a run's folder.

use std::fs;
use std::io;
use std::path::Path;

use crate::error::{Error, Result};

/// The config with every default filled in.
pub const CONFIG: &str = "resolved.toml";
/// The calls of the program, and the weights that the run read.
pub const ORIGIN: &str = "run.json";
/// One line for every training step.
pub const METRICS: &str = "metrics.jsonl";
pub const LABEL_STATISTICS: &str = "label_statistics.json";
pub const SUMMARY: &str = "summary.json";
/// A grid of images of the trained generator.
pub const SAMPLES: &str = "samples.png";
/// What these images were asked to show, and what the teachers see in them.
pub const CAPTIONS: &str = "samples.json";
/// The model card.
pub const CARD: &str = "README.md";
pub const HTML: &str = "report.html";

/// Name of the picture taken after `step` steps of stage one.
pub fn samples_at(step: u64) -> String {
    format!("samples-{step}.png")
}

/// The step of a name made by [`samples_at`].
pub(super) fn step_of_samples(name: &str) -> Option<u64> {
    name.strip_prefix("samples-")?.strip_suffix(".png")?.parse().ok()
}

/// A file's bytes, or nothing if there is no such file.
///
/// Errors: a file that exists and cannot be read.
pub(super) fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}
