//! Where ops run: memory, the step's varying values, the counter-based random generator, and the CPU's inner
//! loops; and the moves of data between processes that share a run.
//!
//! A device deals in pointers and sizes and depends on no op and no model. All `unsafe` of the crate lies
//! below this module.

pub mod choice;
pub mod collective;
pub mod cpu;
pub mod division;
pub mod gpu;
mod loader;
pub mod memory;
pub mod philox;
pub mod step_state;

pub use choice::Choice;
pub use memory::{Memory, Slot, Space, Views};
pub use step_state::StepState;
