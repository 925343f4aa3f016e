//! Batch norm of evaluation-mode networks, folded into the convolution before it.

use crate::tensor::Shape;

/// A batch norm as stored: four vectors of one value per channel.
pub struct StoredNorm<'a> {
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub mean: &'a [f32],
    pub var: &'a [f32],
}

/// PyTorch's default, which torchvision's models use.
pub const BN_EPS: f64 = 1e-5;

/// `gamma (conv(x, w) - mean) / sqrt(var + eps) + beta = conv(x, w * g) + (beta - mean * g)`, `g = gamma / sqrt(var + eps)`,
/// in f64, so that it is exact in the engine's scalar. `w` is `[k, ...]`; returns weights and bias.
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

/// A filter from PyTorch's `[k, c, r, s]` to the engine's `[k, r, s, c]`.
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

/// And back.
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
    fn layouts_are_inverse() {
        let shape = Shape::new(2, 3, 1, 4);
        let w: Vec<f32> = (0..24).map(|v| v as f32).collect();
        // [k=0][c=1][r=2] of PyTorch is element 1 * 3 + 2 = 5; here it stands at (r * 1) * 4 + c = 9.
        assert_eq!(from_oihw(shape, &w)[9], 5.0);
        assert_eq!(to_oihw(shape, &from_oihw(shape, &w)), w);
    }

    #[test]
    fn folding_is_the_batch_norm() {
        // One channel, 1x1 filter 2, x = 3: conv 6; (6 - 1) / sqrt(4 + 1e-5) * 3 + 0.5 = 8 - tiny.
        let norm = StoredNorm { gamma: &[3.0], beta: &[0.5], mean: &[1.0], var: &[4.0] };
        let (w, b) = fold(Shape::new(1, 1, 1, 1), &[2.0], &norm);
        let direct = (2.0 * 3.0 - 1.0) / (4.0f64 + 1e-5).sqrt() * 3.0 + 0.5;
        assert!((w[0] * 3.0 + b[0] - direct).abs() < 1e-14);
    }
}
