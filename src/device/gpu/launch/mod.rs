//! Launches: a kernel, its geometry and its arguments, checked against the kernel's own parameter list.

mod arg;
mod candidates;
mod conv2d_only;
mod group;
mod kernel_launch;
mod prepared;

pub use arg::{KernelArg, MAX_GROUP};
pub use candidates::Candidate;
pub use conv2d_only::{MULTIPROCESSORS, blocks_for, has_wgmma, shared_limit};
pub use kernel_launch::{Launch, THREADS};
pub use prepared::{Prepared, cell};
