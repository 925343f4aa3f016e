//! The activation loss: real images give a teacher's last features large values, and so should generated
//! ones.

use crate::device::cpu::sum::sum_of;
use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::ops::launch::launches::{Launches, THREADS};
use crate::ops::losses::common::{expect_rows, store_or_add_all};
use crate::ops::operands::Io;
use crate::ops::operator::{Extent, OperandInfo, Operator, Signature, expect_f32, expect_operands};
use crate::tensor::{Real, Shape};

/// `L_a = -1/n sum_n ||F(n)||_1` for one teacher; with `mean_over_features`, also divided by the number of
/// features.
///
/// Shapes: F, the features in front of the fully connected layer, `[n, 1, 1, f]`; the loss a scalar.
/// Source: supplement eq. 2; its factor `1/M` for M teachers is applied where their losses are summed. The
/// mean over features is ours.
/// Backward: `dF = -dy sign(F) / n` (`/ f`), from F, with `sign(0) = 0`.
/// Errors: F that is not rows.
/// Cost: no multiply-adds; reads 1 tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationLoss {
    /// Whether to divide by the number of features.
    pub mean_over_features: bool,
}

impl ActivationLoss {
    /// One over the number of terms of the mean.
    fn share(&self, f: Shape) -> f64 {
        1.0 / if self.mean_over_features { f.elems() } else { f.n() } as f64
    }
}

impl Operator for ActivationLoss {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("activation_loss", args, &["features"])?;
        expect_rows("activation_loss", "features", args[0].shape)?;
        Ok(Signature { outputs: vec![Shape::SCALAR], keeps_inputs: vec![0], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let f = io.x(0);
        io.y(0)[0] = R::of(-sum_of(f.len(), |i| f[i].f64().abs()) * self.share(io.shape(0)));
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(df) = io.dx(0) else { return };
        let (f, share) = (io.x(0), self.share(io.shape(0)));
        let sign = |v: R| f64::from(v > R::ZERO) - f64::from(v < R::ZERO);
        store_or_add_all(df, io.dy0()[0], |i| -sign(f[i]) * share);
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (f, partial) = (expect_f32("activation_loss", "features", l.x(0))?, l.scratch(0));
        let (shape, blocks) = (l.shape(0), blocks(l.shape(0), l.target()));
        let elems = shape.elems() as i64;
        l.launch("activation_loss_fwd", blocks, THREADS, 0, [partial.into(), f.into(), elems.into()])?;
        l.launch(
            "activation_loss_finish",
            1,
            THREADS,
            0,
            [l.y(0).into(), partial.into(), (blocks as i32).into(), self.share(shape).into()],
        )
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((df, write)) = l.dx(0) else { return Ok(()) };
        let shape = l.shape(0);
        l.launch(
            "activation_loss_bwd",
            blocks(shape, l.target()),
            THREADS,
            0,
            [
                df.into(),
                l.x(0).into(),
                l.dy0().into(),
                (shape.elems() as i64).into(),
                self.share(shape).into(),
                write.into(),
            ],
        )
    }

    fn device_extents(&self, args: &[OperandInfo], target: &Target, signature: &mut Signature) {
        signature.scratch_forward =
            vec![Extent::Bytes(size_of::<f64>() * blocks(args[0].shape, target) as usize)];
    }
}

/// Blocks of the first kernel, one partial sum each: a thread sums four packs of four elements.
fn blocks(f: Shape, target: &Target) -> u32 {
    target.blocks_for(f.elems(), 16 * THREADS as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    #[test]
    fn passes_the_op_checks() {
        for shape in [Shape::rows(1, 1), Shape::rows(7, 5), Shape::rows(64, 128), Shape::rows(33, 2048)] {
            for mean_over_features in [false, true] {
                let plain = move |f: &[Vec<f64>]| {
                    let mut loss = 0.0;
                    for row in f[0].chunks(shape.c()) {
                        let norm: f64 = row.iter().map(|v| v.abs()).sum();
                        loss -=
                            norm / shape.n() as f64 / if mean_over_features { row.len() as f64 } else { 1.0 };
                    }
                    vec![vec![loss]]
                };
                check(Case::new(ActivationLoss { mean_over_features }, &[shape]).reference(plain));
            }
        }
    }

    #[test]
    fn equals_a_result_computed_by_hand() {
        // Supplement eq. 2 with M = 1: features (1, 2), (0, 4): -(3 + 4) / 2; per feature, half of it.
        for (mean_over_features, loss) in [(false, -3.5), (true, -1.75)] {
            let case = Case::new(ActivationLoss { mean_over_features }, &[Shape::rows(2, 2)]).frozen(0);
            check(case.values(0, vec![1.0, 2.0, 0.0, 4.0]).reference(move |_| vec![vec![loss]]));
        }
    }

    #[test]
    fn refuses_feature_maps() {
        let arg = OperandInfo { shape: Shape::new(2, 7, 7, 64), needs_grad: true };
        let e = ActivationLoss { mean_over_features: false }.signature(&[arg]).unwrap_err().to_string();
        assert_eq!(e, "activation_loss: features: expected rows [n, 1, 1, c], found [2, 7, 7, 64]");
    }
}
