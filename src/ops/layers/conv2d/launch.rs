//! The convolution's launches: which kernel and tile, how many parts, which buffers.
//!
//! Products that a target leaves to a library go to `matmul.rs`, those that the kernels for compute capability 9.0
//! compute to `hopper.rs`, and all others to the kernels with mma.sync or fmaf, whose tiles are chosen here.

use super::geometry::{Dims, Epilogue, Phase};
use super::hopper::{Product, STATS_ROWS};
use super::hopper_weights::{self, WeightGradient};
use super::matmul;
use super::mma::{DBIAS_CHANNELS, Parts, Tile};
use crate::device::Slot;
use crate::device::gpu::launch::{KernelArg, MAX_GROUP};
use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::ops::launch::late_sums::{Fold, LateSum};
use crate::ops::launch::launches::{DeviceTensor, Launches, THREADS};
use crate::ops::layers::activation::{Act, step_backward};
use crate::ops::operands::Write;
use crate::ops::operator::{Extent, OperandInfo, Signature};
use crate::tensor::Elem;

/// The scratch buffers of backward on a GPU: partial sums of dw, partial sums of db, dz, and dx as a library has computed
/// it. Forward has one scratch buffer on a GPU, for y as a library has computed it. The CPU has
/// others (`signature` in mod.rs): 0 holds the packed filters of dx, 1 the partial sums of dw, 2 those of db.
const SCRATCH_DW: usize = 0;
const SCRATCH_DB: usize = 1;
pub const SCRATCH_DZ: usize = 2;
const SCRATCH_DX: usize = 3;

/// Pixels per partial of the channel statistics that forward can write. None if a kernel that cannot write
/// them and a pass over the output take less time together.
pub fn channel_stats_rows(d: &Dims, target: &Target) -> Option<usize> {
    if matmul::takes(d, target) {
        return None;
    }
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
    let late = [(1, SCRATCH_DW), (2, SCRATCH_DB)];
    let is_late = |(i, _): &(usize, usize)| {
        needs_grad(*i) && if *i == 1 { !matmul::takes(d, target) } else { epilogue.has_bias }
    };
    signature.late_sums = late.into_iter().filter(is_late).collect();
    // The size of f32 for rows: those that come from f32 rows are f32. Rows computed from bf16 maps are bf16
    // (`Fusion::output_elem`) and leave half of the buffer unused.
    let elem = if d.h * d.w > 1 { target.map_dtype } else { Elem::F32 };
    let by_library = matmul::takes(d, target);
    signature.scratch_forward = if by_library { vec![reals(true, d.outputs() * d.k)] } else { vec![] };
    signature.scratch_backward = vec![
        reals(needs_grad(1) && !by_library, most_weight_parts(d, target) * d.k * d.depth()),
        reals(epilogue.has_bias && needs_grad(2), most_bias_parts(d, target) * d.k),
        Extent::Bytes(if has_mask { d.outputs() * d.k * elem.bytes() } else { 0 }),
        reals(needs_grad(0) && by_library, d.inputs() * d.c),
    ];
}

/// The most parts that a weight gradient may have, whatever its group. Rows may be f32 or bf16; maps have the target's type.
fn most_weight_parts(d: &Dims, target: &Target) -> usize {
    let mma = Parts::of_wgrad(d, 1, target).1.count;
    let is_map = d.h * d.w > 1;
    most_wgmma_parts(d, target).map_or(mma, |parts| if is_map { parts } else { parts.max(mma) })
}

/// The same of the kernel for compute capability 9.0, if it takes maps of these sizes.
fn most_wgmma_parts(d: &Dims, target: &Target) -> Option<usize> {
    let of = |members| WeightGradient::of(d, target.map_dtype, members, target);
    (1..=MAX_GROUP).filter_map(of).map(|g| g.parts).max()
}

/// The most parts of a bias gradient: that kernel's, which adds the pixels of dz on the way, or those of a launch of its own,
/// where the filter needs no gradient.
fn most_bias_parts(d: &Dims, target: &Target) -> usize {
    let alone = Parts::of_dbias(d, target).count;
    most_wgmma_parts(d, target).map_or(alone, |parts| parts.max(alone))
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
    // What follows a library's product does not read its operands.
    let by_library = matmul::takes(d, l.target());
    let operand = |t: DeviceTensor| if by_library { KernelArg::Null } else { t.into() };
    // The fields of Conv2dForward (kernels/lib/conv2d_dims.cuh).
    let io = [
        out.into(),
        pre_activation.into(),
        mask.into(),
        operand(x),
        operand(w),
        bias.into(),
        residual.into(),
        stats.into(),
    ];
    let io = KernelArg::group_of_one("Conv2dForward", io);
    if by_library {
        return matmul::forward(d, [x, w, out, l.scratch(0)], io, slope, l);
    }
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
    )?;
    l.last_takes(tile.work(tile.blocks(d.outputs(), d.k), d.depth(), y.elem, l.target()));
    Ok(())
}

/// The gradients that are needed. The residual's comes last if it is added to, as on the CPU: it may be the
/// gradient of x too, which the input gradient sets.
pub fn backward(d: &Dims, epilogue: &Epilogue, l: &mut Launches) -> Result<()> {
    let dresidual = if epilogue.has_residual { l.dx(l.inputs() - 1) } else { None };
    let dz = output_gradient(d, epilogue, dresidual, l)?;
    if let Some(dx) = l.dx(0) {
        input_gradient(d, dz, dx, l)?;
    }
    let mut db = if epilogue.has_bias { l.dx(2) } else { None };
    if let Some(dw) = l.dx(1) {
        weight_gradient(d, dz, dw, &mut db, l)?;
    }
    if let Some(db) = db {
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
    let by_library = matmul::takes(d, l.target());
    let operand = |t: DeviceTensor| if by_library { KernelArg::Null } else { t.into() };
    // The fields of Conv2dInputGradient (kernels/lib/conv2d_dims.cuh).
    let io = [
        dx.into(),
        operand(dz),
        operand(w),
        mask.map(|m| m.mask).into(),
        term.map(|t| KernelArg::Slot(t.u)).into(),
        term.map(|t| KernelArg::Slot(t.coefficients)).into(),
        term.map(|t| KernelArg::Slot(t.dloss)).into(),
        term.and_then(|t| t.du).map(KernelArg::Slot).into(),
    ];
    let io = KernelArg::group_of_one("Conv2dInputGradient", io);
    let slope = mask.map_or(0.0, |m| m.slope);
    if by_library {
        return matmul::input_gradient(d, [dz, w, dx, l.scratch(SCRATCH_DX)], io, (write, slope), l);
    }
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
    )?;
    // The phases share the taps.
    let depth = (d.r * d.s * d.k).div_ceil(phases);
    l.last_takes(tile.work(tile.blocks(rows, d.c) * phases, depth, dx.elem, l.target()));
    Ok(())
}

/// Launches dw. The kernel with wgmma also computes the gradient of the bias, which is then taken out of `db`.
fn weight_gradient(
    d: &Dims,
    dz: DeviceTensor,
    (dw, write): (DeviceTensor, Write),
    db: &mut Option<(DeviceTensor, Write)>,
    l: &mut Launches,
) -> Result<()> {
    let (x, sums) = (l.x(0), l.scratch(SCRATCH_DW));
    l.expect_same("x, which has y's type", dz, x)?;
    l.expect_same("gradient of w", sums, dw)?;
    if matmul::takes(d, l.target()) {
        return matmul::weight_gradient(d, [dz, x], (dw, write), l);
    }
    if let Some(gradient) = WeightGradient::of(d, x.elem, l.expected_members(), l.target()) {
        let (name, grid, shared) = gradient.launch();
        let is_whole = gradient.parts == 1 && !(write == Write::Add && l.is_late(1));
        let sums = sums.part(0, gradient.parts * d.k * d.depth());
        let (to, add) = if is_whole { (dw, write) } else { (sums, Write::Set) };
        let pixels = KernelArg::from(gradient.part_pixels() as i32);
        let bias = db.take().map(|db| (db, l.scratch(SCRATCH_DB).part(0, gradient.parts * d.k)));
        let io = [to.into(), bias.map(|(_, sums)| sums).into()];
        let io = KernelArg::group_of_one("Conv2dWeightSums", io);
        let args = [gradient.maps(dz, x), io, d.kernel_arg()?, pixels, add.into()];
        l.launch(name, grid, hopper_weights::THREADS, shared, args)?;
        l.last_takes(gradient.work(l.target()));
        let parts = Parts { count: gradient.parts, pixels: gradient.part_pixels() };
        if !is_whole {
            sum_parts(1, (dw, write), sums, d.k * d.depth(), parts, l)?;
        }
        return match bias {
            Some((db, sums)) => sum_parts(2, db, sums, d.k, parts, l),
            None => Ok(()),
        };
    }
    let (tile, parts) = Parts::of_wgrad(d, l.expected_members(), l.target());
    // A single part is the gradient itself.
    let is_whole = parts.count == 1 && write == Write::Set;
    let sums = sums.part(0, parts.count * d.k * d.depth());
    let to = if is_whole { dw } else { sums };
    let io = KernelArg::group_of_one("Conv2dWeightGradient", [to.into(), dz.into(), x.into()]);
    l.launch(
        tile.kernel("conv2d_wgrad", x.elem),
        [tile.blocks(d.k, d.depth()) as u32, 1, parts.count as u32],
        THREADS,
        tile.shared_bytes(),
        [io, d.kernel_arg()?, KernelArg::from(parts.pixels as i32)],
    )?;
    let tiles = tile.blocks(d.k, d.depth()) * parts.count;
    l.last_takes(tile.work(tiles, parts.pixels.min(d.outputs()), x.elem, l.target()));
    if is_whole { Ok(()) } else { sum_parts(1, (dw, write), sums, d.k * d.depth(), parts, l) }
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
    sum_parts(2, (db, write), sums, d.k, parts, l)
}

/// Adds the parts `sums` `[parts, len]` of the gradient of an input in order, or leaves that to the plan.
fn sum_parts(
    input: usize,
    (to, write): (DeviceTensor, Write),
    sums: DeviceTensor,
    len: usize,
    parts: Parts,
    l: &mut Launches,
) -> Result<()> {
    if l.is_late(input) {
        let (to, parts, count) = (to.slot, sums.slot, parts.count);
        l.late.push(LateSum { to, write, parts, len, stride: len, count, fold: Fold::Few });
        return Ok(());
    }
    l.launch(
        "conv2d_sum_parts",
        l.target().blocks_for(len, THREADS as usize),
        THREADS,
        0,
        [
            KernelArg::group_of_one("Conv2dSumParts", [to.into(), sums.into()]),
            KernelArg::from(len as i64),
            KernelArg::from(parts.count as i32),
            write.into(),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Space;
    use crate::device::gpu::launch::Launch;
    use crate::ops::Operands;
    use crate::tensor::Shape;

    /// The gradient of a filter with 512 channels at 7x7 is whole. Where another one's parts are still to be added, it
    /// has to be a part too.
    #[test]
    fn a_whole_gradient_that_is_added_to_late_parts_becomes_one() {
        let slot = |i: usize, bytes: usize| Slot { space: Space::Arena, offset: i << 30, bytes };
        let (x, w) = (Shape::new(64, 7, 7, 512), Shape::new(512, 3, 3, 512));
        let d = Dims::of([1, 1], x, w, x);
        let epilogue = Epilogue { has_bias: false, has_residual: false, act: Act::None };
        for (write, late_inputs) in [(Write::Set, vec![1]), (Write::Add, vec![]), (Write::Add, vec![1])] {
            let is_part = write == Write::Add && !late_inputs.is_empty();
            let gradient = slot(1, 4 * w.elems());
            let operands = Operands {
                inputs: vec![slot(2, 2 * x.elems()), slot(3, 4 * w.elems())],
                input_shapes: vec![x, w],
                input_elems: vec![Elem::Bf16, Elem::F32],
                outputs: vec![slot(4, 2 * x.elems())],
                output_shapes: vec![x],
                output_elems: vec![Elem::Bf16],
                output_grads: vec![Some(slot(5, 2 * x.elems()))],
                input_grads: vec![None, Some((gradient, write))],
                scratch: (6..10).map(|i| slot(i, 4 * w.elems())).collect(),
                late_inputs,
                ..Default::default()
            };
            let mut l = Launches::new("conv2d", &operands, &Target::h200(Elem::Bf16));
            backward(&d, &epilogue, &mut l).unwrap();
            let written: Vec<Slot> = l.list.iter().flat_map(Launch::writes).collect();
            let late: Vec<_> = l.late.iter().map(|s| (s.to, s.parts, s.count, s.write)).collect();
            let parts = slot(6 + SCRATCH_DW, 4 * w.elems());
            assert_eq!(written, [if is_part { parts } else { gradient }]);
            assert_eq!(late, if is_part { vec![(gradient, parts, 1, Write::Add)] } else { vec![] });
        }
    }

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
}
