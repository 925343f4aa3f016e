//! The architecture of a ResNet, without its weights: block kind, stem, widths, depths, and what follows from
//! them.

use super::variant::{Shortcut, Variant};
use crate::error::Result;
use crate::tensor::Shape;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// Torchvision's names of a batch norm's tensors: gamma, beta, running mean, running variance.
pub(super) const NORM_PARTS: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];

/// The kind of a network's residual units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// Two 3x3 convolutions.
    Basic,
    /// A 1x1 convolution to a quarter of the width (or [`Variant::inner_widths`]), a 3x3, and a 1x1 back to
    /// the full width.
    Bottleneck,
}

/// Which convolution of a block's first bottleneck has stride 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StridePlace {
    /// The 3x3: torchvision and timm, known as v1.5.
    #[default]
    #[serde(rename = "3x3")]
    Middle,
    /// The first 1x1: He et al. 2016 and Caffe, known as v1.
    #[serde(rename = "1x1")]
    First,
}

impl StridePlace {
    /// Its spelling in files and configs.
    pub fn in_words(self) -> &'static str {
        match self {
            StridePlace::Middle => "3x3",
            StridePlace::First => "1x1",
        }
    }
}

/// How a network normalises its images: `(p - mean) / std` for pixels p in [0, 1], one number per channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    /// Mean of each channel.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel.
    pub std: Vec<f32>,
}

impl Normalisation {
    /// ImageNet's mean and deviation, which torchvision's and most of timm's weights expect.
    pub fn imagenet() -> Normalisation {
        Normalisation { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] }
    }

    /// Whether it gives the engine's own range, [-1, 1]: mean and deviation of one half.
    pub fn is_identity(&self) -> bool {
        self.mean.iter().chain(&self.std).all(|v| *v == 0.5)
    }

    /// Mean and deviation of one half for `channels` channels.
    pub fn identity(channels: usize) -> Normalisation {
        Normalisation { mean: vec![0.5; channels], std: vec![0.5; channels] }
    }

    /// The numbers, such as `mean 0.5, 0.5 and std 0.25, 0.25`.
    pub fn in_words(&self) -> String {
        let listed = |v: &[f32]| v.iter().map(f32::to_string).collect::<Vec<_>>().join(", ");
        format!("mean {} and std {}", listed(&self.mean), listed(&self.std))
    }

    fn validate(&self, channels: usize) -> Result<(), String> {
        if self.mean.len() != channels || self.std.len() != channels {
            let (mean, std) = (self.mean.len(), self.std.len());
            return Err(format!("expected {channels} means and deviations, found {mean} and {std}"));
        }
        if let Some(v) = self.mean.iter().find(|v| !Self::MEANS.contains(&f64::from(**v))) {
            return Err(format!("expected means from 0 to 1, found {v}"));
        }
        match self.std.iter().find(|v| !Self::STDS.contains(&f64::from(**v))) {
            Some(v) => Err(format!("expected deviations from 0.001 to 10, found {v}")),
            None => Ok(()),
        }
    }

    /// The means that are accepted.
    pub const MEANS: RangeInclusive<f64> = 0.0..=1.0;
    /// The deviations that are accepted. The least in use is 1/255, of networks that take pixels from 0 to
    /// 255.
    pub const STDS: RangeInclusive<f64> = 0.001..=10.0;
}

/// The layers before the first residual unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stem {
    /// Output channels of the convolution.
    pub width: usize,
    /// Side of the square filter, odd.
    pub kernel: usize,
    /// Stride of the convolution.
    pub stride: usize,
    /// Whether a 3x3 max pool of stride 2 follows.
    pub max_pool: bool,
}

/// What a config says of a network: everything but its images and what depends on its weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Architecture {
    /// The kind of the residual units.
    pub block: BlockKind,
    /// The layers before the first block.
    pub stem: Stem,
    /// Output channels of each block.
    pub widths: Vec<usize>,
    /// Residual units in each block.
    pub depths: Vec<usize>,
    /// How it differs from the networks of He et al.
    #[serde(skip_serializing_if = "Variant::is_none")]
    pub variant: Variant,
}

impl Architecture {
    /// Errors: an architecture that no network can have.
    pub fn validate(&self) -> Result<(), String> {
        let Architecture { block, stem, widths, depths, variant } = self.clone();
        // Any image: none of the checks depends on it.
        ResNetSpec { variant, ..ResNetSpec::new(block, [224, 224, 3], stem, widths, depths) }.validate()
    }
}

/// An architecture, as a weights file's metadata holds it under `network`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResNetSpec {
    /// The kind of the residual units.
    pub block: BlockKind,
    /// Height, width and channels of an image.
    pub image: [usize; 3],
    /// The layers before the first block.
    pub stem: Stem,
    /// Output channels of each block ("layer" in torchvision).
    pub widths: Vec<usize>,
    /// Residual units in each block.
    pub depths: Vec<usize>,
    /// Which convolution of a block's first bottleneck has stride 2.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stride: StridePlace,
    /// Normalisation before the stem. The engine's images x are in [-1, 1], so per channel it is
    /// `(x - (2 mean - 1)) / (2 std)`. `None`: the network takes x as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalisation: Option<Normalisation>,
    /// How it differs from the networks of He et al.
    #[serde(default, skip_serializing_if = "Variant::is_none")]
    pub variant: Variant,
}

fn is_default<T: Default + PartialEq>(v: &T) -> bool {
    *v == T::default()
}

/// One convolution with the batch norm after it, by torchvision's names.
pub(super) struct Layer {
    pub(super) conv: String,
    pub(super) norm: String,
    /// Of the filter: `[k, r, s, c]`.
    pub(super) shape: Shape,
    pub(super) stride: usize,
}

/// Convolutions of one residual unit.
pub(super) struct UnitLayers {
    pub(super) body: Vec<Layer>,
    /// Whether a 2x2 average pool comes before the shortcut's convolution.
    pub(super) has_pool: bool,
    pub(super) shortcut: Option<Layer>,
}

impl ResNetSpec {
    /// A network of images in [-1, 1], with torchvision's place for the strides.
    pub fn new(
        block: BlockKind,
        image: [usize; 3],
        stem: Stem,
        widths: Vec<usize>,
        depths: Vec<usize>,
    ) -> ResNetSpec {
        let (stride, variant) = Default::default();
        ResNetSpec { block, image, stem, widths, depths, stride, normalisation: None, variant }
    }

    /// What a config says of it.
    pub fn stated(&self) -> Architecture {
        let ResNetSpec { block, stem, widths, depths, variant, .. } = self.clone();
        Architecture { block, stem, widths, depths, variant }
    }

    /// Number of blocks B.
    pub fn blocks(&self) -> usize {
        self.widths.len()
    }

    /// Shape of `F^b` for a batch of `n`; `F^0` is the image.
    pub fn feature(&self, b: usize, n: usize) -> Shape {
        let [h, w, c] = self.image;
        if b == 0 {
            return Shape::new(n, h, w, c);
        }
        let size = |mut s: usize| {
            s = (s + 2 * (self.stem.kernel / 2) - self.stem.kernel) / self.stem.stride + 1;
            if self.stem.max_pool {
                s = (s - 1) / 2 + 1;
            }
            (1..b).fold(s, |s, _| (s - 1) / 2 + 1)
        };
        Shape::new(n, size(h), size(w), self.widths[b - 1])
    }

    /// Checks that a filter can join this network's features to those of `other` after every block.
    ///
    /// Errors: another image, another number of blocks, or maps of another height or width; the text says which.
    pub fn fits_beside(&self, other: &ResNetSpec) -> Result<(), String> {
        let ([h, w, c], [other_h, other_w, other_c]) = (self.image, other.image);
        if self.image != other.image {
            return Err(format!(
                "expected images of {h} x {w} pixels and {c} channels, found {other_h} x {other_w} and {other_c}"
            ));
        }
        if self.blocks() != other.blocks() {
            return Err(format!("expected {} blocks, found {}", self.blocks(), other.blocks()));
        }
        // Sizes follow from those of the block before, so that a description of many blocks takes no time.
        let [mut expected, mut found] = [self, other].map(|n| [n.feature(1, 1).h(), n.feature(1, 1).w()]);
        for b in 1..=self.blocks() {
            if expected != found {
                let ([h, w], [other_h, other_w]) = (expected, found);
                return Err(format!(
                    "expected maps of {h} x {w} pixels after block {b}, found {other_h} x {other_w}"
                ));
            }
            [expected, found] = [expected, found].map(|sides| sides.map(|side| (side - 1) / 2 + 1));
        }
        Ok(())
    }

    /// Errors: an architecture that no network can have.
    pub fn validate(&self) -> Result<(), String> {
        if self.widths.is_empty() || self.widths.len() != self.depths.len() {
            return Err(format!("{} widths for {} depths", self.widths.len(), self.depths.len()));
        }
        let sizes = self.image.iter().chain(&self.widths).chain(&self.depths);
        let sizes = sizes.chain(self.variant.deep_stem.iter().flatten());
        if sizes
            .chain([&self.stem.width, &self.stem.kernel, &self.stem.stride])
            .any(|v| *v == 0 || *v > 1 << 16)
        {
            return Err("every size must be between 1 and 65536".into());
        }
        if self.stem.kernel.is_multiple_of(2) || self.stem.kernel > 15 {
            return Err(format!("the stem's kernel must be odd and at most 15, found {}", self.stem.kernel));
        }
        match self.block {
            BlockKind::Bottleneck => self.variant.validate_bottlenecks(&self.widths)?,
            BlockKind::Basic if self.variant.inner_widths.is_empty() => {}
            BlockKind::Basic => return Err("inner_widths: basic blocks have none".into()),
        }
        self.normalisation.as_ref().map_or(Ok(()), |n| n.validate(self.image[2]))
    }

    /// Names of the tensors of all blocks. `is_folded` tells whether the convolution of that name has a bias
    /// in place of a batch norm.
    pub fn tensor_names(&self, is_folded: impl Fn(&str) -> bool) -> Vec<String> {
        let mut names = Vec::new();
        for layer in self.layers_of(1..=self.blocks()) {
            names.push(format!("{}.weight", layer.conv));
            if is_folded(&layer.conv) {
                names.push(format!("{}.bias", layer.conv));
            } else {
                names.extend(NORM_PARTS.map(|part| format!("{}.{part}", layer.norm)));
            }
        }
        names
    }

    /// Convolutions of the stem, a deep one's by timm's names.
    pub(super) fn stem_layers(&self) -> Vec<Layer> {
        let Stem { width, kernel, stride, .. } = self.stem;
        let layer = |conv: &str, norm: &str, k: usize, c: usize, stride: usize| Layer {
            conv: conv.into(),
            norm: norm.into(),
            shape: Shape::new(k, kernel, kernel, c),
            stride,
        };
        let channels = self.image[2];
        match self.variant.deep_stem {
            None => vec![layer("conv1", "bn1", width, channels, stride)],
            Some([first, second]) => vec![
                layer("conv1.0", "conv1.1", first, channels, stride),
                layer("conv1.3", "conv1.4", second, first, 1),
                layer("conv1.6", "bn1", width, second, 1),
            ],
        }
    }

    /// Convolutions of block `b` (1-based).
    pub(super) fn block_layers(&self, b: usize) -> Vec<UnitLayers> {
        let out = self.widths[b - 1];
        let mut input = if b == 1 { self.stem.width } else { self.widths[b - 2] };
        let mut units = Vec::new();
        for u in 0..self.depths[b - 1] {
            let stride = if u == 0 && b > 1 { 2 } else { 1 };
            let layer = |i: usize, k: usize, r: usize, c: usize, stride: usize| Layer {
                conv: format!("layer{b}.{u}.conv{i}"),
                norm: format!("layer{b}.{u}.bn{i}"),
                shape: Shape::new(k, r, r, c),
                stride,
            };
            let body = match self.block {
                BlockKind::Basic => vec![layer(1, out, 3, input, stride), layer(2, out, 3, out, 1)],
                BlockKind::Bottleneck => {
                    let mid = self.variant.inner_widths.get(b - 1).copied().unwrap_or(out / 4);
                    let (first, middle) = match self.stride {
                        StridePlace::Middle => (1, stride),
                        StridePlace::First => (stride, 1),
                    };
                    vec![
                        layer(1, mid, 1, input, first),
                        layer(2, mid, 3, mid, middle),
                        layer(3, out, 1, mid, 1),
                    ]
                }
            };
            // Where there is no pool to do, timm has an identity in its place, so the names do not change.
            let (conv, norm, step) = match self.variant.shortcut {
                Shortcut::Strided => (0, 1, stride),
                Shortcut::AveragePool => (1, 2, 1),
            };
            let shortcut = (stride != 1 || input != out).then(|| Layer {
                conv: format!("layer{b}.{u}.downsample.{conv}"),
                norm: format!("layer{b}.{u}.downsample.{norm}"),
                shape: Shape::new(out, 1, 1, input),
                stride: step,
            });
            units.push(UnitLayers { body, has_pool: step != stride, shortcut });
            input = out;
        }
        units
    }

    fn layers_of(&self, blocks: RangeInclusive<usize>) -> Vec<Layer> {
        let mut all = Vec::new();
        for b in blocks {
            all.extend((b == 1).then(|| self.stem_layers()).into_iter().flatten());
            for u in self.block_layers(b) {
                all.extend(u.body);
                all.extend(u.shortcut);
            }
        }
        all
    }

    /// Number of parameters of some blocks as PyTorch counts them: filters, and gamma and beta of the batch
    /// norms.
    pub fn parameters(&self, blocks: RangeInclusive<usize>) -> usize {
        self.layers_of(blocks).iter().map(|l| l.shape.elems() + 2 * l.shape.n()).sum()
    }

    /// Number of parameters of a head for `labels` labels.
    pub fn head_parameters(&self, labels: usize) -> usize {
        (self.widths[self.blocks() - 1] + 1) * labels
    }
}
