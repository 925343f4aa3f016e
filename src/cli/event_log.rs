//! Writes TensorBoard's event file of a run.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::report::CONFIG;
use crate::report::metrics::{Stage, parse};
use crate::report::tensorboard::{EventFile, TENSORBOARD};

/// TensorBoard's file. As in `MetricsLog`, the first failure is kept and reported by `close`.
pub struct EventLog {
    folder: PathBuf,
    file: EventFile,
    flushed: Instant,
    failure: Option<io::Error>,
}

impl EventLog {
    /// Creates a new event file, which begins with the folder's config.
    ///
    /// Errors: the file cannot be created.
    pub fn open(run: &Path) -> Result<Self> {
        let config = std::fs::read_to_string(run.join(CONFIG)).unwrap_or_default();
        let folder = run.join(TENSORBOARD);
        let file = EventFile::create(&folder).map_err(|e| Error::io("write", &folder, e))?;
        let mut log = EventLog { folder, file, flushed: Instant::now(), failure: None };
        // Markdown shows text indented by four spaces verbatim.
        let indented: String = config.lines().map(|l| format!("    {l}\n")).collect();
        log.write(|file| file.text("config", &indented));
        Ok(log)
    }

    /// Writes the steps that a resumed run keeps, because a killed run may not have flushed them to its file.
    pub fn write_again(&mut self, metrics: &str) {
        for Stage { name, curves, .. } in parse(metrics) {
            for (metric, points) in curves {
                for (step, value) in points {
                    let one = [(metric.clone(), value as f32)];
                    self.write(|file| file.scalars(&name, step as usize, &one));
                }
            }
        }
    }

    /// Writes with `put`, unless an earlier write failed; flushes at most once per second.
    pub fn write(&mut self, put: impl FnOnce(&mut EventFile) -> io::Result<()>) {
        if self.failure.is_some() {
            return;
        }
        let mut result = put(&mut self.file);
        if result.is_ok() && self.flushed.elapsed() > Duration::from_secs(1) {
            (result, self.flushed) = (self.file.flush(), Instant::now());
        }
        self.failure = result.err();
    }

    /// Flushes and closes the file.
    ///
    /// Errors: the first write that failed.
    pub fn close(mut self) -> Result<()> {
        match self.failure.take().map_or_else(|| self.file.flush(), Err) {
            Ok(()) => Ok(()),
            Err(e) => Err(Error::io("write", &self.folder, e)),
        }
    }
}
