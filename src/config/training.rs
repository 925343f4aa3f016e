//! The `[training]` table of a teacher. Defaults are ours unless a comment names their source.

use std::ops::Bound::{self, Excluded, Included};

use serde::{Deserialize, Serialize};

use super::keys::{BATCH, LEARNING_RATE, STEPS, only_with, value_or};
use super::source::Source;
use crate::error::Result;
use crate::labelled::spec::{OptimiserSpec, TeacherNorm, TrainingSpec};
use crate::pipeline::schedule::Schedule;

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTraining {
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

/// Above 0 and at most 1.
const FACTOR: (Bound<f64>, Bound<f64>) = (Excluded(0.0), Included(1.0));

impl RawTraining {
    /// `has_init`: whether the training starts from given weights.
    pub fn build(&mut self, source: &Source, has_init: bool) -> Result<TrainingSpec> {
        let steps = source.count("training.steps", value_or(&mut self.steps, 2000), STEPS)?;
        let rate = value_or(&mut self.learning_rate, 1e-3);
        let learning_rate = source.number("training.learning_rate", rate, LEARNING_RATE)?;
        let backbone_rate = value_or(&mut self.backbone_learning_rate, f64::from(learning_rate));
        let norm = value_or(&mut self.norm, TeacherNorm::Batch);
        if norm == TeacherNorm::Stored && !has_init {
            let message = "`training.norm` = \"stored\" keeps the statistics of `init`, but there is no `init`; \
                           set `init`, or take norm = \"batch\"";
            return Err(source.fail("training.norm", message));
        }
        Ok(TrainingSpec {
            steps,
            batch: source.count("training.batch", value_or(&mut self.batch, 64), BATCH)?,
            optimiser: self.optimiser(source)?,
            schedule: self.schedule(source, steps)?,
            learning_rate,
            backbone_learning_rate: source.number(
                "training.backbone_learning_rate",
                backbone_rate,
                LEARNING_RATE,
            )?,
            layer_decay: source.number(
                "training.layer_decay",
                value_or(&mut self.layer_decay, 1.0),
                FACTOR,
            )?,
            norm,
        })
    }

    fn optimiser(&mut self, source: &Source) -> Result<OptimiserSpec> {
        let weight_decay = value_or(&mut self.weight_decay, 0.0);
        let weight_decay = source.number("training.weight_decay", weight_decay, 0.0..=1.0)?;
        match value_or(&mut self.optimiser, RawOptimiser::Adam) {
            RawOptimiser::Adam => {
                only_with(source, "training.momentum", self.momentum.is_some(), "`optimiser = \"sgd\"`")?;
                Ok(OptimiserSpec::Adam { weight_decay })
            }
            RawOptimiser::Sgd => {
                let momentum = value_or(&mut self.momentum, 0.9);
                let momentum = source.number("training.momentum", momentum, 0.0..1.0)?;
                Ok(OptimiserSpec::Sgd { momentum, weight_decay })
            }
        }
    }

    fn schedule(&mut self, source: &Source, steps: usize) -> Result<Schedule> {
        let schedule = value_or(&mut self.schedule, RawSchedule::OneCycle);
        if schedule != RawSchedule::Cosine {
            only_with(source, "training.warm_up", self.warm_up.is_some(), "`schedule = \"cosine\"`")?;
        }
        if schedule != RawSchedule::Step {
            let step = "`schedule = \"step\"`";
            only_with(source, "training.step_every", self.step_every.is_some(), step)?;
            only_with(source, "training.step_factor", self.step_factor.is_some(), step)?;
        }
        Ok(match schedule {
            RawSchedule::Constant => Schedule::Constant,
            RawSchedule::OneCycle => Schedule::OneCycle,
            RawSchedule::Cosine => {
                let warm_up = value_or(&mut self.warm_up, 0);
                Schedule::Cosine { warm_up: source.count("training.warm_up", warm_up, 0..=steps as i64)? }
            }
            RawSchedule::Step => {
                let third = (steps as i64).div_euclid(3).max(1);
                let every = value_or(&mut self.step_every, third);
                let factor = value_or(&mut self.step_factor, 0.1);
                Schedule::Step {
                    every: source.count("training.step_every", every, STEPS)?,
                    factor: source.number("training.step_factor", factor, FACTOR)?,
                }
            }
        })
    }
}
