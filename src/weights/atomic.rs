//! Files that are either whole or absent.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Writes `path` so that a reader, or a crash at any moment, meets the old file or the new one and nothing between.
///
/// `fill` writes to a temporary file in the same folder (a rename across file systems is a copy), which is flushed to
/// the disk, renamed over `path`, and the folder flushed so that the rename itself survives. When `fill` fails or
/// panics, the temporary file goes and `path` stays as it was.
pub fn write_atomic(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    replace(path, fill).map_err(|e| Error::io("write", path, e))
}

fn replace(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
    let folder = match path.parent() {
        Some(p) if p != Path::new("") => p,
        Some(_) | None => Path::new("."),
    };
    // Process id and counter keep two writers of the same path, in one process or several, out of each other's way.
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let serial = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.{serial}.tmp", std::process::id()));
    let temporary = Temporary(folder.join(hidden));

    let mut w = BufWriter::new(OpenOptions::new().write(true).create_new(true).open(&temporary.0)?);
    fill(&mut w)?;
    w.flush()?;
    w.get_ref().sync_all()?;
    drop(w);
    fs::rename(&temporary.0, path)?;
    std::mem::forget(temporary);
    // Only Unix can open a folder to flush it.
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Removes the temporary file on every way out but success.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // The failure that brought us here is the one to report; this one adds nothing.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut v: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        v.sort();
        v
    }

    #[test]
    fn replaces_the_old_file_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        write_atomic(&path, |w| w.write_all(b"old")).unwrap();
        write_atomic(&path, |w| w.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["report.json"]);
    }

    #[test]
    fn a_failed_or_panicked_write_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, |w| w.write_all(b"old")).unwrap();
        let e = write_atomic(&path, |w| {
            w.write_all(b"half of the new")?;
            Err(io::Error::other("disk full"))
        })
        .unwrap_err();
        assert_eq!(e.exit_code(), 1);
        assert!(e.to_string().contains("disk full") && e.to_string().contains("/a"), "{e}");
        let panicked = std::panic::catch_unwind(|| write_atomic(&path, |_| panic!("inside fill")));
        assert!(panicked.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn a_missing_folder_or_a_folder_as_target_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write_atomic(dir.path().join("no/such/file"), |_| Ok(())).is_err());
        let target = dir.path().join("folder");
        fs::create_dir(&target).unwrap();
        assert!(write_atomic(&target, |_| Ok(())).is_err());
        assert!(write_atomic("/", |_| Ok(())).is_err());
        assert_eq!(names(dir.path()), ["folder"]);
    }
}
