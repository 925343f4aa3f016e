//! One process plans the same step for different devices.

use crate::autograd::Engine;
use crate::autograd::plan::Plan;
use crate::autograd::tape::{Learn, Tape};
use crate::device::gpu::card::Card;
use crate::device::gpu::target::Target;
use crate::ops::layers::activation::Act;
use crate::ops::layers::batch_norm::{BatchNorm, Stats};
use crate::ops::layers::conv2d::Conv2d;
use crate::ops::layers::global_avg_pool::GlobalAvgPool;
use crate::ops::losses::activation_loss::ActivationLoss;
use crate::tensor::{Elem, Shape};

/// A launch's kernel, grid, threads of a block and bytes of shared memory.
type Geometry = (&'static str, [u32; 3], u32, u32);

/// The launches of a step on 64 maps of 32x32 and 64 channels: batch norm, a 3x3 convolution, batch norm
/// with ReLU, a loss, and their gradients.
fn launches(target: Target) -> Vec<Geometry> {
    let mut e = Engine::<f32>::planning(target);
    let rows = e.store.add("rows", Shape::rows(64, 32 * 32 * 64));
    let filter = e.store.add("filter", Shape::new(64, 3, 3, 64));
    let norms = [(); 8].map(|()| e.store.add(&format!("norm{}", e.store.ids().count()), Shape::vector(64)));
    let mut t = Tape::default();
    let rows = t.leaf(&e.store, rows, Learn::Trainable);
    let filter = t.leaf(&e.store, filter, Learn::Trainable);
    let norms = norms.map(|n| t.leaf(&e.store, n, Learn::Frozen));
    let norm = |act| BatchNorm { stats: Stats::Batch, act, momentum: 0.1, eps: 1e-5 };
    let x = t.reshape(rows, Shape::new(64, 32, 32, 64)).unwrap();
    let x = t.apply(norm(Act::None), &[x, norms[0], norms[1], norms[2], norms[3]]).unwrap();
    let y = t.apply(Conv2d::new(1, 1), &[x, filter]).unwrap();
    let y = t.apply(norm(Act::Relu), &[y, norms[4], norms[5], norms[6], norms[7]]).unwrap();
    let features = t.apply(GlobalAvgPool, &[y]).unwrap();
    let loss = t.apply(ActivationLoss { mean_over_features: true }, &[features]).unwrap();
    let plan = Plan::compile(&t, &e.store, Some(loss), &[]).unwrap();
    plan.launches().map(|(l, _)| (l.kernel.name, l.grid, l.block, l.shared)).collect()
}

#[test]
fn plans_for_two_targets_in_one_process_do_not_influence_each_other() {
    let a100 = Target::of_card(Card::named("a100").unwrap(), Elem::Bf16);
    let h200 = Target::h200(Elem::Bf16);
    assert_eq!((a100.capability, a100.multiprocessors, a100.wgmma), ((8, 0), 108, false));
    assert_eq!((h200.capability, h200.multiprocessors), ((9, 0), 132));
    let (on_a100, on_h200) = (launches(a100), launches(h200));
    for target in [h200, a100, a100, h200] {
        let expected = if target == a100 { &on_a100 } else { &on_h200 };
        assert_eq!(&launches(target), expected);
    }
    std::thread::scope(|s| {
        for (target, expected) in [(a100, &on_a100), (h200, &on_h200)] {
            s.spawn(move || (0..4).for_each(|_| assert_eq!(&launches(target), expected)));
        }
    });
}

#[test]
fn a_target_decides_kernels_and_grids() {
    let on_a100 = launches(Target::of_card(Card::named("a100").unwrap(), Elem::Bf16));
    let on_h200 = launches(Target { wgmma: true, ..Target::h200(Elem::Bf16) });
    let mma_only = launches(Target { wgmma: false, ..Target::h200(Elem::Bf16) });
    let uses = |list: &[Geometry], part: &str| list.iter().any(|(kernel, ..)| kernel.contains(part));
    assert!(!uses(&on_a100, "wgmma") && uses(&on_a100, "conv2d_fwd<") && uses(&on_a100, "conv2d_dgrad<"));
    assert!(uses(&on_h200, "conv2d_fwd_wgmma") && uses(&on_h200, "conv2d_dgrad_wgmma"));
    assert!(!uses(&mma_only, "wgmma"));
    // The sums over 65536 pixels have at most 4 chunks for each multiprocessor: 432 of 152 pixels, 525 of
    // 125 pixels.
    let chunks = |list: &[Geometry]| {
        list.iter().find(|(kernel, ..)| kernel.starts_with("batch_norm_fwd_sums")).unwrap().1[2]
    };
    assert_eq!((chunks(&on_a100), chunks(&on_h200), chunks(&mma_only)), (432, 525, 525));
    let shared = |list: &[Geometry]| list.iter().map(|(.., shared)| *shared).max().unwrap();
    assert!(shared(&on_a100) <= 163 << 10 && shared(&on_h200) <= 227 << 10);
}
