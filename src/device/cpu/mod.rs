//! The CPU's inner loops: deterministic fork-join over rows, per-worker scratch, and one matrix micro-kernel.

pub mod gemm;
pub mod par;
pub mod scratch;
pub mod sum;

use std::sync::OnceLock;

/// Runs `f` compiled for the widest vectors this machine has. What it calls must be `#[inline(always)]`, or it stays
/// compiled for the baseline: software `mul_add`, some 100 times slower.
#[inline]
pub fn dispatch<F: pulp::WithSimd>(f: F) -> F::Output {
    static ARCH: OnceLock<pulp::Arch> = OnceLock::new();
    ARCH.get_or_init(pulp::Arch::new).dispatch(f)
}
