use super::*;
use crate::autograd::tape::Learn;
use crate::device::memory::ALIGN;
use crate::ops::layers::activation::{Act, Activation};
use crate::ops::layers::conv2d::Conv2d;
use crate::tensor::Shape;

/// Two trainable convolutions around a frozen one, with a skip, down to a single number per batch.
fn net(store: &mut Store<f64>) -> (Tape, Value, Vec<TensorId>) {
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
    let w4 = tensor(store, "w4", Shape::new(1, 1, 1, 2));
    let mut t = Tape::default();
    let (x, w1v) = (t.leaf(store, x, Learn::Frozen), t.leaf(store, w1, Learn::Trainable));
    let (w2v, w3v) = (t.leaf(store, w2, Learn::Frozen), t.leaf(store, w3, Learn::Trainable));
    let a = t.apply(Conv2d { act: Act::Relu, ..Conv2d::new(1, 1) }, &[x, w1v]).unwrap();
    let b = t.apply(Conv2d { residual: true, act: Act::Relu, ..Conv2d::new(1, 1) }, &[a, w2v, a]);
    assert!(b.unwrap_err().to_string().contains("stands twice"));
    let b = t.apply(Conv2d { act: Act::Relu, ..Conv2d::new(1, 1) }, &[a, w2v]).unwrap();
    let c = t.apply(Activation(Act::Tanh), &[a, b]).unwrap();
    let d = t.apply(Conv2d::new(1, 0), &[c, w3v]).unwrap();
    // [2, 1, 1, 1] seen as one sample would need a reshape; a product with a frozen vector over the batch stands in.
    let _unused = t.apply(Activation(Act::Sigmoid), &[d]).unwrap();
    let w4 = t.leaf(store, w4, Learn::Frozen);
    let _ = w4;
    (t, d, vec![w1, w3])
}

#[test]
fn placement_never_overlaps_in_time_and_space_and_reuses() {
    let mut p = Placer { lives: vec![] };
    let mut s = 7u32;
    let mut next = |n: u32| {
        s = s.wrapping_mul(1664525).wrapping_add(1013904223);
        (s >> 16) % n
    };
    for _ in 0..300 {
        let b = p.add(next(5000) as usize + 1, next(200) as usize);
        let last = p.lives[b].first + next(20) as usize;
        p.extend(b, last);
    }
    let (offsets, end) = p.place();
    for i in 0..300 {
        for j in 0..i {
            let (a, b) = (&p.lives[i], &p.lives[j]);
            let time = a.first <= b.last && b.first <= a.last;
            let space = offsets[i] < offsets[j] + b.bytes && offsets[j] < offsets[i] + a.bytes;
            assert!(!(time && space), "buffers {i} and {j} share bytes while both are alive");
        }
    }
    let total: usize = p.lives.iter().map(|l| l.bytes.next_multiple_of(ALIGN)).sum();
    let peak = (0..220)
        .map(|t| {
            p.lives
                .iter()
                .filter(|l| l.first <= t && t <= l.last)
                .map(|l| l.bytes.next_multiple_of(ALIGN))
                .sum::<usize>()
        })
        .max();
    assert!(end < total / 3 && end < peak.unwrap() * 13 / 10, "{end} bytes for a peak of {peak:?}");
}

#[test]
fn plan_skips_what_nobody_needs() {
    let mut e = Engine::<f64>::default();
    let (mut tape, d, _) = net(&mut e.store);
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
fn a_replay_gives_the_same_bits_and_leaves_no_garbage() {
    let mut e = Engine::<f64>::default();
    let (mut tape, d, _) = net(&mut e.store);
    tape.output(d);
    let mut plan = Plan::compile(&tape, &e.store, None, &[]).unwrap();
    plan.reserve(&mut e).unwrap();
    plan.replay(&mut e, &StepState::default()).unwrap();
    let first = plan.output(&e, d).unwrap();
    e.arena.fill(0xFF); // NaN everywhere: whatever a replay reads, it must have written
    plan.replay(&mut e, &StepState::default()).unwrap();
    assert_eq!(first, plan.output(&e, d).unwrap());
    assert!(first.iter().all(|v| v.is_finite()));
}

/// Each launch has a row, in order, with its bytes; and timing a step runs it, as many times as it says.
#[test]
fn timed_launches_are_those_of_the_plan_and_move_the_store() {
    use crate::device::Choice;
    use crate::ops::optim::sgd::Sgd;
    let machine = match Choice::Emu.machine(Elem::F32) {
        Ok(machine) => machine.unwrap(),
        Err(e) => {
            assert!(std::env::var_os("DFKA_REQUIRE_EMU").is_none(), "{e}");
            return crate::device::gpu::skipped(&e);
        }
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
