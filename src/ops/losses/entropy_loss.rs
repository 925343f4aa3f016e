//! The information entropy loss: within a batch, each label should be present about as often as absent.

use crate::device::cpu::par::{Rows, for_parts};
use crate::device::gpu::launch;
use crate::error::Result;
use crate::ops::launch::launches::Launches;
use crate::ops::layers::activation::sigmoid;
use crate::ops::losses::common::{expect_rows, plogp, store_or_add_all};
use crate::ops::operands::Io;
use crate::ops::operator::{Extent, OperandInfo, Operator, Signature, expect_f32, expect_operands};
use crate::tensor::{Real, Shape};

/// `L_ie = 1/c sum_c H(p_c)` with `p_c = 1/n sum_n sigmoid(x[n, c])` and
/// `H(p) = p log p + (1 - p) log(1 - p)`.
///
/// Shapes: x, the logits, `[n, 1, 1, c]`; the loss a scalar.
/// Source: supplement eq. 3. H is the negative entropy, so the loss falls as the labels become balanced.
/// Backward: `dx = dy log(p / (1 - p)) y (1 - y) / (n c)` with `y = sigmoid(x)`, from x; p is computed again.
/// Errors: x that is not rows.
/// Cost: no multiply-adds; reads 1 tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EntropyLoss;

/// The mean of one label's predictions over the batch, and the mean of their complements. Each is summed on
/// its own: `1 - p` would lose the digits of a small complement.
fn means<R: Real>(x: &[R], shape: Shape, label: usize) -> (f64, f64) {
    let (mut p, mut q) = (0.0, 0.0);
    for x in x[label..].iter().step_by(shape.c()) {
        p += sigmoid(x.f64());
        q += sigmoid(-x.f64());
    }
    (p / shape.n() as f64, q / shape.n() as f64)
}

impl Operator for EntropyLoss {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("entropy_loss", args, &["logits"])?;
        expect_rows("entropy_loss", "logits", args[0].shape)?;
        Ok(Signature {
            outputs: vec![Shape::SCALAR],
            keeps_inputs: vec![0],
            scratch_backward: vec![Extent::Bytes(size_of::<f64>() * args[0].shape.c())],
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (x, shape) = (io.x(0), io.shape(0));
        let mut total = 0.0;
        for label in 0..shape.c() {
            let (p, q) = means(x, shape, label);
            total += plogp(p) + plogp(q);
        }
        io.y(0)[0] = R::of(total / shape.c() as f64);
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(dx) = io.dx(0) else { return };
        let (x, shape, slopes) = (io.x(0), io.shape(0), io.scratch::<f64>(0));
        for_parts(Rows::new(slopes, shape.c()), 4, &|first, part: Rows<f64>| {
            for (j, slope) in part.data.iter_mut().enumerate() {
                let (p, q) = means(x, shape, first + j);
                // Where p underflows, y (1 - y) is 0 too; the lower limit avoids 0 * infinity.
                *slope = p.max(f64::MIN_POSITIVE).ln() - q.max(f64::MIN_POSITIVE).ln();
            }
        });
        let (slopes, each) = (&*slopes, 1.0 / shape.elems() as f64);
        store_or_add_all(dx, io.dy0()[0], |i| {
            let x = x[i].f64();
            slopes[i % shape.c()] * sigmoid(x) * sigmoid(-x) * each
        });
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (x, shape) = (expect_f32("entropy_loss", "logits", l.x(0))?, l.shape(0));
        let [n, c] = [shape.n(), shape.c()].map(|d| launch::KernelArg::from(d as i32));
        let block = 32 * shape.c().min(16) as u32;
        l.launch("entropy_loss_fwd", 1, block, 0, [l.y(0).into(), x.into(), n, c])
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((dx, write)) = l.dx(0) else { return Ok(()) };
        let shape = l.shape(0);
        let ([n, c], each) =
            ([shape.n(), shape.c()].map(|d| launch::KernelArg::from(d as i32)), 1.0 / shape.elems() as f64);
        // One warp per label, four warps per block.
        l.launch(
            "entropy_loss_bwd",
            shape.c().div_ceil(4) as u32,
            128,
            0,
            [dx.into(), l.x(0).into(), l.dy0().into(), n, c, each.into(), write.into()],
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
            let plain = move |x: &[Vec<f64>]| {
                let mut loss = 0.0;
                for c in 0..shape.c() {
                    let y = |n: usize| 1.0 / (1.0 + (-x[0][n * shape.c() + c]).exp());
                    let p = (0..shape.n()).map(y).sum::<f64>() / shape.n() as f64;
                    loss += (p * p.ln() + (1.0 - p) * (1.0 - p).ln()) / shape.c() as f64;
                }
                vec![vec![loss]]
            };
            check(Case::new(EntropyLoss, &[shape]).map(0, |v| 2.0 * v - 1.0).reference(plain));
        }
    }

    #[test]
    fn equals_a_result_computed_by_hand() {
        // Supplement eq. 3. Label 0: y = 3/4, 1/4, so p = 1/2, H = -ln 2. Label 1: y = 1/4, 1/4, so p = 1/4,
        // H = ln(1/4)/4 + 3 ln(3/4)/4.
        let (odds3, h) = (3f64.ln(), 0.25 * 0.25f64.ln() + 0.75 * 0.75f64.ln());
        let case =
            Case::new(EntropyLoss, &[Shape::rows(2, 2)]).values(0, vec![odds3, -odds3, -odds3, -odds3]);
        check(case.reference(move |_| vec![vec![(h - 2f64.ln()) / 2.0]]));
        // Predictions so certain that f64 underflows: H = 0, and the gradient stays finite.
        let case = Case::new(EntropyLoss, &[Shape::rows(1, 2)]).values(0, vec![1000.0, -1000.0]);
        check(case.reference(|_| vec![vec![0.0]]));
    }

    #[test]
    fn refuses_feature_maps() {
        let e = EntropyLoss
            .signature(&[OperandInfo { shape: Shape::new(2, 1, 3, 4), needs_grad: true }])
            .unwrap_err();
        assert_eq!(e.to_string(), "entropy_loss: logits: expected rows [n, 1, 1, c], found [2, 1, 3, 4]");
    }
}
