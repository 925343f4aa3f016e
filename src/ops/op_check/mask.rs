//! The mask of the activation in front of an input: a bit per element, set where the activation's derivative
//! is 1.

use crate::tensor::Shape;

/// The derivative where the bit is not set.
pub const SLOPE: f32 = 0.25;

/// A mask for a tensor of this shape, bits as from a hash. Each pixel's bits start on a byte.
pub fn bytes(shape: Shape) -> Vec<u8> {
    let bytes = shape.elems() / shape.c() * shape.c().div_ceil(8);
    (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Multiplies values by the derivative that a mask says.
pub fn apply(mask: &[u8], c: usize, slope: f32, values: &mut [f64]) {
    for (i, v) in values.iter_mut().enumerate() {
        let byte = mask[i / c * c.div_ceil(8) + i % c / 8];
        if byte >> (i % c % 8) & 1 == 0 {
            *v *= f64::from(slope);
        }
    }
}
