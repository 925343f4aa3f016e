//! Small matrix products of rows that are stored, in f32, for Winograd's convolution (`gemm.rs` gathers its rows).
//!
//! Both have tiles of `P` rows of `V` registers, as many as the machine's registers hold.

use super::vector::with_width;
use pulp::Simd;

/// `out[row][..lanes] = sum_i a[row][i] * b[i]` for `rows` rows, a multiple of 12. `a` is `[rows, depth]` and `b`
/// `[depth, lanes]` with 16 or 32 lanes; the rows of `out` are `stride` apart.
#[inline(always)]
pub fn dense<S: Simd>(
    simd: S,
    [a, b]: [&[f32]; 2],
    [rows, depth, lanes]: [usize; 3],
    out: &mut [f32],
    stride: usize,
) {
    let (ab, sizes) = ([&a[..rows * depth], b], [depth, stride]);
    match (S::F32_LANES, lanes) {
        (16, 16) => rows_of::<S, 12, 1>(simd, ab, sizes, out),
        (16, _) => rows_of::<S, 12, 2>(simd, ab, sizes, out),
        (8, 16) => rows_of::<S, 6, 2>(simd, ab, sizes, out),
        (8, _) => rows_of::<S, 3, 4>(simd, ab, sizes, out),
        (4, 16) => rows_of::<S, 2, 4>(simd, ab, sizes, out),
        (4, _) => rows_of::<S, 1, 8>(simd, ab, sizes, out),
        (_, 16) => rows_of::<S, 1, 16>(simd, ab, sizes, out),
        (_, _) => rows_of::<S, 1, 32>(simd, ab, sizes, out),
    }
}

/// [`dense`], `P` rows of `V` registers at a time.
#[inline(always)]
fn rows_of<S: Simd, const P: usize, const V: usize>(
    simd: S,
    [a, b]: [&[f32]; 2],
    [depth, stride]: [usize; 2],
    out: &mut [f32],
) {
    let b = S::as_simd_f32s(b).0.as_chunks::<V>().0;
    // With the common depths as constants, one register addresses all rows.
    with_width(
        depth,
        #[inline(always)]
        |depth| {
            for (tile, a) in a.chunks_exact(P * depth).enumerate() {
                let mut acc = [[simd.splat_f32s(0.0); V]; P];
                for (i, b) in b[..depth].iter().enumerate() {
                    for (p, acc) in acc.iter_mut().enumerate() {
                        // SAFETY: p < P and i < depth, and `a` has P * depth elements.
                        let a = simd.splat_f32s(unsafe { *a.get_unchecked(p * depth + i) });
                        for j in 0..V {
                            acc[j] = simd.mul_add_e_f32s(a, b[j], acc[j]);
                        }
                    }
                }
                for (p, acc) in acc.iter().enumerate() {
                    let to = &mut out[(tile * P + p) * stride..][..V * S::F32_LANES];
                    S::as_mut_simd_f32s(to).0.copy_from_slice(acc);
                }
            }
        },
    );
}

/// `out[row][..lanes] += sum_i a[i][row] * b[i]`: `a` is `[depth, rows]` with a multiple of 16 rows, `b` `[depth, lanes]`
/// and `out` `[rows, lanes]` with 16 or 32 lanes.
#[inline(always)]
pub fn dense_add<S: Simd>(simd: S, [a, b]: [&[f32]; 2], [rows, depth, lanes]: [usize; 3], out: &mut [f32]) {
    let (ab, sizes) = ([a, b], [rows, depth]);
    // Twice as many sums as a register's latency needs.
    match (S::F32_LANES, lanes) {
        (16, 16) => columns_of::<S, 16, 1>(simd, ab, sizes, out),
        (16, _) => columns_of::<S, 8, 2>(simd, ab, sizes, out),
        (8, 16) => columns_of::<S, 4, 2>(simd, ab, sizes, out),
        (8, _) => columns_of::<S, 2, 4>(simd, ab, sizes, out),
        (4, 16) => columns_of::<S, 2, 4>(simd, ab, sizes, out),
        (4, _) => columns_of::<S, 1, 8>(simd, ab, sizes, out),
        (_, 16) => columns_of::<S, 1, 16>(simd, ab, sizes, out),
        (_, _) => columns_of::<S, 1, 32>(simd, ab, sizes, out),
    }
}

/// [`dense_add`], `P` columns of `a` and `V` registers at a time.
#[inline(always)]
fn columns_of<S: Simd, const P: usize, const V: usize>(
    simd: S,
    [a, b]: [&[f32]; 2],
    [rows, depth]: [usize; 2],
    out: &mut [f32],
) {
    let a = &a[..depth * rows];
    let b = &S::as_simd_f32s(b).0.as_chunks::<V>().0[..depth];
    let out = S::as_mut_simd_f32s(out).0.as_chunks_mut::<V>().0;
    for (tile, out) in out[..rows].as_chunks_mut::<P>().0.iter_mut().enumerate() {
        let mut acc = *out;
        for (a, b) in a.chunks_exact(rows).zip(b) {
            let a = &a[tile * P..][..P];
            for (acc, a) in acc.iter_mut().zip(a) {
                let a = simd.splat_f32s(*a);
                for j in 0..V {
                    acc[j] = simd.mul_add_e_f32s(a, b[j], acc[j]);
                }
            }
        }
        *out = acc;
    }
}
