//! Convolutions with few output channels on the CPU: the last layer of a generator, and the gradient of an image.
//!
//! The vectors of the gathered product (`device/cpu/gemm.rs`) hold output channels, of which a panel has 16 or 32;
//! with one channel, 15 of 16 lanes multiply padding. Here the lanes hold input channels. An output is the dot
//! product of its window with a filter, and a weight gradient a sum of pixels of x, each times a number.

use super::geometry::{Axis, Dims, Reach};
use crate::device::cpu::vector::{dispatch, load};
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
        let [rows, cols] = self.axes;
        for (down, right) in
            rows.reaches().flat_map(|down| cols.reaches().map(move |right| (down.clone(), right)))
        {
            for line in 0..self.images * down.outputs.len() {
                let (image, p) = (line / down.outputs.len(), down.outputs.start + line % down.outputs.len());
                let source = (image * rows.len + rows.source(p, &down)) * cols.len;
                let mut q = right.outputs.start;
                while q < right.outputs.end {
                    let window = (source + cols.source(q, &right)) * self.c;
                    if q + PIXELS <= right.outputs.end {
                        self.pixels::<S, PIXELS>(simd, [image, p, q], window, [&down, &right]);
                        q += PIXELS;
                    } else {
                        self.pixels::<S, 1>(simd, [image, p, q], window, [&down, &right]);
                        q += 1;
                    }
                }
            }
        }
    }
}

/// Neighbouring outputs that are computed together, so that a filter is loaded once for them.
const PIXELS: usize = 4;

impl<R: Real, F: FnMut(usize, usize, usize, &[R])> Dots<'_, F, R> {
    /// Computes `N` neighbouring outputs from `[image, p, q]` on, whose first window starts at `window` in x.
    #[inline(always)]
    fn pixels<S: Simd, const N: usize>(
        &mut self,
        simd: S,
        [image, p, q]: [usize; 3],
        window: usize,
        [down, right]: [&Reach; 2],
    ) {
        let ([rows, cols], c) = (self.axes, self.c);
        let (filter_len, step) = (rows.taps * cols.taps * c, cols.step * c);
        // A phase of an input gradient may have no taps; its values are 0.
        let run = right.taps.len() * c;
        let taps = if run > 0 { down.taps.len() } else { 0 };
        let mut values = [[0.0; N]; FEW];
        for (k, values) in values.iter_mut().enumerate().take(self.k) {
            let filter = &self.filters[k * filter_len..][..filter_len];
            let mut sums = [simd.splat_f32s(0.0); N];
            for i in 0..taps {
                let at = (down.taps.start + i) * cols.taps + right.taps.start;
                let w = S::as_simd_f32s(&filter[at * c..][..run]).0;
                let x = &self.x[window + i * cols.len * c..][..(N - 1) * step + run];
                let mut pixels: [&[S::f32s]; N] = [&[]; N];
                for (j, pixel) in pixels.iter_mut().enumerate() {
                    *pixel = &S::as_simd_f32s(&x[j * step..][..run]).0[..w.len()];
                }
                for (t, w) in w.iter().enumerate() {
                    for j in 0..N {
                        sums[j] = simd.mul_add_e_f32s(pixels[j][t], *w, sums[j]);
                    }
                }
            }
            for j in 0..N {
                values[j] = simd.reduce_sum_f32s(sums[j]);
            }
        }
        for j in 0..N {
            let mut pixel = [0.0; FEW];
            pixel.iter_mut().zip(&values).for_each(|(to, values)| *to = values[j]);
            (self.store)(image, p, q + j, bytemuck::cast_slice(&pixel[..self.k]));
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
                        let x = load(simd, &x[(first + i) * step..]);
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
