//! Learning rates as functions of the step, so that a resumed run needs no state for them.

/// How a learning rate moves over a stage.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    Constant,
    /// Half-cosine up from a 25th of the peak over the first tenth, half-cosine down to zero (Smith and Topin 2019, with
    /// PyTorch's `OneCycleLR` defaults but for the shorter warm-up).
    OneCycle,
}

impl Schedule {
    /// The rate of step `step` of `steps` (from 0) for a peak of `peak`.
    pub fn at(self, peak: f32, step: u64, steps: usize) -> f32 {
        match self {
            Schedule::Constant => peak,
            Schedule::OneCycle => {
                let (t, last) = (step as f64, steps.saturating_sub(1).max(1) as f64);
                let warm = (0.1 * last).max(1.0);
                let between =
                    |a: f64, b: f64, x: f64| b + (a - b) * 0.5 * (1.0 + (std::f64::consts::PI * x).cos());
                let share = if t < warm {
                    between(1.0 / 25.0, 1.0, t / warm)
                } else {
                    between(1.0, 0.0, ((t - warm) / (last - warm).max(1.0)).min(1.0))
                };
                (f64::from(peak) * share) as f32
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cycle_rises_peaks_and_ends_at_zero() {
        let at = |s| Schedule::OneCycle.at(1.0, s, 101);
        assert!((at(0) - 0.04).abs() < 1e-6 && (at(10) - 1.0).abs() < 1e-6 && at(100).abs() < 1e-6);
        // Half way down, 55 of 10..100: 1/2.
        assert!((at(55) - 0.5).abs() < 1e-6 && at(5) > at(4) && at(80) < at(60));
        assert_eq!(Schedule::OneCycle.at(2.0, 0, 1), 0.08);
        assert_eq!(Schedule::Constant.at(0.3, 7, 9), 0.3);
    }
}
