//! Launches: a kernel, its geometry and its arguments, checked against the kernel's own parameter list.

mod arg;
mod candidates;
mod exchange;
mod group;
mod kernel_launch;
mod library;
mod matmul;
mod prepared;
mod work;

pub use arg::{KernelArg, MAX_GROUP};
pub use candidates::{Candidate, Candidates};
pub use exchange::Exchange;
pub use kernel_launch::{Launch, THREADS};
pub use library::LibraryCall;
pub use matmul::Matmul;
pub use prepared::{Prepared, cell};
pub use work::{Cycles, L2_BYTES, LAUNCH_CYCLES, Work};
