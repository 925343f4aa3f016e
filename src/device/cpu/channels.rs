//! Sums over the pixels of NHWC data, one for each channel, in an order that depends only on the sizes.
//!
//! Pixels are cut into at most 32 parts, and a part into blocks. Each block is summed from zero and then
//! added to its part; parts are added in order. The result therefore has the same bits on any number of
//! threads, and its rounding error grows with the root of a block's length instead of the tensor's.

use super::par::{Rows, for_parts};
use super::vector::{vectorised, with_width};
use crate::device::division::Division;
use crate::tensor::Real;
use std::any::TypeId;
use std::ops::Range;

/// Most parts of one reduction, and so the most workers that can share it.
const PARTS: usize = 32;

/// Pixels of a block: 64 rows of 64 channels are 16 KB of f32, which fit the first-level cache.
const BLOCK: usize = 64;

/// Elements of scratch that [`sums`] needs for `width` sums.
pub const fn scratch_len(width: usize) -> usize {
    2 * PARTS * width
}

/// `width` sums over `pixels` pixels, where `block(pixels, sums)` adds a run of pixels to `sums`. Returns
/// the sums, which lie in `scratch`. Write `#[inline(always)]` before the closure, as [`vectorised`]
/// requires.
pub fn sums<R: Real>(
    pixels: usize,
    width: usize,
    scratch: &mut [R],
    block: impl Fn(Range<usize>, &mut [R]) + Sync,
) -> &mut [R] {
    let grain = pixels.div_ceil(PARTS).max(BLOCK);
    let (total, rest) = sums_of_parts([1, pixels], grain, width, scratch, block).split_at_mut(width);
    for part in rest[width..].chunks_exact(2 * width) {
        add(total, part);
    }
    total
}

/// [`sums`] over the pixels of all shares of the batch, of which this process has `pixels`. No part lies across the border
/// between two shares; where those of [`sums`] over the whole batch do not either, the bits are the same.
pub fn sums_of_shares<R: Real>(
    division: Division,
    pixels: usize,
    width: usize,
    scratch: &mut [R],
    block: impl Fn(Range<usize>, &mut [R]) + Sync,
) -> &mut [R] {
    if !division.is_divided() {
        return sums(pixels, width, scratch, block);
    }
    let of_share = pixels / division.own();
    let whole = (pixels * division.processes()).div_ceil(PARTS).max(BLOCK);
    let grain =
        if of_share.is_multiple_of(whole) { whole } else { of_share.div_ceil(of_share.div_ceil(whole)) };
    let parts = sums_of_parts([division.own(), of_share], grain, width, scratch, block);
    let own = parts.chunks_exact(2 * width).flat_map(|part| &part[..width]).copied().collect();
    let all = division.gather(own);
    let total = &mut scratch[..width];
    total.copy_from_slice(&all[..width]);
    all[width..].chunks_exact(width).for_each(|part| add(total, part));
    total
}

/// Sums over parts of at most `grain` of each share's pixels, `[shares][parts][2][width]`; the second half of a part is
/// scratch.
fn sums_of_parts<R: Real>(
    [shares, pixels]: [usize; 2],
    grain: usize,
    width: usize,
    scratch: &mut [R],
    block: impl Fn(Range<usize>, &mut [R]) + Sync,
) -> &mut [R] {
    let parts = pixels.div_ceil(grain);
    let scratch = &mut scratch[..2 * shares * parts * width];
    for_parts(Rows::new(scratch, shares * parts), 1, &|item, sums: Rows<R>| {
        let (total, current) = sums.data.split_at_mut(width);
        let (share, part) = (item / parts * pixels, item % parts);
        let (start, end) = (share + part * grain, share + ((part + 1) * grain).min(pixels));
        total.fill(R::ZERO);
        vectorised(
            #[inline(always)]
            || {
                for first in (start..end).step_by(BLOCK) {
                    current.fill(R::ZERO);
                    block(first..(first + BLOCK).min(end), current);
                    add(total, current);
                }
            },
        );
    });
    scratch
}

/// `a += b`, up to the shorter length.
#[inline(always)]
pub fn add<R: Real>(a: &mut [R], b: &[R]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += *b);
}

/// For each channel of `x` `[pixels, c]`: a value near the mean (`shift`), the mean minus that value
/// (`delta`), and the biased variance (`var`), `[c]` each. Needs `scratch_len(2 * c)` elements of scratch.
///
/// One pass over `x` sums `x - shift` and its square. No digits are lost where the mean is many standard
/// deviations, as they would be in `E[x^2] - E[x]^2`, nor by rounding the mean, because it stays the sum
/// `shift + delta`.
///
/// In a divided batch, of all shares, of which `x` has those of this process.
pub fn channel_stats<R: Real>(
    division: Division,
    x: &[R],
    c: usize,
    scratch: &mut [R],
    shift: &mut [R],
    delta: &mut [R],
    var: &mut [R],
) {
    let pixels = x.len() / c;
    sample_mean(division, x, c, shift);
    let shift = &*shift;
    let sums = sums_of_shares(
        division,
        pixels,
        2 * c,
        scratch,
        #[inline(always)]
        |pixels, sums: &mut [R]| {
            with_width(
                c,
                #[inline(always)]
                |c| {
                    let x = &x[pixels.start * c..pixels.end * c];
                    let (fours, rest) = x.split_at(x.len() / (4 * c) * 4 * c);
                    fours.chunks_exact(4 * c).for_each(|x| add_deviations::<R, 4>(x, c, shift, sums));
                    rest.chunks_exact(c).for_each(|x| add_deviations::<R, 1>(x, c, shift, sums));
                },
            )
        },
    );
    let scale = R::of(1.0 / (pixels * division.processes()) as f64);
    for i in 0..c {
        delta[i] = sums[i] * scale;
        var[i] = (sums[c + i] * scale - delta[i] * delta[i]).max(R::ZERO);
    }
}

/// Adds `x - shift` and its square of `P` pixels to the first and the second `c` sums. With four pixels at once a sum is
/// loaded and stored a fourth as often; the next addition waits for that store.
#[inline(always)]
fn add_deviations<R: Real, const P: usize>(x: &[R], c: usize, shift: &[R], sums: &mut [R]) {
    let (first, second) = sums.split_at_mut(c);
    let (x, first, second, shift) = (&x[..P * c], &mut first[..c], &mut second[..c], &shift[..c]);
    for i in 0..c {
        let (mut sum, mut squares) = (R::ZERO, R::ZERO);
        for p in 0..P {
            let d = x[p * c + i] - shift[i];
            sum += d;
            squares = d.fma(d, squares);
        }
        first[i] += sum;
        second[i] += squares;
    }
}

/// The mean of up to [`BLOCK`] pixels spread over `x`. The step is odd, so that the pixels come from all
/// columns of an image whose width is a power of two, from its borders as well as its interior.
fn sample_mean<R: Real>(division: Division, x: &[R], c: usize, mean: &mut [R]) {
    let pixels = x.len() / c * division.processes();
    let count = pixels.min(BLOCK);
    let step = (pixels / count) | 1;
    mean.fill(R::ZERO);
    let at = |i: usize| i * step % pixels * c;
    match division.ranks() {
        None => (0..count).for_each(|i| add(mean, &x[at(i)..])),
        Some(ranks) => {
            // Each pixel is one rank's, and zero in the others.
            let (first, mut sampled) = (ranks.rank() * x.len(), vec![R::ZERO; count * c]);
            for (i, pixel) in sampled.chunks_exact_mut(c).enumerate() {
                let own = at(i).checked_sub(first).and_then(|own| x.get(own..own + c));
                own.into_iter().for_each(|own| pixel.copy_from_slice(own));
            }
            ranks.add(&mut sampled);
            sampled.chunks_exact(c).for_each(|pixel| add(mean, pixel));
        }
    }
    let scale = R::of(1.0 / count as f64);
    mean.iter_mut().for_each(|m| *m *= scale);
}

/// The mean over the pixels of one image `[pixels, c]`, for each of the `c` elements of `mean`.
pub fn image_mean<R: Real>(image: &[R], mean: &mut [R]) {
    let c = mean.len();
    mean.fill(R::ZERO);
    vectorised(
        #[inline(always)]
        || image.chunks_exact(c).for_each(|pixel| add(mean, pixel)),
    );
    let scale = R::of(c as f64 / image.len() as f64);
    mean.iter_mut().for_each(|m| *m *= scale);
}

/// `sum_i a[i] * b[i]`, as sixteen interleaved sums. Call short ones within one [`vectorised`]: with a choice of the
/// instruction set for each, the filters' forward of 64x2x2x128 took 90 us instead of 60.
#[inline(always)]
pub fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    let mut sums = [R::ZERO; 16];
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] = a[i].fma(b[i], sums[i]);
        }
    }
    let mut rest = R::ZERO;
    for (a, b) in a_rest.iter().zip(b_rest) {
        rest += *a * *b;
    }
    // The op checks' naive f32, from which the bound on a device's error comes, adds in order.
    if TypeId::of::<R>() != TypeId::of::<f32>() {
        return sums.into_iter().sum::<R>() + rest;
    }
    // In halves, which are vectors too: one after the other, each of the 16 additions would wait for the one before.
    let (mut eight, mut four) = ([R::ZERO; 8], [R::ZERO; 4]);
    for i in 0..8 {
        eight[i] = sums[i] + sums[i + 8];
    }
    for i in 0..4 {
        four[i] = eight[i] + eight[i + 4];
    }
    (four[0] + four[2]) + (four[1] + four[3]) + rest
}

/// `y += sum_i a(i) * x(i)`, where `term(i)` gives the number and the row. Call it within [`vectorised`].
///
/// With four rows at once y is loaded and stored a fourth as often; the next addition waits for that store.
#[inline(always)]
pub fn axpys<'a, R: Real>(terms: usize, term: impl Fn(usize) -> (R, &'a [R]), y: &mut [R]) {
    let n = y.len();
    for first in (0..terms / 4 * 4).step_by(4) {
        let [(a, x), (b, x1), (c, x2), (d, x3)] =
            [term(first), term(first + 1), term(first + 2), term(first + 3)];
        let (x, x1, x2, x3) = (&x[..n], &x1[..n], &x2[..n], &x3[..n]);
        for i in 0..n {
            y[i] = d.fma(x3[i], c.fma(x2[i], b.fma(x1[i], a.fma(x[i], y[i]))));
        }
    }
    for i in terms / 4 * 4..terms {
        let (a, x) = term(i);
        y.iter_mut().zip(x).for_each(|(y, x)| *y = a.fma(*x, *y));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37).sin() + (i % 3) as f32 * 100.0).collect()
    }

    #[test]
    fn channel_stats_match_two_passes_in_f64() {
        for (pixels, c) in [(1, 1), (2, 3), (63, 6), (65, 9), (5000, 3), (20011, 6)] {
            let x = wave(pixels * c);
            let mut scratch = vec![f32::NAN; scratch_len(2 * c)];
            let [mut shift, mut delta, mut var] = [(); 3].map(|_| vec![f32::NAN; c]);
            channel_stats(Division::default(), &x, c, &mut scratch, &mut shift, &mut delta, &mut var);
            for ch in 0..c {
                let v: Vec<f64> = x.iter().skip(ch).step_by(c).map(|v| f64::from(*v)).collect();
                let mean = v.iter().sum::<f64>() / pixels as f64;
                let want = v.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / pixels as f64;
                assert!((f64::from(shift[ch]) + f64::from(delta[ch]) - mean).abs() < 1e-6, "{pixels} x {c}");
                assert!((f64::from(var[ch]) - want).abs() < 1e-6 * want.max(1e-3), "{pixels} x {c}: {want}");
            }
        }
    }

    #[test]
    fn the_same_bits_on_any_number_of_threads() {
        let (pixels, c) = (10007, 5);
        let x = wave(pixels * c);
        let run = || {
            let mut scratch = vec![0.0; scratch_len(c)];
            sums(pixels, c, &mut scratch, |p, s: &mut [f32]| {
                x[p.start * c..p.end * c].chunks_exact(c).for_each(|row| add(s, row));
            })
            .to_vec()
        };
        let threads = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        let one = threads(1).install(run);
        assert!((2..6).all(|n| threads(n).install(run) == one));
    }

    #[test]
    fn dot_and_axpys_reach_every_element() {
        for n in [0, 1, 15, 16, 17, 50] {
            let a: Vec<f64> = (0..n).map(|i| i as f64).collect();
            let mut y = vec![1.0; n];
            axpys(1, |_| (2.0, &a[..]), &mut y);
            let mut z = [1.0, 2.0];
            axpys(n, |i| (a[i], &[1.0, 2.0]), &mut z);
            assert_eq!(z[1], 2.0 + a.iter().sum::<f64>() * 2.0);
            assert_eq!(dot(&a, &y), (0..n).map(|i| (i * (2 * i + 1)) as f64).sum::<f64>());
        }
    }
}
