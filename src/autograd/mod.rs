//! A minimal autograd for steps of fixed shapes: record once, plan once, replay any number of times.
//!
//! The shapes of a step never change, so the step is recorded on a [`Tape`], compiled to a [`Plan`] (which
//! gradients exist, which op stores and which adds to each, when every buffer is last read, and its address)
//! and replayed without an allocation. Whatever outlives a step (weights, moments, data) is a named tensor
//! of a [`Store`]; an [`Engine`] has the store and the memory of the steps.
//!
//! A linear layer that learns a rule from eight fixed rows, with binary cross-entropy and Adam, on the CPU:
//!
//! ```
//! use dfka_engine::autograd::tape::Learn;
//! use dfka_engine::autograd::{Engine, Optimiser, Plan, Tape};
//! use dfka_engine::device::StepState;
//! use dfka_engine::ops::layers::conv2d::Conv2d;
//! use dfka_engine::ops::losses::bce::{Bce, Targets};
//! use dfka_engine::ops::optim::adam::Adam;
//! use dfka_engine::tensor::Shape;
//!
//! // Eight samples, the numbers 0 to 7 in binary. The label is the middle digit.
//! let bit = |i: usize, b: usize| (i >> b & 1) as f32;
//! let rows: Vec<f32> = (0..8).flat_map(|i| [bit(i, 0), bit(i, 1), bit(i, 2)]).collect();
//! let labels: Vec<f32> = (0..8).map(|i| bit(i, 1)).collect();
//!
//! let mut engine = Engine::<f32>::default();
//! let store = &mut engine.store;
//! let x = store.add_with("x", Shape::rows(8, 3), &rows);
//! let t = store.add_with("t", Shape::rows(8, 1), &labels);
//! let w = store.add_with("w", Shape::new(1, 1, 1, 3), &[0.1f32, -0.2, 0.3]);
//! let b = store.add("b", Shape::vector(1));
//!
//! // Adam has two moments for each parameter: m and v.
//! let mut with_moments = |id| {
//!     let (name, shape) = (store.name(id).to_string(), store.shape(id));
//!     (id, ["m", "v"].map(|moment| store.add(&format!("{name}.{moment}"), shape)).to_vec())
//! };
//! let tensors = vec![with_moments(w), with_moments(b)];
//! let adam = Adam { lr_slot: 0, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
//! let optimiser = Optimiser { op: adam.into(), tensors };
//!
//! // Record: y = w x + b, and the loss.
//! let mut tape = Tape::default();
//! let [x, t] = [x, t].map(|id| tape.leaf(store, id, Learn::Frozen));
//! let [w, b] = [w, b].map(|id| tape.leaf(store, id, Learn::Trainable));
//! let y = tape.apply(Conv2d::linear(), &[x, w, b])?;
//! let loss = tape.apply(Bce::new(Targets::Probabilities), &[y, t])?;
//! tape.metric("loss", loss);
//!
//! // Plan, then replay 100 times.
//! let mut plan = Plan::compile(&tape, store, Some(loss), &[optimiser])?;
//! plan.reserve(&mut engine)?;
//! let mut losses = Vec::new();
//! for step in 0..100 {
//!     plan.replay(&mut engine, &StepState { seed: 0, step, lr: [0.1, 0.0, 0.0, 0.0] })?;
//!     plan.collect(&engine)?;
//!     losses.extend(plan.metrics().map(|(_, loss)| loss));
//! }
//! assert!(losses[99] < 0.2 * losses[0], "from {} to {}", losses[0], losses[99]);
//! # Ok::<(), dfka_engine::error::Error>(())
//! ```

#![warn(missing_docs)]

mod cost;
mod engine;
mod fuse;
pub mod plan;
pub mod store;
pub mod tape;
#[cfg(test)]
mod tests;

pub use engine::Engine;
pub use plan::{Cost, Optimiser, Phase, Plan, Timing, Traffic};
pub use store::{Store, TensorId};
pub use tape::{Learn, Tape, Value};
