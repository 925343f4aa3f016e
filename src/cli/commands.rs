//! The functions of the pipeline that the commands call, in one table that tests can replace.

use std::path::Path;

use serde_json::Value;

use crate::device::gpu::card::Card;
use crate::error::{Error, Result};
use crate::labelled;
use crate::labelled::evaluate::Evaluated;
use crate::labelled::spec::TeachSpec;
use crate::pipeline::inputs::RunInputs;
use crate::pipeline::observer::Observer;
use crate::pipeline::spec::{EvaluationData, RunSpec, TeacherSpec};
use crate::pipeline::teachers::{Absent, OpenedTeacher};
use crate::pipeline::{self, Device};
use crate::summary::{Score, Summary};

/// The properties of a teacher that a config is checked against.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TeacherFacts {
    pub labels: Vec<String>,
    /// Channels after each block, first block first.
    pub channels: Vec<usize>,
    /// Whether the teacher's file is missing: the config describes the network, and a forecast uses random
    /// weights.
    pub is_drawn: bool,
}

impl TeacherFacts {
    pub fn of(teacher: &OpenedTeacher) -> TeacherFacts {
        let (labels, channels) = (teacher.known.labels.clone(), teacher.known.network.widths.clone());
        TeacherFacts { labels, channels, is_drawn: teacher.is_drawn() }
    }

    /// A line for each of the teachers that a config names, in its order.
    pub fn lines(specs: &[TeacherSpec], all: &[TeacherFacts]) -> String {
        let line = |(spec, facts): (&TeacherSpec, &TeacherFacts)| {
            let absent = match facts.is_drawn {
                true => format!("; {}: not found, forecast with random weights", spec.weights.display()),
                false => String::new(),
            };
            let (name, labels, channels) = (&spec.name, facts.labels.len(), &facts.channels);
            format!("teacher {name}: {labels} labels, channels {channels:?}{absent}\n")
        };
        specs.iter().zip(all).map(line).collect()
    }
}

/// One function for each thing that a command has the pipeline do.
pub struct Commands {
    /// Opens the files of a run's teachers, each once.
    pub open_teachers: fn(&RunSpec, Absent) -> Result<Vec<OpenedTeacher>>,
    /// Why a teacher's labels may exclude each other; `None` where nothing says so.
    pub suspicion: fn(&OpenedTeacher) -> Result<Option<String>>,
    /// Checks every other file that a run reads. The result is what the user should know of them.
    pub check: fn(&RunSpec, &[OpenedTeacher]) -> Result<Vec<String>>,
    /// Trains the student into a folder; `true` continues from the checkpoint there.
    pub run: fn(&RunSpec, &RunInputs, &Path, bool, &mut dyn Observer) -> Result<Summary>,
    /// Opens every file that a teacher's training reads. The result is what the user should know of them.
    pub check_teach: fn(&TeachSpec) -> Result<Vec<String>>,
    /// Trains a teacher; arguments as for `run`. The result is JSON, because it is only printed.
    pub teach: fn(&TeachSpec, &Path, bool, &mut dyn Observer) -> Result<Value>,
    /// Scores one teacher (counted from 0) on the run's evaluation data, on all of the teacher's labels.
    pub score_teacher: fn(&RunSpec, usize) -> Result<Score>,
    /// Scores a weights file on labelled images.
    pub evaluate: fn(&Path, &EvaluationData, &Device) -> Result<Evaluated>,
    /// Forecasts for the named card, or times steps on this machine. The result is JSON, because it is only
    /// printed.
    pub forecast: fn(&RunSpec, &[OpenedTeacher], Option<&'static Card>) -> Result<Value>,
    /// Forecasts the training on so many ranks with a card each.
    pub forecast_ranks: fn(&RunSpec, &[OpenedTeacher], usize, &'static Card) -> Result<Value>,
}

/// The functions that the program runs with.
pub const PIPELINE: Commands = Commands {
    open_teachers: |spec, absent| OpenedTeacher::open_all(&spec.teachers, absent),
    suspicion: pipeline::softmax::suspicion,
    check: labelled::run::check,
    run: labelled::run::run_opened,
    check_teach: labelled::teach::check,
    teach: |spec, out, resume, observer| to_json(labelled::teach::teach(spec, out, resume, observer)?),
    score_teacher: labelled::evaluate::score_teacher,
    evaluate: labelled::evaluate::evaluate_with_notes,
    forecast: |spec, teachers, card| to_json(pipeline::forecast::forecast(spec, teachers, card)?),
    forecast_ranks: |spec, teachers, ranks, card| {
        to_json(pipeline::rank_forecast::of_ranks(spec, teachers, ranks, card)?)
    },
};

fn to_json(value: impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| Error::Run(format!("cannot print the result as JSON: {e}")))
}
