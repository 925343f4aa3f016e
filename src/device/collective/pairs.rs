//! Sums whose halves are the sums of other processes.

use crate::tensor::Real;

/// Adds equal parts of `data` in pairs, `(0 + 1) + (2 + 3)`, and returns the sum, which replaces the first part. The parts of
/// the first half add up to what they would alone, so that two processes with a half each get the same bits.
pub fn add_in_pairs<R: Real>(data: &mut [R], parts: usize) -> &mut [R] {
    let len = data.len() / parts;
    let mut apart = 1;
    while apart < parts {
        for first in (0..parts - apart).step_by(2 * apart) {
            let (a, b) = data.split_at_mut((first + apart) * len);
            a[first * len..][..len].iter_mut().zip(b).for_each(|(a, b)| *a += *b);
        }
        apart *= 2;
    }
    &mut data[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_add_up_to_the_bits_of_the_whole() {
        let value = |i: usize| (i as f32 * 0.7).sin() * 1e3;
        for len in [1, 5] {
            let mut whole: Vec<f32> = (0..4 * len).map(value).collect();
            let mut halves = whole.clone();
            let whole = add_in_pairs(&mut whole, 4);
            let (a, b) = halves.split_at_mut(2 * len);
            let mut sums = [add_in_pairs(a, 2).to_vec(), add_in_pairs(b, 2).to_vec()].concat();
            assert_eq!(whole, add_in_pairs(&mut sums, 2));
            let plain = (0..4).map(|part| value(part * len)).sum::<f32>();
            assert!((whole[0] - plain).abs() < 1e-3, "{} and {plain}", whole[0]);
        }
        assert_eq!(add_in_pairs(&mut [1.0f32, 2.0, 4.0], 3), [7.0]);
    }
}
