//! The matrix micro-kernel of convolution and linear layers on the CPU: a GEMM whose left rows are
//! *gathered*.
//!
//! `C[m, :] = sum_i A[m, i] * B[i, :]`, where row `m` of `A` is never stored. It is a fixed number of runs
//! of `x`: `A[m, g * len + i] = x[row(m) + runs[g] + i * step]`. With NHWC data a filter row (s, c) is one
//! contiguous run. Forward, the input gradient (runs over the output gradient) and the weight gradient (runs
//! over pixels, `step` apart) are therefore the same loop: broadcast an element of `x`, multiply it by a
//! vector of `B`, and add to `P x N` accumulators in registers.
//!
//! With AVX-512, tiles have 12 rows, whose pointers just fit the general registers. With 24 rows of one
//! vector, each pointer was loaded again at every step (64x16x16x16 -> 16, 3x3: 1143 us instead of 854,
//! measured in one run).

use super::vector::dispatch;
use crate::tensor::Real;
use pulp::{Simd, WithSimd};
use std::any::TypeId;

/// The gathered operand.
#[derive(Clone, Copy)]
pub struct Gather<'a, R> {
    /// The elements that runs are taken from.
    pub x: &'a [R],
    /// Start of each run, relative to the row's own offset.
    pub runs: &'a [usize],
    /// Elements of a run.
    pub len: usize,
    /// Distance of a run's elements in `x`.
    pub step: usize,
    /// The row of `B` that the first element of the first run is multiplied by.
    pub b_first: usize,
    /// Rows of `B` from one run's first to the next run's first. A product may leave out rows of `B`.
    pub b_step: usize,
}

impl<R> Gather<'_, R> {
    /// Rows of `B` from the first that is used to the last.
    fn b_rows(&self) -> std::ops::Range<usize> {
        if self.runs.is_empty() || self.len == 0 {
            return 0..0;
        }
        self.b_first..self.b_first + (self.runs.len() - 1) * self.b_step + self.len
    }
}

/// Widest panel of `B`: two AVX-512 registers of f32.
pub const MAX_LANES: usize = 32;

/// Lanes of the panels that `columns` columns are cut into.
pub fn lanes(columns: usize) -> usize {
    if columns <= 16 { 16 } else { MAX_LANES }
}

/// Elements of `B` packed into panels: `[panel][depth][lanes]`, short panels padded.
pub fn packed_len(depth: usize, columns: usize) -> usize {
    depth * columns.next_multiple_of(lanes(columns))
}

/// What becomes of the product's rows.
pub trait Sink<R> {
    /// Takes row `m` of one panel, from `column` on; `values` has only the columns that exist.
    fn row(&mut self, m: usize, column: usize, values: &[R]);
}

/// Multiplies rows `0..rows` of the gathered `a` by the packed panel `panel` of `b`, which has `depth` rows
/// and `columns` columns in all panels together. `row(m)` is the offset of row `m` in `a.x`, asked once for each
/// row, in order. The sink gets each row once, in order too, and is returned: through a reference, its fields would be
/// loaded again for every row.
#[allow(clippy::too_many_arguments)]
pub fn panel<R: Real, S: Sink<R>>(
    a: Gather<R>,
    rows: usize,
    row: impl FnMut(usize) -> usize,
    b: &[R],
    depth: usize,
    columns: usize,
    panel: usize,
    sink: S,
) -> S {
    let lanes = lanes(columns);
    let b = &b[panel * depth * lanes..][..depth * lanes];
    let cut = (columns - panel * lanes).min(lanes);
    dispatch(Panel { a, rows, row, b, lanes, column: panel * lanes, cut, sink })
}

/// The arguments of [`panel`] as a type, whose body is compiled once for each instruction set.
struct Panel<'a, R, F, S> {
    a: Gather<'a, R>,
    rows: usize,
    row: F,
    b: &'a [R],
    lanes: usize,
    column: usize,
    cut: usize,
    sink: S,
}

impl<R: Real, F: FnMut(usize) -> usize, K: Sink<R>> WithSimd for Panel<'_, R, F, K> {
    type Output = K;
    /// Tiles have as many rows as the registers allow: accumulators, one row of `B` and one broadcast
    /// element.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> K {
        let is = |t: TypeId| TypeId::of::<R>() == t;
        if is(TypeId::of::<f64>()) {
            let lanes = self.lanes;
            return self.sweep::<12>(Doubles { lanes });
        }
        match (is(TypeId::of::<f32>()), S::F32_LANES, self.lanes) {
            (true, 16, 16) => self.sweep::<12>(Vectors::<S, 1>(simd)),
            (true, 16, _) => self.sweep::<12>(Vectors::<S, 2>(simd)),
            (true, 8, 16) => self.sweep::<6>(Vectors::<S, 2>(simd)),
            (true, 8, _) => self.sweep::<3>(Vectors::<S, 4>(simd)),
            (_, _, 16) => self.sweep::<4>(Plain::<16>),
            (_, _, _) => self.sweep::<4>(Plain::<32>),
        }
    }
}

impl<R: Real, F: FnMut(usize) -> usize, K: Sink<R>> Panel<'_, R, F, K> {
    #[inline(always)]
    fn sweep<const P: usize>(mut self, product: impl Product<R>) -> K {
        let mut out = [R::ZERO; MAX_TILE];
        for first in (0..self.rows).step_by(P) {
            let left = (self.rows - first).min(P);
            if left > 8 || P < 8 {
                let offsets = self.offsets::<P>(first);
                product.tile(&self.a, offsets, self.b, &mut out);
            } else if left > 4 {
                let offsets = self.offsets::<8>(first);
                product.tile(&self.a, offsets, self.b, &mut out);
            } else {
                let offsets = self.offsets::<4>(first);
                product.tile(&self.a, offsets, self.b, &mut out);
            }
            for (p, values) in out.chunks(self.lanes).take(left).enumerate() {
                self.sink.row(first + p, self.column, &values[..self.cut]);
            }
        }
        self.sink
    }
    /// The offsets of rows `first..first + P`. Rows after the last one repeat it and are not stored. (The closure of
    /// `array::from_fn` would not be inlined.)
    #[inline(always)]
    fn offsets<const P: usize>(&mut self, first: usize) -> [usize; P] {
        let (mut offsets, mut last) = ([0; P], 0);
        for (p, offset) in offsets.iter_mut().enumerate() {
            if first + p < self.rows {
                last = (self.row)(first + p);
            }
            *offset = last;
        }
        offsets
    }
}

/// Largest tile: 12 rows of 32.
const MAX_TILE: usize = 384;

/// A way to multiply a tile of `P` rows.
trait Product<R> {
    /// `out[p][lane] = sum_i a[offset[p], i] * b[i][lane]`
    fn tile<const P: usize>(&self, a: &Gather<R>, offset: [usize; P], b: &[R], out: &mut [R]);
}

/// Panics if the tile would read outside one of its operands.
#[inline(always)]
fn check_bounds<R>(a: &Gather<R>, offset: &[usize], b: &[R], lanes: usize) {
    let far =
        offset.iter().max().unwrap_or(&0) + a.runs.iter().max().unwrap_or(&0) + (a.len.max(1) - 1) * a.step;
    let rows = a.b_rows();
    assert!(
        rows.is_empty() || (far < a.x.len() && rows.end * lanes <= b.len()),
        "gathered product reads outside its operands"
    );
}

/// Products in f32, with `V` vector registers for each row.
struct Vectors<S, const V: usize>(S);

impl<R: Real, S: Simd, const V: usize> Product<R> for Vectors<S, V> {
    #[inline(always)]
    fn tile<const P: usize>(&self, a: &Gather<R>, offset: [usize; P], b: &[R], out: &mut [R]) {
        let simd = self.0;
        check_bounds(a, &offset, b, V * S::F32_LANES);
        let x: &[f32] = bytemuck::cast_slice(a.x);
        // One pointer for each row and one shared index, which the addressing modes allow and the registers
        // hold.
        let row_start = offset.map(|at| x.as_ptr().wrapping_add(at));
        let rows = S::as_simd_f32s(bytemuck::cast_slice(b)).0.as_chunks::<V>().0;
        let mut acc = [[simd.splat_f32s(0.0); V]; P];
        for (i, run) in a.runs.iter().enumerate() {
            let mut at = *run;
            for row in &rows[a.b_first + i * a.b_step..][..a.len] {
                for p in 0..P {
                    // SAFETY: inside `x`: `check_bounds` has checked the last element that any row reads.
                    let v = simd.splat_f32s(unsafe { *row_start[p].add(at) });
                    for j in 0..V {
                        acc[p][j] = simd.mul_add_e_f32s(v, row[j], acc[p][j]);
                    }
                }
                at += a.step;
            }
        }
        let out = S::as_mut_simd_f32s(bytemuck::cast_slice_mut(out)).0.as_chunks_mut::<V>().0;
        for (out, acc) in out.iter_mut().zip(acc) {
            *out = acc;
        }
    }
}

/// Products in plain arithmetic, with `N` lanes: f32 on machines without vector units, and the naive f32 of the op
/// checks.
struct Plain<const N: usize>;

impl<R: Real, const N: usize> Product<R> for Plain<N> {
    #[inline(always)]
    fn tile<const P: usize>(&self, a: &Gather<R>, offset: [usize; P], b: &[R], out: &mut [R]) {
        check_bounds(a, &offset, b, N);
        let mut acc = [[R::ZERO; N]; P];
        let rows = b.as_chunks::<N>().0;
        for (g, run) in a.runs.iter().enumerate() {
            for (i, row) in rows[a.b_first + g * a.b_step..][..a.len].iter().enumerate() {
                for p in 0..P {
                    let v = a.x[offset[p] + run + i * a.step];
                    for j in 0..N {
                        acc[p][j] += v * row[j];
                    }
                }
            }
        }
        out[..P * N].copy_from_slice(acc.as_flattened());
    }
}

/// Products in f64, with which tests check those in f32. A library computes them, because a build without
/// optimisation optimises its dependencies: in plain loops they took three quarters of the 189 s that
/// `cargo test --lib conv2d` took.
struct Doubles {
    lanes: usize,
}

impl<R: Real> Product<R> for Doubles {
    fn tile<const P: usize>(&self, a: &Gather<R>, offset: [usize; P], b: &[R], out: &mut [R]) {
        let (n, len) = (self.lanes, a.len);
        check_bounds(a, &offset, b, n);
        let (x, b): (&[f64], &[f64]) = (bytemuck::cast_slice(a.x), bytemuck::cast_slice(b));
        let out = &mut bytemuck::cast_slice_mut::<R, f64>(out)[..P * n];
        out.fill(0.0);
        let mut left = vec![0.0; P * len];
        for (g, run) in a.runs.iter().enumerate().filter(|_| len > 0) {
            for (row, at) in left.chunks_exact_mut(len).zip(offset) {
                let from = &x[at + run..];
                match a.step {
                    1 => row.copy_from_slice(&from[..len]),
                    step => row.iter_mut().zip(from.iter().step_by(step)).for_each(|(to, v)| *to = *v),
                }
            }
            let right = &b[(a.b_first + g * a.b_step) * n..][..len * n];
            let (depth, columns) = (len as isize, n as isize);
            // SAFETY: `left` holds P rows of `len` elements, `right` `len` rows of `n`, and `out` P rows of
            // `n`; all are contiguous.
            unsafe {
                matrixmultiply::dgemm(
                    P,
                    len,
                    n,
                    1.0,
                    left.as_ptr(),
                    depth,
                    1,
                    right.as_ptr(),
                    columns,
                    1,
                    1.0,
                    out.as_mut_ptr(),
                    columns,
                    1,
                );
            }
        }
    }
}
