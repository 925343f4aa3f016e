//! Normal noise: the generator's input, and the images of the random-noise baseline.

use crate::device::cpu::par::{Rows, for_rows};
use crate::device::philox::Draws;
use crate::error::Result;
use crate::ops::launch::launches::{Launches, THREADS};
use crate::ops::operands::Io;
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_operands, expect_setting};
use crate::tensor::{Real, Shape};

/// `y[i] ~ N(0, 1)`, independent: a function of (seed, stream, step, i) alone.
///
/// Shapes: no operand; y of the given shape.
/// Source: eq. 2 (z); docs/method.md 5 (random noise).
/// Backward: none; y depends on no operand.
/// Errors: an operand; an empty shape.
/// Cost: no multiply-adds; writes 1 tensor, with one call of Philox for four elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    /// The shape of y.
    pub shape: Shape,
    /// The random stream.
    pub stream: u32,
}

impl Operator for Noise {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("noise", args, &[])?;
        expect_setting("noise", self.shape.elems() > 0, || format!("shape: {} has no elements", self.shape))?;
        Ok(Signature { outputs: vec![self.shape], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let draws = Draws::new(io.step.seed, self.stream, io.step.step);
        let four = |block: usize| draws.normals(block as u32, 0);
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
        let args = [y.into(), (elems as i64).into(), step, self.stream.into()];
        l.launch(format!("noise_normal<{}>", y.elem), grid, THREADS, 0, args)
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
    fn passes_the_op_checks() {
        // Cases draw with seed 11, in step 5 unless they set another.
        for shape in [Shape::rows(1, 1), Shape::rows(7, 5), Shape::rows(64, 128), Shape::new(5, 61, 67, 3)] {
            for step in [0, 5] {
                let draws = Draws::new(11, 2, step);
                let case = Case::new(Noise { shape, stream: 2 }, &[]).step(step);
                check(case.reference(move |_| {
                    vec![(0..shape.elems()).map(|i| draws.normals(i as u32 / 4, 0)[i % 4]).collect()]
                }));
            }
        }
    }

    #[test]
    fn refuses_an_empty_shape() {
        let e = Noise { shape: Shape::rows(0, 3), stream: 0 }.signature(&[]).unwrap_err().to_string();
        assert_eq!(e, "noise: shape: [0, 1, 1, 3] has no elements");
    }
}
