//! How a teacher learns: the `[training]` table. Defaults are ours.

use std::ops::Bound::{Excluded, Included};

use serde::{Deserialize, Serialize};

use super::keys::{only_with, or};
use super::source::Source;
use crate::error::Result;
use crate::labelled::spec::{OptimiserSpec, TeacherNorm, TrainingSpec};
use crate::pipeline::schedule::Schedule;

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawTraining {
    steps: Option<i64>,
    batch: Option<i64>,
    optimiser: Option<RawOptimiser>,
    momentum: Option<f64>,
    weight_decay: Option<f64>,
    schedule: Option<RawSchedule>,
    warm_up: Option<i64>,
    step_every: Option<i64>,
    step_factor: Option<f64>,
    learning_rate: Option<f64>,
    backbone_learning_rate: Option<f64>,
    layer_decay: Option<f64>,
    norm: Option<TeacherNorm>,
}

#[derive(Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum RawOptimiser {
    Adam,
    Sgd,
}

#[derive(Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum RawSchedule {
    Constant,
    OneCycle,
    Cosine,
    Step,
}

pub fn build(source: &Source, t: &mut RawTraining, has_init: bool) -> Result<TrainingSpec> {
    let steps = source.count("training.steps", or(&mut t.steps, 2000), 1..=100_000_000)?;
    let rate = (Excluded(0.0), Included(1.0));
    let learning_rate = source.number("training.learning_rate", or(&mut t.learning_rate, 1e-3), rate)?;
    let backbone = *t.backbone_learning_rate.get_or_insert(f64::from(learning_rate));
    let norm = or(&mut t.norm, TeacherNorm::Batch);
    if norm == TeacherNorm::Stored && !has_init {
        let message = "`training.norm` = \"stored\" keeps the statistics of `init`, and there is no `init`";
        return Err(source.fail("training.norm", message));
    }
    Ok(TrainingSpec {
        steps,
        batch: source.count("training.batch", or(&mut t.batch, 64), 1..=65_536)?,
        optimiser: optimiser(source, t)?,
        schedule: schedule(source, t, steps)?,
        learning_rate,
        backbone_learning_rate: source.number("training.backbone_learning_rate", backbone, rate)?,
        layer_decay: source.number("training.layer_decay", or(&mut t.layer_decay, 1.0), rate)?,
        norm,
    })
}

fn optimiser(source: &Source, t: &mut RawTraining) -> Result<OptimiserSpec> {
    let weight_decay = source.number("training.weight_decay", or(&mut t.weight_decay, 0.0), 0.0..=1.0)?;
    match or(&mut t.optimiser, RawOptimiser::Adam) {
        RawOptimiser::Adam => {
            only_with(source, "training.momentum", t.momentum.is_some(), "`optimiser = \"sgd\"`")?;
            Ok(OptimiserSpec::Adam { weight_decay })
        }
        RawOptimiser::Sgd => {
            let momentum = source.number("training.momentum", or(&mut t.momentum, 0.9), 0.0..1.0)?;
            Ok(OptimiserSpec::Sgd { momentum, weight_decay })
        }
    }
}

fn schedule(source: &Source, t: &mut RawTraining, steps: usize) -> Result<Schedule> {
    let schedule = or(&mut t.schedule, RawSchedule::OneCycle);
    if schedule != RawSchedule::Cosine {
        only_with(source, "training.warm_up", t.warm_up.is_some(), "`schedule = \"cosine\"`")?;
    }
    if schedule != RawSchedule::Step {
        let step = "`schedule = \"step\"`";
        only_with(source, "training.step_every", t.step_every.is_some(), step)?;
        only_with(source, "training.step_factor", t.step_factor.is_some(), step)?;
    }
    Ok(match schedule {
        RawSchedule::Constant => Schedule::Constant,
        RawSchedule::OneCycle => Schedule::OneCycle,
        RawSchedule::Cosine => {
            let most = steps as i64;
            Schedule::Cosine { warm_up: source.count("training.warm_up", or(&mut t.warm_up, 0), 0..=most)? }
        }
        RawSchedule::Step => {
            let third = (steps as i64).div_euclid(3).max(1);
            Schedule::Step {
                every: source.count("training.step_every", or(&mut t.step_every, third), 1..=100_000_000)?,
                factor: source.number(
                    "training.step_factor",
                    or(&mut t.step_factor, 0.1),
                    (Excluded(0.0), Included(1.0)),
                )?,
            }
        }
    })
}
