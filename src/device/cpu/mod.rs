//! The CPU's inner loops: deterministic fork-join over rows, channel sums, per-worker
//! scratch, and one matrix micro-kernel.

pub mod channels;
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

/// [`vectorised`] for a loop over pixels of `c` channels, compiled apart for the commonest `c` (`channels::with_width`).
#[inline(always)]
pub fn vectorised_by_width<O>(c: usize, mut f: impl FnMut(usize) -> O) -> O {
    vectorised(
        #[inline(always)]
        || channels::with_width(c, &mut f),
    )
}

/// [`dispatch`] of a plain loop. Write `#[inline(always)]` before the closure and before those it calls.
#[inline(always)]
pub fn vectorised<O>(f: impl FnMut() -> O) -> O {
    /// Calls through `FnMut`: the adapter that makes an `FnOnce` of a closure is a function of its own, and it is not
    /// inlined (batch norm's forward: 58 ms through it, 2 ms past it).
    struct Loop<F>(F);
    impl<O, F: FnMut() -> O> pulp::WithSimd for Loop<F> {
        type Output = O;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(mut self, _: S) -> O {
            (self.0)()
        }
    }
    dispatch(Loop(f))
}
