//! Long sums in `f64`, in an order that depends only on the length.

use super::par::SERIAL_ELEMS;
use std::ops::Range;

/// Sums `K` series of `n` terms at once; `leaf` sums one range. The ranges and the tree that adds them
/// depend only on `n`, so that any number of threads gives the same bits. Nothing is allocated.
pub fn sum<const K: usize>(n: usize, leaf: &(impl Fn(Range<usize>) -> [f64; K] + Sync)) -> [f64; K] {
    fn go<const K: usize>(r: Range<usize>, leaf: &(impl Fn(Range<usize>) -> [f64; K] + Sync)) -> [f64; K] {
        if r.len() <= SERIAL_ELEMS {
            return leaf(r);
        }
        let middle = r.start + r.len().div_ceil(SERIAL_ELEMS) / 2 * SERIAL_ELEMS;
        let (a, b) = rayon::join(|| go(r.start..middle, leaf), || go(middle..r.end, leaf));
        std::array::from_fn(|k| a[k] + b[k])
    }
    go(0..n, leaf)
}

/// The sum of `term(i)` for i from 0 to `n - 1`.
pub fn sum_of(n: usize, term: impl Fn(usize) -> f64 + Sync) -> f64 {
    sum(n, &|range| [range.map(&term).sum()])[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_every_term_once_on_any_number_of_threads() {
        for n in [0, 1, SERIAL_ELEMS, SERIAL_ELEMS + 1, 5 * SERIAL_ELEMS + 7] {
            assert_eq!(sum_of(n, |i| i as f64), (n * n.saturating_sub(1) / 2) as f64, "{n} terms");
        }
        let rough = || sum_of(7 * SERIAL_ELEMS + 3, |i| 1.0 / (i as f64 + 0.3));
        let threads = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        let one = threads(1).install(rough);
        assert!((2..6).all(|n| threads(n).install(rough).to_bits() == one.to_bits()));
    }
}
