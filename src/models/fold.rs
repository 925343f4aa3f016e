//! Folding a batch norm in evaluation mode into the convolution before it; and the layouts of filters.

use crate::tensor::Shape;

/// A batch norm as a file stores it: four vectors of one value per channel.
pub struct StoredNorm<'a> {
    /// Scale.
    pub gamma: &'a [f32],
    /// Shift.
    pub beta: &'a [f32],
    /// Running mean.
    pub mean: &'a [f32],
    /// Running variance.
    pub var: &'a [f32],
}

/// Epsilon of every batch norm: PyTorch's default, which torchvision's models use.
pub const BN_EPS: f64 = 1e-5;

/// Weights and bias of the one convolution that equals a convolution with filter `w` (`[k, ...]`, of shape
/// `shape`) and the batch norm after it. With `g = gamma / sqrt(var + eps)`,
/// `gamma (conv(x, w) - mean) / sqrt(var + eps) + beta = conv(x, w * g) + (beta - mean * g)`.
/// Computed in f64, so that rounding happens once, to the engine's scalar.
pub fn fold(shape: Shape, w: &[f32], norm: &StoredNorm) -> (Vec<f64>, Vec<f64>) {
    let gains: Vec<f64> = norm
        .gamma
        .iter()
        .zip(norm.var)
        .map(|(g, v)| f64::from(*g) / (f64::from(*v) + BN_EPS).sqrt())
        .collect();
    let weights = w
        .chunks(shape.per_sample())
        .zip(&gains)
        .flat_map(|(row, g)| row.iter().map(move |v| f64::from(*v) * g));
    let bias = gains
        .iter()
        .zip(norm.beta.iter().zip(norm.mean))
        .map(|(g, (beta, mean))| f64::from(*beta) - f64::from(*mean) * g);
    (weights.collect(), bias.collect())
}

/// A filter from PyTorch's `[k, c, r, s]` to the engine's `[k, r, s, c]`. `shape` is the engine's.
pub fn from_oihw(shape: Shape, w: &[f32]) -> Vec<f32> {
    let [k, r, s, c] = shape.0;
    let mut out = Vec::with_capacity(w.len());
    for k in 0..k {
        for i in 0..r * s {
            out.extend((0..c).map(|c_i| w[(k * c + c_i) * r * s + i]));
        }
    }
    out
}

/// A filter from the engine's `[k, r, s, c]` to PyTorch's `[k, c, r, s]`. `shape` is the engine's.
pub fn to_oihw(shape: Shape, w: &[f32]) -> Vec<f32> {
    let [k, r, s, c] = shape.0;
    let mut out = Vec::with_capacity(w.len());
    for k in 0..k {
        for c_i in 0..c {
            out.extend((0..r * s).map(|i| w[(k * r * s + i) * c + c_i]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_layout_changes_are_inverse() {
        let shape = Shape::new(2, 3, 1, 4);
        let w: Vec<f32> = (0..24).map(|v| v as f32).collect();
        // Element [k=0][c=1][r=2] has index 1 * 3 + 2 = 5 in PyTorch's layout, and r * 4 + c = 9 in ours.
        assert_eq!(from_oihw(shape, &w)[9], 5.0);
        assert_eq!(to_oihw(shape, &from_oihw(shape, &w)), w);
    }

    #[test]
    fn a_folded_convolution_equals_convolution_and_batch_norm() {
        // One channel, 1x1 filter 2, x = 3: conv 6; (6 - 1) / sqrt(4 + 1e-5) * 3 + 0.5 = 8 - tiny.
        let norm = StoredNorm { gamma: &[3.0], beta: &[0.5], mean: &[1.0], var: &[4.0] };
        let (w, b) = fold(Shape::new(1, 1, 1, 1), &[2.0], &norm);
        let direct = (2.0 * 3.0 - 1.0) / (4.0f64 + 1e-5).sqrt() * 3.0 + 0.5;
        assert!((w[0] * 3.0 + b[0] - direct).abs() < 1e-14);
    }
}
