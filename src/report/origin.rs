//! `run.json`: what a result came from, and why there is none where a run failed.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{ORIGIN, optional};
use crate::error::{Error, Result};
use crate::weights::{sha256, write_atomic};

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    /// The run's beginning, then every time that it was resumed.
    pub calls: Vec<Call>,
    /// The files that the student's bits depend on.
    pub weights: Vec<WeightsFile>,
    /// Why the last call ended without a result; absent while it runs and where it finished.
    #[serde(default)]
    pub failure: Option<Failure>,
}

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Failure {
    /// As it was told.
    pub message: String,
    /// The process's (see [`Error::exit_code`]).
    pub exit_code: u8,
}

impl Failure {
    /// Somebody asked the run to stop.
    pub(super) fn is_a_stop(&self) -> bool {
        self.exit_code >= 128
    }

    /// The training itself: a resumed run comes to the same end.
    pub(super) fn comes_again(&self) -> bool {
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
    /// Threads that steps on the CPU run on.
    pub threads: usize,
    /// Operating system and processor architecture.
    pub system: String,
}

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct WeightsFile {
    /// What it is for.
    pub name: String,
    pub file: PathBuf,
    pub bytes: u64,
    pub sha256: String,
}

impl Call {
    /// This program, as it was called, on `device`.
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

    /// The command as a shell takes it.
    pub(super) fn line(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
        let quoted = |a: &String| {
            if !a.is_empty() && a.chars().all(plain) {
                return a.clone();
            }
            format!("'{}'", a.replace('\'', "'\\''"))
        };
        self.command.iter().map(quoted).collect::<Vec<_>>().join(" ")
    }
}

impl WeightsFile {
    /// Errors: a file that cannot be read.
    pub fn of(name: &str, file: &Path) -> Result<WeightsFile> {
        let bytes =
            std::fs::metadata(file).map_err(|e| Error::data(file, format!("cannot read: {e}")))?.len();
        Ok(WeightsFile { name: name.into(), file: file.into(), bytes, sha256: sha256(file)? })
    }
}

impl Origin {
    /// What a folder's `run.json` says; nothing where there is none or it says nothing sensible.
    pub fn read(folder: &Path) -> Result<Option<Origin>> {
        let bytes = optional(&folder.join(ORIGIN))?;
        Ok(bytes.and_then(|b| serde_json::from_slice(&b).ok()))
    }

    /// Errors: a folder that cannot be written to.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::Run(format!("cannot write {ORIGIN} as JSON: {e}")))?;
        write_atomic(folder.join(ORIGIN), |w| std::io::Write::write_all(w, &json))
    }
}

/// Since 1970; 0 on a machine whose clock stands before it.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// `2026-11-21 18:07 UTC`, by Howard Hinnant's `civil_from_days`.
pub(super) fn utc(seconds: u64) -> String {
    let (days, minute) = (seconds / 86_400 + 719_468, seconds / 60 % 1440);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153; // from March
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let mut text = String::new();
    let _ = write!(text, "{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", minute / 60, minute % 60);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_the_calendars() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59 UTC"),
            (1_795_284_477, "2026-11-21 18:07 UTC"),
            (4_102_444_800, "2100-01-01 00:00 UTC"),
        ] {
            assert_eq!(utc(seconds), expected);
        }
        assert!(!utc(u64::MAX).is_empty());
    }

    #[test]
    fn a_command_can_be_pasted() {
        let command = ["dfka-engine", "run", "a b.toml", "--set", "student.labels=['x']"].map(String::from);
        let call = Call { command: command.to_vec(), ..Call::default() };
        assert_eq!(call.line(), "dfka-engine run 'a b.toml' --set 'student.labels=['\\''x'\\'']'");
    }

    #[test]
    fn comes_back_as_written_and_survives_rubbish() {
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
