//! The CPU's inner loops: deterministic fork-join over rows, per-worker scratch, and one matrix micro-kernel.

pub mod gemm;
pub mod par;
pub mod scratch;
pub mod sum;
