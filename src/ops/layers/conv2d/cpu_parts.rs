//! How the sums of a weight gradient on the CPU are cut: into parts of images and, where these are few, panels of
//! output channels.

use super::geometry::Dims;
use crate::device::cpu::gemm;
use std::ops::Range;

/// Fewest output pixels of a part. With 8 pixels, a linear layer from 128 to 2048 channels took 1370 us at batch 64
/// instead of 380, because its eight partial sums are a megabyte each.
const PART_PIXELS: usize = 128;

/// Most parts: a fixed number, so that the order of additions does not depend on the threads.
pub const MOST_PARTS: usize = 8;

/// The cuts, which depend on the sizes alone.
#[derive(Clone, Copy)]
pub struct Parts {
    images: usize,
    /// Images of each part but the last.
    grain: usize,
    /// Number of parts.
    pub count: usize,
    /// Panels of output channels.
    pub panels: usize,
    /// Panels of an item.
    pub panels_each: usize,
}

impl Parts {
    /// Of the weight gradient of a convolution.
    pub fn of(d: &Dims) -> Parts {
        let grain = d.n.div_ceil(MOST_PARTS).max(PART_PIXELS / (d.p * d.q));
        let (count, panels) = (d.n.div_ceil(grain), d.k.div_ceil(gemm::lanes(d.k)));
        Parts { images: d.n, grain, count, panels, panels_each: if count < MOST_PARTS { 1 } else { panels } }
    }
    /// Items of work: panels of parts, the panels of a part one after the other.
    pub fn items(&self) -> usize {
        self.count * self.panels / self.panels_each
    }
    /// The images and the panels of an item.
    pub fn item(&self, item: usize) -> (Range<usize>, Range<usize>) {
        let at = item * self.panels_each;
        let (part, first) = (at / self.panels, at % self.panels);
        let images = part * self.grain..((part + 1) * self.grain).min(self.images);
        (images, first..first + self.panels_each)
    }
}
