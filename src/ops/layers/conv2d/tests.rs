//! The op checks of the convolution: its definition, and cases that reach every kernel and tile.

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
            for (i, j, ch) in (0..r).flat_map(|i| (0..s).flat_map(move |j| (0..c).map(move |ch| (i, j, ch))))
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
const BIASED_1X1: Conv2d = Conv2d { bias: true, ..Conv2d::new(1, 0) };

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
        (BIASED, Shape::new(2, 7, 5, 192), 192, 3), // k and r s c leave half a tile of dw
    ]
}

/// Enough pixels for two parts of the weight gradient, and of the bias's with it, in every tile of their kernel with wgmma;
/// the comments name the tiles on two multiprocessors.
fn cases_of_several_parts_of_whole_slabs() -> Vec<(Conv2d, Shape, usize, usize)> {
    vec![
        (BIASED_1X1, Shape::new(24, 16, 17, 256), 128, 1), // 128x256
        (BIASED_1X1, Shape::new(11, 17, 16, 128), 128, 1), // 128x128
        (BIASED_1X1, Shape::new(5, 15, 17, 64), 128, 1),   // 128x64
        (Conv2d { stride: 2, ..BIASED_1X1 }, Shape::new(8, 31, 33, 256), 64, 1), // 64x256, windows
    ]
}

/// Every way of the CPU's loops, in forward and in the input gradient, at each padding.
fn cases_of_every_way() -> Vec<(Conv2d, Shape, usize, usize)> {
    vec![
        // Winograd's tiles: 75 and 2 * 12 of them, in blocks of 24; odd sides leave half a tile.
        (BIASED, Shape::new(3, 9, 9, 32), 32, 3),
        (FUSED, Shape::new(2, 5, 7, 16), 16, 3),
        (Conv2d { pad: 0, ..FUSED }, Shape::new(2, 6, 5, 48), 64, 3),
        (Conv2d { pad: 2, ..LEAKY }, Shape::new(1, 4, 3, 32), 16, 3),
        // Dot products: forward, at a stride, and of an image's gradient.
        (BIASED, Shape::new(2, 9, 8, 32), 1, 3),
        (Conv2d { stride: 2, ..FUSED }, Shape::new(2, 8, 7, 16), 3, 3),
        (Conv2d { stride: 2, ..BIASED }, Shape::new(3, 9, 8, 1), 16, 3),
        (Conv2d { stride: 2, pad: 3, ..LEAKY }, Shape::new(1, 13, 12, 3), 32, 7),
        // Pixels that no tap reaches: phases of a strided 1x1, and outputs in the padding.
        (Conv2d { stride: 2, ..LEAKY }, Shape::new(2, 7, 6, 3), 16, 1),
        (Conv2d { pad: 2, ..LEAKY }, Shape::new(2, 4, 5, 16), 3, 1),
        // Few pixels: the panels of a weight gradient are shared out.
        (Conv2d::linear(), Shape::rows(67, 20), 96, 1),
        (Conv2d::new(1, 1), Shape::new(70, 2, 2, 8), 40, 3),
        (Conv2d::new(1, 1), Shape::new(70, 2, 2, 16), 64, 3),
    ]
}

#[test]
fn passes_the_op_checks_in_every_way_of_the_cpu() {
    let two = two_multiprocessors(Elem::F32);
    cases_of_every_way().into_iter().for_each(|c| check(case(c).on_targets(&[two])));
    // A weight gradient in eight parts, of two panels each; on no device, whose kernels do not differ.
    check(case((Conv2d::new(1, 1), Shape::new(8, 8, 16, 16), 64, 3)).on_targets(&[]));
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
    let in_parts = cases_of_several_parts_of_whole_slabs().into_iter();
    in_parts.for_each(|c| check(case(c).on_targets(&[two]).in_bf16()));
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
        scratch: vec![slot(13)],
        ..Default::default()
    };
    let backward = Operands {
        output_grads: vec![Some(slot(12))],
        input_grads: (0..shapes.len()).map(|i| Some((slot(20 + i), Write::Set))).collect(),
        scratch: (30..34).map(slot).collect(),
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

/// Every instance of `conv2d_*` is launched, those that follow a library's products on targets with one, and every instance
/// of `conv2d_wgrad` by a case that cuts the pixels into two parts or more.
#[test]
fn the_op_checks_reach_every_kernel_and_tile_and_several_parts() {
    let of_slabs = [cases_of_whole_slabs(), cases_of_several_parts_of_whole_slabs()].concat();
    let all = [cases(), cases_of_every_tile(), cases_of_several_parts(), of_slabs].concat();
    let mut reached: Vec<Launch> = Vec::new();
    for target in [Elem::F32, Elem::Bf16].map(two_multiprocessors) {
        for library_matmul in [false, true] {
            let target = Target { library_matmul, ..target };
            reached.extend(all.iter().flat_map(|c| launches(*c, &target)));
        }
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
        e(Conv2d::linear(), &[arg(1, 1, 1, 3), arg(8, 1, 1, 3)]).contains("expected 3 operands (x, w, bias)")
    );
}
