//! The convolution's gradients on the CPU. `dz` is the output gradient behind the activation, `dy * act'`.

use super::cpu_dz::Masked;
use super::cpu_forward::{Way, image_grain, passes, windows, with_panel_width};
use super::cpu_winograd::{self, Tiling};
use super::geometry::{Axis, Dims, Epilogue, Phase, Taps};
use super::{cpu_few, cpu_weights};
use crate::device::cpu::channels::add;
use crate::device::cpu::par::{Rows, Split, for_parts};
use crate::device::cpu::{channels, gemm};
use crate::ops::operands::{Grad, Io, Write, store_or_add};
use crate::tensor::Real;
use std::ops::Range;

/// Pixels of a residual's gradient that go through the scratch together.
const RESIDUAL_PIXELS: usize = 512;

/// Elements of scratch for the packed filters of all phases of the input gradient.
pub fn input_scratch_len(d: &Dims) -> usize {
    let tiled = tiled(d).filter(Tiling::fits::<f32>).map_or(0, |g| g.packed_len());
    tiled.max(Phase::all(d).map(|f| gemm::packed_len(f.depth(d), d.c)).sum())
}

/// The input gradient as a convolution of dz with flipped filters, if they are 3x3 and the stride is 1.
fn tiled(d: &Dims) -> Option<Tiling> {
    let fits = [d.r, d.s, d.stride] == [3, 3, 1] && d.pad <= 2;
    fits.then(|| Tiling { h: d.p, w: d.q, c: d.k, p: d.h, q: d.w, k: d.c, pad: 2 - d.pad })
}

/// Elements of scratch for the partial sums of the bias gradient.
pub fn bias_scratch_len(d: &Dims) -> usize {
    channels::scratch_len(d.k)
}

/// Writes the gradients that are needed: x, w, bias, residual, in this order.
pub fn backward<R: Real>(d: &Dims, epilogue: &Epilogue, io: &Io<R>) {
    let masked = Masked::of(d, epilogue, io);
    if let Some(dx) = io.dx(0) {
        input_gradient(d, &masked, io.x(1), (io.scratch(0), io.is_packed()), dx);
    }
    let of_share =
        |images: &Range<usize>| (Dims { n: images.len(), ..*d }, masked.beyond(images.start * d.p * d.q));
    if io.needs_dx(1) {
        let (x, partial): (_, &mut [R]) = (io.x(0), io.scratch(1));
        for (images, dw) in io.dx_of_shares(1, d.n) {
            let (d, dz) = of_share(&images);
            let x = &x[images.start * d.h * d.w * d.c..];
            cpu_weights::weight_gradient(&d, &dz, x, partial, dw);
        }
    }
    if epilogue.has_bias && io.needs_dx(2) {
        let partial: &mut [R] = io.scratch(2);
        for (images, db) in io.dx_of_shares(2, d.n) {
            let (d, dz) = of_share(&images);
            bias_gradient(&d, &dz, partial, db);
        }
    }
    if epilogue.has_residual
        && let Some(dr) = io.dx(io.inputs() - 1)
    {
        let write = dr.write;
        for_parts(Rows::new(dr.data, d.outputs()), RESIDUAL_PIXELS, &|first, part: Rows<R>| {
            masked.with(first..first + part.data.len() / d.k, 0, |dz, _| {
                part.data.iter_mut().zip(dz).for_each(|(dr, dz)| store_or_add(write, dr, *dz));
            });
        });
    }
}

/// `dx[n,h,w,c] = sum_{r,s,k} dz[n, (h+pad-r)/stride, (w+pad-s)/stride, k] * w[k,r,s,c]`, over the taps whose
/// divisions are exact and give a pixel of dz: one product per phase.
fn input_gradient<R: Real>(d: &Dims, dz: &Masked<R>, w: &[R], packed: (&mut [R], bool), dx: Grad<R>) {
    let (panels, is_packed) = packed;
    let way = Way::of::<R>(d.k, d.c, tiled(d));
    match &way {
        _ if is_packed => {}
        Way::Dots => flip_phases(d, w, panels),
        Way::Tiles(g) => cpu_winograd::pack(g, &mut panels[..g.packed_len()], |c, k, r, s| {
            w[((k * 3 + 2 - r) * 3 + 2 - s) * d.c + c]
        }),
        Way::Product => pack_phases(d, w, panels),
    }
    let panels = &*panels;
    let write = dx.write;
    let image = d.p * d.q * d.k;
    for_parts(Rows::new(dx.data, d.n), image_grain(d.n), &|first, part: Rows<R>| {
        for pass in passes(part.items(), image) {
            let pixels = (first + pass.start) * d.p * d.q..(first + pass.end) * d.p * d.q;
            // What the closures use is copied into them: through a reference, it would be loaded again for every pixel.
            let (start, stride, [height, width, c]) = (pass.start, d.stride, [d.h, d.w, d.c]);
            let dx = &mut *part.data;
            dz.with(pixels, way.worker_scratch_len(), |dz, scratch| {
                if let Way::Tiles(g) = &way {
                    return cpu_winograd::windows(
                        g,
                        dz,
                        pass.len(),
                        panels,
                        scratch,
                        #[inline(always)]
                        move |i, h, w, column, values| {
                            let pixel = ((start + i) * height + h) * width + w;
                            put(write, &mut dx[pixel * c + column..], values);
                        },
                    );
                }
                let mut at = 0;
                for phase in Phase::all(d) {
                    let rows = axis(d.stride, d.h, phase.h0, &phase.rows, d.p);
                    let cols = axis(d.stride, d.w, phase.w0, &phase.cols, d.q);
                    let [h0, w0] = [phase.h0, phase.w0];
                    let pixel = move |i: usize, p: usize, q: usize| {
                        let line = (start + i) * height + h0 + p * stride;
                        line * width + w0 + q * stride
                    };
                    let dx = &mut *dx;
                    if let Way::Dots = way {
                        let filters = &panels[at..][..phase.depth(d) * d.c];
                        at += filters.len();
                        cpu_few::dots(
                            dz,
                            pass.len(),
                            [rows, cols],
                            [d.k, d.c],
                            filters,
                            #[inline(always)]
                            move |i, p, q, values| put(write, &mut dx[pixel(i, p, q) * c..], values),
                        );
                        continue;
                    }
                    windows(
                        dz,
                        pass.len(),
                        [rows, cols],
                        d.k,
                        &panels[at..],
                        d.c,
                        #[inline(always)]
                        move |i, p, q, column, values| {
                            put(write, &mut dx[pixel(i, p, q) * c + column..], values);
                        },
                    );
                    at += gemm::packed_len(phase.depth(d), d.c);
                }
            });
        }
    });
}

/// The windows over `len` pixels of dz of one dimension of a phase that starts at pixel `first` of `pixels`.
fn axis(stride: usize, pixels: usize, first: usize, taps: &Taps, len: usize) -> Axis {
    Axis {
        outputs: (pixels - first).div_ceil(stride),
        base: taps.base,
        step: 1,
        before: taps.count.saturating_sub(1),
        taps: taps.count,
        len,
    }
}

#[inline(always)]
fn put<R: Real>(write: Write, to: &mut [R], values: &[R]) {
    with_panel_width(
        values.len(),
        #[inline(always)]
        |n| match write {
            Write::Set => to[..n].copy_from_slice(&values[..n]),
            Write::Add => add(&mut to[..n], &values[..n]),
        },
    );
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

/// Writes the flipped filters of every phase as `[phase][c][r', s', k]`.
fn flip_phases<R: Real>(d: &Dims, w: &[R], to: &mut [R]) {
    let mut to = to.iter_mut();
    for phase in Phase::all(d) {
        for c in 0..d.c {
            for (r, s) in phase.taps(d.stride) {
                for (k, to) in (0..d.k).zip(&mut to) {
                    *to = w[((k * d.r + r) * d.s + s) * d.c + c];
                }
            }
        }
    }
}

/// `db[k] = sum_{n,p,q} dz[n,p,q,k]`, in the order of [`channels::sums`].
fn bias_gradient<R: Real>(d: &Dims, dz: &Masked<R>, partial: &mut [R], mut db: Grad<R>) {
    let block = |pixels: Range<usize>, sums: &mut [R]| {
        dz.with(pixels, 0, |dz, _| dz.chunks_exact(d.k).for_each(|row| add(sums, row)));
    };
    let sums = channels::sums(d.outputs(), d.k, partial, block);
    sums.iter().enumerate().for_each(|(k, v)| db.store_or_add(k, *v));
}
