//! Convolutions with 3x3 filters and stride 1 on the CPU, with 16 multiplications for four outputs instead
//! of 36: `y = A^T ((G w G^T) . (B^T x B)) A`, Winograd's F(2x2, 3x3).
//!
//! Source: Lavin and Gray 2016, section 4.1. A tile is 4x4 pixels of x and the 2x2 outputs that they give;
//! neighbouring tiles overlap by two pixels. Each of the 16 places of a transformed tile, summed over the
//! channels, is a matrix product `[tiles, c] x [c, k]`. The transforms add, subtract and halve: f32 results
//! are about as exact as those of the plain sum.
//!
//! The input gradient is such a convolution too, of dz with flipped filters.

use super::geometry::Dims;
use crate::device::cpu::gemm::{self, dense};
use crate::device::cpu::par::{Rows, for_parts};
use crate::device::cpu::vector::{dispatch, vectorised, with_width};
use crate::tensor::Real;
use pulp::{Simd, WithSimd};
use std::any::TypeId;
use std::marker::PhantomData;

/// Places of a transformed tile.
pub const PLACES: usize = 16;

/// Channels that are transformed together: an AVX-512 register of f32.
pub const LANES: usize = 16;

/// Tiles that are transformed and multiplied together: twice the 12 rows of a product. With 16 channels the
/// transformed tiles then fit the first-level cache, and more tiles were no faster with 16 to 512 channels.
pub const BLOCK_TILES: usize = 24;

/// The images `[h, w, c]` and outputs `[p, q, k]` of a convolution with 3x3 filters and stride 1.
#[derive(Clone, Copy)]
pub struct Geometry {
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub p: usize,
    pub q: usize,
    pub k: usize,
    /// Zeros before the first row and column.
    pub pad: usize,
}

impl Geometry {
    /// Of a convolution; none if its filters are not 3x3 or its stride is not 1.
    pub fn of(d: &Dims) -> Option<Geometry> {
        let Dims { h, w, c, p, q, k, pad, .. } = *d;
        ([d.r, d.s, d.stride] == [3, 3, 1]).then_some(Geometry { h, w, c, p, q, k, pad })
    }
    /// Whether [`windows`] computes it, and is faster than the gathered product, which skips the padding: at 2x2 outputs
    /// both multiply as many numbers.
    pub fn fits<R: Real>(&self) -> bool {
        self.has_whole_panels::<R>() && self.p.min(self.q) > 2
    }
    /// Whether the filters' gradient is computed in tiles, and faster: the gathered product of that does not skip the
    /// padding.
    pub fn fits_weights<R: Real>(&self) -> bool {
        self.has_whole_panels::<R>() && self.p.min(self.q) > 1
    }
    /// f32, and channels that fill registers and panels.
    fn has_whole_panels<R: Real>(&self) -> bool {
        let panels = self.k == LANES || self.k.is_multiple_of(gemm::MAX_LANES);
        TypeId::of::<R>() == TypeId::of::<f32>() && self.c.is_multiple_of(LANES) && panels
    }
    /// Elements of the transformed filters.
    pub fn packed_len(&self) -> usize {
        PLACES * self.c * self.k
    }
    /// Elements of scratch that [`windows`] needs.
    pub fn scratch_len(&self) -> usize {
        PLACES * (plane(self.c) + plane(self.k))
    }
    /// Tiles of an image.
    pub fn tiles(&self) -> usize {
        self.p.div_ceil(2) * self.q.div_ceil(2)
    }
    /// Image, and row and column of the first output, of a tile.
    #[inline(always)]
    pub fn origin(&self, tile: usize) -> [usize; 3] {
        let [down, across] = [self.p.div_ceil(2), self.q.div_ceil(2)];
        let (line, column) = (tile / across, tile % across);
        [line / down, 2 * (line % down), 2 * column]
    }
}

/// Elements from one place of a block's transformed tiles to the next: one cache line more than the tiles have. The 16
/// places would otherwise often be a multiple of 4 KB apart and fall on the same lines of the first-level cache.
pub fn plane(channels: usize) -> usize {
    BLOCK_TILES * channels + LANES
}

/// Transforms filters into panels `[k / lanes][16][c][lanes]`. `tap(k, c, r, s)` is an element of the filters.
pub fn pack<R: Real>(g: &Geometry, panels: &mut [R], tap: impl Fn(usize, usize, usize, usize) -> R + Sync) {
    let lanes = gemm::lanes(g.k);
    for_parts(Rows::new(panels, g.k / lanes), 1, &|panel, part: Rows<R>| {
        vectorised(
            #[inline(always)]
            || {
                for (c, first) in (0..g.c).flat_map(|c| (0..lanes).step_by(LANES).map(move |k| (c, k))) {
                    let mut w = [[[R::ZERO; LANES]; 3]; 3];
                    for (i, w) in w.as_flattened_mut().iter_mut().enumerate() {
                        for (k, w) in w.iter_mut().enumerate() {
                            *w = tap(panel * lanes + first + k, c, i / 3, i % 3);
                        }
                    }
                    let (top, middle, bottom) = (widen(&w[0]), widen(&w[1]), widen(&w[2]));
                    for j in 0..4 {
                        let column = widen(&[top[j], middle[j], bottom[j]]);
                        for (i, v) in column.iter().enumerate() {
                            let at = ((4 * i + j) * g.c + c) * lanes + first;
                            part.data[at..][..LANES].copy_from_slice(v);
                        }
                    }
                }
            },
        );
    });
}

/// One dimension of `G w` of several filters: `w0, (w0 + w1 + w2) / 2, (w0 - w1 + w2) / 2, w2`.
#[inline(always)]
fn widen<R: Real>(w: &[[R; LANES]; 3]) -> [[R; LANES]; 4] {
    let half = R::of(0.5);
    let mut wide = [w[0], [R::ZERO; LANES], [R::ZERO; LANES], w[2]];
    for i in 0..LANES {
        let (outer, inner) = ((w[0][i] + w[2][i]) * half, w[1][i] * half);
        wide[1][i] = outer + inner;
        wide[2][i] = outer - inner;
    }
    wide
}

/// Convolves `images` images `x` with filters that [`pack`] has transformed. `store(image, p, q, column, values)`
/// takes the results, 16 channels at a time. `scratch` has [`Geometry::scratch_len`] elements.
pub fn windows<R: Real>(
    g: &Geometry,
    x: &[R],
    images: usize,
    panels: &[R],
    scratch: &mut [R],
    store: impl FnMut(usize, usize, usize, usize, &[R]),
) {
    let (x, panels) = (bytemuck::cast_slice(x), bytemuck::cast_slice(panels));
    dispatch(Windows {
        g,
        x,
        images,
        panels,
        scratch: bytemuck::cast_slice_mut(scratch),
        store,
        elem: PhantomData::<R>,
    });
}

/// The arguments of [`windows`] as a type, whose body is compiled once for each instruction set.
struct Windows<'a, F, R> {
    g: &'a Geometry,
    x: &'a [f32],
    images: usize,
    panels: &'a [f32],
    scratch: &'a mut [f32],
    store: F,
    elem: PhantomData<R>,
}

impl<R: Real, F: FnMut(usize, usize, usize, usize, &[R])> WithSimd for Windows<'_, F, R> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let g = *self.g;
        let all = self.images * g.tiles();
        let (v, m) = self.scratch.split_at_mut(PLACES * plane(g.c));
        for first in (0..all).step_by(BLOCK_TILES) {
            let tiles = first..(first + BLOCK_TILES).min(all);
            for (i, tile) in tiles.clone().enumerate() {
                transform_input(simd, &g, self.x, g.origin(tile), &mut v[i * g.c..]);
            }
            multiply(simd, &g, v, self.panels, m);
            for (i, tile) in tiles.enumerate() {
                let at = g.origin(tile);
                transform_output(
                    simd,
                    &g,
                    &m[i * g.k..],
                    #[inline(always)]
                    |r, s, column, values| {
                        let (p, q) = (at[1] + r, at[2] + s);
                        if p < g.p && q < g.q {
                            (self.store)(at[0], p, q, column, bytemuck::cast_slice(values));
                        }
                    },
                );
            }
        }
    }
}

/// Writes `B^T x B` of the tile at `at` to `v`.
#[inline(always)]
pub fn transform_input<S: Simd>(simd: S, g: &Geometry, x: &[f32], at: [usize; 3], v: &mut [f32]) {
    let (h, w) = (at[1].wrapping_sub(g.pad), at[2].wrapping_sub(g.pad));
    let zero = simd.splat_f32s(0.0);
    if h < g.h && w < g.w && h + 4 <= g.h && w + 4 <= g.w {
        let line = g.w * g.c;
        let x = &x[(at[0] * g.h + h) * line + w * g.c..][..3 * line + 4 * g.c];
        return with_width(
            g.c,
            #[inline(always)]
            |c| {
                let row: [&[f32]; 4] =
                    [&x[..4 * c], &x[line..][..4 * c], &x[2 * line..][..4 * c], &x[3 * line..][..4 * c]];
                spread_tile(
                    simd,
                    c,
                    v,
                    #[inline(always)]
                    |i, j, lane| load(simd, &row[i][j * c + lane..]),
                );
            },
        );
    }
    // The 16 pixels; none where they lie outside the image.
    let mut pixel: [&[f32]; PLACES] = [&[]; PLACES];
    for (i, pixel) in pixel.iter_mut().enumerate() {
        let (h, w) = (h.wrapping_add(i / 4), w.wrapping_add(i % 4));
        if h < g.h && w < g.w {
            *pixel = &x[((at[0] * g.h + h) * g.w + w) * g.c..][..g.c];
        }
    }
    spread_tile(
        simd,
        g.c,
        v,
        #[inline(always)]
        |i, j, lane| match pixel[4 * i + j] {
            [] => zero,
            pixel => load(simd, &pixel[lane..]),
        },
    );
}

#[inline(always)]
fn load<S: Simd>(_: S, from: &[f32]) -> S::f32s {
    S::as_simd_f32s(&from[..S::F32_LANES]).0[0]
}

/// Writes `B^T x B` of the pixels that `x(row, column, channel)` loads.
#[inline(always)]
fn spread_tile<S: Simd>(simd: S, c: usize, v: &mut [f32], x: impl Fn(usize, usize, usize) -> S::f32s) {
    let zero = simd.splat_f32s(0.0);
    let plane = plane(c);
    let v = &mut v[..(PLACES - 1) * plane + c];
    for lane in (0..c).step_by(S::F32_LANES) {
        let mut t = [[zero; 4]; 4];
        for (i, t) in t.iter_mut().enumerate() {
            *t = spread(simd, [x(i, 0, lane), x(i, 1, lane), x(i, 2, lane), x(i, 3, lane)]);
        }
        for j in 0..4 {
            let column = spread(simd, [t[0][j], t[1][j], t[2][j], t[3][j]]);
            for i in 0..4 {
                let to = &mut v[(4 * i + j) * plane + lane..][..S::F32_LANES];
                S::as_mut_simd_f32s(to).0[0] = column[i];
            }
        }
    }
}

/// One dimension of `B^T x`.
#[inline(always)]
fn spread<S: Simd>(simd: S, x: [S::f32s; 4]) -> [S::f32s; 4] {
    [
        simd.sub_f32s(x[0], x[2]),
        simd.add_f32s(x[1], x[2]),
        simd.sub_f32s(x[2], x[1]),
        simd.sub_f32s(x[1], x[3]),
    ]
}

/// Multiplies a block's transformed tiles `v` `[16][tiles][c]` by the transformed filters, into `m`
/// `[16][tiles][k]`. The tiles that a last block lacks are left over from the block before and are not stored.
#[inline(always)]
fn multiply<S: Simd>(simd: S, g: &Geometry, v: &[f32], panels: &[f32], m: &mut [f32]) {
    let lanes = gemm::lanes(g.k);
    let places = v.chunks_exact(plane(g.c)).zip(m.chunks_exact_mut(plane(g.k)));
    for (place, (v, m)) in places.enumerate() {
        for panel in 0..g.k / lanes {
            let u = &panels[(panel * PLACES + place) * g.c * lanes..][..g.c * lanes];
            dense(simd, [v, u], [BLOCK_TILES, g.c, lanes], &mut m[panel * lanes..], g.k);
        }
    }
}

/// Computes `A^T m A` of a tile. `store(row, column, channel, values)` takes its outputs.
#[inline(always)]
fn transform_output<S: Simd>(
    simd: S,
    g: &Geometry,
    m: &[f32],
    mut store: impl FnMut(usize, usize, usize, &[f32]),
) {
    let (plane, per_lanes) = (plane(g.k), LANES / S::F32_LANES);
    let zero = simd.splat_f32s(0.0);
    for first in 0..g.k / LANES {
        let mut out = [[0.0; LANES]; 4];
        for part in 0..per_lanes {
            let lane = first * LANES + part * S::F32_LANES;
            let mut t = [[zero; 2]; 4];
            for i in 0..4 {
                let mut row = [zero; 4];
                for j in 0..4 {
                    row[j] = load(simd, &m[(4 * i + j) * plane + lane..]);
                }
                t[i] = narrow(simd, row);
            }
            for j in 0..2 {
                let column = narrow(simd, [t[0][j], t[1][j], t[2][j], t[3][j]]);
                for i in 0..2 {
                    S::as_mut_simd_f32s(&mut out[2 * i + j][..]).0[part] = column[i];
                }
            }
        }
        for (i, values) in out.iter().enumerate() {
            store(i / 2, i % 2, first * LANES, values);
        }
    }
}

/// One dimension of `A^T m`.
#[inline(always)]
fn narrow<S: Simd>(simd: S, m: [S::f32s; 4]) -> [S::f32s; 2] {
    let inner = simd.add_f32s(m[1], m[2]);
    let outer = simd.sub_f32s(m[1], m[2]);
    [simd.add_f32s(m[0], inner), simd.sub_f32s(outer, m[3])]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 30 tiles, more than a block has, with half a tile at the right border.
    const G: Geometry = Geometry { h: 9, w: 10, c: 32, p: 9, q: 10, k: 32, pad: 1 };

    fn numbers(count: usize, factor: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * factor).sin()).collect()
    }

    /// The outputs, computed with one of the instruction sets; none if this machine lacks it.
    fn outputs(simd: Option<impl Simd>) -> Option<Vec<f32>> {
        let (x, w) = (numbers(G.h * G.w * G.c, 0.37), numbers(G.k * 9 * G.c, 0.73));
        let mut panels = vec![0.0; G.packed_len()];
        pack(&G, &mut panels, |k, c, r, s| w[((k * 3 + r) * 3 + s) * G.c + c]);
        let mut y = vec![f32::NAN; G.p * G.q * G.k];
        let store: Store = Box::new(|_, p, q, column, values: &[f32]| {
            y[(p * G.q + q) * G.k + column..][..values.len()].copy_from_slice(values);
        });
        let mut scratch = vec![0.0; G.scratch_len()];
        let windows = Windows {
            g: &G,
            x: &x,
            images: 1,
            panels: &panels,
            scratch: &mut scratch,
            store,
            elem: PhantomData,
        };
        simd?.vectorize(windows);
        Some(y)
    }

    type Store<'a> = Box<dyn FnMut(usize, usize, usize, usize, &[f32]) + 'a>;

    #[test]
    fn every_instruction_set_gives_the_same_outputs() {
        let scalar = outputs(Some(pulp::Scalar::new())).unwrap();
        #[cfg(target_arch = "x86_64")]
        let others = [outputs(pulp::x86::V3::try_new()), outputs(pulp::x86::V4::try_new())];
        #[cfg(not(target_arch = "x86_64"))]
        let others: [Option<Vec<f32>>; 0] = [];
        for (a, b) in others.iter().flatten().flat_map(|y| y.iter().zip(&scalar)) {
            assert!((a - b).abs() < 1e-4, "{a} and {b}");
        }
        assert!(scalar.iter().any(|y| y.abs() > 1.0));
    }
}
