//! Comparison of imported weights with the logits that the network gave where it was trained.

use super::Device;
use super::predictor::Predictor;
use crate::error::{Error, Result};
use crate::tensor::ImagesMut;
use crate::weights;
use std::path::Path;

/// The largest difference that rounding explains, in units of the largest logit, or of 1 if that is smaller.
pub const MOST_APART: f32 = 1e-4;

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Probed {
    /// Images that were compared.
    pub images: usize,
    /// The largest difference of two logits.
    pub apart: f32,
    /// The largest logit, or 1 if that is smaller.
    pub scale: f32,
}

/// Compares the logits that the weights give on the CPU with those in the npz `file`: arrays `images`, float32
/// `[n, c, h, w]` in [0, 1] before normalisation, and `logits`, float32 `[n, labels]`.
///
/// Errors: arrays that do not fit the network; logits that differ by more than [`MOST_APART`].
pub fn probe(weights: &Path, file: &Path) -> Result<Probed> {
    let found = weights::load(file)?;
    found.expect_all_read()?;
    let array = |name: &str, expected: &str| {
        let message = || format!("array {name:?}: expected {expected}, found none");
        found.get(name).ok_or_else(|| Error::data(file, message()))
    };
    let images = array("images", "float32 [n, c, h, w] in [0, 1]")?;
    let logits = array("logits", "float32 [n, labels]")?;
    let mut model = Predictor::open(weights, &Device::default())?;
    let ([h, w, c], labels) = (model.image(), model.labels.len());
    let n = images.shape.first().copied().unwrap_or(0);
    if n == 0 {
        return Err(Error::data(file, "array \"images\": expected at least one image, found none"));
    }
    for (name, shape, expected) in
        [("images", &images.shape, vec![n, c, h, w]), ("logits", &logits.shape, vec![n, labels])]
    {
        if *shape != expected {
            let message =
                format!("array {name:?}: {} takes {expected:?}, found {shape:?}", weights.display());
            return Err(Error::data(file, message));
        }
    }
    let ours = model.predict(n, |range, to| {
        let ImagesMut::Inputs(to) = to else {
            return Err(Error::Run("a probe runs on the CPU, which takes inputs".into()));
        };
        for (i, to) in range.zip(to.chunks_exact_mut(h * w * c)) {
            let image = &images.data[i * h * w * c..][..h * w * c];
            for (at, to) in to.iter_mut().enumerate() {
                let (pixel, channel) = (at / c, at % c);
                *to = 2.0 * image[channel * h * w + pixel] - 1.0;
            }
        }
        Ok(())
    })?;
    model.expect_finite(&ours, |i| format!("image {i} of {}", file.display()))?;
    // `f32::max` would ignore a difference that is not a number.
    let larger = |most: f32, d: f32| if d.is_nan() { f32::INFINITY } else { most.max(d) };
    let apart = ours.iter().zip(&logits.data).map(|(a, b)| (a - b).abs()).fold(0.0, larger);
    let scale = logits.data.iter().fold(1.0, |most: f32, l| most.max(l.abs()));
    if apart <= MOST_APART * scale {
        return Ok(Probed { images: n, apart, scale });
    }
    Err(Error::data(
        weights,
        format!(
            "computes other logits than the network that {} was made with: they differ by up to {apart:.2e}, and rounding \
             explains {:.0e}. Names and shapes do not show strides, dilation, kinds of pools, activations and the epsilon of \
             batch norms: compare these with torchvision's ResNet (docs/weights.md)",
            file.display(),
            MOST_APART * scale
        ),
    ))
}
