//! Atomic writes: a file is replaced as a whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Writes `path` so that a reader, or a crash at any moment, finds either the old file or the new one, each
/// complete.
///
/// `fill` writes to a temporary file in the same folder, because a rename across file systems would be a
/// copy. That file is flushed to the disk and renamed over `path`, and the folder is flushed so that the
/// rename is on the disk too. If `fill` fails or panics, the temporary file is removed and `path` stays as
/// it was. A symbolic link stays, and the file that it leads to is replaced.
///
/// Errors: a device, a pipe or a socket, which a rename would destroy; a failed write.
pub fn write_atomic(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    followed(path).and_then(|path| replace(&path, None, fill)).map_err(|e| Error::io("write", path, e))
}

/// As [`write_atomic`], but keeps the old file as `previous`, which must be in the same folder. A crash at
/// any moment leaves at least one of the two files, complete.
pub fn write_keeping(
    path: impl AsRef<Path>,
    previous: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    replace(path, Some(previous), fill).map_err(|e| Error::io("write", path, e))
}

/// Whether `name` is the name of one of our temporary files, which only a killed process leaves behind.
pub fn is_temporary(name: &str) -> bool {
    let parts = name.strip_prefix('.').and_then(|n| n.strip_suffix(".tmp")).map(|n| n.rsplitn(3, '.'));
    let is_number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    parts.is_some_and(|mut p| p.next().is_some_and(is_number) && p.next().is_some_and(is_number))
}

/// The file that a write to `path` replaces: `path`, or what a symbolic link leads to, even if that does not exist yet.
///
/// Errors: a device, a pipe or a socket; a link that cannot be read.
fn followed(path: &Path) -> io::Result<PathBuf> {
    if fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        return Err(io::Error::other("it is a device, a pipe or a socket; name a regular file"));
    }
    let mut path = path.to_path_buf();
    // As many links as Linux follows.
    for _ in 0..40 {
        if !path.is_symlink() {
            return Ok(path);
        }
        let to = fs::read_link(&path)?;
        path = path.parent().unwrap_or(Path::new("")).join(to);
    }
    Err(io::Error::other("its symbolic links lead in a circle"))
}

fn replace(
    path: &Path,
    previous: Option<&Path>,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
    let folder = match path.parent() {
        Some(p) if p != Path::new("") => p,
        Some(_) | None => Path::new("."),
    };
    // The process id and the counter give two writers of the same path, in one process or in several,
    // different files.
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let serial = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.{serial}.tmp", std::process::id()));
    let temporary = Temporary(folder.join(hidden));

    // The file is also opened for reading, because `seal::append` reads back what was written.
    let open = OpenOptions::new().read(true).write(true).create_new(true).open(&temporary.0)?;
    let mut w = BufWriter::new(open);
    fill(&mut w)?;
    w.flush()?;
    w.get_ref().sync_all()?;
    drop(w);
    if let Some(previous) = previous {
        match fs::rename(path, previous) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
    }
    fs::rename(&temporary.0, path)?;
    std::mem::forget(temporary);
    // Only Unix can open a folder to flush it.
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Removes the temporary file when it is dropped, which happens unless the write succeeded.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // The caller gets the error of the write. A further error of this removal would not help.
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
    fn the_old_file_can_be_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (path, previous) = (dir.path().join("new"), dir.path().join("old"));
        for text in ["1", "2", "3"] {
            write_keeping(&path, &previous, |w| w.write_all(text.as_bytes())).unwrap();
        }
        assert!(write_keeping(&path, &previous, |_| Err(io::Error::other("disk full"))).is_err());
        assert_eq!([&path, &previous].map(|p| fs::read_to_string(p).unwrap()), ["3", "2"]);
        assert_eq!(names(dir.path()), ["new", "old"]);
    }

    #[test]
    fn temporary_files_are_recognised_by_their_names() {
        for name in [".student.npz.77.0.tmp", ".a.1.2.tmp"] {
            assert!(is_temporary(name), "{name}");
        }
        for name in ["a.1.2.tmp", ".a.1.x.tmp", ".tmp", ".a..2.tmp", ".a.1.2", ".vimrc.tmp", "student.npz"] {
            assert!(!is_temporary(name), "{name}");
        }
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

    #[cfg(unix)]
    #[test]
    fn a_link_stays_and_the_file_that_it_leads_to_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let [link, second, file] = ["link", "sub/second", "sub/file"].map(|name| dir.path().join(name));
        std::os::unix::fs::symlink("sub/second", &link).unwrap();
        std::os::unix::fs::symlink("file", &second).unwrap();
        // The file does not exist before the first write.
        for text in ["one", "two"] {
            write_atomic(&link, |w| w.write_all(text.as_bytes())).unwrap();
            assert!(link.is_symlink() && second.is_symlink() && !file.is_symlink());
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
        std::os::unix::fs::symlink("circle", dir.path().join("circle")).unwrap();
        let e = write_atomic(dir.path().join("circle"), |_| Ok(())).unwrap_err();
        assert!(e.to_string().contains("/circle: its symbolic links lead in a circle"), "{e}");
        assert_eq!(names(dir.path()), ["circle", "link", "sub"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_refused_and_stays() {
        use std::os::unix::fs::FileTypeExt;
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let e = write_atomic(&pipe, |_| Ok(())).unwrap_err();
        assert!(e.to_string().contains("/pipe: it is a device, a pipe or a socket"), "{e}");
        assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
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
