//! The matrix micro-kernel behind convolution and linear layers on the CPU: a GEMM whose left rows are *gathered*.
//!
//! `C[m, :] = sum_i A[m, i] * B[i, :]`, where row `m` of `A` is never stored: it is a fixed number of runs of `x`,
//! `A[m, g * len + i] = x[row(m) + runs[g] + i * step]`. With NHWC data a filter row (s, c) is one contiguous run, so
//! forward, input gradient (runs over the output gradient) and weight gradient (runs over pixels, `step` apart) are
//! this one loop: broadcast an element of `x`, multiply-add a vector of `B`, `P x N` accumulators in registers.
//!
//! Measured against im2col + a packed GEMM: see `benches/README.md`.

use crate::tensor::Real;
use std::sync::OnceLock;

/// The gathered operand.
#[derive(Clone, Copy)]
pub struct Gather<'a, R> {
    pub x: &'a [R],
    /// Start of each run, relative to the row's own offset.
    pub runs: &'a [usize],
    /// Elements a run, `step` apart.
    pub len: usize,
    pub step: usize,
}

impl<R> Gather<'_, R> {
    /// Inner dimension of the product.
    pub fn depth(&self) -> usize {
        self.runs.len() * self.len
    }
}

/// Widest panel of `B`: two AVX-512 registers of f32.
pub const MAX_LANES: usize = 32;

/// Lanes of the panels that `columns` columns are cut into.
pub fn lanes(columns: usize) -> usize {
    match columns {
        0..=4 => 4,
        5..=8 => 8,
        9..=16 => 16,
        _ => MAX_LANES,
    }
}

/// Elements of `B` packed into panels: `[panel][depth][lanes]`, short panels padded.
pub fn packed_len(depth: usize, columns: usize) -> usize {
    depth * columns.next_multiple_of(lanes(columns))
}

/// One finished row of one panel: `f(m, first_column, values)`; `values` is cut to the columns that exist.
pub trait Sink<R>: Sync {
    fn row(&mut self, m: usize, column: usize, values: &[R]);
}

/// Multiplies rows `0..rows` of the gathered `a` by packed panel `panel` of `b` (`columns` columns in all).
/// `row(m)` is the offset of row `m` in `a.x`. Rows reach the sink once each, in order within a panel.
pub fn panel<R: Real>(
    a: Gather<R>,
    rows: usize,
    row: impl Fn(usize) -> usize,
    b: &[R],
    columns: usize,
    panel: usize,
    sink: &mut impl Sink<R>,
) {
    let n = lanes(columns);
    let b = &b[panel * a.depth() * n..][..a.depth() * n];
    let cut = (columns - panel * n).min(n);
    dispatch(|| match n {
        4 => sweep::<R, 24, 4>(a, rows, row, b, panel * n, cut, sink),
        8 => sweep::<R, 24, 8>(a, rows, row, b, panel * n, cut, sink),
        16 => sweep::<R, 24, 16>(a, rows, row, b, panel * n, cut, sink),
        _ => sweep::<R, 12, 32>(a, rows, row, b, panel * n, cut, sink),
    });
}

/// Runs `f` compiled for the widest vectors this machine has.
#[inline]
pub fn dispatch<O>(f: impl FnOnce() -> O) -> O {
    static ARCH: OnceLock<pulp::Arch> = OnceLock::new();
    ARCH.get_or_init(pulp::Arch::new).dispatch(f)
}

#[inline(always)]
fn sweep<R: Real, const P: usize, const N: usize>(
    a: Gather<R>,
    rows: usize,
    row: impl Fn(usize) -> usize,
    b: &[R],
    column: usize,
    cut: usize,
    sink: &mut impl Sink<R>,
) {
    let mut m = 0;
    while m < rows {
        if rows - m > 4 {
            tile::<R, P, N>(a, m, rows, &row, b, column, cut, sink);
            m += P;
        } else {
            tile::<R, 4, N>(a, m, rows, &row, b, column, cut, sink);
            m += 4;
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn tile<R: Real, const P: usize, const N: usize>(
    a: Gather<R>,
    first: usize,
    rows: usize,
    row: &impl Fn(usize) -> usize,
    b: &[R],
    column: usize,
    cut: usize,
    sink: &mut impl Sink<R>,
) {
    // Rows past the end repeat the last one and are not stored.
    let offset: [usize; P] = std::array::from_fn(|p| row((first + p).min(rows - 1)));
    let acc = product::<R, P, N>(a, offset, b);
    for (p, values) in acc.iter().enumerate().take(rows - first) {
        sink.row(first + p, column, &values[..cut]);
    }
}

#[inline(always)]
fn product<R: Real, const P: usize, const N: usize>(
    a: Gather<R>,
    offset: [usize; P],
    b: &[R],
) -> [[R; N]; P] {
    let mut acc = [[R::ZERO; N]; P];
    if a.len == 0 || a.runs.is_empty() {
        return acc;
    }
    let far = offset.iter().max().unwrap_or(&0) + a.runs.iter().max().unwrap_or(&0) + (a.len - 1) * a.step;
    assert!(far < a.x.len() && b.len() == a.depth() * N, "gathered product reads outside its operands");
    let mut b = b.as_ptr();
    for run in a.runs {
        for i in 0..a.len {
            let at = run + i * a.step;
            // SAFETY: `b` advances N per inner index, depth() * N == b.len() in all (asserted above).
            let lane = unsafe { &*b.cast::<[R; N]>() };
            b = unsafe { b.add(N) };
            for p in 0..P {
                // SAFETY: at most `far`, which is inside `x` (asserted above).
                let v = unsafe { *a.x.get_unchecked(offset[p] + at) };
                for j in 0..N {
                    acc[p][j] = v.fma(lane[j], acc[p][j]);
                }
            }
        }
    }
    acc
}
