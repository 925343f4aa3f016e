//! Random label sets, as the condition of a conditional generator.

use crate::device::cpu::par::{Rows, for_rows};
use crate::device::philox::{Draws, below};
use crate::error::Result;
use crate::ops::launch::launches::Launches;
use crate::ops::operands::Io;
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_operands, expect_setting};
use crate::tensor::{Real, Shape};

/// `y[n, l]` is 1 for the labels of a random set and 0 for the others. The size of a set is uniform in
/// `min..=max`, and all sets of one size are equally likely.
///
/// Shapes: no operand; y `[n, 1, 1, labels]`.
/// Source: ours (a label set as part of z keeps the generator from collapsing).
/// Backward: none; y depends on no operand.
/// Errors: an operand; an empty shape; sizes that are not `min <= max <= labels`.
/// Cost: no multiply-adds; writes 1 tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawLabels {
    /// The number of sets, one per row.
    pub n: usize,
    /// The number of labels to draw from.
    pub labels: usize,
    /// The smallest size of a set.
    pub min: usize,
    /// The largest size of a set.
    pub max: usize,
    /// The random stream.
    pub stream: u32,
}

impl Operator for DrawLabels {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("draw_labels", args, &[])?;
        let DrawLabels { n, labels, min, max, .. } = *self;
        expect_setting("draw_labels", n > 0 && labels > 0 && min <= max && max <= labels, || {
            format!("expected min <= max <= labels, found {min}, {max} and {labels} for {n} rows")
        })?;
        Ok(Signature { outputs: vec![Shape::rows(n, labels)], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let draws = Draws::new(io.step.seed, self.stream, io.step.step);
        for_rows(Rows::new(io.y(0), self.n), self.labels, &|first, part: Rows<R>| {
            for (row, y) in part.data.chunks_mut(self.labels).enumerate() {
                let row = (first + row) as u32;
                // Lane 0 draws the size; lanes 1, 2, ... draw four labels each.
                let mut to_take = self.min + below(draws.words(row, 0)[0], self.max - self.min + 1);
                let mut words = [0; 4];
                for (label, y) in y.iter_mut().enumerate() {
                    if label % 4 == 0 {
                        words = draws.words(row, 1 + label as u32 / 4);
                    }
                    // Selection sampling (Knuth, TAOCP 2, algorithm 3.4.2 S): a label is taken with
                    // probability (labels still to take) / (labels left).
                    let takes = below(words[label % 4], self.labels - label) < to_take;
                    to_take -= usize::from(takes);
                    *y = if takes { R::ONE } else { R::ZERO };
                }
            }
        });
    }

    fn backward<R: Real>(&self, _: &Io<R>) {}

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let DrawLabels { n, labels, min, max, stream } = *self;
        let [rows, labels, min, max] = [n, labels, min, max].map(|d| (d as i32).into());
        let args = [l.y(0).into(), rows, labels, min, max, l.step(), stream.into()];
        l.launch("draw_labels", l.blocks_for(n, 64), 64, 0, args)
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
        for (n, labels, min, max) in
            [(1, 1, 0, 1), (1, 1, 1, 1), (7, 5, 0, 5), (64, 20, 1, 3), (4099, 17, 2, 2)]
        {
            let case = Case::new(DrawLabels { n, labels, min, max, stream: 3 }, &[]);
            check(case.reference(move |_| {
                let draws = Draws::new(11, 3, 5);
                let mut y = vec![0.0; n * labels];
                for i in 0..n {
                    let size = min + below(draws.words(i as u32, 0)[0], max - min + 1);
                    let mut chosen = Vec::new();
                    for j in 0..labels {
                        let word = draws.words(i as u32, 1 + j as u32 / 4)[j % 4];
                        if below(word, labels - j) < size - chosen.len() {
                            chosen.push(j);
                        }
                    }
                    assert_eq!(chosen.len(), size, "a row has as many labels as drawn");
                    chosen.iter().for_each(|j| y[i * labels + j] = 1.0);
                }
                vec![y]
            }));
        }
    }

    #[test]
    fn every_set_is_equally_likely() {
        // 1 or 2 of 4 labels in 60 000 rows: each single 7 500 times, each of the 6 pairs 5 000; 5 standard
        // errors are 410 and 340.
        let (n, labels) = (60_000, 4);
        let case = Case::new(DrawLabels { n, labels, min: 1, max: 2, stream: 0 }, &[]);
        let y = case.outputs().remove(0);
        let mut counts = [0i32; 16];
        for row in y.chunks(labels) {
            counts[row.iter().fold(0, |set, v| set * 2 + usize::from(*v == 1.0))] += 1;
        }
        for (set, count) in counts.iter().enumerate() {
            let (mean, spread) = match set.count_ones() {
                1 => (7_500, 410),
                2 => (5_000, 340),
                _ => (0, 0),
            };
            assert!((count - mean).abs() <= spread, "set {set:04b}: {count} of about {mean}");
        }
    }

    #[test]
    fn refuses_sizes_that_do_not_fit() {
        let e = |min, max| {
            DrawLabels { n: 2, labels: 4, min, max, stream: 0 }.signature(&[]).unwrap_err().to_string()
        };
        assert_eq!(e(3, 5), "draw_labels: expected min <= max <= labels, found 3, 5 and 4 for 2 rows");
        assert!(e(3, 2).contains("found 3, 2 and 4"));
    }
}
