//! A loss of one's own on the autograd: a linear classifier trained with binary cross-entropy plus a term that
//! favours few labels per row (L_dis of the paper). Runs on the CPU in a second:
//!
//!     cargo run --release --example custom_loss
//!
//! The loss is composed of existing ops, so it also runs on the emulator and on a GPU. A term that no op
//! computes needs a new op: docs/kernels.md writes one from nothing.

use dfka_engine::autograd::tape::Learn;
use dfka_engine::autograd::{Engine, Optimiser, Plan, Tape, Value};
use dfka_engine::device::StepState;
use dfka_engine::error::Result;
use dfka_engine::ops::layers::conv2d::Conv2d;
use dfka_engine::ops::losses::bce::{Bce, Targets};
use dfka_engine::ops::losses::discrete_loss::DiscreteLoss;
use dfka_engine::ops::losses::weighted_sum::WeightedSum;
use dfka_engine::ops::optim::adam::Adam;
use dfka_engine::tensor::Shape;

const ROWS: usize = 64;
const FEATURES: usize = 8;
const LABELS: usize = 3;
const STEPS: u64 = 200;

/// `bce(logits, targets) + 0.1 * mean |sigmoid(logits)|`, a scalar. logits and targets: `[n, 1, 1, labels]`.
fn loss(tape: &mut Tape, logits: Value, targets: Value) -> Result<Value> {
    let bce = tape.apply(Bce::new(Targets::Probabilities), &[logits, targets])?;
    let few = tape.apply(DiscreteLoss, &[logits])?;
    tape.apply(WeightedSum { weights: vec![1.0, 0.1] }, &[bce, few])
}

fn main() -> Result<()> {
    let mut engine = Engine::<f32>::default();
    let store = &mut engine.store;

    // Rows of features; label l holds where feature l is positive.
    let features: Vec<f32> = (0..ROWS * FEATURES).map(|i| (i as f32 * 1.7).sin()).collect();
    let targets: Vec<f32> = features
        .chunks(FEATURES)
        .flat_map(|row| row[..LABELS].iter().map(|v| f32::from(u8::from(*v > 0.0))))
        .collect();
    let x = store.add_with("x", Shape::new(ROWS, 1, 1, FEATURES), &features);
    let t = store.add_with("targets", Shape::new(ROWS, 1, 1, LABELS), &targets);
    let w = store.add("w", Shape::new(LABELS, 1, 1, FEATURES));
    let b = store.add("b", Shape::vector(LABELS));

    // Record one step. Nothing is computed yet.
    let mut tape = Tape::default();
    let x = tape.leaf(store, x, Learn::Frozen);
    let t = tape.leaf(store, t, Learn::Frozen);
    let weights = [tape.leaf(store, w, Learn::Trainable), tape.leaf(store, b, Learn::Trainable)];
    let logits = tape.apply(Conv2d::linear(), &[x, weights[0], weights[1]])?;
    let total = loss(&mut tape, logits, t)?;
    tape.metric("loss", total);

    // Adam has two moments, m and v, for every tensor that learns.
    let tensors = [w, b]
        .map(|id| {
            let (name, shape) = (store.name(id).to_string(), store.shape(id));
            (id, vec![store.add(&format!("{name}.m"), shape), store.add(&format!("{name}.v"), shape)])
        })
        .to_vec();
    let rule = Adam { lr_slot: 0, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let adam = Optimiser { op: rule.into(), tensors };

    // Compile once, replay for every step.
    let mut plan = Plan::compile(&tape, store, Some(total), &[adam])?;
    plan.reserve(&mut engine)?;
    let (mut first, mut last) = (f32::NAN, f32::NAN);
    for step in 0..STEPS {
        plan.replay(&mut engine, &StepState { seed: 0, step, lr: [0.05; 4] })?;
        plan.collect(&engine)?;
        last = plan.metrics().next().map_or(f32::NAN, |(_, v)| v);
        if step == 0 {
            first = last;
        }
        if step % 50 == 0 || step + 1 == STEPS {
            println!("step {step:3}  loss {last:.4}");
        }
    }
    assert!(last < 0.6 * first, "the loss fell from {first} to {last} only");
    Ok(())
}
