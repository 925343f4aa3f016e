//! Record once, plan once, replay for ever.
//!
//! A step's shapes never change, so it is recorded on a [`Tape`], compiled to a [`Plan`] (which gradients exist, who
//! stores and who adds, when every buffer is last read, where it lies) and replayed without touching an allocator.

pub mod plan;
pub mod store;
pub mod tape;
#[cfg(test)]
mod targets_test;

pub use plan::{Optimiser, Plan};
pub use store::{Engine, Store, TensorId};
pub use tape::{Tape, Value};
