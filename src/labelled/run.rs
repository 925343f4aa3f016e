//! A whole run: the amalgamation, which sees no label, and then its evaluation.

use super::evaluate::{self, score_run};
use crate::device::collective;
use crate::error::Result;
use crate::pipeline;
use crate::pipeline::inputs::{self, RunInputs};
use crate::pipeline::observer::Observer;
use crate::pipeline::spec::RunSpec;
use crate::pipeline::teachers::OpenedTeacher;
use crate::summary::Summary;
use std::path::Path;

/// Checks everything that a run reads, its evaluation data included. Returns what the user should know of the
/// evaluation data.
///
/// Errors: the first file or value that does not fit.
pub fn check(spec: &RunSpec, teachers: &[OpenedTeacher]) -> Result<Vec<String>> {
    let needed = inputs::check(spec, teachers)?;
    match &spec.evaluation {
        Some(data) => evaluate::check(data, needed.image, &needed.labels),
        None => Ok(Vec::new()),
    }
}

/// Opens the inputs of `spec` and runs it; see [`run_opened`].
pub fn run(spec: &RunSpec, out: &Path, resume: bool, observer: &mut dyn Observer) -> Result<Summary> {
    run_opened(spec, &RunInputs::open(spec)?, out, resume, observer)
}

/// Trains everything that `spec` asks for, and then, where there is evaluation data, scores it. Files go to
/// the folder `out`; with `resume` the run continues from the checkpoint there.
///
/// Errors: those of [`pipeline::run::run`]; evaluation data that does not fit.
pub fn run_opened(
    spec: &RunSpec,
    inputs: &RunInputs,
    out: &Path,
    resume: bool,
    observer: &mut dyn Observer,
) -> Result<Summary> {
    let mut run = pipeline::run::run(spec, inputs, out, resume, observer)?;
    // Of several ranks, rank 0 evaluates.
    if let Some(data) = spec.evaluation.as_ref().filter(|_| collective::leads()) {
        score_run(spec, data, &inputs.teachers, &mut run)?;
    }
    run.finish()
}
