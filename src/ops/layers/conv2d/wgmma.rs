//! The convolution's kernels for compute capability 9.0: which products they take, and which tile.

use super::Dims;
use crate::device::gpu::Kernel;
use crate::device::gpu::launch::{self, Candidate, KernelArg};
use crate::device::gpu::tensor_map::{Boxes, TensorMap};
use crate::error::Result;
use crate::ops::launch::launches::DeviceTensor;
use crate::tensor::Elem;

/// Channels of a slab of the inner dimension; mirrors WGMMA_SLAB of kernels/lib/conv_wgmma.cuh. Channels on both sides come in
/// whole slabs.
const SLAB: usize = 64;

/// Rows of the filter in one box; mirrors BOX there.
const FILTER_ROWS: u32 = 64;

/// Pixels of a part of the moments that these kernels leave, whatever the tile; mirrors MOMENT_ROWS there.
pub(super) const MOMENT_ROWS: usize = 64;

/// Most taps of a filter's side, and the largest stride that a tensor map holds.
const MOST_TAPS: usize = 16;
const MOST_STRIDE: usize = 8;

/// One tile of the kernels, and what a multiprocessor spends on it: a forecast that no card has confirmed yet.
struct Tile {
    /// What follows the kernel's name.
    suffix: &'static str,
    rows: usize,
    columns: usize,
    threads: u32,
    /// Cycles of a slab: the longest of multiplying (2048 multiply-adds a cycle), shared memory (128 bytes a cycle: what the
    /// copies write and wgmma reads), and the L2 (36 bytes a cycle of a multiprocessor's share).
    slab: usize,
    /// Cycles of writing the tile: instructions of the epilogue (SASS), of the warps that one scheduler has.
    write: usize,
    /// Whether another warpgroup multiplies meanwhile.
    in_turns: bool,
}

const TILES: [Tile; 3] = [
    Tile {
        suffix: "_abreast",
        rows: 192,
        columns: 256,
        threads: 512,
        slab: 1600,
        write: 6500,
        in_turns: false,
    },
    Tile { suffix: "", rows: 128, columns: 128, threads: 384, slab: 910, write: 2100, in_turns: true },
    Tile { suffix: "", rows: 128, columns: 64, threads: 384, slab: 683, write: 1050, in_turns: true },
];

impl Tile {
    /// As many stages as 224 KB hold, a full and an empty barrier each, the two turns, and what the warps of two warpgroups
    /// tell each other of moments: `SHARED_BYTES` of the kernels.
    fn shared_bytes(&self) -> u32 {
        let stage = (self.rows + self.columns) * 128;
        let stages = (224 << 10) / stage;
        let moments = if self.in_turns { 2 * 768 } else { 0 };
        (stages * stage + (2 * stages + 2) * 8 + moments) as u32
    }
    fn cycles(&self, slabs: usize) -> usize {
        let multiply = slabs * self.slab;
        // Two warpgroups in turns spend what one multiplies and writes on two tiles, at least what both multiply.
        if self.in_turns { multiply.max((multiply + self.write) / 2) } else { multiply + self.write }
    }
}

/// A product that these kernels take: windows of a map with a filter, for each of its pixels.
pub(super) struct Product {
    d: Dims,
    is_gradient: bool,
    rows: usize,
    columns: usize,
    /// Channels of a window's pixel.
    inner: usize,
}

impl Product {
    pub fn forward(d: &Dims, elem: Elem) -> Option<Product> {
        let (rows, columns, inner) = (d.n * d.p * d.q, d.k, d.c);
        Product { d: *d, is_gradient: false, rows, columns, inner }.taken(elem)
    }
    /// Windows over dz, with the filter turned round.
    pub fn input_gradient(d: &Dims, elem: Elem) -> Option<Product> {
        let (rows, columns, inner) = (d.n * d.h * d.w, d.c, d.k);
        Product { d: *d, is_gradient: true, rows, columns, inner }.taken(elem).filter(|_| d.stride == 1)
    }
    fn taken(self, elem: Elem) -> Option<Product> {
        let Dims { n, h, w, c, k, r, s, p, q, stride, pad } = self.d;
        let whole = c % SLAB == 0 && k % SLAB == 0 && c > 0 && k > 0;
        let small = r.max(s) <= MOST_TAPS && stride <= MOST_STRIDE && pad < r.min(s);
        // The epilogue's offsets have 32 bits.
        let counted = (n * h * w * c).max(n * p * q * k) < 1 << 31;
        let fits = TILES.iter().all(|t| t.shared_bytes() <= launch::shared_limit());
        (launch::has_wgmma() && elem == Elem::Bf16 && whole && small && counted && fits).then_some(self)
    }

    /// The tiles that waste no half of their columns, as ways to launch `name`; the one abreast leaves no moments.
    pub fn ways(&self, name: &str, leaves_moments: bool) -> Result<Vec<Candidate>> {
        let slabs = self.d.r * self.d.s * self.inner / SLAB;
        let fits = |t: &&Tile| t.columns < 2 * self.columns && (t.in_turns || !leaves_moments);
        TILES
            .iter()
            .filter(fits)
            .map(|t| {
                Ok(Candidate {
                    kernel: Kernel::find(&format!("{name}{}<{}, {}>", t.suffix, t.rows, t.columns))?,
                    block: t.threads,
                    shared: t.shared_bytes(),
                    tiles: self.rows.div_ceil(t.rows) * self.columns.div_ceil(t.columns),
                    cycles: t.cycles(slabs),
                    box_rows: t.rows as u32,
                })
            })
            .collect()
    }

    /// Whether the product had better leave the moments of its output's channels, in turns, than be done abreast with a pass
    /// over the output behind it: two bytes an element, of which memory brings a multiprocessor 18.6 a cycle.
    pub fn leaves_moments(&self) -> bool {
        const PASS: f64 = 2.0 / 18.6;
        let slabs = self.d.r * self.d.s * self.inner / SLAB;
        // Cycles an element.
        let fastest = |in_turns: bool| {
            let those = TILES.iter().filter(|t| t.in_turns == in_turns && t.columns < 2 * self.columns);
            let cycles = those.map(|t| t.cycles(slabs) as f64 / (t.rows * t.columns) as f64);
            cycles.fold(f64::INFINITY, f64::min)
        };
        fastest(true) <= fastest(false) + PASS
    }

    /// The windows' map, in boxes that the way of the launch decides, and the filter's.
    pub fn maps(&self, windows: DeviceTensor, filter: DeviceTensor) -> KernelArg {
        let Dims { n, h, w, c, k, r, s, p, q, stride, pad } = self.d;
        let [height, width] = if self.is_gradient { [p, q] } else { [h, w] };
        let bytes = |elements: usize| 2 * elements as u64;
        let depth = r * s * c;
        let windows = if r * s == 1 && stride == 1 && pad == 0 {
            TensorMap::matrix(windows.into(), (n * h * w) as u64, self.inner as u64, bytes(self.inner), 1)
        } else {
            // Taps above and to the left of the window's pixel, and the last window's end beyond the last pixel.
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
        };
        let filter = TensorMap::matrix(filter.into(), k as u64, depth as u64, bytes(depth), FILTER_ROWS);
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

    /// The tile that a launch of so many members has on an H200.
    fn tile(product: &Product, members: usize) -> (u32, usize) {
        let ways =
            product.ways(if product.is_gradient { "conv2d_dgrad_wgmma" } else { "conv2d_fwd_wgmma" }, false);
        let ways = ways.unwrap();
        let cycles = |w: &&Candidate| (w.tiles * members).div_ceil(launch::MULTIPROCESSORS) * w.cycles;
        let best = ways.iter().min_by_key(cycles).unwrap();
        (best.box_rows, best.tiles)
    }

    #[test]
    fn tiles_of_a_resnet_101_at_batch_64() {
        let forward = |size, channels, taps, members| {
            tile(&Product::forward(&dims(64, size, channels, taps, 1), Elem::Bf16).unwrap(), members)
        };
        // 66 tiles of 192 x 256 a member: two members fill 132 multiprocessors once, eight four times.
        assert_eq!(forward(14, [256, 256], 3, 2), (192, 66));
        assert_eq!(forward(14, [256, 256], 3, 8), (192, 66));
        assert_eq!(forward(14, [1024, 256], 1, 2), (192, 66));
        // Four slabs a tile: writing weighs as much as multiplying, and turns hide it.
        assert_eq!(forward(56, [64, 256], 1, 1), (128, 1568 * 2));
        assert_eq!(forward(56, [64, 64], 3, 2), (128, 1568));
        assert_eq!(forward(28, [128, 128], 3, 2), (128, 392));
        let gradient = |size, channels, taps, members| {
            tile(&Product::input_gradient(&dims(64, size, channels, taps, 1), Elem::Bf16).unwrap(), members)
        };
        assert_eq!(gradient(14, [256, 256], 3, 8), (192, 66));
        assert_eq!(gradient(56, [64, 64], 3, 2), (128, 1568));
    }

    /// Two convolutions of one size share a launch: it chooses again, and their maps lie where the kernel looks for them.
    #[test]
    fn members_that_join_choose_again() {
        let d = dims(64, 7, [512, 512], 3, 1);
        let product = Product::forward(&d, Elem::Bf16).unwrap();
        let tensor = |i: usize| {
            let slot = Slot { space: Space::Arena, offset: i << 24, bytes: 1 << 24 };
            DeviceTensor { slot, elem: Elem::Bf16, is_bf16_copy: false }
        };
        let of = |i: usize| {
            let [y, x, w] = [0, 1, 2].map(|j| tensor(3 * i + j));
            let null = || KernelArg::Null;
            let io = [y.into(), null(), null(), x.into(), w.into(), null(), null(), null()];
            let args = vec![
                product.maps(x, w),
                KernelArg::group_of_one("Conv2dForward", io),
                d.value().unwrap(),
                0.0f32.into(),
            ];
            Launch::by_fastest(product.ways("conv2d_fwd_wgmma", false).unwrap(), 132, args).unwrap()
        };
        let mut launch = of(0);
        // 25 x 4 tiles of 128 x 128 fit one round, in which 17 x 2 of 192 x 256 take twice as long; for two members only those
        // still fit one.
        assert_eq!((launch.kernel.name, launch.grid), ("conv2d_fwd_wgmma<128, 128>", [100, 1, 1]));
        assert!(launch.join(&of(1)));
        assert_eq!((launch.kernel.name, launch.grid), ("conv2d_fwd_wgmma_abreast<192, 256>", [68, 1, 1]));
        assert_eq!(launch.group_size(), 2);
        assert!(!launch.join(&of(1)), "two members that write to one place");
        let KernelArg::TensorMaps(maps) = &launch.args[0] else { panic!("no maps") };
        let tensors: Vec<Pointer> = maps.iter().map(|m| m.tensor).collect();
        assert_eq!(tensors, [1, 4, 2, 5].map(|i| tensor(i).into()));
        let pixels = |m: &TensorMap| if let Boxes::Im2col { pixels, .. } = m.boxes { pixels } else { 0 };
        assert_eq!([pixels(&maps[0]), pixels(&maps[1])], [192; 2]);
    }

    /// Those of the gates in src/ops/layers/conv2d/mod.rs, on two multiprocessors.
    #[test]
    fn the_gates_reach_every_tile() {
        let kernel = |product: Option<Product>, name: &str| {
            let ways = product.unwrap().ways(name, false).unwrap();
            let cycles = |w: &&Candidate| w.tiles.div_ceil(2) * w.cycles;
            ways.iter().min_by_key(cycles).unwrap().kernel.name
        };
        let both = |d: &Dims| {
            let forward = kernel(Product::forward(d, Elem::Bf16), "conv2d_fwd_wgmma");
            (forward, kernel(Product::input_gradient(d, Elem::Bf16), "conv2d_dgrad_wgmma"))
        };
        let first = dims(2, 13, [64, 256], 3, 1);
        assert_eq!(both(&first), ("conv2d_fwd_wgmma_abreast<192, 256>", "conv2d_dgrad_wgmma<128, 64>"));
        let second = dims(2, 13, [256, 64], 3, 1);
        assert_eq!(both(&second), ("conv2d_fwd_wgmma<128, 64>", "conv2d_dgrad_wgmma_abreast<192, 256>"));
        let third = Dims { h: 9, w: 7, p: 9, q: 7, ..dims(3, 9, [128, 192], 1, 1) };
        assert_eq!(both(&third), ("conv2d_fwd_wgmma<128, 128>", "conv2d_dgrad_wgmma<128, 128>"));
    }

    #[test]
    fn moments_are_left_where_they_cost_less_than_a_pass() {
        let leaves = |size, channels, taps| {
            Product::forward(&dims(64, size, channels, taps, 1), Elem::Bf16).unwrap().leaves_moments()
        };
        assert!(leaves(56, [64, 64], 3), "too narrow for the tile that leaves none");
        assert!(leaves(56, [64, 256], 1) && leaves(14, [256, 1024], 1), "few slabs");
        assert!(!leaves(14, [256, 256], 3) && !leaves(14, [1024, 256], 1), "many");
    }

    #[test]
    fn products_that_the_kernels_do_not_take() {
        let takes = |d: Dims, elem| Product::forward(&d, elem).is_some();
        let good = dims(2, 8, [64, 128], 3, 1);
        assert!(takes(good, Elem::Bf16));
        assert!(!takes(good, Elem::F32));
        assert!(!takes(Dims { c: 72, ..good }, Elem::Bf16));
        assert!(!takes(Dims { k: 96, ..good }, Elem::Bf16));
        assert!(!takes(Dims { r: 17, ..good }, Elem::Bf16), "a filter larger than any");
        assert!(!takes(Dims { pad: 3, ..good }, Elem::Bf16), "windows of padding alone");
        assert!(!takes(Dims { n: 1 << 23, ..good }, Elem::Bf16), "2^32 elements");
        assert!(takes(dims(2, 8, [64, 128], 3, 2), Elem::Bf16));
        assert!(Product::input_gradient(&good, Elem::Bf16).is_some());
        assert!(Product::input_gradient(&dims(2, 8, [64, 128], 3, 2), Elem::Bf16).is_none(), "a stride");
    }
}
