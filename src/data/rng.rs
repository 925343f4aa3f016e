//! The random numbers that data sets are made of: SplitMix64 (see [`splitmix`]).
//!
//! Each image draws from a stream of its own, so that a set does not depend on the order in which its images
//! are made, or on the number of threads.

use crate::splitmix;

pub struct Rng(u64);

impl Rng {
    /// The stream of the item `index` of the kind `kind` under `seed`.
    pub fn stream(seed: u64, kind: u64, index: u64) -> Self {
        let mut state = Rng(seed).next();
        for key in [kind, index] {
            state = Rng(state ^ key).next();
        }
        Rng(state)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(splitmix::GAMMA);
        splitmix::mix(self.0)
    }

    /// Uniform in `0..n`, without bias (Lemire, "Fast random integer generation in an interval", 2019). `n`
    /// is positive.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        loop {
            let wide = self.next() as u128 * n as u128;
            // Rejecting the 2^64 mod n smallest low halves leaves each result equally many of the 2^64
            // inputs.
            if wide as u64 >= n.wrapping_neg() % n {
                return (wide >> 64) as usize;
            }
        }
    }

    /// Uniform in [0, 1), with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform from `low` to `high`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// A random permutation of `0..n` (Fisher-Yates).
    pub fn order(&mut self, n: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }

    /// Uniform over the range, both ends included.
    pub fn within(&mut self, range: &std::ops::RangeInclusive<usize>) -> usize {
        range.start() + self.below(range.end() - range.start() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        // The first outputs for seed 1234567, a widely published test vector.
        let mut r = Rng(1234567);
        let expected =
            [6457827717110365317u64, 3203168211198807973, 9817491932198370423, 4593380528125082431];
        assert_eq!([(); 4].map(|()| r.next()), expected);
    }

    #[test]
    fn below_is_uniform_and_in_range() {
        let mut r = Rng::stream(1, 2, 3);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[r.below(7)] += 1;
        }
        // The bound is five standard deviations of 93.
        assert!(counts.iter().all(|c| c.abs_diff(10_000) < 465), "{counts:?}");
        assert_eq!(r.below(1), 0);
        assert!((0..1000).all(|_| (14..=20).contains(&r.within(&(14..=20)))));
    }

    #[test]
    fn streams_differ_in_each_key() {
        let first = |s, k, i| Rng::stream(s, k, i).next();
        let all =
            [first(0, 0, 0), first(1, 0, 0), first(0, 1, 0), first(0, 0, 1), first(1, 1, 0), first(0, 1, 1)];
        for (i, a) in all.iter().enumerate() {
            assert!(!all[..i].contains(a));
        }
    }
}
