//! Writes `metrics.jsonl`.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::report::metrics::Record;
use crate::weights::write_atomic;

/// The file `metrics.jsonl`. An observer cannot return an error, so the first failure is kept and reported by
/// `store` or `close`.
pub struct MetricsLog {
    pub path: PathBuf,
    file: BufWriter<File>,
    flushed: Instant,
    failure: Option<io::Error>,
}

impl MetricsLog {
    /// Opens the file for appending if the run is resumed, or empties it.
    pub fn open(path: PathBuf, is_resumed: bool) -> Result<Self> {
        let file = if is_resumed { appending(&path) } else { File::create(&path) };
        let file = file.map_err(|e| Error::io("write", &path, e))?;
        Ok(MetricsLog { path, file: BufWriter::new(file), flushed: Instant::now(), failure: None })
    }

    /// Keeps the records of the steps for which `is_kept` holds, each step once, and removes all other lines,
    /// such as the incomplete last line of a killed run. Returns how many records it keeps.
    pub fn keep(&mut self, is_kept: &dyn Fn(&str, usize) -> bool) -> Result<usize> {
        let cannot = |e| Error::io("read", &self.path, e);
        let old = std::fs::read(&self.path).map_err(cannot)?;
        let mut seen: HashMap<String, HashSet<usize>> = HashMap::new();
        let mut kept = Vec::new();
        for line in old.split(|b| *b == b'\n') {
            let Ok(Record { stage, step, .. }) = serde_json::from_slice(line) else { continue };
            if is_kept(&stage, step) && seen.entry(stage).or_default().insert(step) {
                kept.push(line);
            }
        }
        write_atomic(&self.path, |w| {
            kept.iter().try_for_each(|line| w.write_all(line).and_then(|()| w.write_all(b"\n")))
        })?;
        let file = appending(&self.path).map_err(|e| Error::io("write", &self.path, e))?;
        self.file = BufWriter::new(file);
        Ok(kept.len())
    }

    /// Writes all records through to the disk.
    ///
    /// Errors: this or an earlier write failed.
    pub fn store(&mut self) -> Result<()> {
        if self.failure.is_none() {
            let sync = |file: &File| match file.sync_data() {
                // A pipe or a device cannot be synchronised.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
                other => other,
            };
            self.failure = self.file.flush().and_then(|()| sync(self.file.get_ref())).err();
        }
        match &self.failure {
            None => Ok(()),
            // The failure stays recorded, so that no later step is written after a gap.
            Some(e) => Err(Error::Run(format!("cannot write {}: {e}", self.path.display()))),
        }
    }

    /// Writes one record, unless an earlier write failed.
    pub fn write(&mut self, record: &Record) {
        if self.failure.is_some() {
            return;
        }
        self.failure = self.try_write(record).err();
    }

    fn try_write(&mut self, record: &Record) -> io::Result<()> {
        serde_json::to_writer(&mut self.file, record)?;
        self.file.write_all(b"\n")?;
        // A flush per second is often enough for `tail -f` and costs nothing.
        if self.flushed.elapsed() > Duration::from_secs(1) {
            self.file.flush()?;
            self.flushed = Instant::now();
        }
        Ok(())
    }

    /// Flushes and closes the file.
    ///
    /// Errors: the first write that failed.
    pub fn close(mut self) -> Result<()> {
        match self.failure.take().map_or_else(|| self.file.flush(), Err) {
            Ok(()) => Ok(()),
            Err(e) => Err(Error::io("write", &self.path, e)),
        }
    }
}

fn appending(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux has a device that is always full.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_stops_the_next_checkpoint() {
        let mut log = MetricsLog::open("/dev/full".into(), false).unwrap();
        log.store().unwrap();
        for step in 0..2 {
            let record = Record { stage: "a".into(), step, ..Default::default() };
            log.write(&record);
            let e = log.store().unwrap_err();
            assert_eq!(e.exit_code(), 1);
            assert_eq!(e.to_string(), "cannot write /dev/full: No space left on device (os error 28)");
        }
        assert_eq!(log.close().unwrap_err().exit_code(), 1);
    }
}
