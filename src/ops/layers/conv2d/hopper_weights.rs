//! The weight gradient's kernel for compute capability 9.0 (wgmma fed by TMA): which gradients it computes, the tile
//! and the number of parts of each, and the tensor maps.

use super::geometry::Dims;
use super::hopper::Product;
use crate::device::gpu::launch::{Cycles, KernelArg, L2_BYTES, Work};
use crate::device::gpu::target::Target;
use crate::device::gpu::tensor_map::TensorMap;
use crate::ops::launch::launches::DeviceTensor;
use crate::tensor::Elem;

/// Pixels of a slab of the inner dimension, which is also the pixels of a box; mirrors WGMMA_SLAB of
/// kernels/lib/conv_wgmma_tile.cuh.
const SLAB: usize = 64;

/// Threads of a block: one warpgroup copies and adds dz, two multiply.
pub const THREADS: u32 = 384;

/// Cycles from the first copy to the first product: a forecast, about two reads of memory.
const START: usize = 1500;

/// Bytes that memory delivers to a multiprocessor in a cycle.
const MEMORY_BYTES: f64 = 18.6;

/// Output channels and columns of the filter that a block computes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tile {
    rows: usize,
    columns: usize,
}

const TILES: [Tile; 4] = [
    Tile { rows: 128, columns: 256 },
    Tile { rows: 128, columns: 128 },
    Tile { rows: 128, columns: 64 },
    Tile { rows: 64, columns: 256 },
];

impl Tile {
    fn stage_bytes(self) -> usize {
        (self.rows + self.columns) * 2 * SLAB
    }
    /// `SHARED_BYTES` of the kernel: as many stages as 226 KB hold, two barriers per stage, and the two `turn`
    /// barriers of the pipeline, which this kernel does not use.
    fn shared_bytes(self) -> u32 {
        let stages = (226 << 10) / self.stage_bytes();
        (stages * self.stage_bytes() + (2 * stages + 2) * 8) as u32
    }
    fn blocks(self, d: &Dims) -> usize {
        d.k.div_ceil(self.rows) * d.depth().div_ceil(self.columns)
    }
    /// Forecast cycles of a block with so many slabs: for each the longest of multiplying (2048 multiply-adds a
    /// cycle), shared memory (128 bytes a cycle, written by the copies and read by two warpgroups) and the L2; then
    /// the sums are written to the L2.
    fn cycles(self, slabs: usize) -> Cycles {
        let multiply = self.rows * self.columns * SLAB / 2048;
        // The warpgroups share the tile by rows, or one of 64 rows by columns: both read the operand that is not
        // divided.
        let shared_twice = if self.rows == 128 { self.columns } else { self.rows };
        let shared = (2 * self.stage_bytes() + shared_twice * 2 * SLAB) / 128;
        L2_BYTES.map(|l2| {
            let slab = multiply.max(shared).max(self.stage_bytes() / l2);
            START + slabs * slab + self.rows * self.columns * 4 / l2
        })
    }
}

/// A weight gradient that the kernel computes: `dw[k, (r, s, c)]`, sums over the pixels of `dz` times the windows
/// over `x`, cut into parts.
#[derive(Clone, Copy)]
pub struct WeightGradient {
    d: Dims,
    tile: Tile,
    /// Number of parts, and slabs of each but the last.
    pub parts: usize,
    slabs: usize,
    /// Gradients of these sizes that share the launch.
    members: usize,
}

impl WeightGradient {
    /// The gradient with the tile and the number of parts that are forecast to be the fastest; none if the kernel does
    /// not compute it for `target`. The choice depends on the sizes, the target and the number of `members` that share the
    /// launch.
    pub fn of(d: &Dims, elem: Elem, members: usize, target: &Target) -> Option<WeightGradient> {
        Product::forward(d, elem, target)?;
        let all = TILES.iter().flat_map(|tile| Self::all_parts(d, *tile, members, target));
        all.filter(|g| g.tile.shared_bytes() <= target.shared_bytes).min_by_key(|g| g.cycles(target))
    }
    /// Every number of parts that fills at most two rounds of blocks, or one part. The last part is not empty.
    fn all_parts(
        d: &Dims,
        tile: Tile,
        members: usize,
        target: &Target,
    ) -> impl Iterator<Item = WeightGradient> {
        let (d, slabs) = (*d, d.outputs().div_ceil(SLAB));
        let most = (2 * target.multiprocessors / (members * tile.blocks(&d))).clamp(1, slabs);
        (1..=most).map(move |parts| {
            let each = slabs.div_ceil(parts);
            WeightGradient { d, tile, parts: slabs.div_ceil(each), slabs: each, members }
        })
    }
    /// Forecast cycles of all members' blocks, in rounds of one block for each multiprocessor, and of the parts, which go
    /// through memory: they are added after backward, in a launch that all filters share.
    fn cycles(&self, target: &Target) -> usize {
        let bytes = 4 * (2 * self.parts + 1) * self.members * self.d.k * self.d.depth();
        let sum = (bytes as f64 / (MEMORY_BYTES * target.multiprocessors as f64)) as usize;
        self.work(target).cycles_of(self.members)[0] + if self.parts > 1 { sum } else { 0 }
    }
    /// The blocks of the launch.
    pub fn work(&self, target: &Target) -> Work {
        let tiles = self.tile.blocks(&self.d) * self.parts;
        Work { tiles, cycles: self.tile.cycles(self.slabs), multiprocessors: target.multiprocessors }
    }
    /// Name, grid and shared bytes of the launch.
    pub fn launch(&self) -> (String, [u32; 3], u32) {
        let Tile { rows, columns } = self.tile;
        let name = format!("conv2d_wgrad_wgmma<{rows}, {columns}>");
        (name, [self.tile.blocks(&self.d) as u32, 1, self.parts as u32], self.tile.shared_bytes())
    }
    /// Pixels of each part but the last.
    pub fn part_pixels(&self) -> usize {
        self.slabs * SLAB
    }
    /// The tensor maps of dz and of the windows over x, in boxes of a slab.
    pub fn maps(&self, dz: DeviceTensor, x: DeviceTensor) -> KernelArg {
        let Dims { k, .. } = self.d;
        let dz = TensorMap::matrix(dz.into(), self.d.outputs() as u64, k as u64, 2 * k as u64, SLAB as u32);
        let mut windows = Product::windows(&self.d, x);
        windows.set_box_rows(SLAB as u32);
        KernelArg::TensorMaps(vec![dz, windows])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(size: usize, [c, k]: [usize; 2], taps: usize, members: usize) -> (usize, usize, usize, usize) {
        let pad = taps / 2;
        let d = Dims { n: 64, h: size, w: size, c, k, r: taps, s: taps, p: size, q: size, stride: 1, pad };
        let g = WeightGradient::of(&d, Elem::Bf16, members, &Target::h200(Elem::Bf16)).unwrap();
        (g.tile.rows, g.tile.columns, g.parts, g.slabs)
    }

    #[test]
    fn a_resnet_101_at_batch_64_gets_tiles_and_parts_that_fill_whole_rounds() {
        // 18 tiles in 7 parts are 126 blocks of 28 slabs for 132 multiprocessors.
        assert_eq!(chosen(14, [256, 256], 3, 1), (128, 256, 7, 28));
        // Two gradients in one launch fill a round with half the tiles, which may be larger.
        assert_eq!(chosen(14, [1024, 256], 1, 1), (128, 128, 8, 25));
        assert_eq!(chosen(14, [1024, 256], 1, 2), (128, 256, 8, 25));
        // 72 tiles: a second part would start a second round, and leave partial sums to add.
        assert_eq!(chosen(7, [512, 512], 3, 1), (128, 256, 1, 49));
        assert_eq!(chosen(56, [64, 64], 3, 1).0, 64);
    }

    #[test]
    fn the_parts_cover_the_slabs_and_none_is_empty() {
        for (n, size, c, k) in [(1, 1, 64, 64), (2, 13, 64, 192), (3, 9, 320, 128), (64, 28, 128, 512)] {
            let d = Dims { n, h: size, w: size, c, k, r: 1, s: 1, p: size, q: size, stride: 1, pad: 0 };
            let slabs = (n * size * size).div_ceil(SLAB);
            for tile in TILES {
                for g in WeightGradient::all_parts(&d, tile, 1, &Target::h200(Elem::Bf16)) {
                    assert!((g.parts - 1) * g.slabs < slabs && slabs <= g.parts * g.slabs);
                }
            }
        }
    }

    /// The rate of the kernel alone, without the launch that adds the parts. No card has confirmed the model's L2
    /// rate and start.
    #[test]
    fn the_weight_gradient_of_the_most_frequent_layer_is_forecast_above_500_tflops() {
        let d = Dims { n: 64, h: 14, w: 14, c: 256, k: 256, r: 3, s: 3, p: 14, q: 14, stride: 1, pad: 1 };
        let g = WeightGradient::of(&d, Elem::Bf16, 1, &Target::h200(Elem::Bf16)).unwrap();
        let seconds = g.tile.cycles(g.slabs)[0] as f64 / 1.755e9;
        let rate = 2.0 * (d.outputs() * d.k * d.depth()) as f64 / seconds;
        assert!(rate > 500e12, "{:.0} TFLOP/s", rate / 1e12);
    }
}
