//! How a run reports its progress, whatever the caller does with it.

use crate::error::Result;

/// Receives a run's progress. The command line draws bars and writes `metrics.jsonl` from it.
pub trait Observer: Send {
    /// The run's stages in their order, each with its number of steps, before the first of them begins. A resumed run
    /// passes over those that are finished.
    fn planned(&mut self, _stages: &[(String, usize)]) {}
    /// A stage of `steps` steps begins.
    fn stage(&mut self, name: &str, steps: usize);
    /// Step `step` (from 0) of the current stage is done; `metrics` gives its losses by name.
    fn step(&mut self, step: usize, metrics: &mut dyn Iterator<Item = (&str, f32)>);
    /// A picture of the generator's images after `step` steps of the current stage: an RGB or grey PNG.
    fn picture(&mut self, _step: usize, _png: &[u8]) {}
    /// The evaluation has scored `done` of `all` images, each model's counted anew.
    fn evaluated(&mut self, _done: usize, _all: usize) {}
    /// A line for the user.
    fn note(&mut self, line: &str);
    /// Whether the user wants to know the cost of each stage's step.
    fn wants_costs(&self) -> bool {
        false
    }
    /// The run resumes from a checkpoint. Of the steps of these stages, which [`Observer::planned`] has named, those for
    /// which `is_kept(stage, step)` holds were reported before and are not repeated; the others will be reported again.
    ///
    /// Errors: the record of the repeated steps cannot be removed.
    fn resumed(&mut self, _stages: &[(String, usize)], _is_kept: &dyn Fn(&str, usize) -> bool) -> Result<()> {
        Ok(())
    }
    /// A checkpoint is about to be written. A run that resumes from it will not repeat the reports made so
    /// far, so the observer must store them now.
    ///
    /// Errors: the reports cannot be stored.
    fn store(&mut self) -> Result<()> {
        Ok(())
    }
    /// Whether the run is to write a checkpoint and stop after the current step.
    fn should_stop(&self) -> Option<Stop> {
        None
    }
}

/// A request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The reason, such as `SIGTERM`.
    pub why: &'static str,
    /// Exit code of the process.
    pub exit_code: u8,
}

/// Ignores all reports.
pub struct Silent;

impl Observer for Silent {
    fn stage(&mut self, _: &str, _: usize) {}
    fn step(&mut self, _: usize, _: &mut dyn Iterator<Item = (&str, f32)>) {}
    fn note(&mut self, _: &str) {}
}
