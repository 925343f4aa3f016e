//! The relative error between the features of a student's block and its teacher's.

use crate::device::cpu::par::{Rows, for_rows};
use crate::device::cpu::sum::sum;
use crate::device::division::Division;
use crate::device::gpu::launch::KernelArg;
use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::ops::fusion::Fusion;
use crate::ops::launch::channel_tiles::{instance, pack};
use crate::ops::launch::launches::{Launches, THREADS};
use crate::ops::operands::{Io, store_or_add};
use crate::ops::operator::{
    Extent, OperandInfo, Operator, Signature, expect_frozen, expect_operands, expect_shape,
};
use crate::tensor::{Real, Shape};

/// `L = ||a - b||^2 / ||b||^2`, both norms over the whole batch.
///
/// Shapes: a and the target b `[n, h, w, c]`; the loss a scalar.
/// Source: ours (`||f_m(F_u^b) - F_m^b||^2 / ||F_m^b||^2`).
/// Backward: `da = 2 dy (a - b) / ||b||^2`, from a, b and the saved norm. The target b gets no gradient.
/// Errors: operands of different shapes; a target that needs a gradient.
/// Cost: 2 multiply-adds per element; reads 2 tensors. A squared norm below 1e-12 counts as 1e-12.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeatureLoss;

/// Partial sums that a loop keeps side by side, so that the compiler holds them in one vector register.
const LANES: usize = 8;

/// `||a - b||^2` and `||b||^2`.
fn norms<R: Real>(a: &[R], b: &[R]) -> [f64; 2] {
    sum(a.len(), &|range| {
        let (a, a_rest) = a[range.clone()].as_chunks::<LANES>();
        let (b, b_rest) = b[range].as_chunks::<LANES>();
        let mut errors = [0.0; LANES];
        let mut squares = [0.0; LANES];
        for (a, b) in a.iter().zip(b) {
            for l in 0..LANES {
                let (a, b) = (a[l].f64(), b[l].f64());
                errors[l] += (a - b) * (a - b);
                squares[l] += b * b;
            }
        }
        for (l, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
            let (a, b) = (a.f64(), b.f64());
            errors[l] += (a - b) * (a - b);
            squares[l] += b * b;
        }
        [errors.iter().sum(), squares.iter().sum()]
    })
}

/// The same of all shares of the batch, of which `a` and `b` have those of this process.
fn norms_of_shares<R: Real>(division: Division, a: &[R], b: &[R]) -> [f64; 2] {
    let share = a.len() / division.own();
    let own = a.chunks_exact(share).zip(b.chunks_exact(share)).flat_map(|(a, b)| norms(a, b)).collect();
    let all = division.gather(own);
    [0, 1].map(|i| all.iter().skip(i).step_by(2).sum())
}

impl Operator for FeatureLoss {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("feature_loss", args, &["a", "b"])?;
        expect_shape("feature_loss", "target b", args[0].shape, args[1].shape)?;
        expect_frozen("feature_loss", "target b", args[1])?;
        Ok(Signature {
            outputs: vec![Shape::SCALAR],
            keeps_inputs: vec![0, 1],
            saved: vec![Extent::Bytes(size_of::<f64>())],
            macs_forward: 2 * args[0].shape.elems() as u64,
            macs_backward: args[0].shape.elems() as u64,
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (a, b, division) = (io.x(0), io.x(1), io.division);
        let [error, norm] = if division.is_divided() { norms_of_shares(division, a, b) } else { norms(a, b) };
        let norm = norm.max(1e-12);
        io.y(0)[0] = R::of(error / norm);
        if io.saves() {
            io.save::<f64>(0)[0] = norm;
        }
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(da) = io.dx(0) else { return };
        let (a, b) = (io.x(0), io.x(1));
        let slope = R::of(2.0 * io.dy0()[0].f64() / io.saved::<f64>(0)[0]);
        let (write, items) = (da.write, da.data.len());
        for_rows(Rows::new(da.data, items), 1, &|first, part: Rows<R>| {
            for (da, (a, b)) in part.data.iter_mut().zip(a[first..].iter().zip(&b[first..])) {
                store_or_add(write, da, (*a - *b) * slope);
            }
        });
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (a, b, elements, parts) = (l.x(0), l.x(1), l.shape(0).elems(), l.scratch(0));
        l.expect_same("target b", a, b)?;
        let (pack, blocks) = (pack(a.elem, elements), blocks(elements, l.target()));
        // `FeaturePass` and `FeatureSums` of the kernels. The first cell tells the members of a group apart.
        let cells =
            [parts.into(), a.into(), b.into(), ((elements / pack) as i64).into(), i64::from(blocks).into()];
        let name = instance("feature_loss_fwd_sums", a.elem, pack);
        l.launch(name, blocks, THREADS, 0, [KernelArg::member(cells)])?;
        let norm = l.saves().then(|| l.saved(0));
        let sums = [l.y(0).into(), norm.into(), parts.into(), i64::from(blocks).into()];
        l.launch("feature_loss_fwd", 1, THREADS, 0, [KernelArg::member(sums)])
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((da, write)) = l.dx(0) else { return Ok(()) };
        let (a, b, elements) = (l.x(0), l.x(1), l.shape(0).elems());
        let pack = pack(a.elem, elements);
        let io = [da.into(), a.into(), b.into(), l.dy0().into(), l.saved(0).into()];
        let args =
            [KernelArg::group_of_one("FeatureBackward", io), ((elements / pack) as i64).into(), write.into()];
        let grid = l.blocks_for(elements / pack, THREADS as usize);
        l.launch(instance("feature_loss_bwd", a.elem, pack), grid, THREADS, 0, args)
    }

    fn fusion(&self, inputs: &[Shape], _: Shape, _: &Target) -> Fusion {
        let group_key = Some(format!("feature_loss {}", inputs[0]));
        Fusion { gathers_forward: true, group_key, ..Fusion::default() }
    }
    fn device_extents(&self, args: &[OperandInfo], target: &Target, signature: &mut Signature) {
        let blocks = blocks(args[0].shape.elems(), target) as usize;
        signature.scratch_forward = vec![Extent::Bytes(2 * size_of::<f64>() * blocks)];
    }
}

/// Blocks of the first kernel, two partial sums each; the same for both element types.
fn blocks(elements: usize, target: &Target) -> u32 {
    target.blocks_for(elements, 8 * THREADS as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    #[test]
    fn passes_the_op_checks() {
        for shape in
            [Shape::new(1, 1, 1, 1), Shape::new(3, 5, 7, 11), Shape::new(2, 64, 33, 8), Shape::rows(7, 5)]
        {
            let plain = |x: &[Vec<f64>]| {
                let (mut error, mut norm) = (0.0, 0.0);
                for (a, b) in x[0].iter().zip(&x[1]) {
                    error += (a - b).powi(2);
                    norm += b.powi(2);
                }
                vec![vec![error / norm]]
            };
            check(Case::new(FeatureLoss, &[shape, shape]).frozen(1).reference(plain));
        }
    }

    #[test]
    fn equals_a_result_computed_by_hand() {
        // a = (1, 2, 3), b = (1, 0, 2): (0 + 4 + 1) / (1 + 0 + 4) = 1.
        let case =
            || Case::new(FeatureLoss, &[Shape::rows(1, 3); 2]).frozen(1).values(0, vec![1.0, 2.0, 3.0]);
        check(case().values(1, vec![1.0, 0.0, 2.0]).reference(|_| vec![vec![1.0]]));
        // For a student that predicts 0, the error equals the target: loss 1.
        check(case().frozen(0).values(0, vec![0.0; 3]).reference(|_| vec![vec![1.0]]));
        // A target of 0 gives a finite loss.
        check(case().frozen(0).values(1, vec![0.0; 3]).reference(|_| vec![vec![14e12]]));
    }

    #[test]
    fn refuses_operands_and_settings_that_do_not_fit() {
        let arg = |c, needs_grad| OperandInfo { shape: Shape::new(2, 3, 3, c), needs_grad };
        let e = |b| FeatureLoss.signature(&[arg(4, true), b]).unwrap_err().to_string();
        assert_eq!(e(arg(5, false)), "feature_loss: target b: expected [2, 3, 3, 4], found [2, 3, 3, 5]");
        assert_eq!(
            e(arg(4, true)),
            "feature_loss: target b: needs a gradient, but the op passes none to it; detach it first"
        );
    }
}
