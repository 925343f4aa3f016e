//! Random numbers: the generator's input, and the images of the random-noise baseline.

use crate::device::cpu::par::{Rows, for_rows};
use crate::device::philox::Draws;
use crate::error::Result;
use crate::ops::launch::launches::Launches;
use crate::ops::launch::launches::THREADS;
use crate::ops::losses::common::expect_setting;
use crate::ops::operands::Io;
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_args};
use crate::tensor::{Real, Shape};

/// The distribution of [`Noise`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NoiseKind {
    /// Mean 0, variance 1.
    Normal,
    Uniform {
        lo: f32,
        hi: f32,
    },
}

/// `y[i] ~ kind`, independent, a function of (seed, stream, step, i).
///
/// Shapes: no operand; y as `shape` says.
/// Source: eq. 2 (z); docs/method.md 5 (random noise).
/// Backward: none, y depends on nothing.
/// Errors: an operand; an empty shape; bounds that are not finite or not in order.
/// Cost: no multiply-adds; writes 1 tensor; one Philox block for four elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    pub shape: Shape,
    pub stream: u32,
    pub kind: NoiseKind,
}

impl Operator for Noise {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_args("noise", args, &[])?;
        expect_setting("noise", self.shape.elems() > 0, || format!("shape: {} holds nothing", self.shape))?;
        if let NoiseKind::Uniform { lo, hi } = self.kind {
            expect_setting("noise", lo < hi && (hi - lo).is_finite(), || {
                format!("bounds: expected lo < hi, found {lo} and {hi}")
            })?;
        }
        Ok(Signature { outputs: vec![self.shape], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let draws = Draws::new(io.step.seed, self.stream, io.step.step);
        let four = |block: usize| match self.kind {
            NoiseKind::Normal => draws.normals(block as u32, 0),
            NoiseKind::Uniform { lo, hi } => {
                let (lo, hi) = (f64::from(lo), f64::from(hi));
                draws.uniforms(block as u32, 0).map(|u| lo + (hi - lo) * u)
            }
        };
        let y = io.y(0);
        let items = y.len();
        for_rows(Rows::new(y, items), 1, &|first, part: Rows<R>| {
            let mut block = four(first / 4);
            for (i, y) in (first..).zip(part.data) {
                if i % 4 == 0 && i > first {
                    block = four(i / 4);
                }
                *y = R::of(block[i % 4]);
            }
        });
    }

    fn backward<R: Real>(&self, _: &Io<R>) {}

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (y, step, elems) = (l.y(0), l.step(), self.shape.elems());
        let grid = l.blocks_for(elems, 4 * THREADS as usize);
        let (elems, stream) = (elems as i64, self.stream);
        match self.kind {
            NoiseKind::Normal => {
                let args = [y.into(), elems.into(), step, stream.into()];
                l.launch(format!("noise_normal<{}>", y.elem), grid, THREADS, 0, args)
            }
            NoiseKind::Uniform { lo, hi } => {
                let (lo, span) = (f64::from(lo), f64::from(hi) - f64::from(lo));
                let args = [y.into(), elems.into(), step, stream.into(), lo.into(), span.into()];
                l.launch(format!("noise_uniform<{}>", y.elem), grid, THREADS, 0, args)
            }
        }
    }

    fn launch_backward(&self, _: &mut Launches) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    #[test]
    fn gates() {
        // The harness draws with seed 11; step 5 unless told.
        for shape in [Shape::rows(1, 1), Shape::rows(7, 5), Shape::rows(64, 128), Shape::new(5, 61, 67, 3)] {
            for step in [0, 5] {
                let draws = Draws::new(11, 2, step);
                let case = |kind| Case::new(Noise { shape, stream: 2, kind }, &[]).step(step);
                check(case(NoiseKind::Normal).reference(move |_| {
                    vec![(0..shape.elems()).map(|i| draws.normals(i as u32 / 4, 0)[i % 4]).collect()]
                }));
                check(case(NoiseKind::Uniform { lo: -1.0, hi: 3.0 }).reference(move |_| {
                    let uniform = |i: usize| draws.uniforms(i as u32 / 4, 0)[i % 4];
                    vec![(0..shape.elems()).map(|i| 4.0 * uniform(i) - 1.0).collect()]
                }));
            }
        }
    }

    #[test]
    fn refuses_what_it_cannot_draw() {
        let e = |shape, lo, hi| {
            let kind = NoiseKind::Uniform { lo, hi };
            Noise { shape, stream: 0, kind }.signature(&[]).unwrap_err().to_string()
        };
        assert_eq!(e(Shape::rows(2, 3), 1.0, -1.0), "noise: bounds: expected lo < hi, found 1 and -1");
        assert!(e(Shape::rows(2, 3), 0.0, f32::INFINITY).contains("lo < hi"));
        assert_eq!(e(Shape::rows(0, 3), 0.0, 1.0), "noise: shape: [0, 1, 1, 3] holds nothing");
    }
}
