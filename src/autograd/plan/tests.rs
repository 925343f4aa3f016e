//! Plans as a whole, from a tape to their results.

use super::*;
use crate::autograd::tape::{Learn, Tape, Value};
use crate::autograd::{Engine, Store, TensorId};
use crate::device::StepState;
use crate::device::philox::Draws;
use crate::ops::Scalar;
use crate::ops::layers::activation::{Act, Activation};
use crate::ops::layers::batch_norm::{BatchNorm, Stats};
use crate::ops::layers::conv2d::Conv2d;
use crate::ops::layers::global_avg_pool::GlobalAvgPool;
use crate::ops::losses::activation_loss::ActivationLoss;
use crate::ops::losses::statistics_loss::StatisticsLoss;
use crate::ops::losses::weighted_sum::WeightedSum;
use crate::ops::optim::sgd::Sgd;
use crate::tensor::{Elem, Real, Shape};

/// A trainable convolution, a frozen one, the tanh of their sum, and a trainable convolution to one number
/// per sample, which is the result; and an op whose output is unused.
fn net(store: &mut Store<f64>) -> (Tape, Value) {
    let mut seed = 1u32;
    let mut tensor = |store: &mut Store<f64>, name: &str, shape: Shape| {
        let v: Vec<f32> = (0..shape.elems())
            .map(|_| {
                seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
                (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        store.add_with(name, shape, &v)
    };
    let x = tensor(store, "x", Shape::new(2, 6, 6, 3));
    let w1 = tensor(store, "w1", Shape::new(5, 3, 3, 3));
    let w2 = tensor(store, "w2", Shape::new(5, 3, 3, 5));
    let w3 = tensor(store, "w3", Shape::new(1, 6, 6, 5));
    let mut t = Tape::default();
    let (x, w1v) = (t.leaf(store, x, Learn::Frozen), t.leaf(store, w1, Learn::Trainable));
    let (w2v, w3v) = (t.leaf(store, w2, Learn::Frozen), t.leaf(store, w3, Learn::Trainable));
    let a = t.apply(Conv2d { act: Act::Relu, ..Conv2d::new(1, 1) }, &[x, w1v]).unwrap();
    let b = t.apply(Conv2d { act: Act::Relu, ..Conv2d::new(1, 1) }, &[a, w2v]).unwrap();
    let c = t.apply(Activation(Act::Tanh), &[a, b]).unwrap();
    let d = t.apply(Conv2d::new(1, 0), &[c, w3v]).unwrap();
    let _unused = t.apply(Activation(Act::Sigmoid), &[d]).unwrap();
    (t, d)
}

#[test]
fn a_value_that_needs_a_gradient_cannot_be_passed_twice() {
    let (mut t, _) = net(&mut Store::default());
    let (a, w2) = (t.nodes[0].outputs[0], t.nodes[1].inputs[1]);
    let conv = Conv2d { residual: true, act: Act::Relu, ..Conv2d::new(1, 1) };
    let e = t.apply(conv, &[a, w2, a]).unwrap_err().to_string();
    assert!(e.contains("the same value is passed twice, and it needs a gradient"), "{e}");
    // Two views of a value are the same value; as a constant it needs no gradient.
    let view = t.reshape(a, t.shape(a)).unwrap();
    assert!(t.apply(conv, &[a, w2, view]).is_err());
    let constant = t.detach(a);
    assert!(t.apply(conv, &[a, w2, constant]).is_ok());
}

#[test]
fn an_op_whose_output_is_unused_is_not_in_the_plan() {
    let mut e = Engine::<f64>::default();
    let (mut tape, d) = net(&mut e.store);
    tape.output(d);
    let plan = Plan::compile(&tape, &e.store, None, &[]).unwrap();
    let listing: Vec<_> = plan.listing().map(|(phase, op, _)| (phase, op)).collect();
    use Phase::Forward as F;
    assert_eq!(
        listing,
        [(F, "conv2d"), (F, "conv2d"), (F, "activation"), (F, "conv2d")],
        "the unused sigmoid is gone"
    );
}

#[test]
fn a_second_replay_gives_the_same_bits_and_reads_nothing_that_it_did_not_write() {
    let mut e = Engine::<f64>::default();
    let (mut tape, d) = net(&mut e.store);
    tape.output(d);
    let mut plan = Plan::compile(&tape, &e.store, None, &[]).unwrap();
    plan.reserve(&mut e).unwrap();
    plan.replay(&mut e, &StepState::default()).unwrap();
    let first = plan.output(&e, d).unwrap();
    e.arena.fill(0xFF); // NaN everywhere
    e.last_replay = None; // in what it keeps from step to step, too
    plan.replay(&mut e, &StepState::default()).unwrap();
    assert_eq!(first, plan.output(&e, d).unwrap());
    assert!(first.iter().all(|v| v.is_finite()));
}

/// Two frozen networks of `DEPTH` layers on the same trainable maps, each a segment or not, and the mean of their
/// outputs' losses. The first network's output is also an output of the tape.
fn two_networks<R: Real>(store: &mut Store<R>, are_segments: bool) -> (Tape, Value, [Value; 2], TensorId) {
    const DEPTH: usize = 6;
    let draws = crate::device::philox::Draws::new(5, 0, 0);
    let mut next = 0;
    let mut tensor = |store: &mut Store<R>, name: &str, shape: Shape| {
        next += 1;
        let v: Vec<f32> = (0..shape.elems() as u32).map(|i| draws.normals(i, next)[0] as f32).collect();
        store.add_with(name, shape, &v)
    };
    let image = tensor(store, "image", Shape::new(2, 6, 6, 8));
    let mut t = Tape::default();
    let x = t.leaf(store, image, Learn::Trainable);
    let (mut ends, mut losses) = (Vec::new(), Vec::new());
    for network in 0..2 {
        if are_segments {
            t.begin_segment();
        }
        let mut y = x;
        for layer in 0..DEPTH {
            let w = tensor(store, &format!("w{network}.{layer}"), Shape::new(8, 3, 3, 8));
            let [mean, std] =
                ["mean", "std"].map(|n| tensor(store, &format!("{n}{network}.{layer}"), Shape::vector(8)));
            let [w, mean, std] = [w, mean, std].map(|id| t.leaf(store, id, Learn::Frozen));
            let u = t.apply(Conv2d::new(1, 1), &[y, w]).unwrap();
            losses.push(t.apply(StatisticsLoss { eps: 1e-4 }, &[u, mean, std]).unwrap());
            y = t.apply(Activation(Act::Relu), &[u, y]).unwrap();
        }
        let y = t.apply(GlobalAvgPool, &[y]).unwrap();
        t.end_segment();
        ends.push(y);
    }
    for y in &ends {
        losses.push(t.apply(ActivationLoss { mean_over_features: true }, &[*y]).unwrap());
    }
    let loss = t.apply(WeightedSum { weights: vec![0.3; losses.len()] }, &losses).unwrap();
    t.output(ends[0]);
    t.output(loss);
    (t, loss, [ends[0], loss], image)
}

/// Loss, an output, and the image after a step of SGD; and what the step costs.
fn after_a_step<R: Scalar>(mut e: Engine<R>, are_segments: bool) -> (Vec<Vec<R>>, Cost) {
    let (tape, loss, outputs, image) = two_networks(&mut e.store, are_segments);
    let m = e.store.add("m", e.store.shape(image));
    let sgd = Sgd { lr_slot: 0, momentum: 0.0, weight_decay: 0.0 };
    let optimiser = Optimiser { op: sgd.into(), tensors: vec![(image, vec![m])] };
    let mut plan = Plan::compile(&tape, &e.store, Some(loss), &[optimiser]).unwrap();
    plan.reserve(&mut e).unwrap();
    if e.machine().is_none() {
        e.arena.fill(0xFF); // NaN everywhere: what a node reads, another has written
    }
    plan.replay(&mut e, &StepState { lr: [0.5; 4], ..StepState::default() }).unwrap();
    let mut found = outputs.map(|v| plan.output(&e, v).unwrap()).to_vec();
    e.pull().unwrap();
    found.push(e.store.get(image).to_vec());
    (found, plan.cost().clone())
}

#[test]
fn segments_give_the_same_bits_in_less_memory_for_another_forward_pass() {
    let (together, cost) = after_a_step(Engine::<f32>::default(), false);
    let (by_turns, cost_by_turns) = after_a_step(Engine::<f32>::default(), true);
    assert!(together == by_turns && together.iter().flatten().all(|v| v.is_finite()));
    let [all, one] = [&cost, &cost_by_turns].map(|c| c.arena_bytes);
    assert!(one < all * 2 / 3, "{one} of {all} bytes");
    // Of 12 layers each forward, forward again, and the input's gradient.
    assert_eq!(2 * cost_by_turns.macs, 3 * cost.macs);
}

#[test]
fn segments_run_on_a_machine_as_together() {
    use crate::device::Choice;
    let is_cuda = std::env::var("DFKA_TEST_DEVICE").is_ok_and(|device| device.starts_with("cuda"));
    let choice = if is_cuda { Choice::Cuda(0) } else { Choice::Emu };
    let machine = || choice.machine(Elem::F32);
    if let Err(e) = machine() {
        return crate::device::gpu::skipped(&e);
    }
    let on = || Engine::<f32>::on(machine().unwrap().unwrap());
    let (oracle, _) = after_a_step(Engine::<f64>::default(), false);
    let (together, cost) = after_a_step(on(), false);
    let (by_turns, cost_by_turns) = after_a_step(on(), true);
    for ((a, b), exact) in together.iter().zip(&by_turns).zip(&oracle) {
        let size = exact.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        for ((a, b), exact) in a.iter().zip(b).zip(exact) {
            let off = [a, b].map(|v| (f64::from(*v) - exact).abs());
            assert!(off.iter().all(|d| *d <= 2e-5 * size), "{a} and {b}, expected {exact} of {size}");
        }
    }
    assert!(cost_by_turns.arena_bytes < cost.arena_bytes);
}

/// An engine with two convolutions by one frozen filter, which is multiplied by `factor`; the plan of the gradient of their
/// input, which SGD stores; a plan of the loss alone; and the tensors of the gradient and of the filter.
fn with_a_frozen_filter(factor: f64) -> (Engine<f32>, [Plan<f32>; 2], [TensorId; 2]) {
    let (mut e, draws) = (Engine::<f32>::default(), Draws::new(3, 1, 0));
    let mut tensor = |name: &str, shape: Shape, factor: f64| {
        let values: Vec<f64> = (0..shape.elems()).map(|i| factor * draws.normals(i as u32, 0)[0]).collect();
        e.store.add_with(name, shape, &values)
    };
    let image = tensor("image", Shape::new(2, 6, 6, 16), 1.0);
    let gradient = tensor("gradient", Shape::new(2, 6, 6, 16), 0.0);
    let filter = tensor("w", Shape::new(16, 3, 3, 16), factor);
    let mut t = Tape::default();
    let (mut y, w) = (t.leaf(&e.store, image, Learn::Trainable), t.leaf(&e.store, filter, Learn::Frozen));
    for _ in 0..2 {
        y = t.apply(Conv2d::new(1, 1), &[y, w]).unwrap();
    }
    let y = t.apply(GlobalAvgPool, &[y]).unwrap();
    let loss = t.apply(ActivationLoss { mean_over_features: true }, &[y]).unwrap();
    let sgd = Sgd { lr_slot: 0, momentum: 0.0, weight_decay: 0.0 };
    let optimiser = Optimiser { op: sgd.into(), tensors: vec![(image, vec![gradient])] };
    let plans = [&[optimiser][..], &[]].map(|o| Plan::compile(&t, &e.store, Some(loss), o).unwrap());
    plans.iter().for_each(|p| p.reserve(&mut e).unwrap());
    (e, plans, [gradient, filter])
}

/// The packed filters of frozen convolutions stay in the arena from step to step. A replay of another plan or a change of
/// the store by the host makes the plan pack them again.
#[test]
fn packed_filters_are_kept_until_something_else_happens() {
    let (mut e, [mut plan, mut other], [gradient, filter]) = with_a_frozen_filter(1.0);
    let kept = plan.instructions.iter().filter(|i| i.operands.keeps_packed);
    let slots: Vec<_> = kept.map(|i| i.operands.scratch[0]).collect();
    // Two convolutions with one filter, forward and backward: two buffers.
    assert!(
        slots.len() == 4 && slots[0] == slots[1] && slots[2] == slots[3] && !slots[0].overlaps(&slots[2])
    );
    let state = StepState::default();
    let found = |e: &mut Engine<f32>, plan: &mut Plan<f32>| {
        plan.replay(e, &state).unwrap();
        e.store.get(gradient).to_vec()
    };
    let first = found(&mut e, &mut plan);
    assert!(first.iter().any(|v| *v != 0.0) && first == found(&mut e, &mut plan));
    // In a cleared arena the filters are zero, so the gradient shows that they were not packed again.
    e.arena.fill(0);
    assert!(found(&mut e, &mut plan).iter().all(|v| *v == 0.0));
    other.replay(&mut e, &state).unwrap();
    assert_eq!(found(&mut e, &mut plan), first);
    let doubled: Vec<f32> = e.store.get(filter).iter().map(|w| 2.0 * w).collect();
    e.store.set(filter, &doubled);
    let (mut fresh, [mut its_plan, _], _) = with_a_frozen_filter(2.0);
    assert!(found(&mut e, &mut plan) == found(&mut fresh, &mut its_plan));
    assert_ne!(e.store.get(gradient), first);
}

#[test]
fn an_op_that_changes_its_operand_is_refused_in_a_segment() {
    let mut store = Store::<f32>::default();
    let x = store.add("x", Shape::new(2, 4, 4, 8));
    let norm = ["gamma", "beta", "mean", "var"].map(|n| store.add(n, Shape::vector(8)));
    let mut t = Tape::default();
    let x = t.leaf(&store, x, Learn::Frozen);
    let [a, b, c, d] = norm.map(|n| t.leaf(&store, n, Learn::Frozen));
    t.begin_segment();
    let bn = BatchNorm { stats: Stats::Batch, act: Act::None, momentum: 0.1, eps: 1e-5 };
    let y = t.apply(bn, &[x, a, b, c, d]).unwrap();
    t.end_segment();
    t.output(y);
    let e = Plan::compile(&t, &store, None, &[]).err().unwrap().to_string();
    assert_eq!(e, "batch_norm: changes an operand in place, which a segment of the tape reads twice a step");
}

/// Each launch has a row, in order, with its bytes; and timing a step with 2 repeats runs it 3 times.
#[test]
fn the_timed_launches_are_those_of_the_plan_and_change_the_store() {
    use crate::device::Choice;
    // A GPU, or a driver without one, if the environment names it (see `ops::op_check`).
    let is_cuda = std::env::var("DFKA_TEST_DEVICE").is_ok_and(|device| device.starts_with("cuda"));
    let choice = if is_cuda { Choice::Cuda(0) } else { Choice::Emu };
    let machine = match choice.machine(Elem::F32) {
        Ok(machine) => machine.unwrap(),
        Err(e) => return crate::device::gpu::skipped(&e),
    };
    let mut e = Engine::<f32>::on(machine);
    let (x, w) = (e.store.add("x", Shape::new(2, 1, 1, 8)), e.store.add("w", Shape::new(1, 1, 1, 8)));
    let m = e.store.add("m", Shape::new(1, 1, 1, 8));
    e.store.set(x, &[1.0f32; 16]);
    let mut t = Tape::default();
    let (xv, wv) = (t.leaf(&e.store, x, Learn::Frozen), t.leaf(&e.store, w, Learn::Trainable));
    let y = t.apply(Conv2d::new(1, 0), &[xv, wv]).unwrap();
    let sgd = Sgd { lr_slot: 0, momentum: 0.0, weight_decay: 0.0 };
    let optimiser = Optimiser { op: sgd.into(), tensors: vec![(w, vec![m])] };
    let mut plan = Plan::compile(&t, &e.store, Some(y), &[optimiser]).unwrap();
    plan.reserve(&mut e).unwrap();
    let step = StepState { lr: [0.5; 4], ..StepState::default() };
    let timed = plan.time_launches(&mut e, &step, 2, 1 << 12).unwrap();
    let found: Vec<_> = timed.iter().map(|t| (t.kernel, t.label.as_str())).collect();
    let expected: Vec<_> = plan.launches().map(|(l, label)| (l.kernel.name, label)).collect();
    assert_eq!(found, expected);
    assert!(timed.iter().all(|t| t.ms.len() == 2 && t.ms.iter().all(|ms| *ms >= 0.0)));
    // Forward reads x and w and writes y; SGD reads g, and reads and writes p and m.
    assert_eq!((timed[0].bytes, timed.last().unwrap().bytes), (4 * (16 + 8 + 2), 4 * 8 * 5));
    e.pull().unwrap();
    // dw is the sum over both samples, 2; three runs of the step at a rate of 0.5.
    assert_eq!(e.store.get(w), [-3.0; 8]);
}
