//! Machines that run the kernels of `kernels/**/*.cu`: a CUDA device, or the emulator on the CPU.
//!
//! Both are a [`Gpu`] and take the same calls: memory by address, copies, and launches of a kernel with its
//! geometry and arguments. Callers do not need to know which one they have.

pub mod backend;
pub mod block;
pub mod card;
pub mod cuda;
pub mod emu;
pub mod kernel;
pub mod launch;
pub mod machine;
pub mod nvrtc;
pub mod nvtx;
mod pixels;
pub mod pointer;
pub mod room;
pub mod source;
pub mod target;
pub mod tensor_map;
#[cfg(test)]
mod test_support;

pub use backend::{Gpu, Inlet, Mark};
pub use block::{Address, Block};
pub use kernel::{HEADERS, KERNELS, Kernel, MODULES};
#[cfg(test)]
pub use test_support::skipped;
