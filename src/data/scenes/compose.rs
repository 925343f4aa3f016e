//! Composing one scene from source images.

use std::ops::RangeInclusive;

use super::sources::{LABELS, SOURCE};
use crate::data::rng::Rng;
use crate::error::{Error, Result};

/// Height and width of a scene in pixels.
pub const CANVAS: usize = 32;

/// The distribution of scenes.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The number of objects in a scene.
    pub objects: RangeInclusive<usize>,
    /// Height and width that an object is resized to, in pixels.
    pub side: RangeInclusive<usize>,
    /// The most places that are drawn for an object. The first place that overlaps no earlier object's box
    /// is taken, or else the place that overlaps them in the fewest pixels. With 1, placement is uniform.
    pub tries: usize,
}

impl Default for Spec {
    fn default() -> Self {
        Spec { objects: 1..=3, side: 14..=20, tries: 1 }
    }
}

impl Spec {
    /// One object per scene, for pretraining a backbone as a classifier.
    pub fn single() -> Self {
        Spec { objects: 1..=1, ..Spec::default() }
    }

    pub(super) fn check(&self) -> Result<()> {
        for (what, range, max) in [("objects", &self.objects, LABELS.len()), ("side", &self.side, CANVAS)] {
            if range.is_empty() || *range.start() == 0 || *range.end() > max {
                return Err(Error::Usage(format!(
                    "scenes: expected {what} within 1..={max}, found {range:?}"
                )));
            }
        }
        if self.tries == 0 {
            return Err(Error::Usage("scenes: expected at least 1 try to place an object, found 0".into()));
        }
        Ok(())
    }
}

/// Draws a scene on `canvas`, which is black, and sets the entries of `targets` whose labels it shows.
/// `sources` holds the source images of every label, one after the other.
pub(super) fn compose_scene(
    sources: &[Vec<u8>],
    rng: &mut Rng,
    spec: &Spec,
    canvas: &mut [u8],
    targets: &mut [u8],
) {
    let mut labels: [usize; LABELS.len()] = std::array::from_fn(|l| l);
    let mut covered = [false; CANVAS * CANVAS];
    for k in 0..rng.within(&spec.objects) {
        // A Fisher-Yates shuffle that is stopped early: the first k entries have been drawn.
        labels.swap(k, k + rng.below(LABELS.len() - k));
        let label = labels[k];
        let images = &sources[label];
        let image = rng.below(images.len() / (SOURCE * SOURCE));
        let side = rng.within(&spec.side);
        let (top, left) = place(&mut covered, side, spec.tries, rng);
        let object = resize(&images[image * SOURCE * SOURCE..][..SOURCE * SOURCE], side);
        for (y, row) in object.chunks_exact(side).enumerate() {
            let under = &mut canvas[(top + y) * CANVAS + left..][..side];
            for (p, &v) in under.iter_mut().zip(row) {
                *p = (*p).max(v);
            }
        }
        targets[label] = 1;
    }
}

/// Draws the top left corner of an object's box (see [`Spec::tries`]) and marks the box as covered.
fn place(covered: &mut [bool; CANVAS * CANVAS], side: usize, tries: usize, rng: &mut Rng) -> (usize, usize) {
    let rows = |(top, left): (usize, usize)| {
        (top..top + side).map(move |y| y * CANVAS + left..y * CANVAS + left + side)
    };
    let mut best = (usize::MAX, (0, 0));
    for _ in 0..tries {
        let corner = (rng.below(CANVAS - side + 1), rng.below(CANVAS - side + 1));
        let overlap = rows(corner).flatten().filter(|p| covered[*p]).count();
        if overlap < best.0 {
            best = (overlap, corner);
        }
        if overlap == 0 {
            break;
        }
    }
    for row in rows(best.1) {
        covered[row].fill(true);
    }
    best.1
}

/// Resizes a source image bilinearly with half-pixel centres: pixel `d` of the result samples the source at
/// `(d + 1/2) 28 / side - 1/2`, clamped at the border. In units of `1 / (2 side)` this position, and so each
/// weight, is an integer. The result is rounded once, with halves rounded up.
fn resize(source: &[u8], side: usize) -> Vec<u8> {
    let unit = 2 * side;
    let taps: Vec<(usize, usize, usize)> = (0..side)
        .map(|d| {
            let at = ((2 * d + 1) * SOURCE).saturating_sub(side);
            let first = at / unit;
            (first, (first + 1).min(SOURCE - 1), at % unit)
        })
        .collect();
    let mut out = Vec::with_capacity(side * side);
    for &(y0, y1, fy) in &taps {
        for &(x0, x1, fx) in &taps {
            let across = |y: usize| {
                let row = &source[y * SOURCE..][..SOURCE];
                row[x0] as usize * (unit - fx) + row[x1] as usize * fx
            };
            let sum = across(y0) * (unit - fy) + across(y1) * fy;
            out.push(((sum + unit * unit / 2) / (unit * unit)) as u8);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values come from PyTorch 2.15.0 in float64:
    ///
    /// ```text
    /// y, x = np.mgrid[0:28, 0:28]
    /// im = torch.tensor(((37 * y + 91 * x + y * x) % 256).astype(float))[None, None]
    /// F.interpolate(im, size=(s, s), mode='bilinear', align_corners=False)[0, 0][row]
    /// ```
    ///
    /// The tolerance is half a grey level for our rounding and 1e-3 for the digits that the literals leave
    /// out.
    #[test]
    fn resizing_agrees_with_pytorch() {
        let source: Vec<u8> =
            (0..784).map(|i| ((37 * (i / 28) + 91 * (i % 28) + (i / 28) * (i % 28)) % 256) as u8).collect();
        let golden: [(usize, usize, &[f64]); 4] = [
            (
                14,
                5,
                &[
                    183.25, 130.25, 77.25, 152.25, 163.25, 174.25, 121.25, 132.25, 143.25, 154.25, 165.25,
                    112.25, 123.25, 134.25,
                ],
            ),
            (
                17,
                8,
                &[
                    107.8971, 193.4265, 109.5441, 119.7794, 197.7794, 113.8971, 131.6618, 202.1324, 118.25,
                    143.5441, 206.4853, 122.6029, 38.7206, 116.7206, 126.9559, 43.0735, 128.6029,
                ],
            ),
            (
                20,
                0,
                &[
                    25.64, 153.32, 25.0, 152.68, 75.56, 141.8, 105.64, 151.4, 145.96, 150.76, 186.28, 150.12,
                    21.8, 149.48, 72.36, 138.6, 102.44, 148.2, 142.76, 147.56,
                ],
            ),
            (
                20,
                19,
                &[
                    195.96, 156.08, 65.0, 127.52, 138.84, 88.72, 89.8, 121.6, 184.12, 195.44, 104.36, 115.68,
                    178.2, 117.84, 88.2, 120.0, 90.36, 234.8, 143.72, 103.84,
                ],
            ),
        ];
        for (side, row, expected) in golden {
            let out = resize(&source, side);
            assert_eq!(out.len(), side * side);
            for (x, (&found, &e)) in out[row * side..][..side].iter().zip(expected).enumerate() {
                assert!(
                    (found as f64 - e).abs() <= 0.501,
                    "side {side}, row {row}, column {x}: {found}, expected {e}"
                );
            }
        }
        assert_eq!(resize(&source, 28), source);
        assert_eq!(resize(&[9; 784], 32), [9; 1024]);
    }
}
