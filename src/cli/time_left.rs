//! How long a run will still take, over all of its stages.

/// The stages that are planned, and how long a step of each took.
#[derive(Default)]
pub struct TimeLeft {
    /// Name and steps, in the run's order.
    stages: Vec<(String, usize)>,
    /// The current stage's index.
    current: usize,
    /// Seconds a step, of the last stage of each kind that was timed: the generator, and the blocks.
    seconds: [Option<f64>; 2],
}

impl TimeLeft {
    pub fn plan(&mut self, stages: &[(String, usize)]) {
        self.stages = stages.to_vec();
    }

    /// The stage of this name begins.
    pub fn begin(&mut self, name: &str) {
        self.current = self.stages.iter().position(|(n, _)| n == name).unwrap_or(self.stages.len());
    }

    /// Seconds left in the run, when `done` steps of the current stage are done and one takes `seconds`. A later stage is
    /// estimated by the last one of its kind, or by this one. `None` without later stages: then the stage's own time says
    /// it all.
    pub fn after(&mut self, done: usize, seconds: f64) -> Option<f64> {
        let kind = |name: &str| usize::from(name.contains("block"));
        let (name, steps) = self.stages.get(self.current)?;
        self.seconds[kind(name)] = Some(seconds);
        let later = self.stages.get(self.current + 1..).filter(|later| !later.is_empty())?;
        let each = later.iter().map(|(name, n)| *n as f64 * self.seconds[kind(name)].unwrap_or(seconds));
        Some(steps.saturating_sub(done) as f64 * seconds + each.sum::<f64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_stages_count_with_the_time_of_the_last_one_of_their_kind() {
        let mut left = TimeLeft::default();
        assert_eq!(left.after(1, 1.0), None, "nothing is planned");
        left.plan(&[("generator".into(), 10), ("block1".into(), 4), ("block2".into(), 6)]);
        left.begin("generator");
        assert_eq!(left.after(4, 2.0), Some(6.0 * 2.0 + 10.0 * 2.0));
        left.begin("block1");
        assert_eq!(left.after(3, 5.0), Some(5.0 + 6.0 * 5.0));
        left.begin("block2");
        assert_eq!(left.after(3, 5.0), None, "the last stage");
    }
}
