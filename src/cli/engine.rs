//! The pipeline's entry points, as the commands call them: one table, so that tests can put their own in its place.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::pipeline::observer::Observer;
use crate::pipeline::spec::{RunSpec, TeachSpec, TeacherSpec};
use crate::pipeline::teachers::TeacherFile;
use crate::pipeline::{self, Device};
use crate::summary::{Score, Summary};

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
    /// Opens everything a run reads.
    pub check: fn(&RunSpec) -> Result<()>,
    /// `resume`: go on from the checkpoint in the folder.
    pub run: fn(&RunSpec, &Path, bool, &mut dyn Observer) -> Result<Summary>,
    /// The result as JSON, for it is only printed.
    pub teach: fn(&TeachSpec, &Path, bool, &mut dyn Observer) -> Result<Value>,
    pub evaluate: fn(&Path, &Path, &Device) -> Result<Score>,
    /// The result as JSON, for it is only printed.
    pub forecast: fn(&RunSpec) -> Result<Value>,
}

pub const PIPELINE: Engine = Engine {
    open_teachers: |spec| {
        let facts = |t: &TeacherSpec| {
            let file = TeacherFile::open(&t.weights)?;
            Ok(TeacherFacts { labels: file.labels, channels: file.network.widths })
        };
        spec.teachers.iter().map(facts).collect()
    },
    check: pipeline::inputs::check,
    run: pipeline::run::run,
    teach: |spec, out, resume, observer| to_json(pipeline::teach::teach(spec, out, resume, observer)?),
    evaluate: pipeline::evaluate::evaluate,
    forecast: |spec| to_json(pipeline::forecast::forecast(spec)?),
};

fn to_json(value: impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| Error::Run(format!("cannot print the result as JSON: {e}")))
}
