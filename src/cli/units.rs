//! The units of an experiment: each of its runs at each seed. A unit is one command that can be repeated and resumed, so
//! that a job array or GNU parallel can work on many at once (docs/scaling.md).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::folder::Lock;
use crate::config::Override;
use crate::config::experiment::{Experiment, RowKind};
use crate::error::{Error, Result};
use crate::report;
use crate::text;

/// One run of an experiment at one seed.
pub struct Unit<'e> {
    run: &'e str,
    /// What the run changes in the experiment's config.
    pub overrides: &'e [Override],
    pub seed: u64,
}

impl Unit<'_> {
    /// The name of its folder.
    pub fn name(&self) -> String {
        format!("{}-seed{}", self.run, self.seed)
    }

    /// The file whose lock the process holds that works on the unit, beside its folder.
    fn lock_file(&self, out: &Path) -> PathBuf {
        out.join(format!(".{}.lock", self.name()))
    }

    /// Locks the unit; `None` if another process works on it.
    ///
    /// Errors: a file that cannot be made.
    pub fn lock(&self, out: &Path) -> Result<Option<Lock>> {
        let file = self.lock_file(out);
        // A process that only asks for the unit's state holds the lock for a moment.
        for _ in 0..10 {
            if let Some(lock) = Lock::take_file(&file)? {
                return Ok(Some(lock));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(None)
    }

    /// How far the unit is.
    ///
    /// Errors: a summary that cannot be read.
    pub fn state(&self, out: &Path) -> Result<State> {
        let folder = out.join(self.name());
        if is_finished(&folder)? {
            return Ok(State::Finished);
        }
        let file = self.lock_file(out);
        if file.exists() && Lock::take_file(&file)?.is_none() {
            return Ok(State::Running);
        }
        Ok(if folder.join(report::CONFIG).exists() { State::Started } else { State::Absent })
    }
}

/// The unit of the run of this name at this seed.
pub fn unit<'e>(experiment: &'e Experiment, run: &str, seed: u64) -> Option<Unit<'e>> {
    all(experiment).into_iter().find(|unit| unit.run == run && unit.seed == seed)
}

/// All units, in the order of the rows, each run once.
pub fn all(experiment: &Experiment) -> Vec<Unit<'_>> {
    let mut units: Vec<Unit> = Vec::new();
    for row in &experiment.rows {
        let RowKind::Student { run, overrides } = &row.kind else { continue };
        if units.iter().all(|unit| unit.run != run) {
            units.extend(experiment.seeds.iter().map(|seed| Unit { run, overrides, seed: *seed }));
        }
    }
    units
}

/// Every N-th unit, from the K-th on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    k: usize,
    n: usize,
}

impl Part {
    /// Whether the part has the unit of this index, from 0.
    pub fn has(self, index: usize) -> bool {
        index % self.n == self.k - 1
    }
}

/// Parses `K/N`.
pub fn parse_part(text: &str) -> Result<Part, String> {
    let part = text.split_once('/').and_then(|(k, n)| Some(Part { k: k.parse().ok()?, n: n.parse().ok()? }));
    part.filter(|p| (1..=p.n).contains(&p.k))
        .ok_or_else(|| "expected K/N with K from 1 to N, such as 3/24".into())
}

/// How far a unit is.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Absent,
    /// It began, and no process works on it now.
    Started,
    Running,
    Finished,
}

/// Whether a unit's folder has everything that a run writes: the report is the last file.
///
/// Errors: a summary that cannot be read.
pub fn is_finished(folder: &Path) -> Result<bool> {
    Ok(report::read_summary(folder)?.is_some() && folder.join(report::HTML).exists())
}

/// What `--list --json` says of a unit.
#[derive(serde::Serialize)]
struct Listed {
    unit: String,
    folder: PathBuf,
    state: State,
    command: Vec<String>,
}

/// The command of each unit, a line each, or with `is_json` an array that also has names, folders and states. A command is
/// that of this process with `--only` in place of `--list`.
///
/// Errors: a summary that cannot be read; an argument that is not Unicode.
pub fn list(units: &[Unit], out: &Path, is_json: bool) -> Result<String> {
    let unicode = |a: OsString| {
        a.into_string()
            .map_err(|a| Error::Usage(format!("--list: the argument {} is not Unicode", a.display())))
    };
    let args = std::env::args_os().map(unicode).collect::<Result<Vec<String>>>()?;
    let of = |(i, unit): (usize, &Unit)| {
        let part = format!("--only={}/{}", i + 1, units.len());
        let of_only = |a: &String| if a == "--list" { part.clone() } else { a.clone() };
        let command = args.iter().filter(|a| *a != "--json").map(of_only).collect();
        Ok(Listed { unit: unit.name(), state: unit.state(out)?, folder: out.join(unit.name()), command })
    };
    let listed = units.iter().enumerate().map(of).collect::<Result<Vec<_>>>()?;
    if is_json {
        let json = serde_json::to_string_pretty(&listed);
        return json.map(|json| json + "\n").map_err(|e| Error::Run(format!("units as JSON: {e}")));
    }
    Ok(listed.iter().map(|unit| text::shell_line(&unit.command) + "\n").collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_every_unit_once() {
        for n in 1..8 {
            let parts: Vec<Part> = (1..=n).map(|k| parse_part(&format!("{k}/{n}")).unwrap()).collect();
            for index in 0..20 {
                assert_eq!(parts.iter().filter(|part| part.has(index)).count(), 1, "{index} of {n}");
            }
        }
        assert!(parse_part("2/3").unwrap().has(1));
        for text in ["", "3", "0/3", "4/3", "1/0", "a/3", "1/3/4", "-1/3"] {
            assert!(parse_part(text).unwrap_err().contains("K/N"), "{text}");
        }
    }
}
