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
use crate::device::cpu::dense::dense;
use crate::device::cpu::gemm;
use crate::device::cpu::par::{Rows, for_parts};
use crate::device::cpu::vector::{dispatch, load, store, vectorised, with_width};
use crate::tensor::Real;
use pulp::{Simd, WithSimd};
use std::any::TypeId;
use std::marker::PhantomData;

/// Places of a transformed tile.
pub const PLACES: usize = 16;

/// Channels that are transformed together: an AVX-512 register of f32.
pub const LANES: usize = 16;

/// Tiles that are transformed and multiplied together: the 12 rows of a product. With 16 channels the transformed tiles,
/// the products and the filters then fit the first-level cache together (24 tiles took 3 % longer); with 32 and more channels
/// 24 and more tiles were no faster.
pub const BLOCK_TILES: usize = 12;

/// The images `[h, w, c]` and outputs `[p, q, k]` of a convolution with 3x3 filters and stride 1.
#[derive(Clone, Copy)]
pub struct Tiling {
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub p: usize,
    pub q: usize,
    pub k: usize,
    /// Zeros before the first row and column.
    pub pad: usize,
}

impl Tiling {
    /// Of a convolution; none if its filters are not 3x3 or its stride is not 1.
    pub fn of(d: &Dims) -> Option<Tiling> {
        let Dims { h, w, c, p, q, k, pad, .. } = *d;
        ([d.r, d.s, d.stride] == [3, 3, 1]).then_some(Tiling { h, w, c, p, q, k, pad })
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
        PLACES * (plane(self.c) + plane(self.k)) + self.line()
    }
    /// Elements of a row of x.
    pub fn line(&self) -> usize {
        self.w * self.c
    }
    /// Tiles of an image.
    pub fn tiles(&self) -> usize {
        self.p.div_ceil(2) * self.q.div_ceil(2)
    }
    /// Moves on by some tiles, which end with a row at the latest.
    #[inline(always)]
    pub fn advance(&self, tile: &mut Tile, tiles: usize) {
        tile.q += 2 * tiles;
        if tile.q >= self.q {
            (tile.p, tile.q) = (tile.p + 2, 0);
        }
        if tile.p >= self.p {
            (tile.image, tile.p) = (tile.image + 1, 0);
        }
    }
}

/// Where a tile lies: its image, and the row and column of its first output.
#[derive(Clone, Copy, Default)]
pub struct Tile {
    pub image: usize,
    pub p: usize,
    pub q: usize,
}

/// Elements from one place of a block's transformed tiles to the next: one cache line more than the tiles have. The 16
/// places would otherwise often be a multiple of 4 KB apart and fall on the same lines of the first-level cache.
pub fn plane(channels: usize) -> usize {
    BLOCK_TILES * channels + LANES
}

/// Transforms filters into panels `[k / lanes][16][c][lanes]`. `tap(k, c, r, s)` is an element of the filters.
pub fn pack<R: Real>(g: &Tiling, panels: &mut [R], tap: impl Fn(usize, usize, usize, usize) -> R + Sync) {
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
/// takes the results, 16 channels at a time. `scratch` has [`Tiling::scratch_len`] elements.
pub fn windows<R: Real>(
    g: &Tiling,
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
    g: &'a Tiling,
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
    fn with_simd<S: Simd>(self, simd: S) {
        let (g, mut finish) = (*self.g, self.store);
        let all = self.images * g.tiles();
        let (v, rest) = self.scratch.split_at_mut(PLACES * plane(g.c));
        let (m, zeros) = rest.split_at_mut(PLACES * plane(g.k));
        zeros.fill(0.0);
        let mut at = Tile::default();
        for first in (0..all).step_by(BLOCK_TILES) {
            let tiles = BLOCK_TILES.min(all - first);
            transform_inputs(simd, &g, self.x, (at, tiles), zeros, v);
            multiply(simd, &g, v, self.panels, m);
            with_width(
                g.k,
                #[inline(always)]
                |k| {
                    for i in 0..tiles {
                        transform_output(
                            simd,
                            k,
                            &m[i * k..],
                            #[inline(always)]
                            |r, s, column, values| {
                                let (p, q) = (at.p + r, at.q + s);
                                if p < g.p && q < g.q {
                                    finish(at.image, p, q, column, bytemuck::cast_slice(values));
                                }
                            },
                        );
                        g.advance(&mut at, 1);
                    }
                },
            );
        }
    }
}

/// Writes `B^T x B` of `tiles` neighbouring tiles to `v`; the first one is `at`. `zeros` stands for the rows above and below
/// the image, and has as many zeros as a row of x has elements.
///
/// Neighbouring tiles have two columns in common, which are loaded and transformed once.
#[inline(always)]
pub fn transform_inputs<S: Simd>(
    simd: S,
    g: &Tiling,
    x: &[f32],
    (mut at, tiles): (Tile, usize),
    zeros: &[f32],
    v: &mut [f32],
) {
    let mut done = 0;
    while done < tiles {
        let run = (g.q - at.q).div_ceil(2).min(tiles - done);
        with_width(
            g.c,
            #[inline(always)]
            |c| {
                let line = g.w * c;
                let mut rows = [&zeros[..line]; 4];
                for (i, row) in rows.iter_mut().enumerate() {
                    let h = (at.p + i).wrapping_sub(g.pad);
                    if h < g.h {
                        *row = &x[(at.image * g.h + h) * line..][..line];
                    }
                }
                transform_run(simd, [c, g.w], rows, at.q.wrapping_sub(g.pad), run, &mut v[done * c..]);
            },
        );
        done += run;
        g.advance(&mut at, run);
    }
}

/// Transforms the tiles of a run: neighbours in one row, whose first column is `left` of `width`.
#[inline(always)]
fn transform_run<S: Simd>(
    simd: S,
    [c, width]: [usize; 2],
    rows: [&[f32]; 4],
    left: usize,
    run: usize,
    v: &mut [f32],
) {
    let plane = plane(c);
    for lane in (0..c).step_by(S::F32_LANES) {
        let mut a = column(simd, rows, [c, width, lane], left);
        let mut b = column(simd, rows, [c, width, lane], left.wrapping_add(1));
        for i in 0..run {
            let next = left.wrapping_add(2 * i + 2);
            let d = column(simd, rows, [c, width, lane], next);
            let e = column(simd, rows, [c, width, lane], next.wrapping_add(1));
            let v = &mut v[i * c + lane..][..(PLACES - 1) * plane + S::F32_LANES];
            for row in 0..4 {
                let places = spread(simd, [a[row], b[row], d[row], e[row]]);
                for j in 0..4 {
                    store(simd, &mut v[(4 * row + j) * plane..], places[j]);
                }
            }
            (a, b) = (d, e);
        }
    }
}

/// `B^T x` of column `w` of four rows: zeros outside the image.
#[inline(always)]
fn column<S: Simd>(simd: S, rows: [&[f32]; 4], [c, width, lane]: [usize; 3], w: usize) -> [S::f32s; 4] {
    if w >= width {
        return [simd.splat_f32s(0.0); 4];
    }
    let at = w * c + lane;
    let [a, b, d, e] = rows;
    spread(simd, [load(simd, &a[at..]), load(simd, &b[at..]), load(simd, &d[at..]), load(simd, &e[at..])])
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
fn multiply<S: Simd>(simd: S, g: &Tiling, v: &[f32], panels: &[f32], m: &mut [f32]) {
    let lanes = gemm::lanes(g.k);
    let places = v.chunks_exact(plane(g.c)).zip(m.chunks_exact_mut(plane(g.k)));
    for (place, (v, m)) in places.enumerate() {
        for panel in 0..g.k / lanes {
            let u = &panels[(panel * PLACES + place) * g.c * lanes..][..g.c * lanes];
            dense(simd, [v, u], [BLOCK_TILES, g.c, lanes], &mut m[panel * lanes..], g.k);
        }
    }
}

/// Computes `A^T m A` of a tile of `k` channels. `finish(row, column, channel, values)` takes its outputs.
#[inline(always)]
fn transform_output<S: Simd>(
    simd: S,
    k: usize,
    m: &[f32],
    mut finish: impl FnMut(usize, usize, usize, &[f32]),
) {
    let (plane, per_lanes) = (plane(k), LANES / S::F32_LANES);
    let zero = simd.splat_f32s(0.0);
    let m = &m[..(PLACES - 1) * plane + k];
    for first in 0..k / LANES {
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
                    store(simd, &mut out[2 * i + j][part * S::F32_LANES..], column[i]);
                }
            }
        }
        for (i, values) in out.iter().enumerate() {
            finish(i / 2, i % 2, first * LANES, values);
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
    const G: Tiling = Tiling { h: 9, w: 10, c: 32, p: 9, q: 10, k: 32, pad: 1 };

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
