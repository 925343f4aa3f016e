//! The linear gradient of a loss, which an op adds to the gradient of its input 0 (`ops::fusion::LinearGrad`).

use crate::tensor::Shape;

/// Where the sum goes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Place {
    /// To the gradient of input 0.
    There,
    /// To a buffer of its own; the gradient of input 0 stays without it.
    Apart,
}

/// The gradient of the loss.
pub const DLOSS: f32 = 0.5;

/// A whole number of eighths between -2 and 2, as from a hash, which every type represents.
fn draw(i: usize, salt: u32) -> f64 {
    let hash = (i as u32).wrapping_add(salt).wrapping_mul(2_654_435_761) >> 13;
    f64::from(hash % 33) / 8.0 - 2.0
}

/// The loss's map, for an input of this shape.
pub fn u(shape: Shape) -> Vec<f64> {
    (0..shape.elems()).map(|i| draw(i, 7)).collect()
}

/// Shift, slope and offset of each channel.
pub fn coefficients(c: usize) -> Vec<f64> {
    (0..3 * c).map(|i| draw(i, 11)).collect()
}

/// Adds the loss's gradient to values of this shape.
pub fn add(shape: Shape, values: &mut [f64]) {
    let (c, of) = (shape.c(), coefficients(shape.c()));
    for (i, (v, u)) in values.iter_mut().zip(u(shape)).enumerate() {
        let (shift, slope, offset) = (of[i % c], of[c + i % c], of[2 * c + i % c]);
        *v += f64::from(DLOSS) * (slope * (u - shift) + offset);
    }
}
