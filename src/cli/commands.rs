//! The pipeline's entry points, as the commands call them: one table, so that tests can put their own in its place.

use std::path::Path;

use serde_json::Value;

use crate::device::gpu::card::Card;
use crate::error::{Error, Result};
use crate::pipeline::observer::Observer;
use crate::pipeline::spec::{EvaluationData, RunSpec, TeachSpec, TeacherSpec};
use crate::pipeline::teachers::{Absent, Known};
use crate::pipeline::{self, Device};
use crate::summary::{Score, Summary};

/// What a config is checked against.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TeacherFacts {
    pub labels: Vec<String>,
    /// After each block, first block first.
    pub channels: Vec<usize>,
    /// Its file is not there: the config alone speaks, and a forecast draws its weights.
    pub is_drawn: bool,
}

pub struct Commands {
    /// Reads the heads of a run's teachers.
    pub open_teachers: fn(&RunSpec, Absent) -> Result<Vec<TeacherFacts>>,
    /// Opens everything a run reads.
    pub check: fn(&RunSpec, Absent) -> Result<()>,
    /// `resume`: go on from the checkpoint in the folder.
    pub run: fn(&RunSpec, &Path, bool, &mut dyn Observer) -> Result<Summary>,
    /// Opens everything a training reads.
    pub check_teach: fn(&TeachSpec) -> Result<()>,
    /// The result as JSON, for it is only printed.
    pub teach: fn(&TeachSpec, &Path, bool, &mut dyn Observer) -> Result<Value>,
    /// One teacher (from 0) on the run's evaluation data, all of its labels.
    pub score_teacher: fn(&RunSpec, usize) -> Result<Score>,
    pub evaluate: fn(&Path, &EvaluationData, &Device) -> Result<Score>,
    /// On a card that is named; the result as JSON, for it is only printed.
    pub forecast: fn(&RunSpec, Option<&'static Card>) -> Result<Value>,
}

pub const PIPELINE: Commands = Commands {
    open_teachers: |spec, absent| {
        let facts = |t: &TeacherSpec| {
            let (Known { network, labels }, is_drawn) = absent.facts(t)?;
            Ok(TeacherFacts { labels, channels: network.widths, is_drawn })
        };
        spec.teachers.iter().map(facts).collect()
    },
    check: pipeline::inputs::check,
    run: pipeline::run::run,
    check_teach: pipeline::teach::check,
    teach: |spec, out, resume, observer| to_json(pipeline::teach::teach(spec, out, resume, observer)?),
    score_teacher: pipeline::run::score_teacher,
    evaluate: pipeline::evaluate::evaluate,
    forecast: |spec, card| to_json(pipeline::forecast::forecast(spec, card)?),
};

fn to_json(value: impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| Error::Run(format!("cannot print the result as JSON: {e}")))
}
