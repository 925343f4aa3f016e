//! The sizes of a convolution, what follows its sum, and how its windows lie over an image: what the CPU's
//! loops and the launches share.
//!
//! Letters, here and in the kernels: an image has `n, h, w, c`, a filter `k` output channels and `r, s` rows
//! and columns, an output `p, q` rows and columns.

use crate::device::gpu::launch::KernelArg;
use crate::error::{Error, Result};
use crate::ops::layers::activation::Act;
use crate::tensor::Shape;
use std::ops::Range;

/// Most rows, and most columns, of a filter. The CPU's gathered product has a fixed array of so many runs,
/// and the tensor maps of wgmma hold no more. The largest filter of our networks has 7: that of a stem.
pub const MAX_TAPS: usize = 16;

/// All sizes of one convolution.
#[derive(Clone, Copy)]
pub struct Dims {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub k: usize,
    pub r: usize,
    pub s: usize,
    pub p: usize,
    pub q: usize,
    pub stride: usize,
    pub pad: usize,
}

impl Dims {
    /// Of x `[n, h, w, c]`, filter `[k, r, s, c]` and y `[n, p, q, k]`.
    pub fn of([stride, pad]: [usize; 2], x: Shape, filter: Shape, y: Shape) -> Dims {
        let ([n, h, w, c], [k, r, s, _], [_, p, q, _]) = (x.0, filter.0, y.0);
        Dims { n, h, w, c, k, r, s, p, q, stride, pad }
    }
    /// Pixels of x.
    pub fn inputs(&self) -> usize {
        self.n * self.h * self.w
    }
    /// Pixels of y.
    pub fn outputs(&self) -> usize {
        self.n * self.p * self.q
    }
    /// Inner dimension of the forward product: the elements of one filter.
    pub fn depth(&self) -> usize {
        self.r * self.s * self.c
    }
    /// Height and width of the zero-padded image.
    pub fn padded(&self) -> (usize, usize) {
        (self.h + 2 * self.pad, self.w + 2 * self.pad)
    }
    /// Bytes of activation mask per pixel of y.
    pub fn mask_bytes(&self) -> usize {
        self.k.div_ceil(8)
    }
    /// The sizes as kernels take them: `Conv2dDims` of kernels/lib/conv2d_dims.cuh, eleven 32-bit numbers in
    /// its order.
    ///
    /// Errors: 2^30 pixels or filter elements per channel, or more, which the kernels' 32-bit indices cannot
    /// count.
    pub fn kernel_arg(&self) -> Result<KernelArg> {
        let pixels = self.inputs().max(self.outputs());
        let largest = [pixels, self.depth(), self.k, self.c].into_iter().max().unwrap_or(0);
        if largest >= 1 << 30 {
            let message =
                format!("expected fewer than 2^30 pixels and filter elements a channel, found {largest}");
            return Err(Error::shape("conv2d", message));
        }
        let Dims { n, h, w, c, k, r, s, p, q, stride, pad } = *self;
        Ok(KernelArg::structure("Conv2dDims", &[n, h, w, c, k, r, s, p, q, stride, pad].map(|v| v as i32)))
    }
}

/// What follows the sum of products: `act(sum + bias + residual)`.
#[derive(Clone, Copy)]
pub struct Epilogue {
    pub has_bias: bool,
    pub has_residual: bool,
    pub act: Act,
}

impl Epilogue {
    /// The activation's slope where its input is not positive; 1 without an activation.
    pub fn slope(&self) -> f64 {
        self.act.step_slope().unwrap_or(1.0)
    }
}

/// A divisor, by which a multiplication divides small numbers: a division takes several times as long, and the loops
/// over pixels need four for each.
#[derive(Clone, Copy)]
pub struct Divisor {
    by: usize,
    /// 2^32 / by, rounded up.
    reciprocal: usize,
    /// Below this number the product with the reciprocal is exact.
    small: usize,
}

impl Divisor {
    /// Panics: 0.
    pub fn of(by: usize) -> Divisor {
        Divisor { by, reciprocal: (1usize << 32).div_ceil(by), small: (1 << 32) / by }
    }
    /// Quotient and remainder of `n`.
    #[inline(always)]
    pub fn split(self, n: usize) -> (usize, usize) {
        let quotient = if n < self.small { (n * self.reciprocal) >> 32 } else { n / self.by };
        (quotient, n - quotient * self.by)
    }
}

/// The windows along one dimension: tap `t` of output `j` reads input `base + j * step + t - before`, if that
/// is in `0..len`.
#[derive(Clone, Copy)]
pub struct Axis {
    pub outputs: usize,
    pub base: usize,
    pub step: usize,
    pub before: usize,
    pub taps: usize,
    pub len: usize,
}

/// Neighbouring outputs whose windows have the same taps inside the image.
#[derive(Clone)]
pub struct Reach {
    pub outputs: Range<usize>,
    pub taps: Range<usize>,
}

impl Axis {
    fn taps_inside(&self, output: usize) -> Range<usize> {
        let start = self.base + output * self.step;
        let first = self.before.saturating_sub(start).min(self.taps);
        first..(self.len + self.before).saturating_sub(start).clamp(first, self.taps)
    }
    /// Cuts the outputs into runs with the same taps, in order.
    pub fn reaches(self) -> impl Iterator<Item = Reach> + Clone {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (first, taps) = (at, self.taps_inside(at));
            while at < self.outputs && self.taps_inside(at) == taps {
                at += 1;
            }
            (first < at).then_some(Reach { outputs: first..at, taps })
        })
    }
    /// The input that the first tap inside the image reads, for an output of `reach`.
    pub fn source(&self, output: usize, reach: &Reach) -> usize {
        (self.base + output * self.step + reach.taps.start).saturating_sub(self.before)
    }
}

/// One residue class of input pixels: those that the same subset of filter taps reaches. Stride 1 has a
/// single phase, stride 2 has four; together they visit every tap exactly once, so a strided input gradient
/// multiplies none of the zeros that the stride would put between the pixels of dz. (Zeros of padding are
/// another matter: the CPU skips them, the kernels multiply them.)
pub struct Phase {
    /// First input row and column of the class.
    pub h0: usize,
    pub w0: usize,
    /// Filter rows and columns, in order of increasing output row and column.
    pub rows: Taps,
    pub cols: Taps,
}

/// The taps `first, first - stride, ...` of one dimension. For the class's first input they read consecutive
/// outputs, from `base - (count - 1)` to `base`.
pub struct Taps {
    pub count: usize,
    pub first: usize,
    /// Output that the last and smallest tap reads for the class's first input. It is never negative, as the
    /// output of tap `first` can be.
    pub base: usize,
}

impl Taps {
    fn of(phase: usize, taps: usize, d: &Dims) -> Taps {
        // Input i = phase + stride * j is reached from output o by tap t = i + pad - stride * o.
        let residue = (phase + d.pad) % d.stride;
        if residue >= taps {
            return Taps { count: 0, first: 0, base: 0 };
        }
        let count = (taps - 1 - residue) / d.stride + 1;
        // The largest tap reads the smallest output, (phase + pad - first) / stride, which may be negative.
        Taps { count, first: residue + (count - 1) * d.stride, base: (phase + d.pad - residue) / d.stride }
    }
}

impl Phase {
    /// All phases, row by row. At most one per input row and column.
    pub fn all(d: &Dims) -> impl Iterator<Item = Phase> + Clone + '_ {
        let [down, right] = [d.stride.min(d.h), d.stride.min(d.w)];
        (0..down * right).map(move |i| Phase::at(i / right, i % right, d))
    }
    fn at(h0: usize, w0: usize, d: &Dims) -> Phase {
        Phase { h0, w0, rows: Taps::of(h0, d.r, d), cols: Taps::of(w0, d.s, d) }
    }
    /// Inner dimension of this phase's product.
    pub fn depth(&self, d: &Dims) -> usize {
        self.rows.count * self.cols.count * d.k
    }
    /// The filter taps in the order that the gathered output gradient presents them.
    pub fn taps(&self, stride: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        (0..self.rows.count).flat_map(move |i| {
            (0..self.cols.count).map(move |j| (self.rows.first - i * stride, self.cols.first - j * stride))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_visit_every_tap_once() {
        for (taps, stride, pad) in [(3, 1, 1), (3, 2, 1), (7, 2, 3), (1, 2, 0), (5, 3, 2), (2, 3, 0)] {
            let d = Dims { n: 1, h: 9, w: 9, c: 1, k: 1, r: taps, s: taps, p: 1, q: 1, stride, pad };
            let mut seen: Vec<_> = Phase::all(&d).flat_map(|f| f.taps(stride).collect::<Vec<_>>()).collect();
            seen.sort_unstable();
            let all: Vec<_> = (0..taps).flat_map(|r| (0..taps).map(move |s| (r, s))).collect();
            assert_eq!(seen, all, "{taps} taps at stride {stride} with padding {pad}");
        }
    }

    #[test]
    fn a_divisor_divides() {
        for by in [1, 2, 3, 7, 12, 100, 641, 4095, 1 << 20] {
            let divisor = Divisor::of(by);
            let near = |n: usize| n.saturating_sub(2)..n + 3;
            let large = [by * 1000, (1 << 32) / by, 1 << 32, 1 << 40].into_iter().flat_map(near);
            for n in (0..5 * by.min(1000)).chain(large) {
                assert_eq!(divisor.split(n), (n / by, n % by), "{n} / {by}");
            }
        }
    }

    #[test]
    fn runs_of_outputs_cover_all_outputs_and_read_inside_the_image() {
        let axis = Axis { outputs: 5, base: 0, step: 2, before: 3, taps: 7, len: 9 };
        let mut next = 0;
        for reach in axis.reaches() {
            assert_eq!(reach.outputs.start, next);
            next = reach.outputs.end;
            for output in reach.outputs.clone() {
                assert!(axis.source(output, &reach) + reach.taps.len() <= axis.len);
            }
        }
        assert_eq!(next, axis.outputs);
    }
}
