//! `run.json`: the calls of the program and the weights that made a result, and the failure that ended a run
//! without one.

use std::path::{Path, PathBuf};

use super::files::{ORIGIN, read_if_present};
use super::time::unix_seconds;
use crate::error::{Error, Result};
use crate::text;
use crate::weights::{sha256, write_atomic};

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    /// The call that began the run, then one for every time it was resumed.
    pub calls: Vec<Call>,
    /// The files that the student's bits depend on.
    pub weights: Vec<WeightsFile>,
    /// Why the last call ended without a result; `None` while it runs and after it finished.
    #[serde(default)]
    pub failure: Option<Failure>,
}

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Failure {
    /// The error message as it was printed.
    pub message: String,
    /// Exit code of the process (see [`Error::exit_code`]).
    pub exit_code: u8,
}

impl Failure {
    /// Whether a signal stopped the run: exit codes from 128 on.
    pub(super) fn is_stop(&self) -> bool {
        self.exit_code >= 128
    }

    /// Whether the training itself diverged or collapsed, so that a resumed run fails in the same way.
    pub(super) fn is_repeatable(&self) -> bool {
        self.exit_code == Error::Diverged(String::new()).exit_code()
    }
}

impl From<&Error> for Failure {
    fn from(e: &Error) -> Failure {
        Failure { message: e.to_string(), exit_code: e.exit_code() }
    }
}

/// One call of the program.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Call {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Seconds since 1970, UTC.
    pub started: u64,
    pub version: String,
    pub device: String,
    /// Number of threads for steps on the CPU.
    pub threads: usize,
    /// Operating system and processor architecture, such as `linux x86_64`.
    pub system: String,
}

/// The role of the evaluation data's file. No training reads it.
pub const EVALUATION: &str = "evaluation data";

/// A file that a run read.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct WeightsFile {
    /// The file's role, such as `teacher A`.
    pub name: String,
    pub file: PathBuf,
    pub bytes: u64,
    pub sha256: String,
}

impl Call {
    /// The current process, running on `device`.
    pub fn now(device: &str) -> Call {
        Call {
            command: std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect(),
            started: unix_seconds(),
            version: env!("CARGO_PKG_VERSION").into(),
            device: device.into(),
            threads: rayon::current_num_threads(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }

    /// The command line, quoted for a shell.
    pub(super) fn line(&self) -> String {
        text::shell_line(&self.command)
    }
}

impl WeightsFile {
    /// Length and hash of a file.
    ///
    /// Errors: a file that cannot be read.
    pub fn of(name: &str, file: &Path) -> Result<WeightsFile> {
        let bytes =
            std::fs::metadata(file).map_err(|e| Error::data(file, format!("cannot read: {e}")))?.len();
        Ok(WeightsFile { name: name.into(), file: file.into(), bytes, sha256: sha256(file)? })
    }
}

impl Origin {
    /// Reads a folder's `run.json`; `None` if there is none or it does not parse.
    ///
    /// Errors: a file that exists and cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Origin>> {
        let bytes = read_if_present(&folder.join(ORIGIN))?;
        Ok(bytes.and_then(|b| serde_json::from_slice(&b).ok()))
    }

    /// Writes the folder's `run.json`.
    ///
    /// Errors: a folder that cannot be written to.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::Run(format!("cannot write {ORIGIN} as JSON: {e}")))?;
        write_atomic(folder.join(ORIGIN), |w| std::io::Write::write_all(w, &json))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_quoted_for_a_shell() {
        let command = ["dfka-engine", "run", "a b.toml", "--set", "student.labels=['x']"].map(String::from);
        let call = Call { command: command.to_vec(), ..Call::default() };
        assert_eq!(call.line(), "dfka-engine run 'a b.toml' --set 'student.labels=['\\''x'\\'']'");
    }

    #[test]
    fn an_origin_is_read_back_and_a_damaged_file_counts_as_absent() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Origin::read(dir.path()).unwrap(), None);
        let file = dir.path().join("a.npz");
        std::fs::write(&file, "abc").unwrap();
        let weights = vec![WeightsFile::of("A", &file).unwrap()];
        assert!(weights[0].bytes == 3 && weights[0].sha256.starts_with("ba7816bf"));
        let origin = Origin {
            calls: vec![Call::now("cpu")],
            weights,
            failure: Some((&Error::Run("x".into())).into()),
        };
        assert_eq!(origin.calls[0].device, "cpu");
        origin.write(dir.path()).unwrap();
        assert_eq!(Origin::read(dir.path()).unwrap(), Some(origin));
        std::fs::write(dir.path().join(ORIGIN), "{").unwrap();
        assert_eq!(Origin::read(dir.path()).unwrap(), None);
        assert_eq!(WeightsFile::of("A", &dir.path().join("none")).unwrap_err().exit_code(), 4);
    }
}
