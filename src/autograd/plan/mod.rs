//! From a tape to a list of instructions with addresses, and the replay of that list.
//!
//! `compile.rs` has [`Plan::compile`], which names the passes in their order. Each pass is a file of its
//! own, whose inputs and outputs are plain values:
//!
//! | file | what it decides |
//! |---|---|
//! | `needs.rs` | which nodes run, which of them backward, what each can fuse |
//! | `storage.rs` | the element type and the bytes of every value |
//! | `groups.rs` | the order of the nodes, and which run together |
//! | `fuse/*.rs` | which ops are fused with their neighbours |
//! | `lifetimes.rs` | which buffers there are, and from when to when each is in use |
//! | `scratch.rs` | which temporary buffers there are |
//! | `packed.rs` | which scratch the CPU keeps from step to step |
//! | `placement.rs` | the offset of every buffer in the arena |
//! | `lowering.rs` | the list of instructions, with the memory of every operand |
//! | `joined.rs` | how the gradients of a divided batch's shares are added |
//! | `program.rs` | for a GPU, the launches of every instruction |
//!
//! `step.rs` collects the results of the passes before `lifetimes.rs`. A replay (`replay.rs`) only walks the
//! list.

mod compile;
pub(super) mod groups;
pub(super) mod instruction;
mod joined;
pub(super) mod lifetimes;
mod lowering;
pub(super) mod needs;
mod optimiser;
mod packed;
mod placement;
pub(super) mod program;
mod readings;
mod replay;
mod scratch;
pub(super) mod step;
pub(super) mod storage;

pub use super::cost::bytes::Cost;
pub use super::cost::timing::Timing;
pub use super::cost::traffic::{Sum, Traffic};
pub use compile::Plan;
pub use instruction::Phase;
pub use optimiser::Optimiser;

#[cfg(test)]
mod tests;
