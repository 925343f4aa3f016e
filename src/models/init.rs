//! Initial values: pure functions of a seed and a tensor's name, so that adding a layer changes no other
//! layer's values.

use crate::device::philox::Draws;
use crate::tensor::Shape;
use sha2::{Digest, Sha256};

/// Gaussian values with standard deviation `sqrt(gain / fan_in)`, for `[k, r, s, c]` filters (He et al. 2015
/// with gain 2).
pub fn he_normal(seed: u64, name: &str, shape: Shape, gain: f64) -> Vec<f32> {
    let std = (gain / shape.per_sample() as f64).sqrt();
    normal(seed, name, shape.elems(), std)
}

/// `elems` Gaussian values with standard deviation `std`.
pub fn normal(seed: u64, name: &str, elems: usize, std: f64) -> Vec<f32> {
    let digest = Sha256::digest(name.as_bytes());
    let stream = u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]);
    let draws = Draws::new(seed, stream, 0);
    let quads = (0..elems.div_ceil(4) as u32).flat_map(|i| draws.normals(i, 0));
    quads.take(elems).map(|v| (v * std) as f32).collect()
}
