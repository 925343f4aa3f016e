//! Config files. The input of a run or a training is the config's text, then the assignments of `--set`,
//! each after a zero byte. The input of an experiment is the config's text, a zero byte, and the name of a
//! scale.

use super::{Outcome, scratch, written};
use dfka_engine::config::experiment::{RowKind, load_experiment};
use dfka_engine::config::{Loaded, Override, load_run, load_teach};
use dfka_engine::error::{Error, Result};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

pub fn run(bytes: &[u8]) -> Outcome {
    loaded(bytes, load_run)
}

pub fn teach(bytes: &[u8]) -> Outcome {
    loaded(bytes, load_teach)
}

/// An accepted experiment must have rows and seeds, no seed twice, and refer only to runs that it has.
pub fn experiment(bytes: &[u8]) -> Outcome {
    let mut parts = bytes.split(|b| *b == 0);
    let path = written("e.toml", parts.next().unwrap_or_default());
    let scale = parts.next().map_or("demo".into(), String::from_utf8_lossy);
    let experiment = match load_experiment(&path, &scale) {
        Ok(experiment) => experiment,
        Err(e) => return refused(&e, &path),
    };
    let seeds: BTreeSet<u64> = experiment.seeds.iter().copied().collect();
    assert!(!experiment.rows.is_empty() && !seeds.is_empty() && seeds.len() == experiment.seeds.len());
    let runs: Vec<&str> = experiment.rows.iter().filter_map(|r| r.run()).collect();
    for row in &experiment.rows {
        match &row.kind {
            RowKind::Student { run, .. } => assert!(!run.is_empty()),
            RowKind::TeachersOf(run) => assert!(runs.contains(&&**run), "{run:?} of {runs:?}"),
            RowKind::Teacher(index) => assert!(*index < 1000),
        }
    }
    Outcome::Accepted
}

/// Loads a config. If it is accepted, loading the resolved text must give the same spec and the same
/// resolved text.
fn loaded<S: Serialize>(bytes: &[u8], load: fn(&Path, &[Override]) -> Result<Loaded<S>>) -> Outcome {
    let mut parts = bytes.split(|b| *b == 0);
    let path = written("c.toml", parts.next().unwrap_or_default());
    let mut overrides = Vec::new();
    for assignment in parts {
        match Override::set(&String::from_utf8_lossy(assignment)) {
            Ok(set) => overrides.push(set),
            Err(e) => assert_eq!(e.exit_code(), 2, "{e}"),
        }
    }
    let first = match load(&path, &overrides) {
        Ok(first) => first,
        Err(e) => return refused(&e, &path),
    };
    std::fs::write(scratch("resolved.toml"), &first.resolved).expect("a file in the scratch folder");
    let again = load(&scratch("resolved.toml"), &[])
        .unwrap_or_else(|e| panic!("the resolved config is refused: {e}\n{}", first.resolved));
    assert_eq!(first.resolved, again.resolved);
    let value = |spec: &S| serde_json::to_value(spec).expect("a spec serialises to JSON");
    let (mut a, mut b) = (value(&first.spec), value(&again.spec));
    absolute(&mut a);
    absolute(&mut b);
    assert_eq!(a, b);
    Outcome::Accepted
}

/// Checks that a config's error names the file and one of its lines, or the `--set` that is wrong.
fn refused(e: &Error, path: &Path) -> Outcome {
    assert_eq!(e.exit_code(), 3, "{e}");
    let Error::Config { file, line, message } = e else { panic!("of another kind: {e}") };
    let text = std::fs::read(path).expect("the file was just written");
    let lines = 1 + text.iter().filter(|b| **b == b'\n').count();
    assert!(!message.is_empty() && *line <= lines, "line {line} of {lines}: {message}");
    assert!(file == path || (file.to_string_lossy().starts_with("--set ") && *line == 0), "{e}");
    Outcome::Refused
}

/// Makes all absolute paths of a spec comparable: removes `.` components, which the spec of the original
/// text keeps and that of the resolved text does not have.
fn absolute(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) if text.starts_with('/') => {
            if let Ok(path) = std::path::absolute(&*text) {
                *text = path.to_string_lossy().into_owned();
            }
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(absolute),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(absolute),
        _ => {}
    }
}
