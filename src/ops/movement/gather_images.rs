//! Draws a random batch from a bank of images.

use crate::device::cpu::par::{Rows, for_rows};
use crate::device::philox::{Draws, below};
use crate::error::Result;
use crate::ops::launch::launches::{Launches, THREADS};
use crate::ops::operands::{Io, Operands};
use crate::ops::operator::{
    OperandInfo, Operator, Signature, expect_f32, expect_frozen, expect_operands, expect_setting,
};
use crate::tensor::Real;

/// `y[i] = bank[row_i]`, `row_i` uniform over the bank's rows, with replacement.
///
/// Shapes: bank `[m, h, w, c]`; y `[n, h, w, c]`.
/// Source: ours (batches mix the current generator's images with earlier ones); docs/method.md 5 for real
/// images.
/// Backward: none; the bank is data.
/// Errors: an empty bank, a batch of 0, or a bank that needs a gradient.
/// Cost: no multiply-adds; reads and writes n images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatherImages {
    /// The number of images to draw.
    pub n: usize,
    /// The random stream.
    pub stream: u32,
}

impl Operator for GatherImages {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("gather_images", args, &["bank"])?;
        expect_frozen("gather_images", "bank", args[0])?;
        let bank = args[0].shape;
        expect_setting("gather_images", bank.n() > 0 && self.n > 0, || {
            format!("cannot draw {} images from a bank {bank}; both need at least one image", self.n)
        })?;
        Ok(Signature { outputs: vec![bank.with_n(self.n)], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let draws = Draws::new(io.step.seed, self.stream, io.step.step);
        let (bank, rows) = (io.x(0), io.shape(0).n());
        let image = io.shape(0).per_sample();
        for_rows(Rows::new(io.y(0), self.n), image, &|first, part: Rows<R>| {
            for (i, y) in part.data.chunks_mut(image).enumerate() {
                let row = below(draws.words((first + i) as u32, 0)[0], rows);
                y.copy_from_slice(&bank[row * image..][..image]);
            }
        });
    }

    fn backward<R: Real>(&self, _: &Io<R>) {}

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (bank, y) = (expect_f32("gather_images", "bank", l.x(0))?, l.y(0));
        let (image, rows) = (l.shape(0).per_sample(), l.shape(0).n() as u32);
        let grid = [image.div_ceil(16 * THREADS as usize) as u32, self.n.min(65_535) as u32, 1];
        l.launch(
            format!("gather_images<{}>", y.elem),
            grid,
            THREADS,
            0,
            [
                y.into(),
                bank.into(),
                (self.n as i32).into(),
                (image as i64).into(),
                rows.into(),
                l.step(),
                self.stream.into(),
            ],
        )
    }

    fn launch_backward(&self, _: &mut Launches) -> Result<()> {
        Ok(())
    }
    fn touched_bytes(&self, o: &Operands, _: usize) -> u64 {
        (self.n * o.input_shapes[0].per_sample() * size_of::<f32>()) as u64
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
            (Shape::new(1, 1, 1, 1), 3),
            (Shape::new(13, 5, 7, 3), 8),
            (Shape::new(13, 5, 7, 3), 31),
            (Shape::new(40, 17, 19, 3), 64),
            // Whole packs of four, and an image that two blocks share.
            (Shape::new(5, 38, 36, 3), 4),
        ] {
            let case = Case::new(GatherImages { n, stream: 4 }, &[bank]).frozen(0);
            check(case.reference(move |x| {
                let draws = Draws::new(11, 4, 5);
                let mut y = Vec::new();
                for i in 0..n {
                    let row = below(draws.words(i as u32, 0)[0], bank.n());
                    (0..bank.per_sample()).for_each(|e| y.push(x[0][row * bank.per_sample() + e]));
                }
                vec![y]
            }));
        }
    }

    #[test]
    fn every_row_is_equally_likely() {
        // 40 000 draws from 4 rows: 10 000 each, 5 standard errors are 433.
        let op = GatherImages { n: 40_000, stream: 0 };
        let case = Case::new(op, &[Shape::rows(4, 1)]).values(0, (0..4).map(f64::from).collect()).frozen(0);
        let mut counts = [0i32; 4];
        case.outputs()[0].iter().for_each(|row| counts[*row as usize] += 1);
        assert!(counts.iter().all(|count| (count - 10_000).abs() <= 433), "{counts:?}");
    }

    #[test]
    fn refuses_an_empty_bank_and_a_gradient() {
        let e = |rows, n, needs_grad| {
            let arg = OperandInfo { shape: Shape::new(rows, 2, 2, 3), needs_grad };
            GatherImages { n, stream: 0 }.signature(&[arg]).unwrap_err().to_string()
        };
        assert_eq!(
            e(0, 2, false),
            "gather_images: cannot draw 2 images from a bank [0, 2, 2, 3]; both need at least one image"
        );
        assert!(e(5, 0, false).contains("cannot draw 0 images"));
        assert!(e(5, 2, true).contains("needs a gradient, but the op passes none to it"));
    }
}
