//! How a run tells the outside what it is doing, without knowing whether anybody watches.

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
}

/// Watches nothing.
pub struct Silent;

impl Observer for Silent {
    fn stage(&mut self, _: &str, _: usize) {}
    fn step(&mut self, _: usize, _: &mut dyn Iterator<Item = (&str, f32)>) {}
    fn note(&mut self, _: &str) {}
}
