//! Convolutions with few output channels on the CPU: the last layer of a generator, and the gradient of an image.
//!
//! The vectors of the gathered product (`device/cpu/gemm.rs`) hold output channels, of which a panel has 16 or 32;
//! with one channel, 15 of 16 lanes multiply padding. Here the lanes hold input channels. An output is the dot
//! product of its window with a filter, and a weight gradient a sum of pixels of x, each times a number.

use super::geometry::{Axis, Dims};
use crate::device::cpu::vector::dispatch;
use crate::tensor::Real;
use pulp::{Simd, WithSimd};
use std::any::TypeId;
use std::marker::PhantomData;

/// Most output channels.
const FEW: usize = 4;

/// The input channels are a multiple of so many: an AVX-512 register of f32.
const LANES: usize = 16;

/// Whether `c` input and `k` output channels are computed here.
pub fn fits<R: Real>(c: usize, k: usize) -> bool {
    TypeId::of::<R>() == TypeId::of::<f32>() && k <= FEW && c.is_multiple_of(LANES)
}

/// The dot products of every window of `images` images `x` (`c` channels) with `filters` `[k, r, s, c]`.
/// `store(image, p, q, values)` takes the results, a value for each filter. Windows that lose taps at the border are
/// multiplied by the taps that they have.
pub fn dots<R: Real>(
    x: &[R],
    images: usize,
    axes: [Axis; 2],
    [c, k]: [usize; 2],
    filters: &[R],
    store: impl FnMut(usize, usize, usize, &[R]),
) {
    let (x, filters) = (bytemuck::cast_slice(x), bytemuck::cast_slice(filters));
    dispatch(Dots { x, images, axes, c, k, filters, store, elem: PhantomData::<R> });
}

/// The arguments of [`dots`] as a type, whose body is compiled once for each instruction set.
struct Dots<'a, F, R> {
    x: &'a [f32],
    images: usize,
    axes: [Axis; 2],
    c: usize,
    k: usize,
    filters: &'a [f32],
    store: F,
    elem: PhantomData<R>,
}

impl<R: Real, F: FnMut(usize, usize, usize, &[R])> WithSimd for Dots<'_, F, R> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let ([rows, cols], c) = (self.axes, self.c);
        let filter_len = rows.taps * cols.taps * c;
        for (down, right) in
            rows.reaches().flat_map(|down| cols.reaches().map(move |right| (down.clone(), right)))
        {
            let run = right.taps.len() * c;
            for line in 0..self.images * down.outputs.len() {
                let (image, p) = (line / down.outputs.len(), down.outputs.start + line % down.outputs.len());
                let source = image * rows.len + rows.source(p, &down);
                for q in right.outputs.clone() {
                    let window = (source * cols.len + cols.source(q, &right)) * c;
                    let mut values = [0.0; FEW];
                    let values = &mut values[..self.k];
                    // A phase of an input gradient may have no taps; its values are 0.
                    for (k, value) in values.iter_mut().enumerate().filter(|_| run > 0) {
                        let filter = &self.filters[k * filter_len..][..filter_len];
                        let mut sum = simd.splat_f32s(0.0);
                        for i in 0..down.taps.len() {
                            let x = &self.x[window + i * cols.len * c..][..run];
                            let at = (down.taps.start + i) * cols.taps + right.taps.start;
                            let w = &filter[at * c..][..run];
                            let (x, w) = (S::as_simd_f32s(x).0, S::as_simd_f32s(w).0);
                            for (x, w) in x.iter().zip(w) {
                                sum = simd.mul_add_e_f32s(*x, *w, sum);
                            }
                        }
                        *value = simd.reduce_sum_f32s(sum);
                    }
                    (self.store)(image, p, q, bytemuck::cast_slice(values));
                }
            }
        }
    }
}

/// Adds `dw[k,r,s,c] = sum dz[pixel, k] * x[window of the pixel, r, s, c]` over `count` padded images `x` to `dw`.
pub fn add_weight_gradient<R: Real>(d: &Dims, x: &[R], count: usize, dz: &[R], dw: &mut [R]) {
    let (x, dz) = (bytemuck::cast_slice(x), bytemuck::cast_slice(dz));
    dispatch(WeightGradient { d, x, lines: count * d.p, dz, dw: bytemuck::cast_slice_mut(dw) });
}

/// The arguments of [`add_weight_gradient`] as a type, whose body is compiled once for each instruction set.
struct WeightGradient<'a> {
    d: &'a Dims,
    x: &'a [f32],
    lines: usize,
    dz: &'a [f32],
    dw: &'a mut [f32],
}

/// Sums that are added at the end: a single one would wait four cycles for each addition.
const CHAINS: usize = 4;

impl WithSimd for WeightGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let d = self.d;
        let (hp, wp) = d.padded();
        let step = d.stride * d.c;
        for (at, dw) in S::as_mut_simd_f32s(self.dw).0.iter_mut().enumerate() {
            let (tap, c) = (at * S::F32_LANES / d.c, at * S::F32_LANES % d.c);
            let (k, r, s) = (tap / (d.r * d.s), tap / d.s % d.r, tap % d.s);
            let mut sums = [simd.splat_f32s(0.0); CHAINS];
            for line in 0..self.lines {
                let (image, p) = (line / d.p, line % d.p);
                let x = &self.x[((image * hp + p * d.stride + r) * wp + s) * d.c + c..];
                let x = &x[..(d.q - 1) * step + S::F32_LANES];
                let dz = &self.dz[line * d.q * d.k..][..d.q * d.k];
                for first in (0..d.q).step_by(CHAINS) {
                    for (i, sum) in sums.iter_mut().enumerate().take(d.q - first) {
                        let x = S::as_simd_f32s(&x[(first + i) * step..][..S::F32_LANES]).0[0];
                        let dz = simd.splat_f32s(dz[(first + i) * d.k + k]);
                        *sum = simd.mul_add_e_f32s(x, dz, *sum);
                    }
                }
            }
            for sum in sums {
                *dw = simd.add_f32s(*dw, sum);
            }
        }
    }
}
