//! The convolution's forward pass on the CPU: a gathered product of windows with packed filters, and the
//! epilogue behind it.

use super::geometry::{Axis, Dims, Epilogue, MAX_TAPS};
use crate::device::cpu::channels::add;
use crate::device::cpu::gemm::{self, Gather, Sink};
use crate::device::cpu::par::{Rows, Split, even_grain, for_parts};
use crate::device::cpu::vector::with_width;
use crate::ops::layers::activation::Act;
use crate::ops::operands::Io;
use crate::tensor::Real;
use std::ops::Range;

/// Elements of input that a pass over all panels should find in the second-level cache: half a megabyte of
/// f32.
const PASS_ELEMS: usize = 1 << 17;

/// Images that a worker takes at once. With 2x2 output pixels a product has one row for each image, so that
/// 16 images fill one tile of 12 rows and a rest of 4.
pub fn image_grain(n: usize) -> usize {
    even_grain(n).max((n / rayon::current_num_threads()).min(16))
}

/// Runs of images small enough for the cache.
pub fn passes(images: usize, image_elems: usize) -> impl Iterator<Item = Range<usize>> {
    let per_pass = (PASS_ELEMS / image_elems).max(1);
    (0..images).step_by(per_pass).map(move |at| at..(at + per_pass).min(images))
}

/// Elements of scratch that `forward` needs: the filters packed into panels.
pub fn scratch_len(d: &Dims) -> usize {
    gemm::packed_len(d.depth(), d.k)
}

/// Writes y and, if backward will run, the activation mask.
pub fn forward<R: Real>(d: &Dims, epilogue: &Epilogue, io: &Io<R>) {
    let (x, panels) = (io.x(0), io.scratch::<R>(0));
    let bias = epilogue.has_bias.then(|| io.x(2));
    let residual = epilogue.has_residual.then(|| io.x(io.inputs() - 1));
    pack_filters(d, io.x(1), panels);
    let panels = &*panels;
    let mut none = [];
    let mask: &mut [u8] = if epilogue.act != Act::None && io.saves() { io.save(0) } else { &mut none };
    let saves = !mask.is_empty();
    let parts = (Rows::new(io.y(0), d.n), Rows::new(mask, d.n));
    let axis = |outputs, taps, len| Axis { outputs, base: 0, step: d.stride, before: d.pad, taps, len };
    let (rows, cols) = (axis(d.p, d.r, d.h), axis(d.q, d.s, d.w));
    let image = d.h * d.w * d.c;
    for_parts(parts, image_grain(d.n), &|first, (y, mask)| {
        let images = y.items();
        let mut store = Store {
            y: y.data,
            mask: if saves { mask.data } else { &mut [] },
            bias,
            residual: residual.map(|r| &r[first * d.p * d.q * d.k..]),
            act: epilogue.act,
            d,
        };
        for pass in passes(images, image) {
            let x = &x[(first + pass.start) * image..][..pass.len() * image];
            windows(x, pass.len(), rows, cols, d.c, panels, d.k, |i, p, q, column, values| {
                store.row(((pass.start + i) * d.p + p) * d.q + q, column, values);
            });
        }
    });
}

/// Packs the filters `w[k][rsc]` into panels `[k / lanes][rsc][lanes]`.
fn pack_filters<R: Real>(d: &Dims, w: &[R], panels: &mut [R]) {
    let (lanes, depth) = (gemm::lanes(d.k), d.depth());
    let count = d.k.div_ceil(lanes);
    for_parts(Rows::new(panels, count), 1, &|panel, part: Rows<R>| {
        for (j, column) in (panel * lanes..(panel + 1) * lanes).enumerate() {
            let from = w.get(column * depth..(column + 1) * depth);
            for i in 0..depth {
                part.data[i * lanes + j] = from.map_or(R::ZERO, |f| f[i]);
            }
        }
    });
}

/// The product of every window of `images` images `x` (`c` channels) with packed panels `[r, s, c]` of
/// `columns` columns. `store(image, p, q, column, values)` takes the results.
///
/// Windows that lose taps at the border are multiplied separately, by the taps that they have: no padded
/// copy, and no multiply-add with a zero (at 2x2 pixels those would be five ninths of a 3x3 filter's).
#[allow(clippy::too_many_arguments)]
pub fn windows<R: Real>(
    x: &[R],
    images: usize,
    rows: Axis,
    cols: Axis,
    c: usize,
    panels: &[R],
    columns: usize,
    store: impl FnMut(usize, usize, usize, usize, &[R]),
) {
    /// Finds the output pixel of a row of the product.
    struct Pixels<F> {
        p: Range<usize>,
        q: Range<usize>,
        store: F,
    }
    impl<R, F: FnMut(usize, usize, usize, usize, &[R])> Sink<R> for Pixels<F> {
        #[inline(always)]
        fn row(&mut self, m: usize, column: usize, values: &[R]) {
            let (line, q) = (m / self.q.len(), m % self.q.len());
            let (image, p) = (line / self.p.len(), line % self.p.len());
            (self.store)(image, self.p.start + p, self.q.start + q, column, values);
        }
    }
    let runs: [usize; MAX_TAPS] = std::array::from_fn(|r| r * cols.len * c);
    let mut sink = Pixels { p: 0..0, q: 0..0, store };
    for down in rows.reaches() {
        for right in cols.reaches() {
            let (p, q) = (down.outputs.clone(), right.outputs.clone());
            let a = Gather {
                x,
                runs: &runs[..if right.taps.is_empty() { 0 } else { down.taps.len() }],
                len: right.taps.len() * c,
                step: 1,
                b_first: (down.taps.start * cols.taps + right.taps.start) * c,
                b_step: cols.taps * c,
            };
            let row = |m: usize| {
                let (line, column) = (m / q.len(), q.start + m % q.len());
                let (image, line) = (line / p.len(), p.start + line % p.len());
                let line = image * rows.len + rows.source(line, &down);
                (line * cols.len + cols.source(column, &right)) * c
            };
            (sink.p, sink.q) = (p.clone(), q.clone());
            let depth = rows.taps * cols.taps * c;
            for panel in 0..columns.div_ceil(gemm::lanes(columns)) {
                gemm::panel(a, images * p.len() * q.len(), row, panels, depth, columns, panel, &mut sink);
            }
        }
    }
}

/// Stores finished rows: bias, residual, activation, and the mask that backward reads.
struct Store<'a, R> {
    y: &'a mut [R],
    mask: &'a mut [u8],
    bias: Option<&'a [R]>,
    residual: Option<&'a [R]>,
    act: Act,
    d: &'a Dims,
}

impl<R: Real> Store<'_, R> {
    #[inline(always)]
    fn row(&mut self, m: usize, column: usize, values: &[R]) {
        let at = m * self.d.k + column;
        let slope = R::of(self.act.step_slope().unwrap_or(1.0));
        with_width(
            values.len(),
            #[inline(always)]
            |n| {
                let mut v = [R::ZERO; gemm::MAX_LANES];
                let v = &mut v[..n];
                v.copy_from_slice(&values[..n]);
                if let Some(bias) = self.bias {
                    add(v, &bias[column..][..n]);
                }
                if let Some(residual) = self.residual {
                    add(v, &residual[at..][..n]);
                }
                if !self.mask.is_empty() {
                    let mask = &mut self.mask[m * self.d.mask_bytes() + column / 8..][..n.div_ceil(8)];
                    for (byte, v) in mask.iter_mut().zip(v.chunks(8)) {
                        *byte = v.iter().enumerate().fold(0, |b, (i, v)| b | u8::from(*v > R::ZERO) << i);
                    }
                }
                if self.act != Act::None {
                    v.iter_mut().for_each(|v| *v = if *v > R::ZERO { *v } else { *v * slope });
                }
                self.y[at..][..n].copy_from_slice(v);
            },
        );
    }
}
