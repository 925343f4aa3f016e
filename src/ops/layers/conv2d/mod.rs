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
mod cpu_forward;
mod geometry;
mod hopper;
mod launch;

pub use hopper::{Forecast, forecasts};

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
/// those with padding, which forward and dx skip on the CPU; the kernels multiply padding as zeros.
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
            // Filters of dx, sums of dw. `launch::extents` replaces both on a GPU.
            scratch_backward: vec![
                Extent::Reals(if needs_grad(0) { cpu_backward::input_scratch_len(&d) } else { 0 }),
                Extent::Reals(if needs_grad(1) { cpu_backward::weight_scratch_len(&d) } else { 0 }),
            ],
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
            group_key: Some(format!("conv2d {} {} {} {}", self.stride, self.pad, inputs[0], inputs[1])),
            ..Fusion::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::KERNELS;
    use crate::device::gpu::launch::Launch;
    use crate::device::{Slot, Space};
    use crate::ops::fusion::LinearGrad;
    use crate::ops::op_check::{Case, check};

    /// The definition, seven loops.
    fn plain(op: Conv2d, shapes: Vec<Shape>) -> impl Fn(&[Vec<f64>]) -> Vec<Vec<f64>> {
        move |t| {
            let ([n, h, w, c], [k, r, s, _]) = (shapes[0].0, shapes[1].0);
            let (p, q) = ((h + 2 * op.pad - r) / op.stride + 1, (w + 2 * op.pad - s) / op.stride + 1);
            let mut y = Vec::new();
            for (n, p, q, k) in (0..n).flat_map(|n| {
                (0..p).flat_map(move |p| (0..q).flat_map(move |q| (0..k).map(move |k| (n, p, q, k))))
            }) {
                let mut sum = if op.bias { t[2][k] } else { 0.0 };
                if op.residual {
                    sum += t[t.len() - 1][y.len()];
                }
                for (i, j, ch) in
                    (0..r).flat_map(|i| (0..s).flat_map(move |j| (0..c).map(move |ch| (i, j, ch))))
                {
                    let (a, b) =
                        ((p * op.stride + i).wrapping_sub(op.pad), (q * op.stride + j).wrapping_sub(op.pad));
                    if a < h && b < w {
                        sum += t[0][((n * h + a) * w + b) * c + ch] * t[1][((k * r + i) * s + j) * c + ch];
                    }
                }
                y.push(op.act.apply(sum));
            }
            vec![y]
        }
    }

    /// The operands of a convolution of x with k filters of r x r.
    fn operands(op: Conv2d, x: Shape, k: usize, r: usize) -> Vec<Shape> {
        let w = Shape::new(k, r, r, x.c());
        let mut shapes = vec![x, w];
        shapes.extend(op.bias.then_some(Shape::vector(k)));
        shapes.extend(op.residual.then(|| op.output(x, w).unwrap()));
        shapes
    }

    fn case((op, x, k, r): (Conv2d, Shape, usize, usize)) -> Case {
        let shapes = operands(op, x, k, r);
        Case::new(op, &shapes).reference(plain(op, shapes.clone()))
    }

    const FUSED: Conv2d = Conv2d { bias: true, residual: true, act: Act::Relu, ..Conv2d::new(1, 1) };
    const LEAKY: Conv2d = Conv2d { act: Act::LeakyRelu(0.2), bias: true, ..Conv2d::new(1, 0) };
    const BIASED: Conv2d = Conv2d { bias: true, ..Conv2d::new(1, 1) };

    /// So few multiprocessors that cases small enough for the emulator fill them with every tile.
    fn two_multiprocessors(map_dtype: Elem) -> Target {
        Target { multiprocessors: 2, ..Target::h200(map_dtype) }
    }

    /// Op, x, k and the filter's side.
    fn cases() -> Vec<(Conv2d, Shape, usize, usize)> {
        vec![
            (Conv2d::new(1, 1), Shape::new(2, 5, 7, 3), 5, 3),
            (Conv2d::new(2, 1), Shape::new(3, 8, 8, 16), 33, 3),
            (Conv2d::new(2, 1), Shape::new(2, 7, 5, 2), 17, 3),
            (Conv2d::new(2, 3), Shape::new(1, 17, 16, 3), 8, 7),
            (Conv2d::new(1, 0), Shape::new(2, 6, 5, 13), 40, 1),
            (Conv2d::new(2, 0), Shape::new(2, 7, 6, 9), 20, 1),
            (Conv2d::new(3, 2), Shape::new(2, 11, 10, 4), 6, 5),
            (Conv2d::new(1, 0), Shape::new(2, 3, 3, 4), 6, 3),
            (Conv2d::new(3, 0), Shape::new(2, 7, 8, 4), 6, 2),
            (Conv2d::new(1, 1), Shape::new(9, 2, 2, 64), 64, 3),
            (Conv2d::new(1, 1), Shape::new(2, 9, 9, 4), 1, 3),
            (FUSED, Shape::new(2, 6, 6, 16), 32, 3),
            (Conv2d { stride: 2, ..FUSED }, Shape::new(3, 5, 9, 7), 11, 3),
            (Conv2d { pad: 1, ..LEAKY }, Shape::new(1, 4, 4, 5), 19, 3),
            (Conv2d::linear(), Shape::rows(5, 37), 10, 1),
            (Conv2d { act: Act::Relu, ..Conv2d::linear() }, Shape::rows(67, 16), 4, 1),
        ]
    }

    /// Every tile of the kernels with mma, and both ways to load each operand.
    fn cases_of_every_tile() -> Vec<(Conv2d, Shape, usize, usize)> {
        vec![
            (Conv2d { stride: 2, ..FUSED }, Shape::new(3, 9, 8, 24), 136, 3),
            (Conv2d::new(2, 1), Shape::new(6, 9, 8, 72), 16, 3),
            (FUSED, Shape::new(2, 9, 9, 40), 40, 3),
            (Conv2d { pad: 0, ..FUSED }, Shape::new(2, 8, 10, 40), 72, 1),
            (Conv2d::new(1, 2), Shape::new(2, 8, 9, 67), 66, 2),
            (Conv2d { pad: 1, ..LEAKY }, Shape::new(3, 4, 9, 1), 48, 4),
        ]
    }

    /// Enough pixels for at least two parts of the parameters' gradients, in every tile of the weight
    /// gradient.
    fn cases_of_several_parts() -> Vec<(Conv2d, Shape, usize, usize)> {
        vec![
            (BIASED, Shape::new(4, 20, 20, 3), 5, 3),
            (Conv2d::new(1, 1), Shape::new(2, 24, 23, 8), 66, 3),
            (Conv2d::new(1, 0), Shape::new(2, 24, 23, 40), 72, 1),
            (Conv2d::new(1, 1), Shape::new(2, 24, 23, 16), 20, 2),
        ]
    }

    /// Channels in whole slabs, for the kernels for compute capability 9.0: forward and gradient, both kinds
    /// of tensor maps, and rows that fill no whole number of tiles. The comments name the tiles of forward
    /// and of the gradient on two multiprocessors.
    fn cases_of_whole_slabs() -> Vec<(Conv2d, Shape, usize, usize)> {
        vec![
            (FUSED, Shape::new(2, 13, 13, 64), 256, 3), // 192x256; 128x64
            (Conv2d::new(1, 1), Shape::new(2, 13, 13, 256), 64, 3), // 128x64; 192x256
            (LEAKY, Shape::new(3, 9, 7, 128), 256, 1),  // 128x128, plain maps
            (LEAKY, Shape::new(2, 6, 7, 64), 128, 3),   // windows of dz that reach two pixels beyond it
            (Conv2d::new(1, 2), Shape::new(2, 5, 6, 64), 64, 3), // windows that stay inside dz
            (Conv2d { stride: 2, ..FUSED }, Shape::new(3, 9, 8, 64), 128, 3),
            (Conv2d { stride: 2, ..LEAKY }, Shape::new(3, 9, 8, 128), 64, 1),
        ]
    }

    #[test]
    fn passes_the_op_checks_on_two_multiprocessors() {
        let two = two_multiprocessors(Elem::F32);
        cases().into_iter().for_each(|c| check(case(c).on_targets(&[two])));
    }

    #[test]
    #[cfg_attr(debug_assertions, ignore = "slow without optimisation: cargo test --release --lib conv2d")]
    fn passes_the_op_checks_with_every_tile() {
        let two = two_multiprocessors(Elem::F32);
        cases_of_every_tile().into_iter().for_each(|c| check(case(c).on_targets(&[two])));
    }

    #[test]
    #[cfg_attr(debug_assertions, ignore = "slow without optimisation: cargo test --release --lib conv2d")]
    fn passes_the_op_checks_with_several_parts() {
        let two = two_multiprocessors(Elem::F32);
        cases_of_several_parts().into_iter().for_each(|c| check(case(c).on_targets(&[two])));
    }

    #[test]
    #[cfg_attr(debug_assertions, ignore = "slow without optimisation: cargo test --release --lib conv2d")]
    fn passes_the_op_checks_with_whole_slabs() {
        let two = two_multiprocessors(Elem::F32);
        cases_of_whole_slabs().into_iter().for_each(|c| check(case(c).on_targets(&[two])));
    }

    #[test]
    #[cfg_attr(debug_assertions, ignore = "slow without optimisation: cargo test --release --lib conv2d")]
    fn passes_the_op_checks_planned_for_an_h200() {
        check(case(cases_of_several_parts()[0]));
        check(case((FUSED, Shape::new(2, 6, 6, 16), 32, 3)));
        check(case((Conv2d { stride: 2, ..LEAKY }, Shape::new(3, 9, 8, 128), 64, 1)));
    }

    /// All launches of a convolution whose operands all need gradients, and of its backward with the gradient of a
    /// statistics loss.
    fn launches((op, x, k, r): (Conv2d, Shape, usize, usize), target: &Target) -> Vec<Launch> {
        let shapes = operands(op, x, k, r);
        let args: Vec<_> = shapes.iter().map(|s| OperandInfo { shape: *s, needs_grad: true }).collect();
        let sig = op.signature(&args).unwrap();
        let slot = |i: usize| Slot { space: Space::Arena, offset: i << 30, bytes: 1 << 30 };
        let map = if x.h() * x.w() > 1 { target.map_dtype } else { Elem::F32 };
        let forward = Operands {
            inputs: (0..shapes.len()).map(slot).collect(),
            input_elems: (0..shapes.len())
                .map(|i| if i == 1 || op.bias && i == 2 { Elem::F32 } else { map })
                .collect(),
            input_shapes: shapes.clone(),
            outputs: vec![slot(10)],
            output_shapes: sig.outputs.clone(),
            output_elems: vec![map],
            saved: sig.saved.iter().map(|_| slot(11)).collect(),
            ..Default::default()
        };
        let backward = Operands {
            output_grads: vec![Some(slot(12))],
            input_grads: (0..shapes.len()).map(|i| Some((slot(20 + i), Write::Set))).collect(),
            scratch: (30..33).map(slot).collect(),
            ..forward.clone()
        };
        let mut l = Launches::new("conv2d", &forward, target);
        op.launch_forward(&mut l).unwrap();
        let mut all = l.list;
        let linear_grad = LinearGrad { u: slot(40), coefficients: slot(41), dloss: slot(42), du: None };
        let with_linear = Operands { linear_grad: Some(linear_grad), ..backward.clone() };
        for backward in [backward, with_linear] {
            let mut l = Launches::new("conv2d", &backward, target);
            op.launch_backward(&mut l).unwrap();
            all.extend(l.list);
        }
        all
    }

    /// Every instance of `conv2d_*` is launched, and every instance of `conv2d_wgrad` by a case that cuts the
    /// pixels into two parts or more.
    #[test]
    fn the_op_checks_reach_every_kernel_and_tile_and_several_parts() {
        let all = [cases(), cases_of_every_tile(), cases_of_several_parts(), cases_of_whole_slabs()].concat();
        let mut reached: Vec<Launch> = Vec::new();
        for target in [Elem::F32, Elem::Bf16].map(two_multiprocessors) {
            reached.extend(all.iter().flat_map(|c| launches(*c, &target)));
        }
        let is_ours = |name: &str| name.starts_with("conv2d_") && !name.starts_with("conv2d_rung");
        for kernel in KERNELS.iter().filter(|k| is_ours(k.name)) {
            let its = || reached.iter().filter(|l| l.kernel.name == kernel.name);
            assert!(its().next().is_some(), "no case launches {}", kernel.name);
            let parts = its().map(|l| l.grid[2]).max();
            let has_enough_parts = !kernel.name.starts_with("conv2d_wgrad") || parts >= Some(2);
            assert!(has_enough_parts, "every case of {} has a single part", kernel.name);
        }
    }

    #[test]
    fn frozen_weights_need_no_weight_gradient_and_keep_no_input() {
        let args = [(Shape::new(2, 8, 8, 4), true), (Shape::new(8, 3, 3, 4), false)]
            .map(|(shape, needs_grad)| OperandInfo { shape, needs_grad });
        let sig = Conv2d { act: Act::Relu, ..Conv2d::new(1, 1) }.signature(&args).unwrap();
        assert_eq!(sig.keeps_inputs, [1], "backward reads only the weights");
        assert!(!sig.keeps_outputs);
        assert_eq!(sig.saved, [Extent::Bytes(2 * 8 * 8)], "one bit per output element");
        assert_eq!(sig.scratch_backward[1], Extent::Reals(0));
        assert_eq!((sig.macs_forward, sig.macs_backward), (2 * 64 * 8 * 36, 2 * 64 * 8 * 36));
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let arg = |n, h, w, c| OperandInfo { shape: Shape::new(n, h, w, c), needs_grad: false };
        let e = |op: Conv2d, args: &[OperandInfo]| op.signature(args).unwrap_err().to_string();
        assert_eq!(
            e(Conv2d::new(1, 1), &[arg(1, 4, 4, 3), arg(8, 3, 3, 4)]),
            "conv2d: x has 3 channels, the filter [8, 3, 3, 4] expects 4"
        );
        assert!(e(Conv2d::new(1, 0), &[arg(1, 2, 4, 3), arg(8, 3, 3, 3)]).contains("does not fit"));
        assert!(e(Conv2d::new(0, 1), &[arg(1, 4, 4, 3), arg(8, 3, 3, 3)]).contains("stride 0"));
        assert_eq!(
            e(Conv2d::new(1, 8), &[arg(1, 20, 20, 3), arg(8, 3, 17, 3)]),
            "conv2d: filter side 17: at most 16"
        );
        assert!(
            e(Conv2d { act: Act::Tanh, ..Conv2d::new(1, 1) }, &[arg(1, 4, 4, 3), arg(8, 3, 3, 3)])
                .contains("cannot be fused")
        );
        assert!(
            e(Conv2d::linear(), &[arg(1, 1, 1, 3), arg(8, 1, 1, 3)])
                .contains("expected 3 operands (x, w, bias)")
        );
    }
}
