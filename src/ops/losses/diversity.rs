//! How different the samples of a batch are: the measure that detects a collapsed generator.

use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::ops::launch::launches::{Launches, THREADS};
use crate::ops::losses::common::expect_rows;
use crate::ops::operands::Io;
use crate::ops::operator::{
    Extent, OperandInfo, Operator, Signature, expect_f32, expect_frozen, expect_operands, expect_setting,
};
use crate::tensor::{Real, Shape};

/// `d = (1/(n (n - 1)) sum_{i != j} ||F_i - F_j||^2) / (1/n sum_i ||F_i||^2)`: the mean squared distance
/// between two samples over the mean squared norm. It is 0 if all samples are equal, 2 if all are orthogonal
/// and of one length, and at most `2 n / (n - 1)`. If all features are 0, it is 0.
///
/// Shapes: F `[n, 1, 1, f]` with `n >= 2`; d a scalar.
/// Source: ours (the dual loss is meaningful only with diverse images).
/// Backward: none; d is a measure, not a loss.
/// Errors: F that is not rows, has fewer than 2 of them, or needs a gradient.
/// Cost: `2 n f` multiply-adds: the squared distances of all pairs sum to `2 n sum_i ||F_i - mean||^2`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Diversity;

impl Operator for Diversity {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("diversity", args, &["features"])?;
        let f = args[0].shape;
        expect_rows("diversity", "features", f)?;
        expect_setting("diversity", f.n() >= 2, || format!("features: one sample has no pairs, found {f}"))?;
        expect_frozen("diversity", "features", args[0])?;
        Ok(Signature {
            outputs: vec![Shape::SCALAR],
            scratch_forward: vec![Extent::Bytes(size_of::<f64>() * f.c())],
            macs_forward: 2 * f.elems() as u64,
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (f, shape, mean) = (io.x(0), io.shape(0), io.scratch::<f64>(0));
        let n = shape.n() as f64;
        // Offsets from the first sample: equal samples give exactly 0.
        let offset = |v: &R, first: &R| v.f64() - first.f64();
        let first = &f[..shape.c()];
        mean.fill(0.0);
        for row in f.chunks(shape.c()) {
            for (mean, (v, first)) in mean.iter_mut().zip(row.iter().zip(first)) {
                *mean += offset(v, first);
            }
        }
        mean.iter_mut().for_each(|m| *m /= n);
        let (mut spread, mut norm) = (0.0, 0.0);
        for row in f.chunks(shape.c()) {
            for (mean, (v, first)) in mean.iter().zip(row.iter().zip(first)) {
                let away = offset(v, first) - mean;
                spread += away * away;
                norm += v.f64() * v.f64();
            }
        }
        let ratio = 2.0 * n / (n - 1.0) * spread / norm;
        io.y(0)[0] = R::of(if norm > 0.0 { ratio } else { 0.0 });
    }

    fn backward<R: Real>(&self, _: &Io<R>) {}

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (f, partial) = (expect_f32("diversity", "features", l.x(0))?, l.scratch(0));
        let (shape, blocks) = (l.shape(0), blocks(l.shape(0)));
        let (n, c) = (shape.n() as i32, shape.c() as i32);
        l.launch("diversity_columns", blocks, THREADS, 0, [partial.into(), f.into(), n.into(), c.into()])?;
        l.launch(
            "diversity_finish",
            1,
            THREADS,
            0,
            [l.y(0).into(), partial.into(), (blocks as i32).into(), n.into()],
        )
    }

    fn launch_backward(&self, _: &mut Launches) -> Result<()> {
        Ok(())
    }

    fn device_extents(&self, args: &[OperandInfo], _: &Target, signature: &mut Signature) {
        signature.scratch_forward =
            vec![Extent::Bytes(2 * size_of::<f64>() * blocks(args[0].shape) as usize)];
    }
}

/// Blocks of the first kernel: 32 columns and two partial sums each.
fn blocks(f: Shape) -> u32 {
    f.c().div_ceil(32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    #[test]
    fn passes_the_op_checks() {
        for shape in [Shape::rows(2, 1), Shape::rows(7, 5), Shape::rows(64, 33), Shape::rows(17, 128)] {
            // The sum over all pairs, as in the definition.
            let plain = move |f: &[Vec<f64>]| {
                let n = shape.n() as f64;
                let (mut pairs, mut norm) = (0.0, 0.0);
                for (i, a) in f[0].chunks(shape.c()).enumerate() {
                    norm += a.iter().map(|v| v * v).sum::<f64>() / n;
                    for (j, b) in f[0].chunks(shape.c()).enumerate() {
                        let distance: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
                        pairs += if i == j { 0.0 } else { distance / (n * (n - 1.0)) };
                    }
                }
                vec![vec![pairs / norm]]
            };
            check(Case::new(Diversity, &[shape]).frozen(0).map(0, |v| v + 2.0).reference(plain));
        }
    }

    #[test]
    fn equals_a_result_computed_by_hand() {
        let case = |values: Vec<f64>, d: f64| {
            let case = Case::new(Diversity, &[Shape::rows(3, values.len() / 3)]).frozen(0);
            check(case.values(0, values).reference(move |_| vec![vec![d]]));
        };
        // Three equal samples (3, 4): distance 0.
        case([3.0, 4.0].repeat(3), 0.0);
        // Three equal samples of numbers that no float holds exactly: still exactly 0.
        case([0.1, 0.7].repeat(3), 0.0);
        // The three unit vectors: every pair at squared distance 2, every norm 1.
        case(vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], 2.0);
        // 0, 1, 2: squared distances 1, 4, 1, a mean of 2; squared norms 0, 1, 4, a mean of 5/3.
        case(vec![0.0, 1.0, 2.0], 1.2);
        case(vec![0.0; 6], 0.0);
    }

    #[test]
    fn refuses_operands_and_settings_that_do_not_fit() {
        let e = |shape, needs_grad| {
            Diversity.signature(&[OperandInfo { shape, needs_grad }]).unwrap_err().to_string()
        };
        assert_eq!(
            e(Shape::rows(1, 3), false),
            "diversity: features: one sample has no pairs, found [1, 1, 1, 3]"
        );
        assert!(e(Shape::new(2, 2, 2, 3), false).contains("expected rows"));
        assert!(e(Shape::rows(2, 3), true).contains("needs a gradient, but the op passes none to it"));
    }
}
