//! The convolution's gradients on the CPU. `dz` is the output gradient behind the activation, `dy * act'`.

use super::cpu_forward::{image_grain, passes, windows};
use super::geometry::{Axis, Dims, Epilogue, Phase, Taps};
use crate::device::cpu::channels::add;
use crate::device::cpu::gemm::{self, Gather, Sink};
use crate::device::cpu::par::{Indices, Rows, Split, even_grain, for_parts};
use crate::device::cpu::{scratch, vectorised};
use crate::ops::layers::activation::Act;
use crate::ops::operands::{Grad, Io, Write, store_or_add};
use crate::tensor::Real;
use std::ops::Range;

/// Most partial sums of a weight gradient: a fixed number, so that the order of additions does not depend on
/// the threads.
const WGRAD_PARTS: usize = 8;

/// Half of the output pixels that a pass of the weight gradient should have at least.
const ROWS_PER_PASS: usize = 48;

/// Most rows of pixels that one gathered product of a weight gradient sums over.
const MAX_PASS_ROWS: usize = 256;

/// Pixels of a residual's gradient that go through the scratch together.
const RESIDUAL_PIXELS: usize = 512;

/// Elements of scratch for the packed filters of all phases of the input gradient.
pub fn input_scratch_len(d: &Dims) -> usize {
    Phase::all(d).map(|f| gemm::packed_len(f.depth(d), d.c)).sum()
}

/// Elements of scratch for the partial sums of the weight gradient.
pub fn weight_scratch_len(d: &Dims) -> usize {
    WGRAD_PARTS * gemm::packed_len(d.depth(), d.k)
}

/// Writes the gradients that are needed: x, w, bias, residual, in this order.
pub fn backward<R: Real>(d: &Dims, epilogue: &Epilogue, io: &Io<R>) {
    let masked = Masked {
        dy: io.dy0(),
        mask: if epilogue.act == Act::None { None } else { Some(io.saved(0)) },
        slope: R::of(epilogue.slope()),
        k: d.k,
    };
    if let Some(dx) = io.dx(0) {
        input_gradient(d, &masked, io.x(1), io.scratch(0), dx);
    }
    if let Some(dw) = io.dx(1) {
        weight_gradient(d, &masked, io.x(0), io.scratch(1), dw);
    }
    if epilogue.has_bias
        && let Some(db) = io.dx(2)
    {
        bias_gradient(d, &masked, db);
    }
    if epilogue.has_residual
        && let Some(dr) = io.dx(io.inputs() - 1)
    {
        let write = dr.write;
        for_parts(Rows::new(dr.data, d.outputs()), RESIDUAL_PIXELS, &|first, part: Rows<R>| {
            masked.with(first..first + part.data.len() / d.k, |dz| {
                part.data.iter_mut().zip(dz).for_each(|(dr, dz)| store_or_add(write, dr, *dz));
            });
        });
    }
}

/// `dz`, computed from `dy` and the mask where it is read.
struct Masked<'a, R> {
    dy: &'a [R],
    mask: Option<&'a [u8]>,
    slope: R,
    k: usize,
}

impl<R: Real> Masked<'_, R> {
    /// Copies the values of pixel `m` from channel `first`, a multiple of 8, on.
    #[inline(always)]
    fn copy(&self, m: usize, first: usize, to: &mut [R]) {
        let dy = &self.dy[m * self.k + first..][..to.len()];
        let Some(mask) = self.mask else { return to.copy_from_slice(dy) };
        let mask = &mask[m * self.k.div_ceil(8) + first / 8..];
        let pick = |byte: u8, i: usize, v: R| if byte >> i & 1 == 1 { v } else { v * self.slope };
        let (eights, rest) = to.as_chunks_mut::<8>();
        let (dy, dy_rest) = dy.as_chunks::<8>();
        for (byte, (to, dy)) in mask.iter().zip(eights.iter_mut().zip(dy)) {
            *to = std::array::from_fn(|i| pick(*byte, i, dy[i]));
        }
        for (i, (to, v)) in rest.iter_mut().zip(dy_rest).enumerate() {
            *to = pick(mask[dy.len()], i, *v);
        }
    }
    /// Calls `f` on the values of some pixels: `dy` itself without a mask, otherwise this worker's scratch.
    fn with<O>(&self, pixels: Range<usize>, f: impl FnOnce(&[R]) -> O) -> O {
        let dy = &self.dy[pixels.start * self.k..pixels.end * self.k];
        if self.mask.is_none() {
            return f(dy);
        }
        scratch::with(dy.len(), |dz: &mut [R]| {
            vectorised(
                #[inline(always)]
                || {
                    let rows = dz.chunks_exact_mut(self.k).zip(pixels.clone());
                    rows.for_each(|(row, m)| self.copy(m, 0, row));
                },
            );
            f(dz)
        })
    }
}

/// `dx[n,h,w,c] = sum_{r,s,k} dz[n, (h+pad-r)/stride, (w+pad-s)/stride, k] * w[k,r,s,c]`, over the taps whose
/// divisions are exact and give a pixel of dz: one gathered product per phase.
fn input_gradient<R: Real>(d: &Dims, dz: &Masked<R>, w: &[R], panels: &mut [R], dx: Grad<R>) {
    pack_phases(d, w, panels);
    let panels = &*panels;
    let write = dx.write;
    let image = d.p * d.q * d.k;
    let axis = |outputs: usize, phase: usize, taps: &Taps, len: usize| Axis {
        outputs: (outputs - phase).div_ceil(d.stride),
        base: taps.base,
        step: 1,
        before: taps.count.saturating_sub(1),
        taps: taps.count,
        len,
    };
    for_parts(Rows::new(dx.data, d.n), image_grain(d.n), &|first, part: Rows<R>| {
        for pass in passes(part.items(), image) {
            let pixels = (first + pass.start) * d.p * d.q..(first + pass.end) * d.p * d.q;
            dz.with(pixels, |dz| {
                let mut at = 0;
                for phase in Phase::all(d) {
                    let rows = axis(d.h, phase.h0, &phase.rows, d.p);
                    let cols = axis(d.w, phase.w0, &phase.cols, d.q);
                    let store = |i: usize, p: usize, q: usize, column: usize, values: &[R]| {
                        let line = (pass.start + i) * d.h + phase.h0 + p * d.stride;
                        let pixel = line * d.w + phase.w0 + q * d.stride;
                        let to = &mut part.data[pixel * d.c + column..][..values.len()];
                        match write {
                            Write::Set => to.copy_from_slice(values),
                            Write::Add => to.iter_mut().zip(values).for_each(|(t, v)| *t += *v),
                        }
                    };
                    windows(dz, pass.len(), rows, cols, d.k, &panels[at..], d.c, store);
                    at += gemm::packed_len(phase.depth(d), d.c);
                }
            });
        }
    });
}

/// Packs the flipped filters of every phase into panels `[phase][c / lanes][r', s', k][lanes]`.
fn pack_phases<R: Real>(d: &Dims, w: &[R], panels: &mut [R]) {
    let lanes = gemm::lanes(d.c);
    let columns = d.c.div_ceil(lanes);
    let mut at = 0;
    for phase in Phase::all(d) {
        let depth = phase.depth(d);
        let part = &mut panels[at..][..gemm::packed_len(depth, d.c)];
        at += part.len();
        if depth == 0 {
            continue;
        }
        for_parts(Rows::new(part, columns), 1, &|panel, part: Rows<R>| {
            let cut = (d.c - panel * lanes).min(lanes);
            let mut row = part.data.chunks_mut(lanes);
            for (r, s) in phase.taps(d.stride) {
                for k in 0..d.k {
                    let Some(row) = row.next() else { return };
                    row[..cut].copy_from_slice(&w[((k * d.r + r) * d.s + s) * d.c + panel * lanes..][..cut]);
                    row[cut..].fill(R::ZERO);
                }
            }
        });
    }
}

/// `dw[k,r,s,c] = sum_{n,p,q} dz[n,p,q,k] * x[n, p*stride - pad + r, q*stride - pad + s, c]`: the rows of the
/// gathered product are filter taps, its runs are rows of pixels. The images are cut into at most
/// [`WGRAD_PARTS`] parts, whose number depends on that of the images alone and whose sums are added in order.
fn weight_gradient<R: Real>(d: &Dims, dz: &Masked<R>, x: &[R], partial: &mut [R], dw: Grad<R>) {
    let (lanes, depth) = (gemm::lanes(d.k), d.depth());
    let grain = d.n.div_ceil(WGRAD_PARTS);
    let parts = d.n.div_ceil(grain);
    let wide = gemm::packed_len(1, d.k);
    let partial = &mut partial[..parts * depth * wide];
    // Images whose padded copies and gradient panels share a pass: enough pixels to amortise loading the
    // accumulators.
    let per_pass = (2 * ROWS_PER_PASS).div_ceil(d.p * d.q).min(MAX_PASS_ROWS / d.p.min(MAX_PASS_ROWS)).max(1);
    for_parts((Indices(parts), Rows::new(partial, parts)), 1, &|part, (_, sum): (Indices, Rows<R>)| {
        let images = part * grain..((part + 1) * grain).min(d.n);
        sum.data.fill(R::ZERO);
        let (hp, wp) = d.padded();
        let x_len = if d.pad == 0 { 0 } else { per_pass * hp * wp * d.c };
        scratch::with(x_len + per_pass * d.p * d.q * wide, |scratch: &mut [R]| {
            let (padded, panels) = scratch.split_at_mut(x_len);
            for start in images.clone().step_by(per_pass) {
                let count = per_pass.min(images.end - start);
                let source = &x[start * d.h * d.w * d.c..][..count * d.h * d.w * d.c];
                pack_pixels(d, dz, start, &mut panels[..count * d.p * d.q * wide]);
                let source = if d.pad == 0 {
                    source
                } else {
                    pad_images(d, padded, source);
                    &*padded
                };
                add_pass(d, source, count, panels, sum.data);
            }
        });
    });
    let partial = &*partial;
    let write = dw.write;
    for_parts(Rows::new(dw.data, d.k), even_grain(d.k), &|first, rows: Rows<R>| {
        for (j, row) in rows.data.chunks_mut(depth).enumerate() {
            let k = first + j;
            for (i, dw) in row.iter_mut().enumerate() {
                let at = ((k / lanes) * depth + i) * lanes + k % lanes;
                let sum = (0..parts).fold(R::ZERO, |s, part| s + partial[part * depth * wide + at]);
                store_or_add(write, dw, sum);
            }
        }
    });
}

/// Packs the `dz` of some pixels, from image `start` on, into panels `[k / lanes][pixel][lanes]`.
fn pack_pixels<R: Real>(d: &Dims, dz: &Masked<R>, start: usize, panels: &mut [R]) {
    let (lanes, pixels) = (gemm::lanes(d.k), d.p * d.q);
    let rows = panels.len() / gemm::packed_len(1, d.k);
    vectorised(
        #[inline(always)]
        || {
            for (row, to) in panels.chunks_exact_mut(lanes).enumerate() {
                let (first, m) = (row / rows * lanes, start * pixels + row % rows);
                let (to, padding) = to.split_at_mut((d.k - first).min(lanes));
                dz.copy(m, first, to);
                padding.fill(R::ZERO);
            }
        },
    );
}

/// Copies `h x w x c` images into the interior of padded ones, and sets their borders to zero.
fn pad_images<R: Real>(d: &Dims, to: &mut [R], images: &[R]) {
    let (hp, wp) = d.padded();
    let (c, w, left, top) = (d.c, d.w, d.pad, d.pad);
    for (to, from) in to.chunks_exact_mut(hp * wp * c).zip(images.chunks_exact(d.h * w * c)) {
        to[..top * wp * c].fill(R::ZERO);
        to[(top + d.h) * wp * c..].fill(R::ZERO);
        for (row, from) in to[top * wp * c..].chunks_mut(wp * c).zip(from.chunks(w * c)).take(d.h) {
            row[..left * c].fill(R::ZERO);
            row[left * c..][..w * c].copy_from_slice(from);
            row[(left + w) * c..].fill(R::ZERO);
        }
    }
}

/// Adds the products of `count` padded images `x` with their packed `dz` to a part's sum
/// `[k / lanes][rsc][lanes]`.
fn add_pass<R: Real>(d: &Dims, x: &[R], count: usize, panels: &[R], sum: &mut [R]) {
    let (lanes, depth, (hp, wp)) = (gemm::lanes(d.k), d.depth(), d.padded());
    let rows = count * d.p * d.q;
    // Runs: one per row of output pixels. Long images take several gathers of at most MAX_PASS_ROWS runs.
    let all_rows = count * d.p;
    for r0 in (0..all_rows).step_by(MAX_PASS_ROWS) {
        let n_runs = MAX_PASS_ROWS.min(all_rows - r0);
        let runs: [usize; MAX_PASS_ROWS] = std::array::from_fn(|i| {
            let (image, p) = ((r0 + i) / d.p, (r0 + i) % d.p);
            (image * hp + p * d.stride) * wp * d.c
        });
        let a = Gather { x, runs: &runs[..n_runs], len: d.q, step: d.stride * d.c, b_first: 0, b_step: d.q };
        let tap = |m: usize| (m / (d.s * d.c)) * wp * d.c + m % (d.s * d.c);
        for panel in 0..d.k.div_ceil(lanes) {
            let b = &panels[(panel * rows + r0 * d.q) * lanes..][..n_runs * d.q * lanes];
            let mut sink = Accumulate { sum: &mut sum[panel * depth * lanes..], lanes };
            gemm::panel(a, depth, tap, b, n_runs * d.q, lanes, 0, &mut sink);
        }
    }
}

/// Adds finished rows of a weight gradient to a part's sum, `[rsc][lanes]`.
struct Accumulate<'a, R> {
    sum: &'a mut [R],
    lanes: usize,
}

impl<R: Real> Sink<R> for Accumulate<'_, R> {
    #[inline(always)]
    fn row(&mut self, m: usize, _: usize, values: &[R]) {
        self.sum[m * self.lanes..][..values.len()].iter_mut().zip(values).for_each(|(s, v)| *s += *v);
    }
}

/// `db[k] = sum_{n,p,q} dz[n,p,q,k]`, in pixel order.
fn bias_gradient<R: Real>(d: &Dims, dz: &Masked<R>, mut db: Grad<R>) {
    scratch::with(2 * d.k, |scratch: &mut [R]| {
        let (sum, row) = scratch.split_at_mut(d.k);
        sum.fill(R::ZERO);
        vectorised(
            #[inline(always)]
            || {
                for m in 0..d.outputs() {
                    dz.copy(m, 0, row);
                    add(sum, row);
                }
            },
        );
        sum.iter().enumerate().for_each(|(k, v)| db.store_or_add(k, *v));
    });
}
