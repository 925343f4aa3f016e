//! The convolution's kernels: which tile, how many parts, what goes where.

use super::wgmma::{MOMENT_ROWS, Product};
use super::{Conv2d, Dims, Phase};
use crate::device::Slot;
use crate::device::gpu::launch::{self, KernelArg};
use crate::error::{Error, Result};
use crate::ops::launch::launches::{ChannelStats, DeviceTensor, Launches, THREADS, blocks_for};
use crate::ops::layers::activation::step_backward;
use crate::ops::operands::Write;
use crate::ops::operator::{Extent, OperandInfo, Signature};
use crate::tensor::Elem;

/// Mirrors the structure of this name in kernels/lib/conv2d_dims.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Conv2dDims {
    n: i32,
    h: i32,
    w: i32,
    c: i32,
    k: i32,
    r: i32,
    s: i32,
    p: i32,
    q: i32,
    stride: i32,
    pad: i32,
}
const _: () = assert!(size_of::<Conv2dDims>() == 44);

/// What a product spreads over. Two in tests, so that cases small enough for the emulator
/// reach every tile and several parts.
const MULTIPROCESSORS: usize = if cfg!(test) { 2 } else { launch::MULTIPROCESSORS };

/// Fewest pixels of a part of a weight gradient: eight slabs of bf16, a multiple of a slab of either type.
const PART_PIXELS: usize = if cfg!(test) { 64 } else { 512 };

/// Mirrors TILE_STAGES of kernels/lib/tile.cuh.
const STAGES: usize = 3;

/// Rows and columns of a product that one block computes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tile {
    rows: usize,
    columns: usize,
}

impl Tile {
    /// The largest tile that still gives every multiprocessor a block, for `batches` products at once: 128x128 reads
    /// each operand half as often as 64x64, where its 108 KB of shared memory are to be had. Of narrow products a narrow
    /// tile wastes less.
    fn of(rows: usize, columns: usize, batches: usize) -> Tile {
        let tile = |rows, columns| Tile { rows, columns };
        let fits = |t: &Tile| t.shared_bytes() <= launch::shared_limit();
        let fills = |t: &Tile| fits(t) && t.blocks(rows, columns) * batches >= MULTIPROCESSORS;
        match (rows, columns) {
            (_, ..=32) => tile(128, 32),
            (..=64, _) => tile(64, 64),
            (_, ..=64) => Some(tile(128, 64)).filter(fills).unwrap_or(tile(64, 64)),
            _ => [tile(128, 128), tile(128, 64)].into_iter().find(fills).unwrap_or(tile(64, 64)),
        }
    }
    fn blocks(self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(self.rows) * columns.div_ceil(self.columns)
    }
    /// A stage holds 128 bytes of each row and column of the tile, and 16 of padding for each row of its slabs: as many
    /// rows as the tile's, or a slab of bf16's 64.
    fn shared_bytes(self) -> u32 {
        let slab = |len: usize| len * 128 + len.max(64) * 16;
        (STAGES * (slab(self.rows) + slab(self.columns))) as u32
    }
    fn kernel(self, name: &str, elem: Elem) -> String {
        format!("{name}<{elem}, {}, {}>", self.rows, self.columns)
    }
}

/// How a sum over pixels is cut: a fixed number of parts, added in order, that depends on the problem alone.
#[derive(Clone, Copy)]
struct Parts {
    count: usize,
    pixels: usize,
}

impl Parts {
    fn of(pixels: usize, most: usize) -> Parts {
        let count = (pixels / PART_PIXELS).clamp(1, most.max(1));
        let pixels_each = pixels.div_ceil(count).next_multiple_of(64);
        Parts { count: pixels.div_ceil(pixels_each), pixels: pixels_each }
    }
    /// Of a weight gradient: as many as give each multiprocessor two blocks, the number that fits its shared memory.
    fn of_wgrad(d: &Dims) -> (Tile, Parts) {
        let pixels = d.n * d.p * d.q;
        let tile = Tile::of(d.k, d.depth(), (pixels / PART_PIXELS).max(1));
        (tile, Parts::of(pixels, (2 * MULTIPROCESSORS).div_ceil(tile.blocks(d.k, d.depth()))))
    }
    /// Of a bias gradient, which reads dz once: eight blocks a multiprocessor keep enough loads in flight.
    fn of_dbias(d: &Dims) -> Parts {
        Parts::of(d.n * d.p * d.q, (8 * MULTIPROCESSORS).div_ceil(d.k.div_ceil(DBIAS_CHANNELS)))
    }
}

/// Most channels of a block of a bias gradient; the rest of its threads take further pixels.
const DBIAS_CHANNELS: usize = 64;

/// Scratch buffers of backward.
const WGRAD_PARTS: usize = 0;
const DBIAS_PARTS: usize = 1;
pub(super) const DZ: usize = 2;

impl Dims {
    /// As the kernels take them.
    pub(super) fn value(&self) -> Result<KernelArg> {
        let pixels = (self.n * self.h * self.w).max(self.n * self.p * self.q);
        let largest = [pixels, self.depth(), self.k, self.c].into_iter().max().unwrap_or(0);
        if largest >= 1 << 30 {
            let message =
                format!("expected fewer than 2^30 pixels and filter elements a channel, found {largest}");
            return Err(Error::shape("conv2d", message));
        }
        let int = |v: usize| v as i32;
        let dims = Conv2dDims {
            n: int(self.n),
            h: int(self.h),
            w: int(self.w),
            c: int(self.c),
            k: int(self.k),
            r: int(self.r),
            s: int(self.s),
            p: int(self.p),
            q: int(self.q),
            stride: int(self.stride),
            pad: int(self.pad),
        };
        Ok(KernelArg::structure("Conv2dDims", &dims))
    }
}

/// Pixels of each part of the moments that forward's tiles leave. None where the tile that leaves none, and a pass over the
/// output, take less time together.
pub(super) fn moment_rows(d: &Dims, elem: Elem) -> Option<usize> {
    match Product::forward(d, elem) {
        Some(product) => product.leaves_moments().then_some(MOMENT_ROWS),
        None => Some(Tile::of(d.n * d.p * d.q, d.k, 1).rows),
    }
}

/// Launches the fold of a producer's moments into sums `[2][k]` about `shift` `[k]`, as one part of `lib/channels.cuh`.
pub fn fold_moments(
    l: &mut Launches,
    moments: ChannelStats,
    sums: DeviceTensor,
    shift: DeviceTensor,
    [pixels, k]: [usize; 2],
) -> Result<()> {
    const CHANNELS: usize = 8;
    let args = [
        sums.into(),
        shift.into(),
        moments.parts.into(),
        KernelArg::from(pixels as i64),
        KernelArg::from(k as i32),
        KernelArg::from(moments.rows as i32),
    ];
    l.launch("conv2d_fold_moments", k.div_ceil(CHANNELS) as u32, 1024, 0, args)
}

/// The filter in the type of the map that it meets.
fn filter(l: &Launches, map: DeviceTensor) -> DeviceTensor {
    if map.elem == Elem::Bf16 && l.x(1).elem == Elem::F32 { l.bf16_copy(1) } else { l.x(1) }
}

pub(super) fn extents(op: &Conv2d, args: &[OperandInfo], map_dtype: Elem, signature: &mut Signature) {
    let d = Dims::of(op, args[0].shape, args[1].shape, signature.outputs[0]);
    let needs_grad = |i: usize| args.get(i).is_some_and(|a| a.needs_grad);
    let (_, parts) = Parts::of_wgrad(&d);
    let reals = |wanted: bool, n: usize| Extent::Reals(if wanted { n } else { 0 });
    let masked = !signature.saved.is_empty();
    // Rows are f32 even where maps are bf16.
    let elem = if d.h * d.w > 1 { map_dtype } else { Elem::F32 };
    signature.scratch_forward = vec![];
    signature.scratch_backward = vec![
        reals(needs_grad(1), parts.count * d.k * d.depth()),
        reals(op.bias && needs_grad(2), Parts::of_dbias(&d).count * d.k),
        Extent::Bytes(if masked { d.n * d.p * d.q * d.k * elem.bytes() } else { 0 }),
    ];
}

pub(super) fn forward(op: &Conv2d, l: &mut Launches) -> Result<()> {
    let d = Dims::of(op, l.shape(0), l.shape(1), l.out_shape(0));
    let (x, y) = (l.x(0), l.y(0));
    let w = filter(l, x);
    let residual = op.residual.then(|| l.x(l.inputs() - 1));
    l.expect_same("y, which has x's type", x, y)?;
    l.expect_same("w", x, w)?;
    if let Some(residual) = residual {
        l.expect_same("residual, which has y's type", y, residual)?;
    }
    let bias = op.bias.then(|| l.x(2));
    let mask = (op.act != super::Act::None && l.saves()).then(|| l.saved(0));
    let moments = l.channel_stats().map(|m| m.parts);
    let map = |slot: Slot| DeviceTensor { slot, ..y };
    let (out, before, mask, residual, slope) = match l.fused_activation() {
        Some(a) => (map(a.y), Some(y), a.mask.map(map), a.residual.map(map), a.slope),
        None => (y, None, mask, residual, slope(op)),
    };
    let io = KernelArg::group_of_one(
        "Conv2dForward",
        [
            out.into(),
            before.into(),
            mask.into(),
            x.into(),
            w.into(),
            bias.into(),
            residual.into(),
            moments.into(),
        ],
    );
    if let Some(product) = Product::forward(&d, y.elem) {
        let ways = product.ways("conv2d_fwd_wgmma", moments.is_some())?;
        let args = [product.maps(x, w), io, d.value()?, slope.into()];
        return l.launch_fastest(ways, MULTIPROCESSORS, args);
    }
    let tile = Tile::of(d.n * d.p * d.q, d.k, 1);
    l.launch(
        tile.kernel("conv2d_fwd", y.elem),
        tile.blocks(d.n * d.p * d.q, d.k) as u32,
        THREADS,
        tile.shared_bytes(),
        [io, d.value()?, slope.into()],
    )
}

pub(super) fn slope(op: &Conv2d) -> f32 {
    op.act.step_slope().unwrap_or(1.0) as f32
}

pub(super) fn backward(op: &Conv2d, l: &mut Launches) -> Result<()> {
    let d = Dims::of(op, l.shape(0), l.shape(1), l.out_shape(0));
    let dresidual = if op.residual { l.dx(l.inputs() - 1) } else { None };
    let dz = output_gradient(op, &d, dresidual, l)?;
    if let Some((dx, write)) = l.dx(0) {
        input_gradient(&d, dz, (dx, write), l)?;
    }
    if let Some((dw, write)) = l.dx(1) {
        weight_gradient(&d, dz, dw, write, l)?;
    }
    if op.bias
        && let Some((db, write)) = l.dx(2)
    {
        bias_gradient(&d, dz, db, write, l)?;
    }
    // Last, as on the CPU: it may be the gradient of x too, which dgrad sets.
    match dresidual {
        Some((dr, Write::Add)) => mask_gradient(op, &d, None, Some((dr, Write::Add)), (dz, None), l),
        _ => Ok(()),
    }
}

/// `dy * act'`: dy itself without an activation, or if its last writer has multiplied it; else written where the residual's gradient goes, if that is set here, else
/// to scratch.
fn output_gradient(
    op: &Conv2d,
    d: &Dims,
    dresidual: Option<(DeviceTensor, Write)>,
    l: &mut Launches,
) -> Result<DeviceTensor> {
    let dy = l.dy0();
    let mask = (op.act != super::Act::None && !l.dy_is_masked()).then(|| l.saved(0));
    if let Some((dr, Write::Set)) = dresidual {
        l.expect_same("gradient of the residual, which has y's type", dy, dr)?;
        mask_gradient(op, d, None, dresidual, (dy, mask), l)?;
        return Ok(dr);
    }
    if mask.is_none() {
        return Ok(dy);
    }
    let dz = DeviceTensor { elem: dy.elem, ..l.scratch(DZ) };
    mask_gradient(op, d, Some(dz), None, (dy, mask), l)?;
    Ok(dz)
}

fn mask_gradient(
    op: &Conv2d,
    d: &Dims,
    dz: Option<DeviceTensor>,
    dresidual: Option<(DeviceTensor, Write)>,
    (dy, mask): (DeviceTensor, Option<DeviceTensor>),
    l: &mut Launches,
) -> Result<()> {
    let dz = dz.map(|dz| (dz, Write::Set));
    step_backward(l, dz, dresidual, (dy, mask), [d.n * d.p * d.q, d.k], slope(op))
}

fn input_gradient(
    d: &Dims,
    dz: DeviceTensor,
    (dx, write): (DeviceTensor, Write),
    l: &mut Launches,
) -> Result<()> {
    let gate = l.input_mask(0);
    l.expect_same("gradient of x, which has y's type", dz, dx)?;
    let w = filter(l, dz);
    l.expect_same("w", dz, w)?;
    let io = [dx.into(), dz.into(), w.into(), gate.map(|g| g.mask).into()];
    let io = KernelArg::group_of_one("Conv2dInputGradient", io);
    let slope = gate.map_or(0.0, |g| g.slope);
    if let Some(product) = Product::input_gradient(d, dx.elem) {
        let args = [product.maps(dz, w), io, d.value()?, write.into(), slope.into()];
        return l.launch_fastest(product.ways("conv2d_dgrad_wgmma", false)?, MULTIPROCESSORS, args);
    }
    // The first phase is the largest.
    let phases = Phase::all(d).len();
    let rows = d.n * d.h.div_ceil(d.stride) * d.w.div_ceil(d.stride);
    let tile = Tile::of(rows, d.c, phases);
    l.launch(
        tile.kernel("conv2d_dgrad", dx.elem),
        [tile.blocks(rows, d.c) as u32, 1, phases as u32],
        THREADS,
        tile.shared_bytes(),
        [io, d.value()?, write.into(), slope.into()],
    )
}

fn weight_gradient(
    d: &Dims,
    dz: DeviceTensor,
    dw: DeviceTensor,
    write: Write,
    l: &mut Launches,
) -> Result<()> {
    let (x, sums) = (l.x(0), l.scratch(WGRAD_PARTS));
    l.expect_same("x, which has y's type", dz, x)?;
    l.expect_same("gradient of w", sums, dw)?;
    let (tile, parts) = Parts::of_wgrad(d);
    l.launch(
        tile.kernel("conv2d_wgrad", x.elem),
        [tile.blocks(d.k, d.depth()) as u32, 1, parts.count as u32],
        THREADS,
        tile.shared_bytes(),
        [sums.into(), dz.into(), x.into(), d.value()?, KernelArg::from(parts.pixels as i32)],
    )?;
    sum_parts(dw, sums, d.k * d.depth(), parts, write, l)
}

fn bias_gradient(d: &Dims, dz: DeviceTensor, db: DeviceTensor, write: Write, l: &mut Launches) -> Result<()> {
    let sums = l.scratch(DBIAS_PARTS);
    l.expect_same("gradient of bias", sums, db)?;
    let parts = Parts::of_dbias(d);
    let width = d.k.min(DBIAS_CHANNELS);
    l.launch(
        format!("conv2d_dbias<{}>", dz.elem),
        [d.k.div_ceil(width) as u32, parts.count as u32, 1],
        THREADS,
        0,
        [
            sums.into(),
            dz.into(),
            KernelArg::from((d.n * d.p * d.q) as i64),
            KernelArg::from(d.k as i32),
            KernelArg::from(parts.pixels as i64),
            KernelArg::from(width as i32),
        ],
    )?;
    sum_parts(db, sums, d.k, parts, write, l)
}

fn sum_parts(
    to: DeviceTensor,
    sums: DeviceTensor,
    len: usize,
    parts: Parts,
    write: Write,
    l: &mut Launches,
) -> Result<()> {
    l.launch(
        "conv2d_sum_parts",
        blocks_for(len, THREADS as usize),
        THREADS,
        0,
        [
            to.into(),
            sums.into(),
            KernelArg::from(len as i64),
            KernelArg::from(parts.count as i32),
            write.into(),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::target::Target;
    use crate::device::{Slot, Space};
    use crate::ops::Operands;
    use crate::tensor::Shape;

    #[test]
    fn refuses_types_that_differ() {
        let slot = Slot { space: Space::Arena, offset: 0, bytes: 0 };
        let operands = Operands {
            inputs: vec![slot; 2],
            input_shapes: vec![Shape::new(1, 2, 2, 8), Shape::new(8, 1, 1, 8)],
            input_elems: vec![Elem::F32; 2],
            outputs: vec![slot],
            output_shapes: vec![Shape::new(1, 2, 2, 8)],
            output_elems: vec![Elem::Bf16],
            ..Default::default()
        };
        let mut l = Launches::new("conv2d", &operands, &Target::h200(Elem::Bf16));
        let e = forward(&Conv2d::new(1, 0), &mut l).unwrap_err();
        assert_eq!(e.to_string(), "conv2d: y, which has x's type: expected float, found bf16");
    }

    #[test]
    fn tiles_follow_the_problem() {
        let tile = |rows, columns, batches| {
            let t = Tile::of(rows, columns, batches);
            (t.rows, t.columns)
        };
        assert_eq!(tile(129, 65, 1), (128, 128), "two blocks, the multiprocessors that tests pretend");
        assert_eq!(tile(128, 65, 1), (128, 64), "one of 128x128 would leave a multiprocessor idle");
        assert_eq!(tile(128, 65, 2), (128, 128));
        assert_eq!(tile(129, 64, 1), (128, 64), "a wider tile would be half padding");
        assert_eq!(tile(64, 512, 1), (64, 64));
        assert_eq!(tile(100, 64, 1), (64, 64));
        assert_eq!(tile(1 << 20, 3, 1), (128, 32));
    }

    #[test]
    fn parts_cover_the_pixels_in_whole_slabs() {
        for pixels in [1, 63, 64, 65, 500, 1000, 4097] {
            for most in [1, 2, 3, 7, 100] {
                let parts = Parts::of(pixels, most);
                assert!((1..=most).contains(&parts.count));
                assert_eq!(parts.pixels % 64, 0);
                assert!((parts.count - 1) * parts.pixels < pixels && pixels <= parts.count * parts.pixels);
            }
        }
    }
}
