//! The ladder of kernels/lab/conv2d/: launches of one convolution, its forward product or its input gradient,
//! by any of the rungs.

use dfka_engine::device::gpu::launch::{KernelArg, Launch};
use dfka_engine::device::gpu::pointer::Pointer;
use dfka_engine::device::gpu::tensor_map::{Boxes, TensorMap};
use dfka_engine::device::{Slot, Space};
use dfka_engine::error::Result;

/// Convolutions of equal sizes, all in one launch. Maps are square.
#[derive(Clone, Copy)]
pub struct Problem {
    pub members: usize,
    pub images: usize,
    pub size: usize,
    /// Of the input and of the output.
    pub channels: [usize; 2],
    pub taps: usize,
    pub stride: usize,
    /// Forward: whether a residual is added. Gradient: whether the sum is added to the old gradient.
    pub adds: bool,
    pub is_gradient: bool,
    /// Whether the forward product writes channel statistics; only the pingpong tiles of production can.
    pub channel_stats: bool,
}

/// Pixels per partial of the channel statistics.
pub const STATS_ROWS: usize = 128;

/// A member's operands in the arena. `mask` is the activation's mask, which the forward product writes and
/// the gradient applies.
pub struct Operands {
    pub x: Slot,
    pub filter: Slot,
    pub bias: Slot,
    pub residual: Slot,
    pub y: Slot,
    pub mask: Slot,
    pub channel_stats: Slot,
}

impl Problem {
    pub fn pad(&self) -> usize {
        self.taps / 2
    }
    /// Height and width of y.
    pub fn out(&self) -> usize {
        (self.size + 2 * self.pad() - self.taps) / self.stride + 1
    }
    pub fn pixels(&self) -> [usize; 2] {
        [self.size, self.out()].map(|s| self.images * s * s)
    }
    /// Rows and columns of the product, and channels of a tap.
    fn product(&self) -> [usize; 3] {
        let ([x, y], [c, k]) = (self.pixels(), self.channels);
        if self.is_gradient { [x, c, k] } else { [y, k, c] }
    }
    pub fn flops(&self) -> f64 {
        let [c, k] = self.channels;
        2.0 * (self.members * self.pixels()[1] * c * k * self.taps * self.taps) as f64
    }
    /// Bytes of all operands. Each counts once; a gradient that is added to counts twice.
    pub fn bytes(&self) -> f64 {
        let ([x, y], [c, k]) = (self.pixels(), self.channels);
        let added = if !self.adds {
            0
        } else if self.is_gradient {
            x * c
        } else {
            y * k
        };
        let bits = if self.is_gradient { x * c } else { y * k } / 8;
        (self.members * (2 * (x * c + y * k + added + c * k * self.taps * self.taps) + bits)) as f64
    }
    /// The operands of every member, and the bytes that all of them take.
    pub fn operands(&self) -> (Vec<Operands>, usize) {
        let ([x, y], [c, k]) = (self.pixels(), self.channels);
        let mut end = 0;
        let mut take = |bytes: usize| {
            let slot = Slot { space: Space::Arena, offset: end, bytes };
            end += bytes.next_multiple_of(256);
            slot
        };
        let all = (0..self.members).map(|_| Operands {
            x: take(2 * x * c),
            filter: take(2 * c * k * self.taps * self.taps),
            bias: take(4 * k),
            residual: take(2 * y * k),
            y: take(2 * y * k),
            mask: take(if self.is_gradient { x * c } else { y * k } / 8),
            channel_stats: take(y.div_ceil(STATS_ROWS) * 2 * k * 4),
        });
        (all.collect(), end)
    }
    fn dims(&self) -> KernelArg {
        let Problem { images: n, size, channels: [c, k], taps, stride, .. } = *self;
        let all = [n, size, size, c, k, taps, taps, self.out(), self.out(), stride, self.pad()];
        KernelArg::Structure("Conv2dDims", all.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect())
    }
    fn maps(&self, operands: &[Operands], rows: usize) -> KernelArg {
        let [_, _, inner] = self.product();
        let [c, k] = self.channels;
        let (size, pad) =
            if self.is_gradient { (self.out(), self.taps - 1 - self.pad()) } else { (self.size, self.pad()) };
        let windows = |o: &Operands| {
            let tensor = Pointer::Slot(if self.is_gradient { o.y } else { o.x });
            if self.taps == 1 && self.stride == 1 {
                let pixels = (self.images * size * size) as u64;
                return TensorMap::matrix(tensor, pixels, inner as u64, 2 * inner as u64, rows as u32);
            }
            let (before, beyond) = (pad as i32, pad as i32 - (self.taps as i32 - 1));
            let boxes = Boxes::Im2col {
                dims: [self.images, size, size, inner].map(|v| v as u64),
                lower: [-before; 2],
                upper: [beyond; 2],
                steps: [self.stride as u32; 2],
                channels: 64,
                pixels: rows as u32,
            };
            TensorMap { tensor, boxes }
        };
        let depth = (c * self.taps * self.taps) as u64;
        let filter =
            |o: &Operands| TensorMap::matrix(Pointer::Slot(o.filter), k as u64, depth, 2 * depth, 64);
        KernelArg::TensorMaps(operands.iter().map(windows).chain(operands.iter().map(filter)).collect())
    }
}

/// A kernel, and how it is launched.
pub struct Rung {
    pub name: &'static str,
    /// Forward and gradient; only production has a gradient.
    kernels: [Option<&'static str>; 2],
    rows: usize,
    columns: usize,
    threads: u32,
    /// Slabs in flight; 0 for as many as fit 224 KB, with their barriers.
    stages: usize,
    /// Whether there is one persistent block per multiprocessor; otherwise there is a block per tile.
    is_persistent: bool,
}

const fn rung(
    name: &'static str,
    kernel: &'static str,
    [rows, columns]: [usize; 2],
    threads: u32,
    is_persistent: bool,
) -> Rung {
    Rung { name, kernels: [Some(kernel), None], rows, columns, threads, stages: 0, is_persistent }
}

const fn production(
    name: &'static str,
    kernels: [&'static str; 2],
    [rows, columns]: [usize; 2],
    threads: u32,
) -> Rung {
    let kernels = [Some(kernels[0]), Some(kernels[1])];
    Rung { name, kernels, rows, columns, threads, stages: 0, is_persistent: true }
}

/// In the order of kernels/lab/conv2d/README.md.
pub const RUNGS: [Rung; 10] = [
    Rung {
        stages: 3,
        is_persistent: false,
        ..production(
            "0 mma.sync 128x128",
            ["conv2d_fwd<bf16, 128, 128>", "conv2d_dgrad<bf16, 128, 128>"],
            [128, 128],
            256,
        )
    },
    Rung { stages: 3, ..rung("1 wgmma 128x128", "conv2d_rung1", [128, 128], 256, false) },
    rung("2 roles 128x128", "conv2d_rung2", [128, 128], 384, false),
    rung("3 wide 128x256", "conv2d_rung3", [128, 256], 384, false),
    rung("4 tall 192x256", "conv2d_rung4", [192, 256], 512, false),
    rung("5 tall, persistent", "conv2d_rung4", [192, 256], 512, true),
    rung("6 pingpong 128x128", "conv2d_rung6", [128, 128], 384, true),
    production(
        "7 production 192x256",
        ["conv2d_fwd_wgmma_cooperative<192, 256>", "conv2d_dgrad_wgmma_cooperative<192, 256>"],
        [192, 256],
        512,
    ),
    production(
        "7 production 128x128",
        ["conv2d_fwd_wgmma<128, 128>", "conv2d_dgrad_wgmma<128, 128>"],
        [128, 128],
        384,
    ),
    production(
        "7 production 128x64",
        ["conv2d_fwd_wgmma<128, 64>", "conv2d_dgrad_wgmma<128, 64>"],
        [128, 64],
        384,
    ),
];

impl Rung {
    fn is_mma(&self) -> bool {
        self.name.starts_with('0')
    }
    fn shared_bytes(&self) -> usize {
        let stage = (self.rows + self.columns) * 128;
        match self.stages {
            // 16 bytes of padding for each row.
            stages if self.is_mma() => stages * (stage + (self.rows + self.columns) * 16),
            0 => {
                let stats = if self.rows == 128 && self.is_persistent { 2 * 4 * self.columns * 8 } else { 0 };
                let stages = ((226 << 10) - stats) / stage;
                stages * stage + (2 * stages + 2) * 8 + stats
            }
            stages => stages * stage,
        }
    }
    /// The launch for the problem on so many multiprocessors; none if the rung has no such kernel.
    pub fn launch(
        &self,
        p: &Problem,
        operands: &[Operands],
        multiprocessors: usize,
    ) -> Result<Option<Launch>> {
        let Some(kernel) = self.kernels[usize::from(p.is_gradient)] else { return Ok(None) };
        let writes_stats = kernel.starts_with("conv2d_fwd_wgmma<");
        if p.channel_stats && !writes_stats {
            return Ok(None);
        }
        let [rows, columns, _] = p.product();
        let tiles = rows.div_ceil(self.rows) * columns.div_ceil(self.columns);
        let grid = match self.is_persistent {
            true => [(tiles * p.members).min(multiprocessors) as u32, 1, 1],
            false if self.is_mma() => [tiles as u32, p.members as u32, 1],
            false => [(tiles * p.members) as u32, 1, 1],
        };
        let of = KernelArg::Slot;
        let forward = |o: &Operands| {
            let residual = if p.adds { of(o.residual) } else { KernelArg::Null };
            let stats = if p.channel_stats { of(o.channel_stats) } else { KernelArg::Null };
            vec![of(o.y), KernelArg::Null, of(o.mask), of(o.x), of(o.filter), of(o.bias), residual, stats]
        };
        // Without the gradient of a statistics loss.
        let gradient = |o: &Operands| {
            let operands = [of(o.x), of(o.y), of(o.filter), of(o.mask)];
            operands.into_iter().chain(vec![KernelArg::Null; 4]).collect()
        };
        let mut args = Vec::new();
        if !self.is_mma() {
            args.push(p.maps(operands, self.rows));
        }
        if p.is_gradient {
            args.push(KernelArg::Group("Conv2dInputGradient", operands.iter().map(gradient).collect()));
            args.extend([p.dims(), p.adds.into()]);
        } else {
            args.push(KernelArg::Group("Conv2dForward", operands.iter().map(forward).collect()));
            args.push(p.dims());
        }
        args.push(SLOPE.into());
        Launch::new(kernel, grid, self.threads, self.shared_bytes() as u32, args).map(Some)
    }
}

/// The activation's slope below 0.
pub const SLOPE: f32 = 0.2;
