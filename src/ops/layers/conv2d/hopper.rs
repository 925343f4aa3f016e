//! The convolution's kernels for compute capability 9.0 (wgmma fed by TMA): which products they compute,
//! which tiles a launch can choose from, and the tensor maps.

use super::geometry::{Dims, MAX_TAPS};
use crate::device::gpu::Kernel;
use crate::device::gpu::launch::{Candidate, Candidates, Cycles, KernelArg, L2_BYTES};
use crate::device::gpu::target::Target;
use crate::device::gpu::tensor_map::{Boxes, TensorMap};
use crate::error::Result;
use crate::ops::launch::launches::DeviceTensor;
use crate::tensor::Elem;

/// Channels of a slab of the inner dimension; mirrors WGMMA_SLAB of kernels/lib/conv_wgmma_tile.cuh. Both c
/// and k must be multiples of it.
const SLAB: usize = 64;

/// Rows of the filter in one box. BOX there is the bytes of such a box: 64 rows of a slab.
const FILTER_ROWS: u32 = 64;

/// Pixels per partial of the channel statistics: the rows of a pingpong tile; mirrors STATS_ROWS of
/// kernels/lib/conv_wgmma_stats.cuh.
pub const STATS_ROWS: usize = 128;

/// The largest stride that a tensor map holds. It holds [`MAX_TAPS`] taps of a filter's side.
const MAX_STRIDE: usize = 8;

/// One tile of the kernels, and the cycles that a multiprocessor spends on it: a forecast that no card has
/// confirmed yet.
struct Tile {
    /// Follows the kernel's name.
    suffix: &'static str,
    rows: usize,
    columns: usize,
    threads: u32,
    /// Cycles per slab of multiplying (2048 multiply-adds a cycle) or, if that takes longer, of shared memory (128
    /// bytes a cycle, written by the copies and read by wgmma). Copies from the L2 may take longer still.
    slab: usize,
    /// Cycles of writing the tile, with a residual or an old gradient from the L2: by the stall counts of the
    /// machine code for one warp, or the instructions of all warps that share a scheduler (three of a
    /// cooperative tile) if these take longer. tests/engine/stalls.rs holds it to the machine code.
    write: usize,
    /// Cycles of the channel statistics before it.
    stats: usize,
    /// More cycles of writing a gradient together with that of a statistics loss.
    gradient: usize,
    /// Whether two warpgroups alternate, so that one multiplies while the other writes; otherwise all
    /// cooperate on one tile.
    is_pingpong: bool,
}

const TILES: [Tile; 3] = [
    Tile {
        suffix: "_cooperative",
        rows: 192,
        columns: 256,
        threads: 512,
        slab: 1600,
        write: 5650,
        stats: 0,
        gradient: 0,
        is_pingpong: false,
    },
    Tile {
        suffix: "",
        rows: 128,
        columns: 128,
        threads: 384,
        slab: 640,
        write: 3250,
        stats: 990,
        gradient: 1820,
        is_pingpong: true,
    },
    Tile {
        suffix: "",
        rows: 128,
        columns: 64,
        threads: 384,
        slab: 448,
        write: 1680,
        stats: 645,
        gradient: 945,
        is_pingpong: true,
    },
];

/// What the forecast assumes of a tile's epilogue.
pub struct Forecast {
    /// How the names of the tile's kernels end: `_wgmma<128, 128>`.
    pub suffix: String,
    /// Cycles of writing the tile.
    pub write: usize,
    /// Cycles of its channel statistics; 0 if it cannot write them.
    pub stats: usize,
    /// More cycles of writing a gradient together with that of a statistics loss; 0 if it cannot.
    pub gradient: usize,
    /// Warps that share a scheduler.
    pub warps: usize,
}

/// The forecasts of all tiles.
pub fn forecasts() -> impl Iterator<Item = Forecast> {
    TILES.iter().map(|t| Forecast {
        suffix: format!("_wgmma{}<{}, {}>", t.suffix, t.rows, t.columns),
        write: t.write,
        stats: t.stats,
        gradient: t.gradient,
        warps: if t.is_pingpong { 1 } else { t.rows / 64 },
    })
}

impl Tile {
    /// `SHARED_BYTES` of the kernels: the scratch of two pingpong warpgroups for channel statistics, as many
    /// stages as the rest of 226 KB holds, two barriers per stage, and two barriers between pingpong
    /// warpgroups.
    fn shared_bytes(&self) -> u32 {
        let stage = (self.rows + self.columns) * 128;
        let stats = if self.is_pingpong { 2 * 4 * self.columns * 8 } else { 0 };
        let stages = ((226 << 10) - stats) / stage;
        (stages * stage + (2 * stages + 2) * 8 + stats) as u32
    }
    /// Cycles of channel statistics, or of the gradient of a statistics loss.
    fn extra(&self, is_gradient: bool, has_statistics: bool) -> usize {
        match (has_statistics, is_gradient) {
            (false, _) => 0,
            (true, false) => self.stats,
            (true, true) => self.gradient,
        }
    }
    /// Forecast cycles of a tile of so many slabs.
    fn cycles(&self, slabs: usize, extra: usize) -> Cycles {
        L2_BYTES.map(|l2| {
            let multiply = slabs * self.slab.max((self.rows + self.columns) * 2 * SLAB / l2);
            let write = self.write + extra;
            // Two pingpong warpgroups finish two tiles in the time that one needs to multiply and write, but not
            // faster than both can multiply.
            if self.is_pingpong { multiply.max((multiply + write) / 2) } else { multiply + write }
        })
    }
    /// Whether a product with so many columns leaves less than half of the tile's columns unused.
    fn suits(&self, columns: usize) -> bool {
        self.columns < 2 * columns
    }
}

/// A product that these kernels compute: the windows of a map times a filter, for each pixel of the output.
pub struct Product {
    d: Dims,
    is_gradient: bool,
    /// Pixels and channels of the output.
    rows: usize,
    columns: usize,
    /// Channels of a window's pixel.
    inner: usize,
}

impl Product {
    /// The forward product, if these kernels compute it for `target`.
    pub fn forward(d: &Dims, elem: Elem, target: &Target) -> Option<Product> {
        let (rows, columns, inner) = (d.outputs(), d.k, d.c);
        Product { d: *d, is_gradient: false, rows, columns, inner }.if_supported(elem, target)
    }
    /// The input gradient, if these kernels compute it for `target`: windows over dz times the flipped
    /// filter.
    pub fn input_gradient(d: &Dims, elem: Elem, target: &Target) -> Option<Product> {
        let (rows, columns, inner) = (d.inputs(), d.c, d.k);
        let product = Product { d: *d, is_gradient: true, rows, columns, inner };
        product.if_supported(elem, target).filter(|_| d.stride == 1)
    }
    fn if_supported(self, elem: Elem, target: &Target) -> Option<Product> {
        let Dims { c, k, r, s, stride, pad, .. } = self.d;
        let has_whole_slabs = c % SLAB == 0 && k % SLAB == 0 && c > 0 && k > 0;
        let fits_a_map = r.max(s) <= MAX_TAPS && stride <= MAX_STRIDE && pad < r.min(s);
        // The epilogue's offsets have 32 bits.
        let is_countable = (self.d.inputs() * c).max(self.d.outputs() * k) < 1 << 31;
        let fits_shared = TILES.iter().all(|t| t.shared_bytes() <= target.shared_bytes);
        let is_supported = has_whole_slabs && fits_a_map && is_countable && fits_shared;
        (target.wgmma && elem == Elem::Bf16 && is_supported).then_some(self)
    }
    fn slabs(&self) -> usize {
        self.d.r * self.d.s * self.inner / SLAB
    }

    /// The kernels that a launch can choose from. `has_statistics`: forward writes channel statistics, the
    /// gradient adds that of a statistics loss; cooperative tiles have no registers for either.
    pub fn candidates(&self, has_statistics: bool, target: &Target) -> Result<Candidates> {
        let family = match (self.is_gradient, has_statistics) {
            (false, _) => "conv2d_fwd_wgmma",
            (true, false) => "conv2d_dgrad_wgmma",
            // A family of its own: a test for members without such a loss takes 1,000 cycles of each tile.
            (true, true) => "conv2d_dgrad_statistics_wgmma",
        };
        let tiles = TILES.iter().filter(|t| t.suits(self.columns) && (t.is_pingpong || !has_statistics));
        let candidate = |t: &Tile| {
            Ok(Candidate {
                kernel: Kernel::find(&format!("{family}{}<{}, {}>", t.suffix, t.rows, t.columns))?,
                block: t.threads,
                shared: t.shared_bytes(),
                tiles: self.rows.div_ceil(t.rows) * self.columns.div_ceil(t.columns),
                cycles: t.cycles(self.slabs(), t.extra(self.is_gradient, has_statistics)),
                box_rows: t.rows as u32,
            })
        };
        Ok(Candidates {
            family,
            do_more: has_statistics,
            all: tiles.map(candidate).collect::<Result<_>>()?,
            multiprocessors: target.multiprocessors,
        })
    }

    /// Whether channel statistics from a pingpong tile cost less than a cooperative tile and a pass over the
    /// output behind it: two bytes per element, of which memory delivers 18.6 a cycle to each multiprocessor.
    pub fn should_write_stats(&self) -> bool {
        const PASS: f64 = 2.0 / 18.6;
        // Cycles per element.
        let fastest = |is_pingpong: bool| {
            let tiles = TILES.iter().filter(|t| t.is_pingpong == is_pingpong && t.suits(self.columns));
            let cycles = |t: &Tile| t.cycles(self.slabs(), t.extra(false, is_pingpong));
            let cycles = tiles.map(|t| cycles(t)[0] as f64 / (t.rows * t.columns) as f64);
            cycles.fold(f64::INFINITY, f64::min)
        };
        fastest(true) <= fastest(false) + PASS
    }

    /// The tensor map of the forward product's windows over x, with one window in a box.
    pub fn windows(d: &Dims, x: DeviceTensor) -> TensorMap {
        Product { d: *d, is_gradient: false, rows: d.outputs(), columns: d.k, inner: d.c }.map_of(x)
    }
    fn map_of(&self, windows: DeviceTensor) -> TensorMap {
        let Dims { n, h, w, r, s, p, q, stride, pad, .. } = self.d;
        if r * s == 1 && stride == 1 && pad == 0 {
            let (pixels, channels) = (self.d.inputs() as u64, self.inner as u64);
            return TensorMap::matrix(windows.into(), pixels, channels, 2 * channels, 1);
        }
        let [height, width] = if self.is_gradient { [p, q] } else { [h, w] };
        // How far the first window begins before the first pixel, and the last one after the last pixel.
        let before = [r, s].map(|taps| if self.is_gradient { taps - 1 - pad } else { pad } as i32);
        let beyond = |i: usize| before[i] - ([r, s][i] as i32 - 1);
        let boxes = Boxes::Im2col {
            dims: [n, height, width, self.inner].map(|v| v as u64),
            lower: before.map(|b| -b),
            upper: [beyond(0), beyond(1)],
            steps: [stride as u32; 2],
            channels: SLAB as u32,
            pixels: 1,
        };
        TensorMap { tensor: windows.into(), boxes }
    }
    /// The tensor maps of the windows, whose number per box depends on the launch's tile, and of the filter.
    pub fn maps(&self, windows: DeviceTensor, filter: DeviceTensor) -> KernelArg {
        let Dims { k, .. } = self.d;
        let (windows, depth) = (self.map_of(windows), self.d.depth());
        let filter = TensorMap::matrix(filter.into(), k as u64, depth as u64, 2 * depth as u64, FILTER_ROWS);
        KernelArg::TensorMaps(vec![windows, filter])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::launch::Launch;
    use crate::device::gpu::pointer::Pointer;
    use crate::device::{Slot, Space};

    fn dims(n: usize, size: usize, [c, k]: [usize; 2], taps: usize, stride: usize) -> Dims {
        let pad = taps / 2;
        let out = (size + 2 * pad - taps) / stride + 1;
        Dims { n, h: size, w: size, c, k, r: taps, s: taps, p: out, q: out, stride, pad }
    }

    fn h200() -> Target {
        Target::h200(Elem::Bf16)
    }

    fn forward(d: &Dims) -> Product {
        Product::forward(d, Elem::Bf16, &h200()).unwrap()
    }

    fn gradient(d: &Dims) -> Product {
        Product::input_gradient(d, Elem::Bf16, &h200()).unwrap()
    }

    /// Rows and number of the tiles that a launch of a group of so many members chooses on an H200.
    fn tile(product: &Product, members: usize) -> (u32, usize) {
        let candidates = product.candidates(false, &h200()).unwrap();
        let cycles = |c: &&Candidate| (c.tiles * members).div_ceil(h200().multiprocessors) * c.cycles[0];
        let best = candidates.all.iter().min_by_key(cycles).unwrap();
        (best.box_rows, best.tiles)
    }

    #[test]
    fn a_resnet_101_at_batch_64_gets_the_forecast_tiles() {
        let forward =
            |size, channels, taps, members| tile(&forward(&dims(64, size, channels, taps, 1)), members);
        // 66 tiles of 192 x 256 per member: two members fill 132 multiprocessors once, eight fill them four
        // times.
        assert_eq!(forward(14, [256, 256], 3, 2), (192, 66));
        assert_eq!(forward(14, [256, 256], 3, 8), (192, 66));
        assert_eq!(forward(14, [1024, 256], 1, 2), (192, 66));
        // With four slabs per tile, writing costs as much as multiplying, and pingpong hides it.
        assert_eq!(forward(56, [64, 256], 1, 1), (128, 1568 * 2));
        assert_eq!(forward(56, [64, 64], 3, 2), (128, 1568));
        assert_eq!(forward(28, [128, 128], 3, 2), (128, 392));
        let gradient =
            |size, channels, taps, members| tile(&gradient(&dims(64, size, channels, taps, 1)), members);
        assert_eq!(gradient(14, [256, 256], 3, 8), (192, 66));
        assert_eq!(gradient(56, [64, 64], 3, 2), (128, 1568));
    }

    /// Two convolutions of one size share a launch: the tile is chosen again, and their maps are where the
    /// kernel expects them.
    #[test]
    fn a_group_that_grows_chooses_its_tile_again() {
        let d = dims(64, 7, [512, 512], 3, 1);
        let product = forward(&d);
        let tensor = |i: usize| {
            let slot = Slot { space: Space::Arena, offset: i << 24, bytes: 1 << 24 };
            DeviceTensor { slot, elem: Elem::Bf16, is_bf16_copy: false }
        };
        let of = |i: usize, has_statistics: bool| {
            let [y, x, w] = [0, 1, 2].map(|j| tensor(3 * i + j));
            let null = || KernelArg::Null;
            let io = [y.into(), null(), null(), x.into(), w.into(), null(), null(), null()];
            let args = vec![
                product.maps(x, w),
                KernelArg::group_of_one("Conv2dForward", io),
                d.kernel_arg().unwrap(),
                0.0f32.into(),
            ];
            Launch::by_fastest(product.candidates(has_statistics, &h200()).unwrap(), args).unwrap()
        };
        let mut launch = of(0, false);
        // 25 x 4 tiles of 128 x 128 fit one round, in which 17 x 2 of 192 x 256 take twice as long; for two
        // members only the latter still fit one.
        assert_eq!((launch.kernel.name, launch.grid), ("conv2d_fwd_wgmma<128, 128>", [100, 1, 1]));
        assert!(launch.join(&of(1, false)));
        assert_eq!((launch.kernel.name, launch.grid), ("conv2d_fwd_wgmma_cooperative<192, 256>", [68, 1, 1]));
        assert_eq!(launch.group_size(), 2);
        assert!(!launch.join(&of(1, false)), "two members that write to one place");
        let KernelArg::TensorMaps(maps) = &launch.args[0] else { panic!("no maps") };
        let tensors: Vec<Pointer> = maps.iter().map(|m| m.tensor).collect();
        assert_eq!(tensors, [1, 4, 2, 5].map(|i| tensor(i).into()));
        let pixels = |m: &TensorMap| if let Boxes::Im2col { pixels, .. } = m.boxes { pixels } else { 0 };
        assert_eq!([pixels(&maps[0]), pixels(&maps[1])], [192; 2]);
        assert!(launch.join(&of(2, true)));
        let found = (launch.kernel.name, launch.grid);
        assert_eq!(
            found,
            ("conv2d_fwd_wgmma<128, 128>", [132, 1, 1]),
            "one member writes channel statistics"
        );
    }

    #[test]
    fn channel_stats_are_written_where_that_costs_less_than_a_pass() {
        let writes = |size, channels, taps| forward(&dims(64, size, channels, taps, 1)).should_write_stats();
        assert!(writes(56, [64, 64], 3), "too narrow for the cooperative tile");
        assert!(writes(56, [64, 256], 1) && writes(14, [256, 1024], 1), "few slabs");
        assert!(!writes(14, [256, 256], 3) && !writes(14, [1024, 256], 1), "many slabs");
    }

    #[test]
    fn unsupported_products_are_left_to_mma() {
        let takes = |d: Dims, elem, target| Product::forward(&d, elem, &target).is_some();
        let good = dims(2, 8, [64, 128], 3, 1);
        let refuses = |d: Dims| !takes(d, Elem::Bf16, h200());
        assert!(takes(good, Elem::Bf16, h200()));
        assert!(!takes(good, Elem::F32, h200()));
        assert!(!takes(good, Elem::Bf16, Target { wgmma: false, ..h200() }));
        assert!(!takes(good, Elem::Bf16, Target { shared_bytes: 163 << 10, ..h200() }));
        assert!(refuses(Dims { c: 72, ..good }));
        assert!(refuses(Dims { k: 96, ..good }));
        assert!(refuses(Dims { r: 17, ..good }), "a filter larger than a map's 16 taps");
        assert!(refuses(Dims { pad: 3, ..good }), "windows of padding alone");
        assert!(refuses(Dims { n: 1 << 23, ..good }), "2^35 elements of x and 2^36 of y");
        let strided = dims(2, 8, [64, 128], 3, 2);
        assert!(takes(strided, Elem::Bf16, h200()));
        assert!(Product::input_gradient(&good, Elem::Bf16, &h200()).is_some());
        assert!(Product::input_gradient(&strided, Elem::Bf16, &h200()).is_none(), "a stride");
    }

    /// The boxes of an im2col map. `dims` are n, h, w and c; `lower` and `upper` are the corners in h and w.
    fn windows(dims: [u64; 4], lower: [i32; 2], upper: [i32; 2], stride: u32) -> Boxes {
        Boxes::Im2col { dims, lower, upper, steps: [stride; 2], channels: 64, pixels: 1 }
    }

    fn check_maps(product: &Product, expected: Boxes, depth: u64) {
        let tensor = |i: usize| DeviceTensor {
            slot: Slot { space: Space::Arena, offset: i << 24, bytes: 1 << 24 },
            elem: Elem::Bf16,
            is_bf16_copy: false,
        };
        let KernelArg::TensorMaps(maps) = product.maps(tensor(0), tensor(1)) else { panic!("no maps") };
        assert_eq!(maps[0].boxes, expected);
        let filter = Boxes::Tiled {
            dims: vec![depth, product.d.k as u64],
            strides_bytes: vec![2 * depth],
            boxes: vec![64, 64],
        };
        assert_eq!(maps[1].boxes, filter);
    }

    /// Checked against CUTLASS headers (ea667d6). Where height and width differ, maps that swap them are
    /// others.
    #[test]
    fn ten_convolutions_have_the_maps_that_cutlass_gives_them() {
        // n, h, w, c, k, r, s, p, q, stride and padding; where the last first taps of the forward product lie
        // from the last pixel (they begin at minus the padding).
        #[rustfmt::skip]
        let forward_maps = [
            ([2, 14, 14, 256, 256, 3, 3, 14, 14, 1, 1], [-1, -1]),
            ([3,  9,  7, 128, 192, 3, 3,  9,  7, 1, 1], [-1, -1]),
            ([2, 13, 13,  64, 256, 3, 3, 13, 13, 1, 1], [-1, -1]),
            ([2, 28, 28, 128, 128, 3, 3, 14, 14, 2, 1], [-1, -1]),
            ([2, 15, 11,  64,  64, 5, 3,  7,  6, 2, 1], [-3, -1]),
            ([2,  8,  8,  64, 128, 1, 1,  4,  4, 2, 0], [ 0,  0]),
            ([1, 12, 10,  64,  64, 7, 7,  6,  5, 2, 3], [-3, -3]),
            ([2, 10,  6,  64,  64, 3, 5, 10,  4, 1, 1], [-1, -3]),
            ([2,  6, 10, 128,  64, 4, 4,  3,  5, 2, 1], [-2, -2]),
            ([1, 14, 14,  64,  64, 2, 4, 15, 13, 1, 1], [ 0, -2]),
        ];
        // For those of stride 1, where the first taps over dz begin; they end a padding before the last pixel.
        let gradient_maps = [[-1, -1], [-1, -1], [-1, -1], [-1, -3], [0, -2]];
        let mut gradient_maps = gradient_maps.into_iter();
        for (sizes, upper) in forward_maps {
            let [n, h, w, c, k, r, s, p, q, stride, pad] = sizes;
            let d = Dims { n, h, w, c, k, r, s, p, q, stride, pad };
            let [n, h, w, c, k, r, s, p, q, stride, _] = sizes.map(|v| v as u64);
            let pad = pad as i32;
            let x = windows([n, h, w, c], [-pad, -pad], upper, stride as u32);
            check_maps(&forward(&d), x, r * s * c);
            if stride == 1 {
                let dz = windows([n, p, q, k], gradient_maps.next().unwrap(), [-pad, -pad], 1);
                check_maps(&gradient(&d), dz, r * s * c);
            }
        }
        assert_eq!(gradient_maps.next(), None);
    }
}
