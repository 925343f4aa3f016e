//! The pipeline's entry points, as the commands call them: one table, so that tests can put their own in its place.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::pipeline::observer::Observer;
use crate::pipeline::spec::{RunSpec, TeachSpec};
use crate::pipeline::summary::{Score, Summary};

/// What a config is checked against.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TeacherFacts {
    pub labels: Vec<String>,
    /// After each block, first block first.
    pub channels: Vec<usize>,
}

pub struct Engine {
    /// Reads the heads of a run's teachers.
    pub open_teachers: fn(&RunSpec) -> Result<Vec<TeacherFacts>>,
    /// `resume`: go on from the checkpoint in the folder.
    pub run: fn(&RunSpec, &Path, bool, &mut dyn Observer) -> Result<Summary>,
    /// The result as JSON, for it is only printed.
    pub teach: fn(&TeachSpec, &Path, &mut dyn Observer) -> Result<Value>,
    pub evaluate: fn(&Path, &Path) -> Result<Score>,
    /// The result as JSON, for it is only printed.
    pub forecast: fn(&RunSpec) -> Result<Value>,
}

pub const PIPELINE: Engine = Engine {
    open_teachers: |_| not_wired(),
    run: |_, _, _, _| not_wired(),
    teach: |_, _, _| not_wired(),
    evaluate: |_, _| not_wired(),
    forecast: |_| not_wired(),
};

fn not_wired<T>() -> Result<T> {
    Err(Error::Run("not wired".into()))
}
