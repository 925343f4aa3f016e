//! Loops compiled for the widest vectors of the machine that they run on.

use std::sync::OnceLock;

/// Runs `f`, compiled for the widest vectors that this machine has.
///
/// Every function that `f` calls must be `#[inline(always)]`. One that is not stays compiled for the
/// baseline, where `mul_add` is a software routine that takes some 100 times as long.
#[inline]
pub fn dispatch<F: pulp::WithSimd>(f: F) -> F::Output {
    static ARCH: OnceLock<pulp::Arch> = OnceLock::new();
    ARCH.get_or_init(pulp::Arch::new).dispatch(f)
}

/// [`dispatch`] of a plain loop. Write `#[inline(always)]` before the closure and before the closures that
/// it calls.
#[inline(always)]
pub fn vectorised<O>(f: impl FnMut() -> O) -> O {
    /// Calls the closure through `FnMut`. The adapter that turns a closure into an `FnOnce` is a function of
    /// its own and is not inlined: batch norm's forward takes 58 ms through it and 2 ms without it.
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

/// [`vectorised`] for a loop over pixels of `c` channels, with a copy of the loop for each common `c`
/// ([`with_width`]).
///
/// The loop is called through a reference and so stays a function of its own. Inlined, a loop over 16 channels was
/// unrolled before it could become vectors: batch norm's forward of 64x16x16x16 took 205 us instead of 50.
#[inline(always)]
pub fn vectorised_by_width<O>(c: usize, mut f: impl FnMut(usize) -> O) -> O {
    vectorised(
        #[inline(always)]
        || with_width(c, &mut f),
    )
}

/// Runs `f(c)`, with a copy of `f` compiled for each of the widths 16, 32 and 64. In a loop over 16 channels
/// whose length is known, the body is one vector instruction and its coefficients stay in registers. Write
/// `#[inline(always)]` before the closure.
#[inline(always)]
pub fn with_width<O>(c: usize, mut f: impl FnMut(usize) -> O) -> O {
    match c {
        16 => f(16),
        32 => f(32),
        64 => f(64),
        c => f(c),
    }
}

/// A register from the first elements of `from`.
#[inline(always)]
pub fn load<S: pulp::Simd>(_: S, from: &[f32]) -> S::f32s {
    S::as_simd_f32s(&from[..S::F32_LANES]).0[0]
}

/// Writes a register to the first elements of `to`.
#[inline(always)]
pub fn store<S: pulp::Simd>(_: S, to: &mut [f32], values: S::f32s) {
    S::as_mut_simd_f32s(&mut to[..S::F32_LANES]).0[0] = values;
}
