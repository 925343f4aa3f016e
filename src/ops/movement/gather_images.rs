//! A random batch out of a bank of images.

use crate::device::cpu::par::{Rows, for_rows};
use crate::device::philox::{Draws, below};
use crate::error::Result;
use crate::ops::launch::launches::Launches;
use crate::ops::launch::launches::THREADS;
use crate::ops::losses::common::{expect_f32, expect_frozen, expect_setting};
use crate::ops::operands::{Io, Operands};
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_args};
use crate::tensor::{Real, Shape};

/// `y[i] = bank[row_i]`, `row_i` uniform in `first..first + count`, with replacement. Without a count, all rows from
/// `first` on.
///
/// Shapes: bank `[m, h, w, c]`; y `[n, h, w, c]`.
/// Source: ours (batches mix the current generator's images with earlier ones); real images for KA, docs/method.md 5.
/// Backward: none; a bank is data.
/// Errors: rows outside the bank, none at all, or a bank that wants a gradient.
/// Cost: no multiply-adds; reads and writes n images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatherImages {
    pub n: usize,
    pub stream: u32,
    pub first: usize,
    pub count: Option<usize>,
}

impl GatherImages {
    fn rows(&self, bank: Shape) -> usize {
        self.count.unwrap_or(bank.n().saturating_sub(self.first))
    }
}

impl Operator for GatherImages {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_args("gather_images", args, &["bank"])?;
        expect_frozen("gather_images", "bank", args[0])?;
        let (bank, first) = (args[0].shape, self.first);
        let rows = self.rows(bank);
        let fits = rows > 0 && rows <= bank.n().saturating_sub(first);
        expect_setting("gather_images", fits && self.n > 0, || {
            format!("{rows} rows from row {first} on, {} times: not in a bank {bank}", self.n)
        })?;
        Ok(Signature { outputs: vec![bank.with_n(self.n)], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let draws = Draws::new(io.step.seed, self.stream, io.step.step);
        let (bank, rows) = (io.x(0), self.rows(io.shape(0)));
        let image = io.shape(0).per_sample();
        for_rows(Rows::new(io.y(0), self.n), image, &|first, part: Rows<R>| {
            for (i, y) in part.data.chunks_mut(image).enumerate() {
                let row = self.first + below(draws.words((first + i) as u32, 0)[0], rows);
                y.copy_from_slice(&bank[row * image..][..image]);
            }
        });
    }

    fn backward<R: Real>(&self, _: &Io<R>) {}

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (bank, y) = (expect_f32("gather_images", "bank", l.x(0))?, l.y(0));
        let (image, rows) = (l.shape(0).per_sample(), self.rows(l.shape(0)) as u32);
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
                (self.first as i64).into(),
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

    #[test]
    fn gates() {
        for (bank, n, first, count) in [
            (Shape::new(1, 1, 1, 1), 3, 0, None),
            (Shape::new(13, 5, 7, 3), 8, 0, None),
            (Shape::new(13, 5, 7, 3), 31, 4, Some(6)),
            (Shape::new(40, 17, 19, 3), 64, 39, None),
            // Whole packs of four, and an image that two blocks share.
            (Shape::new(5, 38, 36, 3), 4, 1, None),
        ] {
            let case = Case::new(GatherImages { n, stream: 4, first, count }, &[bank]).frozen(0);
            check(case.reference(move |x| {
                let draws = Draws::new(11, 4, 5);
                let mut y = Vec::new();
                for i in 0..n {
                    let row = first + below(draws.words(i as u32, 0)[0], count.unwrap_or(bank.n() - first));
                    (0..bank.per_sample()).for_each(|e| y.push(x[0][row * bank.per_sample() + e]));
                }
                vec![y]
            }));
        }
    }

    #[test]
    fn every_row_is_equally_likely() {
        // 40 000 draws of rows 2, 3, 4 and 5 of 7: 10 000 each, 5 standard errors are 433.
        let op = GatherImages { n: 40_000, stream: 0, first: 2, count: Some(4) };
        let case = Case::new(op, &[Shape::rows(7, 1)]).values(0, (0..7).map(f64::from).collect()).frozen(0);
        let mut counts = [0i32; 7];
        case.outputs()[0].iter().for_each(|row| counts[*row as usize] += 1);
        let off = |row: usize| (counts[row] - if (2..6).contains(&row) { 10_000 } else { 0 }).abs();
        assert!((0..7).all(|row| off(row) <= 433) && off(0) + off(1) + off(6) == 0, "{counts:?}");
    }

    #[test]
    fn refuses_rows_outside_the_bank() {
        let e = |first, count, needs_grad| {
            let arg = OperandInfo { shape: Shape::new(5, 2, 2, 3), needs_grad };
            GatherImages { n: 2, stream: 0, first, count }.signature(&[arg]).unwrap_err().to_string()
        };
        assert_eq!(
            e(3, Some(3), false),
            "gather_images: 3 rows from row 3 on, 2 times: not in a bank [5, 2, 2, 3]"
        );
        assert!(e(5, None, false).contains("0 rows"));
        assert!(e(9, Some(1), false).contains("1 rows from row 9"));
        assert!(e(0, None, true).contains("no gradient flows into it"));
    }
}
