//! A batch norm with running estimates, folded into the filter of the convolution in front of it.

use crate::device::gpu::launch::KernelArg;
use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::ops::fusion::Fusion;
use crate::ops::launch::launches::{DeviceTensor, Launches};
use crate::ops::operands::{Io, Write};
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_frozen, expect_operands, expect_shape};
use crate::tensor::{Real, Shape};

/// `filter[k] = w[k] s[k]` and `bias[k] = beta[k] - mean[k] s[k]`, with `s[k] = gamma[k] / sqrt(var[k] + eps)`.
///
/// Then `conv(x, filter) + bias = gamma (conv(x, w) - mean) / sqrt(var + eps) + beta`: a convolution and a batch norm of
/// its output are one convolution, which stores one map where they store two. In a plan for a GPU, `autograd::fuse`
/// replaces such pairs.
///
/// Shapes: w and filter `[k, r, s, c]`; gamma, beta, running_mean, running_var and bias `[1, 1, 1, k]`.
/// Source: Ioffe and Szegedy 2015, algorithm 2, line 11, with the scale multiplied into the layer before.
/// Backward: `dw = s dfilter`, `dgamma = (<w, dfilter> - mean dbias) / sqrt(var + eps)`, `dbeta = dbias`. So neither x nor
/// the convolution's output is read again.
/// Errors: vectors of another length than w's output channels, running estimates that need a gradient.
/// Cost: memory-bound on w: forward reads w and writes the filter, backward reads w and dfilter and writes dw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FoldNorm {
    /// Added to the variance under the square root.
    pub eps: f32,
}

/// Threads of a block, which has one output channel; mirrors the kernels' bound.
const THREADS: u32 = 128;

/// Why backward has the gradients of both outputs.
const BOTH: &str = "a convolution passes gradients to its filter and to its bias";

impl FoldNorm {
    /// For each output channel, its index, the square root and the scale `s`.
    fn scales<'v, R: Real>(&self, io: &Io<'v, R>) -> impl Iterator<Item = (usize, R, R)> + use<'v, R> {
        let (gamma, var, eps) = (io.x(1), io.x(4), R::of(f64::from(self.eps)));
        gamma.iter().zip(var).enumerate().map(move |(k, (gamma, var))| {
            let std = (*var + eps).sqrt();
            (k, std, *gamma / std)
        })
    }
}

impl Operator for FoldNorm {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        let names = ["w", "gamma", "beta", "running_mean", "running_var"];
        expect_operands("fold_norm", args, &names)?;
        let w = args[0].shape;
        for (name, arg) in names.iter().zip(args).skip(1) {
            expect_shape("fold_norm", name, Shape::vector(w.n()), arg.shape)?;
        }
        for i in [3, 4] {
            expect_frozen("fold_norm", names[i], args[i])?;
        }
        Ok(Signature {
            outputs: vec![w, Shape::vector(w.n())],
            keeps_inputs: vec![0, 1, 3, 4],
            macs_forward: w.elems() as u64,
            macs_backward: 2 * w.elems() as u64,
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (w, beta, mean, depth) = (io.x(0), io.x(2), io.x(3), io.shape(0).per_sample());
        let (filter, bias) = (io.y(0), io.y(1));
        for (k, _, scale) in self.scales(io) {
            let rows = filter[k * depth..].iter_mut().zip(&w[k * depth..][..depth]);
            rows.for_each(|(filter, w)| *filter = *w * scale);
            bias[k] = beta[k] - mean[k] * scale;
        }
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let (w, mean, depth) = (io.x(0), io.x(3), io.shape(0).per_sample());
        let [dfilter, dbias] = [0, 1].map(|i| io.dy(i).expect(BOTH));
        let [mut dw, mut dgamma, mut dbeta] = [0, 1, 2].map(|i| io.dx(i));
        for (k, std, scale) in self.scales(io) {
            let mut product = 0.0;
            for i in k * depth..(k + 1) * depth {
                product += w[i].f64() * dfilter[i].f64();
                if let Some(dw) = &mut dw {
                    dw.store_or_add(i, dfilter[i] * scale);
                }
            }
            if let Some(dgamma) = &mut dgamma {
                dgamma.store_or_add(k, R::of((product - mean[k].f64() * dbias[k].f64()) / std.f64()));
            }
            if let Some(dbeta) = &mut dbeta {
                dbeta.store_or_add(k, dbias[k]);
            }
        }
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (w, filter) = (l.shape(0), l.y(0));
        // `FoldForward` of the kernels.
        let cells = [
            filter.into(),
            l.y(1).into(),
            l.x(0).into(),
            l.x(1).into(),
            l.x(2).into(),
            l.x(3).into(),
            l.x(4).into(),
            channels(w),
            depth(w),
        ];
        let args = [KernelArg::member(cells), self.eps.into()];
        l.launch(format!("fold_norm_fwd<{}>", filter.elem), w.n() as u32, THREADS, 0, args)
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let w = l.shape(0);
        let gradients = [0, 1, 2].map(|i| l.dx(i));
        let is_added = |(i, g): (usize, &Option<(DeviceTensor, Write)>)| {
            i64::from(g.is_some_and(|(_, write)| write == Write::Add)) << i
        };
        let adds: i64 = gradients.iter().enumerate().map(is_added).sum();
        let [dw, dgamma, dbeta] = gradients.map(|g| g.map(|(to, _)| to).into());
        // `FoldBackward` of the kernels.
        let cells = [
            dw,
            dgamma,
            dbeta,
            l.dy(0).expect(BOTH).into(),
            l.dy(1).expect(BOTH).into(),
            l.x(0).into(),
            l.x(1).into(),
            l.x(3).into(),
            l.x(4).into(),
            channels(w),
            depth(w),
            adds.into(),
        ];
        l.launch("fold_norm_bwd", w.n() as u32, THREADS, 0, [KernelArg::member(cells), self.eps.into()])
    }

    /// All filters of a step are folded in one launch before the first convolution, and their gradients are divided
    /// between w, gamma and beta in one launch after the last.
    fn fusion(&self, _: &[Shape], _: Shape, _: &Target) -> Fusion {
        Fusion { gathers_forward: true, gathers_backward: true, is_filter: true, ..Fusion::default() }
    }
}

fn channels(w: Shape) -> KernelArg {
    (w.n() as i64).into()
}

/// Elements of the filter of an output channel.
fn depth(w: Shape) -> KernelArg {
    (w.per_sample() as i64).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    fn shapes(w: Shape) -> [Shape; 5] {
        let k = Shape::vector(w.n());
        [w, k, k, k, k]
    }

    fn case(w: Shape) -> Case<crate::ops::Op> {
        let plain = move |t: &[Vec<f64>]| {
            let scale = |k: usize| t[1][k] / (t[4][k] + f64::from(1e-3f32)).sqrt();
            let filter = t[0].iter().enumerate().map(|(i, v)| v * scale(i / w.per_sample()));
            let bias = (0..w.n()).map(|k| t[2][k] - t[3][k] * scale(k));
            vec![filter.collect(), bias.collect()]
        };
        let case = Case::new(FoldNorm { eps: 1e-3 }, &shapes(w)).map(4, |v| v * v + 0.1);
        case.frozen(3).frozen(4).reference(plain)
    }

    #[test]
    fn passes_the_op_checks() {
        // One element; a depth below, and one above a block's threads; more channels than depth.
        for w in [(1, 1, 1, 1), (8, 3, 3, 8), (5, 3, 3, 64), (300, 1, 1, 7)] {
            check(case(Shape::new(w.0, w.1, w.2, w.3)));
        }
        // Each of the three gradients without the others.
        for needed in 0..3 {
            let others = (0..3).filter(|i| *i != needed);
            check(others.fold(case(Shape::new(4, 3, 3, 5)), Case::frozen));
        }
    }

    /// `y = gamma (u - mean) / sqrt(var + eps) + beta` of u = w x, with a pixel of one channel: gamma 6, var + eps 9.
    #[test]
    fn equals_a_result_computed_by_hand() {
        let vector = Shape::vector(1);
        let case =
            Case::new(FoldNorm { eps: 1.0 }, &[Shape::new(1, 1, 1, 2), vector, vector, vector, vector]);
        let case = case.values(0, vec![1.0, -2.0]).values(1, vec![6.0]).values(2, vec![0.5]);
        let case = case.values(3, vec![4.0]).values(4, vec![8.0]).frozen(3).frozen(4);
        check(case.reference(|_| vec![vec![2.0, -4.0], vec![0.5 - 8.0]]));
    }

    #[test]
    fn refuses_operands_that_do_not_fit() {
        let e = |i: usize, shape: Shape, needs_grad: bool| {
            let mut args =
                shapes(Shape::new(4, 3, 3, 2)).map(|shape| OperandInfo { shape, needs_grad: false });
            args[i] = OperandInfo { shape, needs_grad };
            FoldNorm { eps: 1e-5 }.signature(&args).unwrap_err().to_string()
        };
        assert_eq!(
            e(2, Shape::vector(3), false),
            "fold_norm: beta: expected [1, 1, 1, 4], found [1, 1, 1, 3]"
        );
        assert_eq!(
            e(3, Shape::vector(4), true),
            "fold_norm: running_mean: needs a gradient, but the op passes none to it; detach it first"
        );
    }
}
