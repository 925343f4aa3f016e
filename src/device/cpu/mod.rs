//! The CPU's inner loops: fork-join over rows, sums over channels, scratch memory of each worker, and the
//! matrix micro-kernel. Results do not depend on the number of threads.

pub mod channels;
pub mod dense;
pub mod gemm;
pub mod par;
pub mod scratch;
pub mod sum;
pub mod vector;

pub use vector::{vectorised, vectorised_by_width, with_width};
