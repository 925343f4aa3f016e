//! Error bounds, for results on the CPU and on machines that run kernels.

use super::result::{ResultTensor, coordinates};
use crate::tensor::Elem;

/// Fails unless every element is within `bound` of the expected one, in units of the largest expected
/// magnitude.
pub fn compare(what: &str, found: &ResultTensor, expected: &[f64], bound: f64) {
    let part = found.part;
    assert_eq!(found.values.len(), expected.len(), "{what}: {part}: number of elements");
    let scale = largest(expected.iter().copied()).max(1e-30);
    for (i, (f, e)) in found.values.iter().zip(expected).enumerate() {
        let error = (f - e).abs() / scale;
        assert!(
            error <= bound,
            "{what}: {part} at {:?}: expected {e}, found {f}: off by {error:.2e} of {scale:.3e}, allowed {bound:.1e}",
            coordinates(found.shape, i)
        );
    }
}

/// The spacing of the numbers of a type around 1.
fn epsilon(elem: Elem) -> f64 {
    match elem {
        Elem::F32 => f64::from(f32::EPSILON),
        Elem::Bf16 => 2f64.powi(-7),
    }
}

/// Values as a device stores them.
pub fn round(values: &[f64], elem: Elem) -> Vec<f64> {
    let stored = |v: &f64| match elem {
        Elem::F32 => f64::from(*v as f32),
        Elem::Bf16 => f64::from(half::bf16::from_f32(*v as f32).to_f32()),
    };
    values.iter().map(stored).collect()
}

/// Elements that a channel needs for a bound of its own. The sum behind a single element can cancel, so that
/// its error is large against what is left; among eight elements, one is about as large as the terms that are
/// summed.
const CHANNEL_ELEMENTS: usize = 8;

/// Fails unless a device's result is as close to the reference as a naive computation's.
///
/// `reference` is the host's result in f64, `naive` the host's in naive f32 (`naive.rs`), rounded to `elem` as the
/// device stores it. With eps the spacing of `elem` around 1, the bound is
///
/// `max|device - reference| <= 2 max|naive - reference| + 4 eps max|reference|`,
///
/// over the whole tensor, and again over each channel (the last dimension), so that an error in a channel of
/// small values is not measured by the values of a large one. A channel's bound has one term more, 64 f32
/// roundings of the tensor's largest value: sums over channels are made of terms as large as that, and round
/// as they do.
pub fn compare_calibrated(what: &str, device: &ResultTensor, naive: &[f64], reference: &[f64], elem: Elem) {
    let part = device.part;
    assert_eq!(device.values.len(), reference.len(), "{what}: {part}: number of elements");
    let (c, eps) = (device.shape.c().max(1), epsilon(elem));
    let of_tensor = calibrated_bound(naive, reference, eps, 0, 1);
    let rounding = 64.0 * f64::from(f32::EPSILON) * largest(reference.iter().copied());
    let has_channel_bounds = reference.len() / c >= CHANNEL_ELEMENTS;
    let bounds: Vec<f64> = (0..c)
        .map(|channel| match has_channel_bounds {
            true => of_tensor.min(calibrated_bound(naive, reference, eps, channel, c) + rounding),
            false => of_tensor,
        })
        .collect();
    for (i, (d, r)) in device.values.iter().zip(reference).enumerate() {
        let (error, bound) = ((d - r).abs(), bounds[i % c]);
        assert!(
            error <= bound,
            "{what}: {part} at {:?}: expected {r}, found {d} (the host's naive result: {}): off by {error:.3e}, \
             allowed {bound:.3e}",
            coordinates(device.shape, i),
            naive[i],
        );
    }
}

/// The bound over elements `first`, `first + step`, ...
fn calibrated_bound(naive: &[f64], reference: &[f64], eps: f64, first: usize, step: usize) -> f64 {
    let errors = naive.iter().zip(reference).skip(first).step_by(step).map(|(n, r)| n - r);
    let magnitude = largest(reference.iter().skip(first).step_by(step).copied());
    2.0 * largest(errors) + 4.0 * eps * magnitude
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |m, v| m.max(v.abs()))
}
