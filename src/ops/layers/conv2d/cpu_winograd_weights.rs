//! The filters' gradient of convolutions with 3x3 filters and stride 1 on the CPU. Each pair of channels takes 16
//! multiplications for 2x2 pixels of dz instead of 36.
//!
//! Forward computes `y = A^T ((G w G^T) . (B^T x B)) A` of each tile (`cpu_winograd.rs`), which is linear in w. Its
//! transpose is `dw = G^T (sum over tiles of (A dz A^T) . (B^T x B)) G`: each of the 16 places is a matrix product
//! `[c, tiles] x [tiles, k]`, and the last transform is done once.

use super::cpu_dz::Masked;
use super::cpu_forward::passes;
use super::cpu_parts::Parts;
use super::cpu_winograd::{BLOCK_TILES, LANES, PLACES, Tile, Tiling, plane, transform_inputs};
use crate::device::cpu::dense::dense_add;
use crate::device::cpu::gemm;
use crate::device::cpu::par::{Indices, Rows, for_parts};
use crate::device::cpu::vector::{dispatch, load, store, vectorised};
use crate::ops::operands::{Grad, store_or_add};
use crate::tensor::Real;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Elements of a partial sum.
pub fn partial_len(g: &Tiling) -> usize {
    PLACES * g.c * g.k
}

/// Writes the gradient of the filters of `g`, summed in parts over the images `x`. `partial` holds [`partial_len`]
/// elements for each part.
pub fn weight_gradient<R: Real>(
    g: &Tiling,
    dz: &Masked<R>,
    x: &[R],
    parts: Parts,
    partial: &mut [R],
    dw: Grad<R>,
) {
    let (lanes, items) = (gemm::lanes(g.k), parts.items());
    let partial = &mut partial[..parts.count * partial_len(g)];
    let work = (Indices(items), Rows::new(partial, items));
    for_parts(work, 1, &|item, (_, sums): (Indices, Rows<R>)| {
        let (images, panels) = parts.item(item);
        sums.data.fill(R::ZERO);
        let scratch_len = PLACES * (plane(g.c) + BLOCK_TILES * panels.len() * lanes) + g.line();
        for pass in passes(images.len(), g.p * g.q * g.k) {
            let (from, count) = (images.start + pass.start, pass.len());
            let x = &x[from * g.h * g.w * g.c..][..count * g.h * g.w * g.c];
            dz.with(from * g.p * g.q..(from + count) * g.p * g.q, scratch_len, |dz, scratch| {
                dispatch(Tiles {
                    g,
                    x: bytemuck::cast_slice(x),
                    images: count,
                    dz: bytemuck::cast_slice(dz),
                    panels: panels.clone(),
                    sums: bytemuck::cast_slice_mut(sums.data),
                    scratch: bytemuck::cast_slice_mut(scratch),
                });
            });
        }
    });
    finish(g, partial, parts.count, dw);
}

/// Adds the tiles of some images to a part's sums of some panels, as a type, whose body is compiled once for each
/// instruction set.
struct Tiles<'a> {
    g: &'a Tiling,
    x: &'a [f32],
    images: usize,
    dz: &'a [f32],
    panels: Range<usize>,
    /// `[panel][16][c][lanes]`
    sums: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl WithSimd for Tiles<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let g = self.g;
        let (lanes, count) = (gemm::lanes(g.k), self.panels.len());
        // Transformed tiles: v `[16][tiles][c]`, z `[16][panel][tiles][lanes]`.
        let (v, rest) = self.scratch.split_at_mut(PLACES * plane(g.c));
        let (z, zeros) = rest.split_at_mut(PLACES * BLOCK_TILES * count * lanes);
        zeros.fill(0.0);
        let all = self.images * g.tiles();
        let mut at = Tile::default();
        for first in (0..all).step_by(BLOCK_TILES) {
            let tiles = BLOCK_TILES.min(all - first);
            transform_inputs(simd, g, self.x, (at, tiles), zeros, v);
            for i in 0..tiles {
                for (n, panel) in self.panels.clone().enumerate() {
                    let to = &mut z[(n * BLOCK_TILES + i) * lanes..];
                    let channels = panel * lanes..(panel + 1) * lanes;
                    spread_dz(simd, g, self.dz, at, channels, to, count * BLOCK_TILES * lanes);
                }
                g.advance(&mut at, 1);
            }
            for (n, sums) in self.sums.chunks_exact_mut(PLACES * g.c * lanes).enumerate() {
                for (place, sums) in sums.chunks_exact_mut(g.c * lanes).enumerate() {
                    let v = &v[place * plane(g.c)..][..tiles * g.c];
                    let z = &z[(place * count + n) * BLOCK_TILES * lanes..][..tiles * lanes];
                    dense_add(simd, [v, z], [g.c, tiles, lanes], sums);
                }
            }
        }
    }
}

/// Writes `A dz A^T` of the tile at `at`, some of its channels, to `to`, whose places are `plane` elements apart.
#[inline(always)]
fn spread_dz<S: Simd>(
    simd: S,
    g: &Tiling,
    dz: &[f32],
    at: Tile,
    channels: Range<usize>,
    to: &mut [f32],
    plane: usize,
) {
    let zero = simd.splat_f32s(0.0);
    for (lane, channel) in channels.step_by(S::F32_LANES).enumerate() {
        let mut pixels = [[zero; 2]; 2];
        for (r, row) in pixels.iter_mut().enumerate() {
            for (s, pixel) in row.iter_mut().enumerate() {
                let (p, q) = (at.p + r, at.q + s);
                if p < g.p && q < g.q {
                    let from = &dz[((at.image * g.p + p) * g.q + q) * g.k + channel..];
                    *pixel = load(simd, from);
                }
            }
        }
        let [top, bottom] = [widen(simd, pixels[0]), widen(simd, pixels[1])];
        for j in 0..4 {
            for (i, v) in widen(simd, [top[j], bottom[j]]).into_iter().enumerate() {
                store(simd, &mut to[(4 * i + j) * plane + lane * S::F32_LANES..], v);
            }
        }
    }
}

/// One dimension of `A dz`: `d0, d0 + d1, d0 - d1, -d1`.
#[inline(always)]
fn widen<S: Simd>(simd: S, d: [S::f32s; 2]) -> [S::f32s; 4] {
    [d[0], simd.add_f32s(d[0], d[1]), simd.sub_f32s(d[0], d[1]), simd.neg_f32s(d[1])]
}

/// Adds the parts in order and writes `G^T sum G` to dw `[k, 3, 3, c]`.
fn finish<R: Real>(g: &Tiling, partial: &[R], parts: usize, dw: Grad<R>) {
    let (lanes, part_len) = (gemm::lanes(g.k), partial_len(g));
    let write = dw.write;
    for_parts(Rows::new(dw.data, g.k / LANES), 1, &|block, rows: Rows<R>| {
        let (panel, lane) = (block * LANES / lanes, block * LANES % lanes);
        vectorised(
            #[inline(always)]
            || {
                for c in 0..g.c {
                    let (write, mut u) = (write, [[[R::ZERO; LANES]; 4]; 4]);
                    for (place, u) in u.as_flattened_mut().iter_mut().enumerate() {
                        // (`chunks_exact` would divide for each place, which took two thirds of this function.)
                        let at = ((panel * PLACES + place) * g.c + c) * lanes + lane;
                        for part in 0..parts {
                            let part = &partial[part * part_len + at..][..LANES];
                            u.iter_mut().zip(part).for_each(|(u, v)| *u += *v);
                        }
                    }
                    let (a, b, d, e) = (narrow(&u[0]), narrow(&u[1]), narrow(&u[2]), narrow(&u[3]));
                    for s in 0..3 {
                        let column = narrow(&[a[s], b[s], d[s], e[s]]);
                        for (r, v) in column.iter().enumerate() {
                            for (k, v) in v.iter().enumerate() {
                                store_or_add(write, &mut rows.data[((k * 3 + r) * 3 + s) * g.c + c], *v);
                            }
                        }
                    }
                }
            },
        );
    });
}

/// One dimension of `G^T u` of several filters: `u0 + (u1 + u2) / 2, (u1 - u2) / 2, (u1 + u2) / 2 + u3`.
#[inline(always)]
fn narrow<R: Real>(u: &[[R; LANES]; 4]) -> [[R; LANES]; 3] {
    let half = R::of(0.5);
    let mut w = [[R::ZERO; LANES]; 3];
    for i in 0..LANES {
        let (sum, difference) = ((u[1][i] + u[2][i]) * half, (u[1][i] - u[2][i]) * half);
        w[0][i] = u[0][i] + sum;
        w[1][i] = difference;
        w[2][i] = sum + u[3][i];
    }
    w
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 30 tiles, more than a block has, with half a tile at the right border.
    const G: Tiling = Tiling { h: 9, w: 10, c: 16, p: 9, q: 10, k: 64, pad: 1 };

    /// The sums of the second panel, computed with one of the instruction sets; none if this machine lacks it.
    fn sums(simd: Option<impl Simd>) -> Option<Vec<f32>> {
        let numbers =
            |count: usize, factor: f32| (0..count).map(|i| (i as f32 * factor).sin()).collect::<Vec<_>>();
        let (x, dz) = (numbers(G.h * G.w * G.c, 0.37), numbers(G.p * G.q * G.k, 0.73));
        let mut sums = vec![0.0; partial_len(&G) / 2];
        let mut scratch = vec![0.0; PLACES * (plane(G.c) + BLOCK_TILES * 32) + G.line()];
        let (panels, images) = (1..2, 1);
        simd?.vectorize(Tiles {
            g: &G,
            x: &x,
            images,
            dz: &dz,
            panels,
            sums: &mut sums,
            scratch: &mut scratch,
        });
        Some(sums)
    }

    #[test]
    fn every_instruction_set_gives_the_same_sums() {
        let scalar = sums(Some(pulp::Scalar::new())).unwrap();
        #[cfg(target_arch = "x86_64")]
        let others = [sums(pulp::x86::V3::try_new()), sums(pulp::x86::V4::try_new())];
        #[cfg(not(target_arch = "x86_64"))]
        let others: [Option<Vec<f32>>; 0] = [];
        for (a, b) in others.iter().flatten().flat_map(|s| s.iter().zip(&scalar)) {
            assert!((a - b).abs() < 1e-3, "{a} and {b}");
        }
        assert!(scalar.iter().any(|s| s.abs() > 10.0));
    }
}
