//! Learning rates as functions of the step, so that a resumed run needs no state for them.

/// How a learning rate changes over a stage.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// The peak at every step.
    Constant,
    /// Half-cosine up from a 25th of the peak over the first tenth, half-cosine down to zero (Smith and Topin
    /// 2019, with PyTorch's `OneCycleLR` defaults but for the shorter warm-up).
    OneCycle,
    /// Linear up over `warm_up` steps, the last of them at the peak, then half-cosine down, to zero after the
    /// last step (Loshchilov and Hutter 2017, one period; PyTorch's `LinearLR` and `CosineAnnealingLR`).
    Cosine {
        /// Steps of the linear rise.
        warm_up: usize,
    },
    /// Multiplied by `factor` after every `every` steps (PyTorch's `StepLR`).
    Step {
        /// Steps between two changes.
        every: usize,
        /// Factor of a change, in [0, 1].
        factor: f32,
    },
}

impl Schedule {
    /// The rate at step `step` (from 0) of `steps`, for a peak of `peak`.
    pub fn at(self, peak: f32, step: u64, steps: usize) -> f32 {
        let half_cosine =
            |a: f64, b: f64, x: f64| b + (a - b) * 0.5 * (1.0 + (std::f64::consts::PI * x).cos());
        let t = step as f64;
        let share = match self {
            Schedule::Constant => return peak,
            Schedule::OneCycle => {
                let last = steps.saturating_sub(1).max(1) as f64;
                let warm = (0.1 * last).max(1.0);
                if t < warm {
                    half_cosine(1.0 / 25.0, 1.0, t / warm)
                } else {
                    half_cosine(1.0, 0.0, ((t - warm) / (last - warm).max(1.0)).min(1.0))
                }
            }
            Schedule::Cosine { warm_up } => {
                let warm = warm_up as f64;
                if t < warm {
                    (t + 1.0) / warm
                } else {
                    half_cosine(1.0, 0.0, ((t - warm) / (steps as f64 - warm).max(1.0)).min(1.0))
                }
            }
            // A factor in [0, 1] to a power beyond i32 is 0 or 1 long before.
            Schedule::Step { every, factor } => {
                let drops = (step / every.max(1) as u64).min(i32::MAX as u64);
                f64::from(factor).powi(drops as i32)
            }
        };
        (f64::from(peak) * share) as f32
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

    /// PyTorch 2.15.0: the rates of `SequentialLR([LinearLR(sgd, 1/3, 1.0, 2), CosineAnnealingLR(sgd, 5)],
    /// [3])` and of `StepLR(sgd, 3, 0.1)`, for SGD with lr=0.8.
    #[test]
    fn cosine_and_step_are_pytorchs() {
        let close = |a: f32, b: f64| assert!((f64::from(a) - b).abs() < 1e-7, "{a} {b}");
        let cosine = |s| Schedule::Cosine { warm_up: 3 }.at(0.8, s, 8);
        for (s, expected) in COSINE.into_iter().enumerate() {
            close(cosine(s as u64), expected);
        }
        for (s, expected) in STEP.into_iter().enumerate() {
            close(Schedule::Step { every: 3, factor: 0.1 }.at(0.8, s as u64, 8), expected);
        }
        assert_eq!(Schedule::Cosine { warm_up: 0 }.at(0.5, 0, 10), 0.5);
        assert_eq!(Schedule::Cosine { warm_up: 20 }.at(1.0, 9, 10), 0.5);
        assert_eq!(Schedule::Step { every: 1, factor: 0.5 }.at(1.0, u64::MAX, 10), 0.0);
    }

    const COSINE: [f64; 8] = [
        0.26666666666666666,
        0.5333333333333333,
        0.8,
        0.8,
        0.723606797749979,
        0.523606797749979,
        0.27639320225002106,
        0.07639320225002107,
    ];
    const STEP: [f64; 8] = [0.8, 0.8, 0.8, 0.08, 0.08, 0.08, 0.008, 0.008];
}
