//! The one-hot loss: the predictions for a generated image should be near 0 or 1.

use crate::device::cpu::scratch;
use crate::device::cpu::sum::sum_of;
use crate::device::gpu::launch;
use crate::error::Result;
use crate::ops::launch::launches::{Launches, THREADS};
use crate::ops::layers::activation::sigmoid;
use crate::ops::losses::common::{cross_entropy, expect_rows, one_block, store_or_add_all};
use crate::ops::operands::Io;
use crate::ops::operator::{
    Extent, OperandInfo, Operator, Signature, expect_f32, expect_operands, expect_setting,
};
use crate::tensor::{Real, Shape};

/// Which labels are taken as present.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PseudoLabels {
    /// `t = 1` where `y >= 0.5` (eq. 5).
    Threshold,
    /// For each label, the samples with the highest predictions are taken to have it: `share` of the batch,
    /// rounded, and at least one sample; the earlier one among equals. No label can then vanish from the
    /// batch.
    Balanced {
        /// The share of the samples that are taken to have a label, between 0 and 1.
        share: f32,
    },
}

/// `L_oh = 1/(n c) sum_{n,c} l(y, t)`, with `y = sigmoid(x)`, the pseudo label `t` of `y`, and binary
/// cross-entropy `l`.
///
/// Shapes: x, the logits, `[n, 1, 1, c]`; the loss a scalar.
/// Source: eq. 5 and 6; `Balanced` is ours.
/// Backward: `dx = dy (y - t) / (n c)`; no gradient flows through t. Reads x and computes t again.
/// Errors: x that is not rows; a share outside (0, 1).
/// Cost: no multiply-adds; reads 1 tensor. `Balanced` sorts each column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OneHotLoss {
    /// Which labels are taken as present.
    pub targets: PseudoLabels,
}

impl OneHotLoss {
    /// Fills `t`, laid out as `x`, with 0 and 1.
    fn pseudo_labels<R: Real>(&self, x: &[R], shape: Shape, t: &mut [u8]) {
        let (n, labels) = (shape.n(), shape.c());
        match self.targets {
            PseudoLabels::Threshold => t.iter_mut().zip(x).for_each(|(t, x)| *t = u8::from(*x >= R::ZERO)),
            PseudoLabels::Balanced { share } => {
                let positives = positives(share, n);
                for label in 0..labels {
                    let column = || x[label..].iter().step_by(labels).map(|x| x.f64());
                    let lowest = scratch::with(n, |sorted: &mut [f64]| {
                        sorted.iter_mut().zip(column()).for_each(|(s, x)| *s = x);
                        sorted.sort_unstable_by(|a, b| b.total_cmp(a));
                        sorted[positives - 1]
                    });
                    let mut ties = positives - column().filter(|x| *x > lowest).count().min(positives);
                    for (t, x) in t[label..].iter_mut().step_by(labels).zip(column()) {
                        let tie = x == lowest && ties > 0;
                        ties -= usize::from(tie);
                        *t = u8::from(x > lowest || tie);
                    }
                }
            }
        }
    }

    /// Launches the kernel that fills the pseudo labels, if they depend on the batch, and returns their
    /// address, else null.
    fn launch_labels(&self, l: &mut Launches) -> Result<launch::KernelArg> {
        let PseudoLabels::Balanced { share } = self.targets else { return Ok(launch::KernelArg::Null) };
        let (t, shape) = (l.scratch(0), l.shape(0));
        let [n, c, positives] =
            [shape.n(), shape.c(), positives(share, shape.n())].map(|d| (d as i32).into());
        let grid = l.blocks_for(shape.elems(), THREADS as usize);
        l.launch("one_hot_labels", grid, THREADS, 0, [t.into(), l.x(0).into(), n, c, positives])?;
        Ok(t.into())
    }
}

/// How many of `n` samples are taken to have a label.
fn positives(share: f32, n: usize) -> usize {
    ((f64::from(share) * n as f64).round() as usize).clamp(1, n)
}

impl Operator for OneHotLoss {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("one_hot_loss", args, &["logits"])?;
        let x = args[0].shape;
        expect_rows("one_hot_loss", "logits", x)?;
        if let PseudoLabels::Balanced { share } = self.targets {
            expect_setting("one_hot_loss", share > 0.0 && share < 1.0, || {
                format!("share: expected a number between 0 and 1, found {share}")
            })?;
        }
        Ok(Signature {
            outputs: vec![Shape::SCALAR],
            keeps_inputs: vec![0],
            scratch_forward: vec![Extent::Bytes(x.elems())],
            scratch_backward: vec![Extent::Bytes(x.elems())],
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (x, t) = (io.x(0), io.scratch::<u8>(0));
        self.pseudo_labels(x, io.shape(0), t);
        let t = &*t;
        let total = sum_of(x.len(), |i| cross_entropy(x[i].f64(), f64::from(t[i])));
        io.y(0)[0] = R::of(total / x.len() as f64);
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(dx) = io.dx(0) else { return };
        let (x, t) = (io.x(0), io.scratch::<u8>(0));
        self.pseudo_labels(x, io.shape(0), t);
        let (t, each) = (&*t, 1.0 / x.len() as f64);
        store_or_add_all(dx, io.dy0()[0], |i| (sigmoid(x[i].f64()) - f64::from(t[i])) * each);
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (x, elems) = (expect_f32("one_hot_loss", "logits", l.x(0))?, l.shape(0).elems());
        let labels = self.launch_labels(l)?;
        l.launch(
            "one_hot_loss_fwd",
            1,
            one_block(elems),
            0,
            [l.y(0).into(), x.into(), labels, (elems as i64).into(), (1.0 / elems as f64).into()],
        )
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((dx, write)) = l.dx(0) else { return Ok(()) };
        let elems = l.shape(0).elems();
        let labels = self.launch_labels(l)?;
        l.launch(
            "one_hot_loss_bwd",
            l.blocks_for(elems, THREADS as usize),
            THREADS,
            0,
            [
                dx.into(),
                l.x(0).into(),
                labels,
                l.dy0().into(),
                (elems as i64).into(),
                (1.0 / elems as f64).into(),
                write.into(),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    fn plain(targets: PseudoLabels, shape: Shape) -> impl Fn(&[Vec<f64>]) -> Vec<Vec<f64>> {
        move |x| {
            let (n, labels) = (shape.n(), shape.c());
            let at = |i: usize, c: usize| x[0][i * labels + c];
            let mut sum = 0.0;
            for c in 0..labels {
                // The samples by falling prediction; the sort is stable, so ties keep their order.
                let mut order: Vec<usize> = (0..n).collect();
                order.sort_by(|i, j| at(*j, c).partial_cmp(&at(*i, c)).expect("no NaN"));
                for (rank, i) in order.into_iter().enumerate() {
                    let y = 1.0 / (1.0 + (-at(i, c)).exp());
                    let present = match targets {
                        PseudoLabels::Threshold => y >= 0.5,
                        PseudoLabels::Balanced { share } => {
                            rank < ((f64::from(share) * n as f64).round() as usize).max(1)
                        }
                    };
                    sum -= if present { y.ln() } else { (1.0 - y).ln() };
                }
            }
            vec![vec![sum / (n * labels) as f64]]
        }
    }

    #[test]
    fn passes_the_op_checks() {
        let balanced = |share| PseudoLabels::Balanced { share };
        for shape in [Shape::rows(1, 1), Shape::rows(7, 5), Shape::rows(64, 20), Shape::rows(1030, 17)] {
            for targets in [PseudoLabels::Threshold, balanced(0.08), balanced(0.5), balanced(0.97)] {
                let case = Case::new(OneHotLoss { targets }, &[shape]).map(0, |v| 3.0 * v);
                check(case.reference(plain(targets, shape)));
            }
        }
        // Many equal predictions: ties go to the earlier sample.
        let shape = Shape::rows(13, 3);
        let case = Case::new(OneHotLoss { targets: balanced(0.4) }, &[shape]).frozen(0);
        check(case.map(0, f64::round).reference(plain(balanced(0.4), shape)));
    }

    #[test]
    fn equals_a_result_computed_by_hand() {
        // Two samples, two labels. y = 3/4, 1/2; 1/4, 1/4.
        let odds3 = 3f64.ln();
        let case = |targets, loss: f64| {
            Case::new(OneHotLoss { targets }, &[Shape::rows(2, 2)])
                .values(0, vec![odds3, 0.0, -odds3, -odds3])
                .frozen(0)
                .reference(move |_| vec![vec![loss]])
        };
        // Eq. 5: t = 1, 1; 0, 0. Eq. 6: (-ln 3/4 - ln 1/2 - ln 3/4 - ln 3/4) / 4 = -ln(27/128) / 4.
        check(case(PseudoLabels::Threshold, -(27f64 / 128.0).ln() / 4.0));
        // Half of two samples: the first of each column. t = 1, 1; 0, 0, as above.
        check(case(PseudoLabels::Balanced { share: 0.5 }, -(27f64 / 128.0).ln() / 4.0));
        // Round(0.8 * 2) = 2 samples: t = 1 everywhere.
        // (-ln 3/4 - ln 1/2 - ln 1/4 - ln 1/4) / 4 = -ln(3/128) / 4.
        check(case(PseudoLabels::Balanced { share: 0.8 }, -(3f64 / 128.0).ln() / 4.0));
    }

    #[test]
    fn refuses_operands_and_settings_that_do_not_fit() {
        let e = |targets, shape| {
            OneHotLoss { targets }
                .signature(&[OperandInfo { shape, needs_grad: true }])
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            e(PseudoLabels::Threshold, Shape::new(2, 3, 1, 4)),
            "one_hot_loss: logits: expected rows [n, 1, 1, c], found [2, 3, 1, 4]"
        );
        for share in [0.0, 1.0, -0.5, f32::NAN] {
            assert!(e(PseudoLabels::Balanced { share }, Shape::rows(2, 3)).contains("between 0 and 1"));
        }
    }
}
