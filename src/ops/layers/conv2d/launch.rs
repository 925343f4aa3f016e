//! The convolution's launches: which kernel and tile, how many parts, which buffers.
//!
//! Products that the kernels for compute capability 9.0 compute go there (`hopper.rs`); all others to the
//! kernels with mma.sync or fmaf, whose tiles are chosen here.

use super::geometry::{Dims, Epilogue, Phase};
use super::hopper::{Product, STATS_ROWS};
use super::hopper_weights::{self, WeightGradient};
use crate::device::Slot;
use crate::device::gpu::launch::KernelArg;
use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::ops::launch::launches::{DeviceTensor, Launches, THREADS};
use crate::ops::layers::activation::{Act, step_backward};
use crate::ops::operands::Write;
use crate::ops::operator::{Extent, OperandInfo, Signature};
use crate::tensor::Elem;

/// Fewest pixels of a part of a weight or bias gradient, if there are several: eight slabs of bf16, and a
/// multiple of a slab of either type.
const PART_PIXELS: usize = 512;

/// Mirrors TILE_STAGES of kernels/lib/tile.cuh.
const STAGES: usize = 3;

/// Rows and columns of a product that one block computes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tile {
    rows: usize,
    columns: usize,
}

impl Tile {
    /// The tile of a product, for `batches` products in one launch. At most 32 columns always take 128x32,
    /// and at most 64 rows always 64x64, which waste less of a narrow or low product. Others take the largest
    /// of 128x128 (128x64 up to 64 columns), 128x64 and 64x64 that fits the shared memory of a block and
    /// still gives every multiprocessor a block; the last one needs neither. A large tile reads each operand
    /// less often. The members of a grouped launch are not counted.
    fn of(rows: usize, columns: usize, batches: usize, target: &Target) -> Tile {
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
    fn forward(d: &Dims, target: &Target) -> Tile {
        Tile::of(d.outputs(), d.k, 1, target)
    }
    fn blocks(self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(self.rows) * columns.div_ceil(self.columns)
    }
    /// A stage has a slab of each operand: 128 bytes for each row or column of the tile, and 16 bytes of
    /// padding for each row of the slab's layout. The layout has as many rows as the tile has rows or columns
    /// or, transposed, the 64 rows of a slab of bf16; the larger number counts.
    fn shared_bytes(self) -> u32 {
        let slab = |len: usize| len * 128 + len.max(64) * 16;
        (STAGES * (slab(self.rows) + slab(self.columns))) as u32
    }
    fn kernel(self, name: &str, elem: Elem) -> String {
        format!("{name}<{elem}, {}, {}>", self.rows, self.columns)
    }
}

/// How a sum over pixels is cut: into a number of parts, added in order, that depends on the sizes and the
/// target alone.
#[derive(Clone, Copy)]
struct Parts {
    count: usize,
    /// Pixels of each part, the last one excepted.
    pixels: usize,
}

impl Parts {
    fn of(pixels: usize, most: usize) -> Parts {
        let count = (pixels / PART_PIXELS).clamp(1, most.max(1));
        let pixels_each = pixels.div_ceil(count).next_multiple_of(64);
        Parts { count: pixels.div_ceil(pixels_each), pixels: pixels_each }
    }
    /// Of a weight gradient: as many as leave no block waiting, with two blocks on each multiprocessor, which its
    /// shared memory holds with tiles of 128x128. More blocks of the smaller tiles would fit. With one part more a
    /// second round of blocks would take longer than the parts are shorter.
    fn of_wgrad(d: &Dims, target: &Target) -> (Tile, Parts) {
        let pixels = d.outputs();
        let tile = Tile::of(d.k, d.depth(), (pixels / PART_PIXELS).max(1), target);
        let most = 2 * target.multiprocessors / tile.blocks(d.k, d.depth());
        (tile, Parts::of(pixels, most))
    }
    /// Of a bias gradient, which reads dz once: eight blocks on each multiprocessor keep enough loads in
    /// flight.
    fn of_dbias(d: &Dims, target: &Target) -> Parts {
        let most = (8 * target.multiprocessors).div_ceil(d.k.div_ceil(DBIAS_CHANNELS));
        Parts::of(d.outputs(), most)
    }
}

/// Most channels of a block of a bias gradient; its 256 threads share the pixels of these channels.
const DBIAS_CHANNELS: usize = 64;

/// The scratch buffers of backward on a GPU: partial sums of dw, partial sums of db, and dz. The CPU has
/// others (`signature` in mod.rs): 0 holds the packed filters of dx, 1 the partial sums of dw, 2 those of db.
const SCRATCH_DW: usize = 0;
const SCRATCH_DB: usize = 1;
pub const SCRATCH_DZ: usize = 2;

/// Pixels per partial of the channel statistics that forward can write. None if a kernel that cannot write
/// them and a pass over the output take less time together.
pub fn channel_stats_rows(d: &Dims, target: &Target) -> Option<usize> {
    match Product::forward(d, target.map_dtype, target) {
        Some(product) => product.should_write_stats().then_some(STATS_ROWS),
        None => Some(Tile::forward(d, target).rows),
    }
}

/// The filter in the type of the map that it is multiplied with.
fn filter(l: &Launches, map: DeviceTensor) -> DeviceTensor {
    if map.elem == Elem::Bf16 && l.x(1).elem == Elem::F32 { l.bf16_copy(1) } else { l.x(1) }
}

/// Replaces the scratch buffers of the CPU's loops by those of the kernels.
pub fn extents(
    d: &Dims,
    epilogue: &Epilogue,
    args: &[OperandInfo],
    target: &Target,
    signature: &mut Signature,
) {
    let needs_grad = |i: usize| args.get(i).is_some_and(|a| a.needs_grad);
    let reals = |needed: bool, n: usize| Extent::Reals(if needed { n } else { 0 });
    let has_mask = !signature.saved.is_empty();
    // The size of f32 for rows: those that come from f32 rows are f32. Rows computed from bf16 maps are bf16
    // (`Fusion::output_elem`) and leave half of the buffer unused.
    let elem = if d.h * d.w > 1 { target.map_dtype } else { Elem::F32 };
    signature.scratch_forward = vec![];
    signature.scratch_backward = vec![
        reals(needs_grad(1), most_weight_parts(d, target) * d.k * d.depth()),
        reals(epilogue.has_bias && needs_grad(2), Parts::of_dbias(d, target).count * d.k),
        Extent::Bytes(if has_mask { d.outputs() * d.k * elem.bytes() } else { 0 }),
    ];
}

/// The most parts that a weight gradient may have. Rows may be f32 or bf16; maps have the target's type.
fn most_weight_parts(d: &Dims, target: &Target) -> usize {
    let (mma, wgmma) = (Parts::of_wgrad(d, target).1.count, WeightGradient::of(d, target.map_dtype, target));
    let is_map = d.h * d.w > 1;
    wgmma.map_or(mma, |g| if is_map { g.parts } else { g.parts.max(mma) })
}

/// `y = act(bias + residual + x * w)`; with a fused activation also the sum without residual and activation.
pub fn forward(d: &Dims, epilogue: &Epilogue, l: &mut Launches) -> Result<()> {
    let (x, y) = (l.x(0), l.y(0));
    let w = filter(l, x);
    let residual = epilogue.has_residual.then(|| l.x(l.inputs() - 1));
    l.expect_same("y, which has x's type", x, y)?;
    l.expect_same("w", x, w)?;
    if let Some(residual) = residual {
        l.expect_same("residual, which has y's type", y, residual)?;
    }
    let bias = epilogue.has_bias.then(|| l.x(2));
    let mask = (epilogue.act != Act::None && l.saves()).then(|| l.saved(0));
    let stats = l.channel_stats().map(|s| s.parts);
    let map = |slot: Slot| DeviceTensor { slot, ..y };
    let (out, pre_activation, mask, residual, slope) = match l.fused_activation() {
        Some(a) => (map(a.y), a.keeps_sum.then_some(y), a.mask.map(map), a.residual.map(map), a.slope),
        None => (y, None, mask, residual, epilogue.slope() as f32),
    };
    // The fields of Conv2dForward (kernels/lib/conv2d_dims.cuh).
    let io = [
        out.into(),
        pre_activation.into(),
        mask.into(),
        x.into(),
        w.into(),
        bias.into(),
        residual.into(),
        stats.into(),
    ];
    let io = KernelArg::group_of_one("Conv2dForward", io);
    if let Some(product) = Product::forward(d, y.elem, l.target()) {
        let candidates = product.candidates(stats.is_some(), l.target())?;
        let args = [product.maps(x, w), io, d.kernel_arg()?, slope.into()];
        return l.launch_fastest(candidates, args);
    }
    let tile = Tile::forward(d, l.target());
    l.launch(
        tile.kernel("conv2d_fwd", y.elem),
        tile.blocks(d.outputs(), d.k) as u32,
        THREADS,
        tile.shared_bytes(),
        [io, d.kernel_arg()?, slope.into()],
    )
}

/// The gradients that are needed. The residual's comes last if it is added to, as on the CPU: it may be the
/// gradient of x too, which the input gradient sets.
pub fn backward(d: &Dims, epilogue: &Epilogue, l: &mut Launches) -> Result<()> {
    let dresidual = if epilogue.has_residual { l.dx(l.inputs() - 1) } else { None };
    let dz = output_gradient(d, epilogue, dresidual, l)?;
    if let Some(dx) = l.dx(0) {
        input_gradient(d, dz, dx, l)?;
    }
    if let Some(dw) = l.dx(1) {
        weight_gradient(d, dz, dw, l)?;
    }
    if epilogue.has_bias
        && let Some(db) = l.dx(2)
    {
        bias_gradient(d, dz, db, l)?;
    }
    match dresidual {
        Some((dr, Write::Add)) => mask_gradient(d, epilogue, None, Some((dr, Write::Add)), (dz, None), l),
        _ => Ok(()),
    }
}

/// `dz = dy * act'`. If backward sets the residual's gradient, dz is written there, even if it equals dy.
/// Otherwise it is dy itself without an activation, or if the last writer of dy has applied the mask; and in
/// all other cases it is written to scratch.
fn output_gradient(
    d: &Dims,
    epilogue: &Epilogue,
    dresidual: Option<(DeviceTensor, Write)>,
    l: &mut Launches,
) -> Result<DeviceTensor> {
    let dy = l.dy0();
    let mask = (epilogue.act != Act::None && !l.dy_is_masked()).then(|| l.saved(0));
    if let Some((dr, Write::Set)) = dresidual {
        l.expect_same("gradient of the residual, which has y's type", dy, dr)?;
        mask_gradient(d, epilogue, None, dresidual, (dy, mask), l)?;
        return Ok(dr);
    }
    if mask.is_none() {
        return Ok(dy);
    }
    let dz = DeviceTensor { elem: dy.elem, ..l.scratch(SCRATCH_DZ) };
    mask_gradient(d, epilogue, Some(dz), None, (dy, mask), l)?;
    Ok(dz)
}

/// Writes `dy * act'` to `dz` and to the residual's gradient, where there is one.
fn mask_gradient(
    d: &Dims,
    epilogue: &Epilogue,
    dz: Option<DeviceTensor>,
    dresidual: Option<(DeviceTensor, Write)>,
    (dy, mask): (DeviceTensor, Option<DeviceTensor>),
    l: &mut Launches,
) -> Result<()> {
    let dz = dz.map(|dz| (dz, Write::Set));
    step_backward(l, dz, dresidual, (dy, mask), [d.outputs(), d.k], epilogue.slope() as f32)
}

fn input_gradient(
    d: &Dims,
    dz: DeviceTensor,
    (dx, write): (DeviceTensor, Write),
    l: &mut Launches,
) -> Result<()> {
    let mask = l.input_mask(0);
    l.expect_same("gradient of x, which has y's type", dz, dx)?;
    let w = filter(l, dz);
    l.expect_same("w", dz, w)?;
    let term = l.linear_grad();
    // The fields of Conv2dInputGradient (kernels/lib/conv2d_dims.cuh).
    let io = [
        dx.into(),
        dz.into(),
        w.into(),
        mask.map(|m| m.mask).into(),
        term.map(|t| KernelArg::Slot(t.u)).into(),
        term.map(|t| KernelArg::Slot(t.coefficients)).into(),
        term.map(|t| KernelArg::Slot(t.dloss)).into(),
        term.and_then(|t| t.du).map(KernelArg::Slot).into(),
    ];
    let io = KernelArg::group_of_one("Conv2dInputGradient", io);
    let slope = mask.map_or(0.0, |m| m.slope);
    if let Some(product) = Product::input_gradient(d, dx.elem, l.target()) {
        let candidates = product.candidates(term.is_some(), l.target())?;
        let args = [product.maps(dz, w), io, d.kernel_arg()?, write.into(), slope.into()];
        return l.launch_fastest(candidates, args);
    }
    // The first phase is the largest.
    let phases = Phase::all(d).count();
    let rows = d.n * d.h.div_ceil(d.stride) * d.w.div_ceil(d.stride);
    let tile = Tile::of(rows, d.c, phases, l.target());
    l.launch(
        tile.kernel("conv2d_dgrad", dx.elem),
        [tile.blocks(rows, d.c) as u32, 1, phases as u32],
        THREADS,
        tile.shared_bytes(),
        [io, d.kernel_arg()?, write.into(), slope.into()],
    )
}

fn weight_gradient(
    d: &Dims,
    dz: DeviceTensor,
    (dw, write): (DeviceTensor, Write),
    l: &mut Launches,
) -> Result<()> {
    let (x, sums) = (l.x(0), l.scratch(SCRATCH_DW));
    l.expect_same("x, which has y's type", dz, x)?;
    l.expect_same("gradient of w", sums, dw)?;
    if let Some(gradient) = WeightGradient::of(d, x.elem, l.target()) {
        let (name, grid, shared) = gradient.launch();
        let is_whole = gradient.parts == 1;
        let (to, add) = if is_whole { (dw, write) } else { (sums, Write::Set) };
        let pixels = KernelArg::from(gradient.part_pixels() as i32);
        let args = [gradient.maps(dz, x), to.into(), d.kernel_arg()?, pixels, add.into()];
        l.launch(name, grid, hopper_weights::THREADS, shared, args)?;
        let parts = Parts { count: gradient.parts, pixels: gradient.part_pixels() };
        return if is_whole { Ok(()) } else { sum_parts(dw, sums, d.k * d.depth(), parts, write, l) };
    }
    let (tile, parts) = Parts::of_wgrad(d, l.target());
    // A single part is the gradient itself.
    let is_whole = parts.count == 1 && write == Write::Set;
    let to = if is_whole { dw } else { sums };
    l.launch(
        tile.kernel("conv2d_wgrad", x.elem),
        [tile.blocks(d.k, d.depth()) as u32, 1, parts.count as u32],
        THREADS,
        tile.shared_bytes(),
        [to.into(), dz.into(), x.into(), d.kernel_arg()?, KernelArg::from(parts.pixels as i32)],
    )?;
    if is_whole { Ok(()) } else { sum_parts(dw, sums, d.k * d.depth(), parts, write, l) }
}

fn bias_gradient(
    d: &Dims,
    dz: DeviceTensor,
    (db, write): (DeviceTensor, Write),
    l: &mut Launches,
) -> Result<()> {
    let sums = l.scratch(SCRATCH_DB);
    l.expect_same("gradient of bias", sums, db)?;
    let parts = Parts::of_dbias(d, l.target());
    let width = d.k.min(DBIAS_CHANNELS);
    l.launch(
        format!("conv2d_dbias<{}>", dz.elem),
        [d.k.div_ceil(width) as u32, parts.count as u32, 1],
        THREADS,
        0,
        [
            sums.into(),
            dz.into(),
            KernelArg::from(d.outputs() as i64),
            KernelArg::from(d.k as i32),
            KernelArg::from(parts.pixels as i64),
            KernelArg::from(width as i32),
        ],
    )?;
    sum_parts(db, sums, d.k, parts, write, l)
}

/// Adds the parts `sums` `[parts, len]` in order.
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
        l.target().blocks_for(len, THREADS as usize),
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
    use crate::device::{Slot, Space};
    use crate::ops::Operands;
    use crate::tensor::Shape;

    #[test]
    fn types_that_differ_are_refused() {
        let slot = Slot { space: Space::Arena, offset: 0, bytes: 0 };
        let (x, w) = (Shape::new(1, 2, 2, 8), Shape::new(8, 1, 1, 8));
        let operands = Operands {
            inputs: vec![slot; 2],
            input_shapes: vec![x, w],
            input_elems: vec![Elem::F32; 2],
            outputs: vec![slot],
            output_shapes: vec![x],
            output_elems: vec![Elem::Bf16],
            ..Default::default()
        };
        let mut l = Launches::new("conv2d", &operands, &Target::h200(Elem::Bf16));
        let epilogue = Epilogue { has_bias: false, has_residual: false, act: Act::None };
        let e = forward(&Dims::of([1, 0], x, w, x), &epilogue, &mut l).unwrap_err();
        assert_eq!(e.to_string(), "conv2d: y, which has x's type: expected float, found bf16");
    }

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
