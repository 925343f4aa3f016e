//! Stores a batch in a bank of images, over the oldest ones.

use crate::device::cpu::par::{Rows, for_rows};
use crate::error::Result;
use crate::ops::launch::launches::{Launches, THREADS};
use crate::ops::operands::{Io, Operands};
use crate::ops::operator::{
    OperandInfo, Operator, Signature, expect_f32, expect_operands, expect_setting, expect_shape,
};
use crate::tensor::Real;

/// `bank[(step n + i) mod m] = x[i]`: after `m / n` steps, rounded up, every row of the bank has been
/// written.
///
/// Shapes: bank `[m, h, w, c]`, updated in place, and x `[n, h, w, c]` with `n <= m`; no output.
/// Source: ours (a snapshot bank of generated images beside the current ones).
/// Backward: none; within the step, nothing depends on the bank.
/// Errors: images of another shape than the bank's, or more images than the bank has rows.
/// Cost: no multiply-adds; reads and writes n images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScatterImages {}

impl Operator for ScatterImages {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("scatter_images", args, &["bank", "x"])?;
        let (bank, x) = (args[0].shape, args[1].shape);
        expect_shape("scatter_images", "x", bank.with_n(x.n()), x)?;
        expect_setting("scatter_images", x.n() <= bank.n() && x.elems() > 0, || {
            format!("x: {x} does not fit into a bank {bank}")
        })?;
        Ok(Signature { updates: vec![0], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (bank, x) = (io.state(0), io.x(1));
        let (m, n, image) = (io.shape(0).n(), io.shape(1).n(), io.shape(0).per_sample());
        let first = (io.step.step % m as u64) as usize * n % m;
        let copy = |to: &mut [R], from: &[R]| {
            let items = to.len();
            for_rows(Rows::new(to, items), 1, &|at, part: Rows<R>| {
                part.data.copy_from_slice(&from[at..][..part.data.len()]);
            });
        };
        // First the rows up to the end of the bank, then those that wrap around to its start.
        let (start, end) = bank.split_at_mut(first * image);
        let ahead = end.len().min(x.len());
        copy(&mut end[..ahead], &x[..ahead]);
        copy(&mut start[..x.len() - ahead], &x[ahead..]);
    }

    fn backward<R: Real>(&self, _: &Io<R>) {}

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (bank, x) = (expect_f32("scatter_images", "bank", l.x(0))?, l.x(1));
        let [m, n, image] = [l.shape(0).n(), l.shape(1).n(), l.shape(0).per_sample()].map(|d| d as i64);
        let grid = l.blocks_for(l.shape(1).elems(), 4 * THREADS as usize);
        let args = [bank.into(), x.into(), m.into(), n.into(), image.into(), l.step()];
        l.launch(format!("scatter_images<{}>", x.elem), grid, THREADS, 0, args)
    }

    fn launch_backward(&self, _: &mut Launches) -> Result<()> {
        Ok(())
    }
    fn touched_bytes(&self, o: &Operands, i: usize) -> u64 {
        if i == 0 { (o.input_shapes[1].elems() * size_of::<f32>()) as u64 } else { o.inputs[i].bytes as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};
    use crate::tensor::Shape;

    #[test]
    fn passes_the_op_checks() {
        for (bank, n) in [
            (Shape::new(1, 1, 1, 1), 1),
            (Shape::new(13, 5, 7, 3), 5),
            (Shape::new(12, 2, 3, 1), 12),
            (Shape::new(40, 17, 19, 3), 16),
            // Whole packs of four.
            (Shape::new(7, 4, 5, 3), 5),
        ] {
            for step in [0, 2, 5, (1 << 40) + 7] {
                let case =
                    Case::new(ScatterImages {}, &[bank, bank.with_n(n)]).frozen(0).frozen(1).step(step);
                check(case.reference(move |x| {
                    let mut after = x[0].clone();
                    let image = bank.per_sample();
                    for i in 0..n {
                        let row = ((u128::from(step) * n as u128 + i as u128) % bank.n() as u128) as usize;
                        (0..image).for_each(|e| after[row * image + e] = x[1][i * image + e]);
                    }
                    vec![after]
                }));
            }
        }
    }

    #[test]
    fn refuses_images_that_do_not_fit() {
        let e = |x| {
            let arg = |shape| OperandInfo { shape, needs_grad: false };
            ScatterImages {}.signature(&[arg(Shape::new(4, 2, 2, 3)), arg(x)]).unwrap_err().to_string()
        };
        assert_eq!(e(Shape::new(2, 2, 2, 1)), "scatter_images: x: expected [2, 2, 2, 3], found [2, 2, 2, 1]");
        assert_eq!(
            e(Shape::new(5, 2, 2, 3)),
            "scatter_images: x: [5, 2, 2, 3] does not fit into a bank [4, 2, 2, 3]"
        );
    }
}
