//! The gradient of the filters on the CPU.

use super::cpu_dz::Masked;
use super::cpu_few;
use super::cpu_forward::with_panel_width;
use super::cpu_parts::{MOST_PARTS, Parts};
use super::cpu_winograd::Tiling;
use super::cpu_winograd_weights;
use super::geometry::{Dims, Divisor};
use crate::device::cpu::gemm::{self, Gather, Sink};
use crate::device::cpu::par::{Indices, Rows, even_grain, for_parts};
use crate::device::cpu::{scratch, vectorised};
use crate::ops::operands::{Grad, store_or_add};
use crate::tensor::Real;

/// Half of the output pixels that a pass of the weight gradient should have at least.
const ROWS_PER_PASS: usize = 48;

/// Most rows of pixels that one gathered product of a weight gradient sums over.
const MAX_PASS_ROWS: usize = 256;

/// Elements of scratch for the partial sums of the weight gradient.
pub fn scratch_len(d: &Dims) -> usize {
    let tiled = Tiling::of(d).filter(Tiling::fits_weights::<f32>);
    let tiled = tiled.map_or(0, |g| cpu_winograd_weights::partial_len(&g));
    MOST_PARTS * gemm::packed_len(d.depth(), d.k).max(tiled)
}

/// `dw[k,r,s,c] = sum_{n,p,q} dz[n,p,q,k] * x[n, p*stride - pad + r, q*stride - pad + s, c]`: the rows of the
/// gathered product are filter taps, its runs are rows of pixels. The images are cut into at most
/// [`MOST_PARTS`] parts, whose number depends on the sizes alone and whose sums are added in order.
pub fn weight_gradient<R: Real>(d: &Dims, dz: &Masked<R>, x: &[R], partial: &mut [R], dw: Grad<R>) {
    let (lanes, depth) = (gemm::lanes(d.k), d.depth());
    let is_few = cpu_few::fits::<R>(d.c, d.k);
    let parts = Parts::of(d);
    if let Some(g) = Tiling::of(d).filter(Tiling::fits_weights::<R>) {
        return cpu_winograd_weights::weight_gradient(&g, dz, x, parts, partial, dw);
    }
    let items = parts.items();
    let wide = parts.panels_each * lanes;
    let partial = &mut partial[..items * depth * wide];
    // Images whose padded copies and gradient panels share a pass: enough pixels to amortise loading the
    // accumulators.
    let per_pass = (2 * ROWS_PER_PASS).div_ceil(d.p * d.q).min(MAX_PASS_ROWS / d.p.min(MAX_PASS_ROWS)).max(1);
    for_parts((Indices(items), Rows::new(partial, items)), 1, &|item, (_, sum): (Indices, Rows<R>)| {
        let (images, panels) = parts.item(item);
        let first = panels.start * lanes;
        sum.data.fill(R::ZERO);
        let (hp, wp) = d.padded();
        let x_len = if d.pad == 0 { 0 } else { per_pass * hp * wp * d.c };
        scratch::with(x_len + per_pass * d.p * d.q * wide, |scratch: &mut [R]| {
            let (padded, panels) = scratch.split_at_mut(x_len);
            for start in images.clone().step_by(per_pass) {
                let count = per_pass.min(images.end - start);
                let source = &x[start * d.h * d.w * d.c..][..count * d.h * d.w * d.c];
                let source = if d.pad == 0 {
                    source
                } else {
                    pad_images(d, padded, source);
                    &*padded
                };
                let pixels = count * d.p * d.q;
                if is_few {
                    let dz_len = pixels * d.k;
                    dz.copy_pixels(start * d.p * d.q..start * d.p * d.q + pixels, &mut panels[..dz_len]);
                    cpu_few::add_weight_gradient(
                        d,
                        source,
                        count,
                        &panels[..dz_len],
                        &mut sum.data[..d.k * depth],
                    );
                } else {
                    pack_pixels(d, dz, start, first, count, &mut panels[..pixels * wide]);
                    add_pass(d, source, count, &panels[..pixels * wide], sum.data);
                }
            }
        });
    });
    let (partial, part_len) = (&*partial, parts.panels * lanes * depth);
    let write = dw.write;
    for_parts(Rows::new(dw.data, d.k), even_grain(d.k), &|first, rows: Rows<R>| {
        for (j, row) in rows.data.chunks_mut(depth).enumerate() {
            let k = first + j;
            for (i, dw) in row.iter_mut().enumerate() {
                let at = if is_few { k * depth + i } else { ((k / lanes) * depth + i) * lanes + k % lanes };
                let sum = (0..parts.count).fold(R::ZERO, |s, part| s + partial[part * part_len + at]);
                store_or_add(write, dw, sum);
            }
        }
    });
}

/// Packs the `dz` of some pixels, from image `start` and channel `k0` on, into panels `[k / lanes][pixel][lanes]`.
fn pack_pixels<R: Real>(d: &Dims, dz: &Masked<R>, start: usize, k0: usize, count: usize, panels: &mut [R]) {
    let (lanes, pixels) = (gemm::lanes(d.k), d.p * d.q);
    let from = start * pixels;
    vectorised(
        #[inline(always)]
        || {
            for (n, panel) in panels.chunks_exact_mut(count * pixels * lanes).enumerate() {
                let first = k0 + n * lanes;
                with_panel_width(
                    (d.k - first).min(lanes),
                    #[inline(always)]
                    |cut| {
                        for (m, row) in panel.chunks_exact_mut(lanes).enumerate() {
                            dz.copy(from + m, first, &mut row[..cut]);
                            if cut < lanes {
                                row[cut..].fill(R::ZERO);
                            }
                        }
                    },
                );
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
    let (by_image, by_row) = (Divisor::of(d.p), Divisor::of(d.s * d.c));
    for r0 in (0..all_rows).step_by(MAX_PASS_ROWS) {
        let n_runs = MAX_PASS_ROWS.min(all_rows - r0);
        let mut runs = [0; MAX_PASS_ROWS];
        for (i, run) in runs[..n_runs].iter_mut().enumerate() {
            let (image, p) = by_image.split(r0 + i);
            *run = (image * hp + p * d.stride) * wp * d.c;
        }
        let a = Gather { x, runs: &runs[..n_runs], len: d.q, step: d.stride * d.c, b_first: 0, b_step: d.q };
        let tap = |m: usize| {
            let (row, at) = by_row.split(m);
            row * wp * d.c + at
        };
        for panel in 0..panels.len() / (rows * lanes) {
            let b = &panels[(panel * rows + r0 * d.q) * lanes..][..n_runs * d.q * lanes];
            let sink = Accumulate { sum: &mut sum[panel * depth * lanes..], lanes };
            gemm::panel(a, depth, tap, b, n_runs * d.q, lanes, 0, sink);
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
