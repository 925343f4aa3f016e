//! The discrete loss: an image should show few labels.

use crate::device::cpu::sum::sum_of;
use crate::error::Result;
use crate::ops::launch::launches::{Launches, THREADS};
use crate::ops::layers::activation::sigmoid;
use crate::ops::losses::common::{expect_rows, one_block, store_or_add_all};
use crate::ops::operands::Io;
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_f32, expect_operands};
use crate::tensor::{Real, Shape};

/// `L_dis = 1/(n c) sum_{n,c} |y|` with `y = sigmoid(x)`.
///
/// Shapes: x, the logits, `[n, 1, 1, c]`; the loss a scalar.
/// Source: eq. 7.
/// Backward: `dx = dy y (1 - y) / (n c)`, from x.
/// Errors: x that is not rows.
/// Cost: no multiply-adds; reads 1 tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiscreteLoss;

impl Operator for DiscreteLoss {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("discrete_loss", args, &["logits"])?;
        expect_rows("discrete_loss", "logits", args[0].shape)?;
        Ok(Signature { outputs: vec![Shape::SCALAR], keeps_inputs: vec![0], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let x = io.x(0);
        io.y(0)[0] = R::of(sum_of(x.len(), |i| sigmoid(x[i].f64())) / x.len() as f64);
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(dx) = io.dx(0) else { return };
        let x = io.x(0);
        let each = 1.0 / x.len() as f64;
        store_or_add_all(dx, io.dy0()[0], |i| sigmoid(x[i].f64()) * sigmoid(-x[i].f64()) * each);
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (x, elems) = (expect_f32("discrete_loss", "logits", l.x(0))?, l.shape(0).elems());
        l.launch(
            "discrete_loss_fwd",
            1,
            one_block(elems),
            0,
            [l.y(0).into(), x.into(), (elems as i64).into(), (1.0 / elems as f64).into()],
        )
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((dx, write)) = l.dx(0) else { return Ok(()) };
        let elems = l.shape(0).elems();
        l.launch(
            "discrete_loss_bwd",
            l.blocks_for(elems, THREADS as usize),
            THREADS,
            0,
            [
                dx.into(),
                l.x(0).into(),
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

    #[test]
    fn passes_the_op_checks() {
        for shape in [Shape::rows(1, 1), Shape::rows(7, 5), Shape::rows(64, 20), Shape::rows(1030, 17)] {
            let plain = |x: &[Vec<f64>]| {
                let mut sum = 0.0;
                for x in &x[0] {
                    sum += 1.0 / (1.0 + (-x).exp());
                }
                vec![vec![sum / x[0].len() as f64]]
            };
            check(Case::new(DiscreteLoss, &[shape]).map(0, |v| 3.0 * v).reference(plain));
        }
    }

    #[test]
    fn equals_a_result_computed_by_hand() {
        // Eq. 7: y = 3/4, 1/4; 1/2, 0: a mean of 3/8.
        let odds3 = 3f64.ln();
        let case = Case::new(DiscreteLoss, &[Shape::rows(2, 2)]).values(0, vec![odds3, -odds3, 0.0, -1000.0]);
        check(case.reference(|_| vec![vec![0.375]]));
    }

    #[test]
    fn refuses_feature_maps() {
        let e = DiscreteLoss
            .signature(&[OperandInfo { shape: Shape::new(2, 1, 3, 4), needs_grad: true }])
            .unwrap_err();
        assert_eq!(e.to_string(), "discrete_loss: logits: expected rows [n, 1, 1, c], found [2, 1, 3, 4]");
    }
}
