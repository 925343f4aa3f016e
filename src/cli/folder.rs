//! The output folder of a run or a training: whether it may be used, its lock, and its old results.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::pipeline::{checkpoint, export, sample};
use crate::report;
use crate::weights::{self, write_atomic};

/// What to do with a folder that is not empty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Existing {
    Refuse,
    Resume,
    Replace,
}

/// A folder that a run or a training may write to.
#[derive(Debug)]
pub struct OutputFolder {
    path: PathBuf,
    existing: Existing,
    lock: Option<Lock>,
}

/// An opened folder or file, locked until this value is dropped, because two runs in one folder would mix their files. The
/// system frees the lock when the process ends in any way. Some file systems have no locks; there, none is held.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] File);

impl Lock {
    /// Locks a folder; `None` if another process holds its lock.
    ///
    /// Errors: a folder that cannot be opened.
    fn take(folder: &Path) -> Result<Option<Lock>> {
        Ok(Lock::of(File::open(folder).map_err(|e| Error::io("read", folder, e))?))
    }

    /// Locks a file, which is made if it is not there; `None` if another process holds its lock. Unlike a folder's lock, it
    /// also holds between the machines that share a folder over NFS, which needs the file to be open for writing.
    ///
    /// Errors: a file that cannot be made or opened.
    pub fn take_file(path: &Path) -> Result<Option<Lock>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        Ok(Lock::of(file.map_err(|e| Error::io("open", path, e))?))
    }

    fn of(file: File) -> Option<Lock> {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => None,
            Ok(()) | Err(TryLockError::Error(_)) => Some(Lock(file)),
        }
    }
}

impl OutputFolder {
    /// Decides whether the folder may be used, without changing anything on the disk.
    ///
    /// Errors: a folder that is not empty, with `Refuse`; one that was started with another config, with `Resume`.
    pub fn choose(path: PathBuf, existing: Existing, resolved: &str) -> Result<Self> {
        let shown = path.display();
        let is_empty = match fs::read_dir(&path) {
            // Half-written temporary files of a killed run do not count.
            Ok(entries) => names(entries).all(|name| weights::is_temporary(&name)),
            Err(e) if e.kind() == ErrorKind::NotFound => true,
            Err(e) if e.kind() == ErrorKind::NotADirectory => {
                return Err(Error::Usage(format!(
                    "output folder {shown}: a file exists at this path or above it"
                )));
            }
            Err(e) => return Err(Error::io("read", &path, e)),
        };
        match existing {
            Existing::Refuse if !is_empty => {
                return Err(Error::Usage(format!(
                    "output folder {shown} is not empty; use --resume to continue it, --force to replace the results of \
                     an earlier run, or --out to choose another"
                )));
            }
            Existing::Resume => check_same(&path, resolved)?,
            Existing::Refuse | Existing::Replace => {}
        }
        Ok(OutputFolder { path, existing, lock: None })
    }

    /// Protects what this command reads from what it writes.
    ///
    /// Errors: one of `inputs` is a folder around this one, whose files would count as input when the run is resumed; one
    /// is an old result in this folder, which `--force` would remove.
    pub fn protect(&self, inputs: &[&Path]) -> Result<()> {
        let folder = whole(&self.path);
        let is_hidden = |part: &OsStr| part.as_encoded_bytes().starts_with(b".");
        let is_around = |input: &&&Path| {
            let below = folder.strip_prefix(whole(input));
            input.is_dir() && below.is_ok_and(|below| !below.iter().any(is_hidden))
        };
        if let Some(input) = inputs.iter().find(is_around) {
            return Err(Error::Usage(format!(
                "output folder {} lies in {}, whose files this command reads: it would read its own results when it is \
                 resumed; choose another folder with --out",
                self.path.display(),
                input.display()
            )));
        }
        let goes = |input: &Path| {
            let whole = fs::canonicalize(input).ok()?;
            let name = whole.file_name()?.to_string_lossy().into_owned();
            (self.existing == Existing::Replace && whole.parent() == Some(&folder) && is_result(&name))
                .then_some(())
        };
        match inputs.iter().find(|input| goes(input).is_some()) {
            None => Ok(()),
            Some(input) => Err(Error::Usage(format!(
                "--force would remove {}, which this command reads: the file lies in the output folder under the name of a \
                 result; choose another folder with --out",
                input.display()
            ))),
        }
    }

    /// Creates the folder, removes the results of an earlier run and half-written files, and writes the
    /// config. Results must not stay beside a config that did not produce them.
    ///
    /// Errors: another process is writing to the folder; an operation on a file fails.
    pub fn prepare(&mut self, resolved: &str) -> Result<()> {
        fs::create_dir_all(&self.path).map_err(|e| Error::io("make the output folder", &self.path, e))?;
        if self.lock.is_none() {
            let lock = Lock::take(&self.path)?.ok_or_else(|| {
                Error::Usage(format!(
                    "output folder {}: another dfka-engine is writing to it; choose another with --out",
                    self.path.display()
                ))
            })?;
            self.lock = Some(lock);
        }
        let entries = fs::read_dir(&self.path).map_err(|e| Error::io("read", &self.path, e))?;
        let goes = |name: &String| match self.existing {
            Existing::Resume => weights::is_temporary(name),
            Existing::Refuse | Existing::Replace => is_result(name),
        };
        for name in names(entries).filter(goes) {
            let old = self.path.join(name);
            match fs::remove_file(&old) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io("replace", &old, e)),
                Ok(()) | Err(_) => {}
            }
        }
        if self.existing != Existing::Resume {
            report::remove_old(&self.path)?;
        }
        write_atomic(self.path.join(report::CONFIG), |w| w.write_all(resolved.as_bytes()))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The whole path of a folder that may not exist yet, without links.
fn whole(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let known = |above: &Path| {
        let below = path.strip_prefix(above).unwrap_or(Path::new(""));
        Some(fs::canonicalize(above).ok()?.join(below))
    };
    path.ancestors().find_map(known).unwrap_or_else(|| path.clone())
}

fn names(entries: fs::ReadDir) -> impl Iterator<Item = String> {
    // A name that is not UTF-8 is not one of ours, but it makes the folder non-empty.
    entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned())
}

/// Whether a run or a teacher's training writes files of this name.
fn is_result(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        report::SUMMARY,
        report::HTML,
        report::SAMPLES,
        report::METRICS,
        report::CONFIG,
        checkpoint::FILE,
        checkpoint::PREVIOUS,
        "weights.npz",
        export::LABELS,
        sample::GENERATOR,
    ];
    let of_baseline = ["noise.", "ka."].iter().find_map(|prefix| name.strip_prefix(prefix));
    let of_student = of_baseline.unwrap_or(name).strip_prefix("student").and_then(|n| {
        [".npz", ".safetensors", ".onnx"].iter().find_map(|extension| n.strip_suffix(extension))
    });
    let is_student = of_student.is_some_and(|n| {
        let block = n.strip_prefix("-block").unwrap_or("0");
        (n.is_empty() || n.starts_with("-block")) && block.bytes().all(|b| b.is_ascii_digit())
    });
    NAMES.contains(&name) || is_student || weights::is_temporary(name)
}

/// Checks that a resumed run has the config it began with, except for [`FREE_KEYS`].
///
/// Errors: nothing to resume, or the first line that differs.
fn check_same(folder: &Path, resolved: &str) -> Result<()> {
    let path = folder.join(report::CONFIG);
    let original = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let message = format!("--resume: nothing to continue, {} does not exist", path.display());
            return Err(Error::Usage(message));
        }
        Err(e) => return Err(Error::io("read", &path, e)),
    };
    let binding = |text: &str| -> Vec<(usize, String)> {
        let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.to_owned()));
        lines
            .filter(|(_, line)| !FREE_KEYS.iter().any(|key| line.starts_with(&format!("{key} = "))))
            .collect()
    };
    let (there, here) = (binding(&original), binding(resolved));
    for i in 0..there.len().max(here.len()) {
        let (a, b) = (there.get(i), here.get(i));
        if a.map(|a| &a.1) != b.map(|b| &b.1) {
            let line = a.or(b).map_or(0, |(line, _)| *line);
            let shown = |at: Option<&(usize, String)>| {
                at.map_or("nothing".to_owned(), |(_, text)| format!("`{text}`"))
            };
            return Err(Error::Usage(format!(
                "--resume: the config has changed since the run started: {}:{line} has {}, the config now gives {}",
                path.display(),
                shown(a),
                shown(b)
            )));
        }
    }
    Ok(())
}

/// Keys that do not affect the student's bits (on a GPU, `teachers_at_once` changes their rounding), so that a resumed
/// run may change them.
const FREE_KEYS: [&str; 6] = [
    "checkpoint_seconds",
    "least_diversity",
    "least_entropy",
    "least_information",
    "least_found",
    "teachers_at_once",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_and_empty_folders_are_accepted_and_others_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let mut folder = OutputFolder::choose(path.clone(), Existing::Refuse, "x = 1\n").unwrap();
        assert!(!path.exists(), "choosing a folder must not create it");
        folder.prepare("x = 1\n").unwrap();
        assert_eq!(fs::read_to_string(path.join(report::CONFIG)).unwrap(), "x = 1\n");

        let e = OutputFolder::choose(path.clone(), Existing::Refuse, "").unwrap_err();
        assert_eq!(e.exit_code(), 2);
        // Killed before the config was written.
        let killed = dir.path().join("killed");
        fs::create_dir(&killed).unwrap();
        fs::write(killed.join(".resolved.toml.31.0.tmp"), "x =").unwrap();
        let mut folder = OutputFolder::choose(killed.clone(), Existing::Refuse, "x = 1\n").unwrap();
        folder.prepare("x = 1\n").unwrap();
        assert_eq!(fs::read_dir(&killed).unwrap().count(), 1);
        let e = OutputFolder::choose(path.join(report::CONFIG), Existing::Refuse, "").unwrap_err();
        assert!(e.to_string().contains("a file exists at this path or above it"), "{e}");
        let e = OutputFolder::choose(dir.path().join("none"), Existing::Resume, "").unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("nothing to continue"), "{e}");
    }

    #[test]
    fn a_folder_does_not_lie_in_its_input() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("images");
        fs::create_dir_all(images.join("more")).unwrap();
        let protect = |out: &Path, input: &Path| {
            OutputFolder::choose(out.into(), Existing::Refuse, "").unwrap().protect(&[input])
        };
        for out in ["out", "more/out", "more"] {
            let e = protect(&images.join(out), &images).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().contains("choose another folder with --out"), "{e}");
        }
        protect(&images.join(".out/a"), &images).unwrap();
        protect(&dir.path().join("images-out"), &images).unwrap();
        protect(&images.join("out"), &images.join("more")).unwrap();
    }

    #[test]
    fn a_folder_belongs_to_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_path_buf();
        let mut first = OutputFolder::choose(path.clone(), Existing::Refuse, "x = 1\n").unwrap();
        let mut second = OutputFolder::choose(path.clone(), Existing::Refuse, "x = 2\n").unwrap();
        first.prepare("x = 1\n").unwrap();
        let e = second.prepare("x = 2\n").unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("another dfka-engine is writing to it"), "{e}");
        assert_eq!(fs::read_to_string(path.join(report::CONFIG)).unwrap(), "x = 1\n");
        drop(first);
        let mut resumed = OutputFolder::choose(path, Existing::Resume, "x = 1\n").unwrap();
        resumed.prepare("x = 1\n").unwrap();
    }

    #[test]
    fn resume_needs_the_same_config_and_force_removes_old_results() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_path_buf();
        let keep = path.join("notes.txt");
        fs::write(&keep, "mine").unwrap();
        fs::write(path.join(report::CONFIG), "a = 1\nb = 2\n").unwrap();
        fs::write(path.join(report::SUMMARY), "{}").unwrap();
        let results = ["student.npz", "noise.student-block12.npz", checkpoint::PREVIOUS, ".a.npz.7.0.tmp"];
        results.iter().for_each(|name| fs::write(path.join(name), "old").unwrap());
        let others = ["students.npz", "student-blockX.npz", "my.student.npz", "student-best.npz"];
        others.iter().for_each(|name| fs::write(path.join(name), "mine").unwrap());

        OutputFolder::choose(path.clone(), Existing::Resume, "a = 1\nb = 2\n").unwrap();
        let e =
            OutputFolder::choose(path.clone(), Existing::Resume, "a = 1\nb = 3\n").unwrap_err().to_string();
        assert!(e.contains(":2 has `b = 2`, the config now gives `b = 3`"), "{e}");
        let free = "a = 1\nleast_diversity = 0\nb = 2\ncheckpoint_seconds = 3\n";
        OutputFolder::choose(path.clone(), Existing::Resume, free).unwrap();
        let e = OutputFolder::choose(path.clone(), Existing::Resume, "a = 1\n").unwrap_err().to_string();
        assert!(e.contains("gives nothing"), "{e}");

        OutputFolder::choose(path.clone(), Existing::Replace, "new").unwrap().prepare("new").unwrap();
        assert!(keep.exists() && !path.join(report::SUMMARY).exists());
        assert!(results.iter().all(|name| !path.join(name).exists()));
        assert!(others.iter().all(|name| path.join(name).exists()));
    }
}
