//! The convolution's kernels with mma.sync or fmaf: the tile of a product, and how a sum over pixels is cut into parts.

use super::geometry::Dims;
use crate::device::gpu::launch::Work;
use crate::device::gpu::target::Target;
use crate::tensor::Elem;

/// Fewest pixels of a part of a weight or bias gradient, if there are several: eight slabs of bf16, and a
/// multiple of a slab of either type.
const PART_PIXELS: usize = 512;

/// Multiply-adds of a multiprocessor in a cycle, with mma.sync (half as many as with wgmma) and with fmaf: forecasts.
const MMA_PER_CYCLE: usize = 1024;
const FMA_PER_CYCLE: usize = 128;

/// Mirrors TILE_STAGES of kernels/lib/tile.cuh.
const STAGES: usize = 3;

/// Rows and columns of a product that one block computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tile {
    pub rows: usize,
    pub columns: usize,
}

impl Tile {
    /// The tile of a product, for `batches` products in one launch. At most 32 columns always take 128x32,
    /// and at most 64 rows always 64x64, which waste less of a narrow or low product. Others take the largest
    /// of 128x128 (128x64 up to 64 columns), 128x64 and 64x64 that fits the shared memory of a block and
    /// still gives every multiprocessor a block; the last one needs neither. A large tile reads each operand
    /// less often. The members of a grouped launch are not counted.
    pub fn of(rows: usize, columns: usize, batches: usize, target: &Target) -> Tile {
        let tile = |rows, columns| Tile { rows, columns };
        let fits = |t: &Tile| t.shared_bytes() <= target.shared_bytes;
        let fills = |t: &Tile| fits(t) && t.blocks(rows, columns) * batches >= target.multiprocessors;
        match (rows, columns) {
            (_, ..=32) => tile(128, 32),
            (..=64, _) => tile(64, 64),
            (_, ..=64) => Some(tile(128, 64)).filter(fills).unwrap_or(tile(64, 64)),
            _ => [tile(128, 128), tile(128, 64)].into_iter().find(fills).unwrap_or(tile(64, 64)),
        }
    }
    pub fn forward(d: &Dims, target: &Target) -> Tile {
        Tile::of(d.outputs(), d.k, 1, target)
    }
    pub fn blocks(self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(self.rows) * columns.div_ceil(self.columns)
    }
    /// A stage has a slab of each operand: 128 bytes for each row or column of the tile, and 16 bytes of
    /// padding for each row of the slab's layout. The layout has as many rows as the tile has rows or columns
    /// or, transposed, the 64 rows of a slab of bf16; the larger number counts.
    pub fn shared_bytes(self) -> u32 {
        let slab = |len: usize| len * 128 + len.max(64) * 16;
        (STAGES * (slab(self.rows) + slab(self.columns))) as u32
    }
    /// What a launch of so many tiles computes, each with `depth` elements of the inner dimension, in whole slabs of 128
    /// bytes.
    pub fn work(self, tiles: usize, depth: usize, elem: Elem, target: &Target) -> Work {
        let per_cycle = if elem == Elem::Bf16 { MMA_PER_CYCLE } else { FMA_PER_CYCLE };
        let cycles = self.rows * self.columns * depth.next_multiple_of(128 / elem.bytes()) / per_cycle;
        Work { tiles, cycles: [cycles; 2], multiprocessors: target.multiprocessors }
    }
    pub fn kernel(self, name: &str, elem: Elem) -> String {
        format!("{name}<{elem}, {}, {}>", self.rows, self.columns)
    }
}

/// How a sum over pixels is cut: into a number of parts, added in order, that depends on the sizes and the
/// target alone.
#[derive(Clone, Copy)]
pub struct Parts {
    pub count: usize,
    /// Pixels of each part, the last one excepted.
    pub pixels: usize,
}

impl Parts {
    pub fn of(pixels: usize, most: usize) -> Parts {
        let count = (pixels / PART_PIXELS).clamp(1, most.max(1));
        let pixels_each = pixels.div_ceil(count).next_multiple_of(64);
        Parts { count: pixels.div_ceil(pixels_each), pixels: pixels_each }
    }
    /// Of a weight gradient: as many as leave no block waiting, with two blocks on each multiprocessor, which its
    /// shared memory holds with tiles of 128x128. More blocks of the smaller tiles would fit. With one part more a
    /// second round of blocks would take longer than the parts are shorter. `members` gradients share the launch.
    pub fn of_wgrad(d: &Dims, members: usize, target: &Target) -> (Tile, Parts) {
        let pixels = d.outputs();
        let tile = Tile::of(d.k, d.depth(), (pixels / PART_PIXELS).max(1), target);
        let most = 2 * target.multiprocessors / (members * tile.blocks(d.k, d.depth()));
        (tile, Parts::of(pixels, most))
    }
    /// Of a bias gradient, which reads dz once: eight blocks on each multiprocessor keep enough loads in
    /// flight.
    pub fn of_dbias(d: &Dims, target: &Target) -> Parts {
        let most = (8 * target.multiprocessors).div_ceil(d.k.div_ceil(DBIAS_CHANNELS));
        Parts::of(d.outputs(), most)
    }
}

/// Most channels of a block of a bias gradient; its 256 threads share the pixels of these channels.
pub const DBIAS_CHANNELS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_follow_the_product_and_the_target() {
        let two = Target { multiprocessors: 2, ..Target::h200(Elem::Bf16) };
        let tile_on = |target: &Target, rows, columns, batches| {
            let t = Tile::of(rows, columns, batches, target);
            (t.rows, t.columns)
        };
        let tile = |rows, columns, batches| tile_on(&two, rows, columns, batches);
        assert_eq!(tile(129, 65, 1), (128, 128), "two blocks for two multiprocessors");
        assert_eq!(tile(128, 65, 1), (128, 64), "one of 128x128 would leave a multiprocessor idle");
        assert_eq!(tile(128, 65, 2), (128, 128));
        assert_eq!(tile(129, 64, 1), (128, 64), "a wider tile would be half padding");
        assert_eq!(tile(64, 512, 1), (64, 64));
        assert_eq!(tile(100, 64, 1), (64, 64));
        assert_eq!(tile(1 << 20, 3, 1), (128, 32));
        let h200 = Target::h200(Elem::Bf16);
        assert_eq!(tile_on(&h200, 129, 65, 1), (64, 64), "too few blocks for 132 multiprocessors");
        assert_eq!(tile_on(&h200, 64 * 56 * 56, 256, 1), (128, 128));
        let small = Target { shared_bytes: 99 << 10, ..h200 };
        assert_eq!(tile_on(&small, 64 * 56 * 56, 256, 1), (128, 64), "108 KB do not fit 99 KB");
    }

    #[test]
    fn parts_cover_the_pixels_in_whole_slabs() {
        for pixels in [1, 63, 512, 1023, 1024, 1600, 4097, 64 * 56 * 56] {
            for most in [1, 2, 3, 7, 100] {
                let parts = Parts::of(pixels, most);
                assert!((1..=most).contains(&parts.count));
                assert_eq!(parts.pixels % 64, 0);
                assert!((parts.count - 1) * parts.pixels < pixels && pixels <= parts.count * parts.pixels);
            }
        }
    }
}
