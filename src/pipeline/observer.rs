//! How a run tells the outside what it is doing, without knowing whether anybody watches.

use crate::error::Result;

/// Receives a run's progress. The command line draws bars and writes `metrics.jsonl` from it.
pub trait Observer: Send {
    /// A stage of `steps` steps begins.
    fn stage(&mut self, name: &str, steps: usize);
    /// Step `step` (from 0) of the current stage is done; losses by name.
    fn step(&mut self, step: usize, metrics: &mut dyn Iterator<Item = (&str, f32)>);
    /// A picture of what the current stage makes, after so many steps: an RGB or gray PNG.
    fn picture(&mut self, _step: usize, _png: &[u8]) {}
    /// A line worth reading.
    fn note(&mut self, line: &str);
    /// The run resumes. Of the steps told before, those for which `is_kept(stage, step)` stand; the others come again.
    ///
    /// Errors: what was written of them cannot be mended.
    fn resumed(&mut self, is_kept: &dyn Fn(&str, usize) -> bool) -> Result<()> {
        let _ = is_kept;
        Ok(())
    }
    /// A checkpoint is about to be written: a resumed run will not tell again what was told so far, so it must be stored.
    ///
    /// Errors: what was told could not be stored.
    fn store(&mut self) -> Result<()> {
        Ok(())
    }
    /// Whether the run is to stop, with a checkpoint, after the step at hand.
    fn should_stop(&self) -> Option<Stop> {
        None
    }
}

/// Why a run is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Such as `SIGTERM`.
    pub why: &'static str,
    /// Of the process that then ends.
    pub exit_code: u8,
}

/// Watches nothing.
pub struct Silent;

impl Observer for Silent {
    fn stage(&mut self, _: &str, _: usize) {}
    fn step(&mut self, _: usize, _: &mut dyn Iterator<Item = (&str, f32)>) {}
    fn note(&mut self, _: &str) {}
}
