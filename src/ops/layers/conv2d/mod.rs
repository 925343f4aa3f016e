//! 2-D convolution, with everything that follows it in a network fused behind it. README.md in this folder
//! has a drawing, and says which file has what.

use crate::device::gpu::target::Target;
use crate::error::{Error, Result};
use crate::ops::fusion::{ActMask, Fusion};
use crate::ops::launch::launches::Launches;
use crate::ops::layers::activation::Act;
use crate::ops::operands::{Io, Operands, Write};
use crate::ops::operator::{Extent, OperandInfo, Operator, Signature, expect_operands, expect_shape};
use crate::tensor::{Elem, Real, Shape};
use geometry::{Dims, Epilogue, MAX_TAPS};

mod cpu_backward;
mod cpu_dz;
mod cpu_few;
mod cpu_forward;
mod cpu_parts;
mod cpu_weights;
mod cpu_winograd;
mod cpu_winograd_weights;
mod geometry;
mod hopper;
mod hopper_weights;
mod launch;
mod matmul;
mod mma;
#[cfg(test)]
mod tests;

pub use hopper::{Forecast, forecasts};
pub use matmul::product_of;

/// `y[n,p,q,k] = act(b[k] + residual[n,p,q,k] + sum_{r,s,c} w[k,r,s,c] x[n, p stride - pad + r, q stride - pad + s, c])`
///
/// Shapes: x `[n, h, w, c]`, w `[k, r, s, c]`, then, if declared, bias `[1, 1, 1, k]` and residual
/// `[n, p, q, k]`; y `[n, p, q, k]` with `p = (h + 2 pad - r) / stride + 1`. A linear layer is
/// `h = w = r = s = 1`.
/// Source: He et al. 2016 (the teachers' blocks); a frozen batch norm is folded into w and b
/// (`models::fold`).
/// Backward: dx (reads w), dw (reads x), db and dresidual, each if it is needed. The activation's derivative
/// comes from one saved bit per element; a frozen convolution therefore keeps neither x nor y.
/// Errors: channel counts that differ, a filter larger than the padded image or with a side of more than 16,
/// stride 0, an activation that is not piecewise linear.
/// Cost: `n p q k r s c` multiply-adds forward, the same again for each of dx and dw. These counts include
/// those with padding, which forward and dx skip on the CPU, and those that Winograd's algorithm saves there; the
/// kernels multiply padding as zeros.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conv2d {
    /// Pixels between neighbouring windows, in both directions.
    pub stride: usize,
    /// Zeros on each side of the image.
    pub pad: usize,
    /// Whether a bias is the third operand.
    pub bias: bool,
    /// Whether a residual is the last operand.
    pub residual: bool,
    /// The activation at the end; it must be piecewise linear.
    pub act: Act,
}

impl Conv2d {
    /// Without bias, residual and activation.
    pub const fn new(stride: usize, pad: usize) -> Self {
        Conv2d { stride, pad, bias: false, residual: false, act: Act::None }
    }
    /// A fully connected layer: rows in, rows out.
    pub const fn linear() -> Self {
        Conv2d { bias: true, ..Conv2d::new(1, 0) }
    }
    fn dims(&self, x: Shape, w: Shape, y: Shape) -> Dims {
        Dims::of([self.stride, self.pad], x, w, y)
    }
    fn epilogue(&self) -> Epilogue {
        Epilogue { has_bias: self.bias, has_residual: self.residual, act: self.act }
    }
    /// The shape of y.
    ///
    /// Errors: channel counts that differ, a filter that does not fit or has a side of more than
    /// [`MAX_TAPS`], stride 0, an activation that is not piecewise linear.
    fn output(&self, x: Shape, w: Shape) -> Result<Shape> {
        let wrong = |message: String| Err(Error::shape("conv2d", message));
        let [k, r, s, c] = w.0;
        if x.c() != c {
            return wrong(format!("x has {} channels, the filter {w} expects {c}", x.c()));
        }
        let (stride, pad, side) = (self.stride, self.pad, r.max(s));
        if side > MAX_TAPS {
            return wrong(format!("filter side {side}: at most {MAX_TAPS}"));
        }
        if x.h() + 2 * pad < r || x.w() + 2 * pad < s || stride == 0 {
            return wrong(format!("filter {w} does not fit x {x} with padding {pad} and stride {stride}"));
        }
        if self.act.step_slope().is_none() {
            return wrong(format!(
                "activation {:?} cannot be fused; record it as an op of its own",
                self.act
            ));
        }
        let out = |len: usize, taps: usize| (len + 2 * pad - taps) / stride + 1;
        Ok(Shape::new(x.n(), out(x.h(), r), out(x.w(), s), k))
    }
}

impl Operator for Conv2d {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        let mut expected = vec!["x", "w"];
        expected.extend(self.bias.then_some("bias"));
        expected.extend(self.residual.then_some("residual"));
        expect_operands("conv2d", args, &expected)?;
        let (x, w) = (args[0].shape, args[1].shape);
        let y = self.output(x, w)?;
        if self.bias {
            expect_shape("conv2d", "bias", Shape::vector(y.c()), args[2].shape)?;
        }
        if self.residual {
            expect_shape("conv2d", "residual", y, args[expected.len() - 1].shape)?;
        }
        let d = self.dims(x, w, y);
        let needs_grad = |i: usize| args.get(i).is_some_and(|a| a.needs_grad);
        let has_backward = args.iter().any(|a| a.needs_grad);
        let macs = (y.elems() * d.depth()) as u64;
        let mut keeps_inputs = Vec::new();
        keeps_inputs.extend(needs_grad(1).then_some(0));
        keeps_inputs.extend(needs_grad(0).then_some(1));
        let mut saved = Vec::new();
        if has_backward && self.act != Act::None {
            saved.push(Extent::Bytes(d.outputs() * d.mask_bytes()));
        }
        Ok(Signature {
            outputs: vec![y],
            keeps_inputs,
            saved,
            scratch_forward: vec![Extent::Reals(cpu_forward::scratch_len(&d))],
            // Filters of dx, sums of dw, sums of db. `launch::extents` replaces them on a GPU.
            scratch_backward: vec![
                Extent::Reals(if needs_grad(0) { cpu_backward::input_scratch_len(&d) } else { 0 }),
                Extent::Reals(if needs_grad(1) { cpu_weights::scratch_len(&d) } else { 0 }),
                Extent::Reals(if self.bias && needs_grad(2) {
                    cpu_backward::bias_scratch_len(&d)
                } else {
                    0
                }),
            ],
            packed_from: Some(1),
            macs_forward: macs,
            macs_backward: macs * (u64::from(needs_grad(0)) + u64::from(needs_grad(1))),
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let d = self.dims(io.shape(0), io.shape(1), io.out_shape(0));
        cpu_forward::forward(&d, &self.epilogue(), io);
    }
    fn backward<R: Real>(&self, io: &Io<R>) {
        let d = self.dims(io.shape(0), io.shape(1), io.out_shape(0));
        cpu_backward::backward(&d, &self.epilogue(), io);
    }
    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let d = self.dims(l.shape(0), l.shape(1), l.out_shape(0));
        launch::forward(&d, &self.epilogue(), l)
    }
    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let d = self.dims(l.shape(0), l.shape(1), l.out_shape(0));
        launch::backward(&d, &self.epilogue(), l)
    }

    /// Forward: x, w, bias, residual, y and the mask. Backward: dz, w and dx, and x again if w needs a
    /// gradient. The mask is read once, wherever dz is computed; the residual's gradient is dz itself, which
    /// is read once if it is added to another gradient.
    fn minimal_bytes(&self, o: &Operands) -> u64 {
        let d = self.dims(o.input_shapes[0], o.input_shapes[1], o.output_shapes[0]);
        let bytes = |i: usize| o.inputs[i].bytes as u64;
        // A bf16 map is multiplied with the bf16 copy of the filter.
        let is_copied = o.input_elems.first() == Some(&Elem::Bf16) && o.input_elems[1] == Elem::F32;
        let filter = if is_copied { bytes(1) / 2 } else { bytes(1) };
        let mask = if self.act == Act::None { 0 } else { (d.outputs() * d.mask_bytes()) as u64 };
        if !o.is_backward() {
            let rest: u64 = (2..o.inputs.len()).map(bytes).sum();
            let mask = if o.saved.is_empty() { 0 } else { mask };
            return bytes(0) + filter + rest + o.outputs[0].bytes as u64 + o.output_beside_sum() + mask;
        }
        let needs_grad = |i: usize| o.input_grads[i].is_some();
        let dz = o.output_grads.iter().flatten().map(|s| s.bytes as u64).sum::<u64>() + mask;
        let dx = if needs_grad(0) { filter + o.gradient_bytes(0) } else { 0 };
        let dw = if needs_grad(1) { bytes(0) + o.gradient_bytes(1) } else { 0 };
        let db = if self.bias { o.gradient_bytes(2) } else { 0 };
        let last = o.input_grads.last().copied().flatten().filter(|_| self.residual);
        let dr = last.filter(|(_, write)| *write == Write::Add).map_or(0, |(slot, _)| slot.bytes as u64);
        dz + dx + dw + db + dr
    }
    fn device_extents(&self, args: &[OperandInfo], target: &Target, signature: &mut Signature) {
        let d = self.dims(args[0].shape, args[1].shape, signature.outputs[0]);
        launch::extents(&d, &self.epilogue(), args, target, signature);
    }
    fn fusion(&self, inputs: &[Shape], y: Shape, target: &Target) -> Fusion {
        let d = self.dims(inputs[0], inputs[1], y);
        let is_linear = self.act == Act::None && !self.residual;
        let is_linear_map = is_linear && d.p * d.q > 1;
        let act_mask = ActMask { slope: self.epilogue().slope() as f32, scratch: Some(launch::SCRATCH_DZ) };
        Fusion {
            act_mask: (self.act != Act::None).then_some(act_mask),
            masks_input_grad: true,
            adds_linear_grad: true,
            grad_alias: self.residual.then_some(inputs.len() - 1),
            fuses_activation: is_linear_map,
            writes_channel_stats: if is_linear_map { launch::channel_stats_rows(&d, target) } else { None },
            is_layer: true,
            group_key: Some(format!("conv2d {} {} {} {}", self.stride, self.pad, inputs[0], inputs[1])),
            ..Fusion::default()
        }
    }
}
