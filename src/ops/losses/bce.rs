//! Binary cross-entropy against given targets: the loss for distillation and for labelled data.

use crate::device::cpu::sum::sum_of;
use crate::device::gpu::launch::KernelArg;
use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::ops::fusion::Fusion;
use crate::ops::launch::launches::{Launches, THREADS};
use crate::ops::layers::activation::sigmoid;
use crate::ops::losses::common::{expect_rows, one_block, plogp, softplus, store_or_add_all};
use crate::ops::operands::Io;
use crate::ops::operator::{
    OperandInfo, Operator, Signature, expect_f32, expect_frozen, expect_operands, expect_setting,
    expect_shape,
};
use crate::tensor::{Real, Shape};

/// What the second operand holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Probabilities in [0, 1]; labels are 0 or 1. An entry below 0 is ignored: it adds no loss and no
    /// gradient, but still counts in the mean's denominator, as an entry of weight 0 does in PyTorch.
    Probabilities,
    /// Logits, as a teacher's head computes them.
    Logits,
}

/// `L = 1/(n c) sum_{n,c} l(sigmoid(x), t)` with `l(y, t) = -w t log y - (1 - t) log(1 - y)`, where w is
/// `positive_weight`.
///
/// With `minus_entropy`, `1/(n c) sum l(t, t)` is subtracted, so that the minimum is 0 for soft targets too.
///
/// Shapes: x, the logits, and t, the targets, `[n, 1, 1, c]`; the loss a scalar.
/// Source: eq. 11 (the inner terms) and 13; the weight and subtracting the entropy are ours.
/// Backward: `dx = dy (sigmoid(x) - t - (w - 1) t sigmoid(-x)) / (n c)`, from x and t. The targets get no gradient.
/// Errors: operands that are not rows or differ in shape; targets that need a gradient; a weight that is not finite or
/// below 0; `minus_entropy` with a weight other than 1, whose minimum is not the entropy.
/// Cost: no multiply-adds; reads 2 tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bce {
    /// What the second operand holds.
    pub targets: Targets,
    /// Whether to subtract the targets' entropy.
    pub minus_entropy: bool,
    /// Weight of the part of the loss that asks for a label; PyTorch's `pos_weight`.
    pub positive_weight: f32,
}

impl Bce {
    /// The plain cross-entropy against these targets.
    pub const fn new(targets: Targets) -> Bce {
        Bce { targets, minus_entropy: false, positive_weight: 1.0 }
    }

    /// The loss of one logit: `w t softplus(-x) + (1 - t) softplus(x)`, where `softplus(-x) = softplus(x) - x`.
    fn loss(&self, x: f64, t: f64) -> f64 {
        let w = f64::from(self.positive_weight);
        softplus(x) * (1.0 + (w - 1.0) * t) - w * t * x
    }

    /// What the weight adds to the slope of one logit's loss: 0 for a weight of 1.
    fn extra_slope(&self, x: f64, t: f64) -> f64 {
        -(f64::from(self.positive_weight) - 1.0) * t * sigmoid(-x)
    }

    /// Whether an entry is ignored.
    fn leaves_out(&self, t: f64) -> bool {
        self.targets == Targets::Probabilities && t < 0.0
    }

    fn target(&self, t: f64) -> f64 {
        match self.targets {
            Targets::Probabilities => t,
            Targets::Logits => sigmoid(t),
        }
    }

    /// The entropy `l(t, t)` of one target.
    fn entropy(&self, t: f64) -> f64 {
        match self.targets {
            Targets::Probabilities => -plogp(t) - plogp(1.0 - t),
            Targets::Logits => softplus(t) - t * sigmoid(t),
        }
    }
}

impl Operator for Bce {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("bce", args, &["logits", "targets"])?;
        expect_rows("bce", "logits", args[0].shape)?;
        expect_shape("bce", "targets", args[0].shape, args[1].shape)?;
        expect_frozen("bce", "targets", args[1])?;
        let w = self.positive_weight;
        expect_setting("bce", w.is_finite() && w >= 0.0 && (w == 1.0 || !self.minus_entropy), || {
            format!("expected a positive weight from 0 on, and 1 where the entropy is subtracted, found {w}")
        })?;
        Ok(Signature { outputs: vec![Shape::SCALAR], keeps_inputs: vec![0, 1], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (x, t) = (io.x(0), io.x(1));
        let total = sum_of(x.len(), |i| {
            let (x, t) = (x[i].f64(), t[i].f64());
            if self.leaves_out(t) {
                return 0.0;
            }
            let entropy = if self.minus_entropy { self.entropy(t) } else { 0.0 };
            self.loss(x, self.target(t)) - entropy
        });
        io.y(0)[0] = R::of(total / x.len() as f64);
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(dx) = io.dx(0) else { return };
        let (x, t) = (io.x(0), io.x(1));
        let each = 1.0 / x.len() as f64;
        store_or_add_all(dx, io.dy0()[0], |i| {
            let (x, t) = (x[i].f64(), t[i].f64());
            if self.leaves_out(t) {
                return 0.0;
            }
            let t = self.target(t);
            (sigmoid(x) - t + self.extra_slope(x, t)) * each
        });
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (x, t) = (expect_f32("bce", "logits", l.x(0))?, expect_f32("bce", "targets", l.x(1))?);
        let elems = l.shape(0).elems();
        l.launch(
            "bce_fwd",
            1,
            one_block(elems),
            0,
            [
                KernelArg::group_of_one("BceForward", [l.y(0).into(), x.into(), t.into()]),
                (elems as i64).into(),
                (self.targets == Targets::Logits).into(),
                self.minus_entropy.into(),
                f64::from(self.positive_weight).into(),
                (1.0 / elems as f64).into(),
            ],
        )
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((dx, write)) = l.dx(0) else { return Ok(()) };
        let elems = l.shape(0).elems();
        l.launch(
            "bce_bwd",
            l.blocks_for(elems, THREADS as usize),
            THREADS,
            0,
            [
                KernelArg::group_of_one(
                    "BceBackward",
                    [dx.into(), l.x(0).into(), l.x(1).into(), l.dy0().into()],
                ),
                (elems as i64).into(),
                (self.targets == Targets::Logits).into(),
                f64::from(self.positive_weight).into(),
                (1.0 / elems as f64).into(),
                write.into(),
            ],
        )
    }
    fn fusion(&self, inputs: &[Shape], _: Shape, _: &Target) -> Fusion {
        Fusion { group_key: Some(format!("bce {:?} {}", self, inputs[0])), ..Fusion::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    fn squash(v: f64) -> f64 {
        1.0 / (1.0 + (-v).exp())
    }

    fn plain(op: Bce) -> impl Fn(&[Vec<f64>]) -> Vec<Vec<f64>> {
        move |v| {
            let mut sum = 0.0;
            for (x, t) in v[0].iter().zip(&v[1]) {
                if op.targets == Targets::Probabilities && *t < 0.0 {
                    continue;
                }
                let y = squash(*x);
                let t = if op.targets == Targets::Logits { squash(*t) } else { *t };
                sum -= f64::from(op.positive_weight) * t * y.ln() + (1.0 - t) * (1.0 - y).ln();
                if op.minus_entropy && t > 0.0 && t < 1.0 {
                    sum += t * t.ln() + (1.0 - t) * (1.0 - t).ln();
                }
            }
            vec![vec![sum / v[0].len() as f64]]
        }
    }

    #[test]
    fn passes_the_op_checks() {
        for shape in [Shape::rows(1, 1), Shape::rows(7, 5), Shape::rows(64, 20), Shape::rows(1030, 17)] {
            for (minus_entropy, positive_weight) in [(false, 1.0), (true, 1.0), (false, 5.0)] {
                let case = |targets, f: fn(f64) -> f64| {
                    let op = Bce { targets, minus_entropy, positive_weight };
                    Case::new(op, &[shape, shape])
                        .frozen(1)
                        .map(0, |v| 3.0 * v)
                        .map(1, f)
                        .reference(plain(op))
                };
                check(case(Targets::Logits, |v| 3.0 * v));
                check(case(Targets::Probabilities, squash));
                check(case(Targets::Probabilities, |v| f64::from(v > 0.3)));
                // About a third of the entries is ignored.
                check(case(Targets::Probabilities, |v| if v < -0.4 { -1.0 } else { f64::from(v > 0.3) }));
            }
        }
    }

    #[test]
    fn equals_a_result_computed_by_hand() {
        // Eq. 13, one sample, two labels: y = 3/4, 1/2 against t = 1/2, 1.
        // l = -(ln 3/4 + ln 1/4) / 2 = -ln(3/16) / 2, and ln 2; H(t) = ln 2, and 0.
        let case = |targets, minus_entropy, t: [f64; 2], loss: f64| {
            Case::new(Bce { minus_entropy, ..Bce::new(targets) }, &[Shape::rows(1, 2); 2])
                .values(0, vec![3f64.ln(), 0.0])
                .values(1, t.to_vec())
                .frozen(0)
                .frozen(1)
                .reference(move |_| vec![vec![loss]])
        };
        let (a, b) = (-(3f64 / 16.0).ln() / 2.0, 2f64.ln());
        check(case(Targets::Probabilities, false, [0.5, 1.0], (a + b) / 2.0));
        check(case(Targets::Probabilities, true, [0.5, 1.0], a / 2.0));
        // The same as logits; sigmoid(1000) is 1.
        check(case(Targets::Logits, false, [0.0, 1000.0], (a + b) / 2.0));
        check(case(Targets::Logits, true, [0.0, 1000.0], a / 2.0));
        // An ignored entry adds nothing, and counts in the mean.
        check(case(Targets::Probabilities, false, [0.5, -1.0], a / 2.0));
        // Equal predictions: the cross-entropy equals the entropy, which is subtracted.
        check(case(Targets::Logits, true, [3f64.ln(), 0.0], 0.0));
    }

    #[test]
    fn refuses_operands_that_do_not_fit() {
        let op = Bce::new(Targets::Probabilities);
        let arg = |shape, needs_grad| OperandInfo { shape, needs_grad };
        let e = |args: &[OperandInfo]| op.signature(args).unwrap_err().to_string();
        let rows = Shape::rows(2, 3);
        assert_eq!(
            e(&[arg(rows, true), arg(rows, true)]),
            "bce: targets: needs a gradient, but the op passes none to it; detach it first"
        );
        assert_eq!(
            e(&[arg(rows, true), arg(Shape::rows(2, 4), false)]),
            "bce: targets: expected [2, 1, 1, 3], found [2, 1, 1, 4]"
        );
        assert!(e(&[arg(Shape::new(2, 2, 2, 3), true), arg(rows, false)]).contains("expected rows"));
        assert!(e(&[arg(rows, true)]).contains("expected 2 operands (logits, targets), found 1"));
        for (minus_entropy, positive_weight) in [(false, f32::NAN), (false, -1.0), (true, 2.0)] {
            let op = Bce { minus_entropy, positive_weight, ..op };
            let e = op.signature(&[arg(rows, true), arg(rows, false)]).unwrap_err().to_string();
            assert!(e.contains("bce: expected a positive weight from 0 on"), "{e}");
        }
    }
}
