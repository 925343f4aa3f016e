//! The ResNet family (He et al. 2016): basic and bottleneck blocks, any stem, widths and depths, taps at block ends.
//!
//! One description serves the demo's small net and ResNet-18 to 152. A network is either *folded* (frozen: batch norm
//! inside the convolutions, eq. 4's discriminators) or *normed* (batch norm as ops of its own: what learns).
//! Tensor names are torchvision's.

use super::fold::{self, StoredNorm};
use super::{Recorder, init};
use crate::autograd::tape::{Learn, Value};
use crate::autograd::{Store, TensorId};
use crate::error::{Error, Result};
use crate::ops::activation::{Act, Activation};
use crate::ops::batch_norm::{BatchNorm, Stats};
use crate::ops::conv2d::Conv2d;
use crate::ops::global_avg_pool::GlobalAvgPool;
use crate::ops::max_pool::MaxPool;
use crate::ops::statistics_loss::StatisticsLoss;
use crate::tensor::{Real, Shape};
use crate::weights::Tensors;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// Two 3x3 convolutions.
    Basic,
    /// 1x1 to a quarter of the width, 3x3, 1x1 back.
    Bottleneck,
}

/// Which convolution of a bottleneck strides where a block begins.
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
    /// As files and configs say it.
    pub fn in_words(self) -> &'static str {
        match self {
            StridePlace::Middle => "3x3",
            StridePlace::First => "1x1",
        }
    }
}

/// What a network takes off its images and divides them by, for pixels from 0 to 1; one number a channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
}

impl Normalisation {
    /// ImageNet's, which torchvision's and most of timm's weights expect.
    pub fn imagenet() -> Normalisation {
        Normalisation { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] }
    }

    /// Whether it leaves images in [-1, 1] as they are.
    pub fn is_identity(&self) -> bool {
        self.mean.iter().chain(&self.std).all(|v| *v == 0.5)
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

    pub const MEANS: std::ops::RangeInclusive<f64> = 0.0..=1.0;
    /// 1/255 is the least in use: networks of pixels from 0 to 255.
    pub const STDS: std::ops::RangeInclusive<f64> = 0.001..=10.0;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stem {
    pub width: usize,
    pub kernel: usize,
    pub stride: usize,
    /// A 3x3 max pool of stride 2 behind it.
    pub max_pool: bool,
}

/// An architecture; what a weights file's metadata holds under `network`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResNetSpec {
    pub block: BlockKind,
    /// Height, width and channels of an image.
    pub image: [usize; 3],
    pub stem: Stem,
    /// Output channels of each block ("layer" in torchvision).
    pub widths: Vec<usize>,
    /// Residual units in each block.
    pub depths: Vec<usize>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub stride: StridePlace,
    /// Of images in [-1, 1], as everything here holds them: `(x - (2 mean - 1)) / (2 std)` per channel before the stem.
    /// `None`: the images as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalisation: Option<Normalisation>,
}

fn is_default<T: Default + PartialEq>(v: &T) -> bool {
    *v == T::default()
}

/// One convolution with the batch norm behind it, by its names.
struct Layer {
    conv: String,
    norm: String,
    shape: Shape,
    stride: usize,
}

/// Convolutions of one residual unit.
struct UnitLayers {
    body: Vec<Layer>,
    shortcut: Option<Layer>,
}

impl ResNetSpec {
    /// A network of images in [-1, 1] that strides where torchvision's do.
    pub fn new(
        block: BlockKind,
        image: [usize; 3],
        stem: Stem,
        widths: Vec<usize>,
        depths: Vec<usize>,
    ) -> ResNetSpec {
        let stride = StridePlace::default();
        ResNetSpec { block, image, stem, widths, depths, stride, normalisation: None }
    }

    /// torchvision's ResNet of 18, 34, 50, 101 or 152 layers.
    pub fn torchvision(depth: usize, size: usize) -> Option<ResNetSpec> {
        let (block, depths) = match depth {
            18 => (BlockKind::Basic, [2, 2, 2, 2]),
            34 => (BlockKind::Basic, [3, 4, 6, 3]),
            50 => (BlockKind::Bottleneck, [3, 4, 6, 3]),
            101 => (BlockKind::Bottleneck, [3, 4, 23, 3]),
            152 => (BlockKind::Bottleneck, [3, 8, 36, 3]),
            _ => return None,
        };
        let w = if block == BlockKind::Basic { [64, 128, 256, 512] } else { [256, 512, 1024, 2048] };
        let stem = Stem { width: 64, kernel: 7, stride: 2, max_pool: true };
        Some(ResNetSpec::new(block, [size, size, 3], stem, w.into(), depths.into()))
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

    /// Fails on a description that no network can have.
    pub fn validate(&self) -> Result<(), String> {
        if self.widths.is_empty() || self.widths.len() != self.depths.len() {
            return Err(format!("{} widths for {} depths", self.widths.len(), self.depths.len()));
        }
        let sizes = self.image.iter().chain(&self.widths).chain(&self.depths);
        if sizes
            .chain([&self.stem.width, &self.stem.kernel, &self.stem.stride])
            .any(|v| *v == 0 || *v > 1 << 16)
        {
            return Err("every size must be between 1 and 65536".into());
        }
        if self.stem.kernel.is_multiple_of(2) || self.stem.kernel > 15 {
            return Err(format!("the stem's kernel must be odd and at most 15, found {}", self.stem.kernel));
        }
        if self.block == BlockKind::Bottleneck && self.widths.iter().any(|w| w % 4 != 0) {
            return Err("bottleneck widths must be multiples of 4".into());
        }
        self.normalisation.as_ref().map_or(Ok(()), |n| n.validate(self.image[2]))
    }

    /// `ResNet-50`, or stem, widths and depths where it has no such name.
    pub fn in_words(&self) -> String {
        let is_depth = |d: &usize| {
            let known = ResNetSpec::torchvision(*d, self.image[0]);
            known.is_some_and(|known| known.architecture() == self.architecture())
        };
        match [18, 34, 50, 101, 152].into_iter().find(is_depth) {
            Some(depth) => format!("ResNet-{depth}"),
            None => {
                let (k, c) = (self.stem.kernel, self.image[2]);
                let block = if self.block == BlockKind::Basic { "basic" } else { "bottleneck" };
                let (widths, depths) = (&self.widths, &self.depths);
                format!(
                    "a ResNet of {block} blocks, widths {widths:?}, depths {depths:?}, a {k}x{k} stem on {c} channels"
                )
            }
        }
    }

    /// What its tensors' shapes follow from, and the stem.
    pub fn architecture(&self) -> (BlockKind, usize, Stem, &[usize], &[usize]) {
        (self.block, self.image[2], self.stem, &self.widths, &self.depths)
    }

    /// Names of the tensors of all blocks; `is_folded` says of a convolution whether a bias stands for its batch norm.
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

    fn stem_layer(&self) -> Layer {
        let k = self.stem.kernel;
        Layer {
            conv: "conv1".into(),
            norm: "bn1".into(),
            shape: Shape::new(self.stem.width, k, k, self.image[2]),
            stride: self.stem.stride,
        }
    }

    /// Convolutions of block `b` (1-based).
    fn block_layers(&self, b: usize) -> Vec<UnitLayers> {
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
                    let mid = out / 4;
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
            let shortcut = (stride != 1 || input != out).then(|| Layer {
                conv: format!("layer{b}.{u}.downsample.0"),
                norm: format!("layer{b}.{u}.downsample.1"),
                shape: Shape::new(out, 1, 1, input),
                stride,
            });
            units.push(UnitLayers { body, shortcut });
            input = out;
        }
        units
    }

    fn layers_of(&self, blocks: std::ops::RangeInclusive<usize>) -> Vec<Layer> {
        let mut all = Vec::new();
        for b in blocks {
            all.extend((b == 1).then(|| self.stem_layer()));
            for u in self.block_layers(b) {
                all.extend(u.body);
                all.extend(u.shortcut);
            }
        }
        all
    }

    /// Parameters of some blocks as PyTorch counts them: filters, and gamma and beta of their batch norms.
    pub fn parameters(&self, blocks: std::ops::RangeInclusive<usize>) -> usize {
        self.layers_of(blocks).iter().map(|l| l.shape.elems() + 2 * l.shape.n()).sum()
    }

    /// Parameters of a head for `labels` labels.
    pub fn head_parameters(&self, labels: usize) -> usize {
        (self.widths[self.blocks() - 1] + 1) * labels
    }
}

/// A convolution's tensors in the store.
#[derive(Clone, Debug)]
struct Conv {
    name: String,
    norm_name: String,
    weight: TensorId,
    stride: usize,
    pad: usize,
    norm: Norm,
}

#[derive(Clone, Debug)]
enum Norm {
    /// Inside the convolution. `targets`: mean and standard deviation that the layer's output had on the training
    /// data (beta and |gamma|), for the statistics loss.
    Folded { bias: TensorId, targets: Option<[TensorId; 2]> },
    /// gamma, beta, running mean, running variance.
    Stored([TensorId; 4]),
}

#[derive(Clone, Debug)]
struct Unit {
    body: Vec<Conv>,
    shortcut: Option<Conv>,
}

/// Blocks `first..=last` of a ResNet, in a store.
#[derive(Clone, Debug)]
pub struct ResNet {
    pub spec: ResNetSpec,
    /// Of block 1, where images are normalised: gamma, beta, mean and variance of [`ResNetSpec::normalisation`].
    normalise: Option<[TensorId; 4]>,
    stem: Option<Conv>,
    /// By block; empty for blocks that this network does not have.
    blocks: Vec<Vec<Unit>>,
    /// Weight and bias of the fully connected layer.
    pub head: Option<[TensorId; 2]>,
}

/// How a network takes part in a recording.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mode {
    pub learn: Learn,
    /// What batch norms normalise by; folded networks have none.
    pub stats: Stats,
}

impl Mode {
    pub const FROZEN: Mode = Mode { learn: Learn::Frozen, stats: Stats::Running };
}

/// PyTorch's default.
const MOMENTUM: f32 = 0.1;

/// Keeps the slope of the standard deviation finite where a channel does not vary over the batch.
const STATISTICS_EPS: f32 = 1e-5;

impl Conv {
    /// Records `act(norm(conv(x)) + residual)`. `watch` collects the batch-statistics losses of folded layers.
    fn record<R: Real>(
        &self,
        r: &mut Recorder<R>,
        x: Value,
        residual: Option<Value>,
        act: Act,
        mode: Mode,
        watch: Option<&mut Vec<Value>>,
    ) -> Result<Value> {
        let w = r.leaf(self.weight, mode.learn);
        let conv = Conv2d::new(self.stride, self.pad);
        match (&self.norm, watch) {
            (Norm::Folded { bias, targets: Some(targets) }, Some(losses)) => {
                let bias = r.leaf(*bias, mode.learn);
                let u = r.apply(Conv2d { bias: true, ..conv }, &[x, w, bias])?;
                let [mean, std] = targets.map(|t| r.leaf(t, Learn::Frozen));
                losses.push(r.apply(StatisticsLoss { eps: STATISTICS_EPS }, &[u, mean, std])?);
                match residual {
                    None if act == Act::None => Ok(u),
                    None => r.apply(Activation(act), &[u]),
                    Some(residual) => r.apply(Activation(act), &[u, residual]),
                }
            }
            (Norm::Folded { bias, .. }, _) => {
                let bias = r.leaf(*bias, mode.learn);
                let operands: Vec<Value> = [x, w, bias].into_iter().chain(residual).collect();
                r.apply(Conv2d { bias: true, residual: residual.is_some(), act, ..conv }, &operands)
            }
            (Norm::Stored(norm), _) => {
                let u = r.apply(conv, &[x, w])?;
                let [gamma, beta] = [norm[0], norm[1]].map(|t| r.leaf(t, mode.learn));
                let [mean, var] = [norm[2], norm[3]].map(|t| r.leaf(t, Learn::Frozen));
                let bn =
                    |act| BatchNorm { stats: mode.stats, act, momentum: MOMENTUM, eps: fold::BN_EPS as f32 };
                match residual {
                    None => r.apply(bn(act), &[u, gamma, beta, mean, var]),
                    Some(residual) => {
                        let y = r.apply(bn(Act::None), &[u, gamma, beta, mean, var])?;
                        r.apply(Activation(act), &[y, residual])
                    }
                }
            }
        }
    }

    fn learning(&self) -> Vec<TensorId> {
        match &self.norm {
            Norm::Folded { bias, .. } => vec![self.weight, *bias],
            Norm::Stored(n) => vec![self.weight, n[0], n[1]],
        }
    }
    fn tensors(&self) -> Vec<TensorId> {
        match &self.norm {
            Norm::Folded { bias, .. } => vec![self.weight, *bias],
            Norm::Stored(n) => [self.weight].into_iter().chain(*n).collect(),
        }
    }
}

/// Where a network's values come from.
pub enum Source<'a> {
    /// A weights file's tensors, torchvision names; taken from the set.
    Tensors(&'a mut Tensors),
    /// Random, from a seed (He et al. 2015); batch norms at gamma 1, beta 0.
    Random(u64),
}

/// Whether batch norms are folded into the convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// Frozen, with the targets of the statistics loss beside each layer.
    Folded,
    /// Batch norms as ops of their own.
    Normed,
}

impl ResNet {
    /// Builds blocks `blocks` (and the head, for `labels` labels) under `prefix` in the store.
    pub fn new<R: Real>(
        store: &mut Store<R>,
        prefix: &str,
        spec: &ResNetSpec,
        blocks: std::ops::RangeInclusive<usize>,
        labels: Option<usize>,
        build: Build,
        mut source: Source,
    ) -> Result<ResNet> {
        let mut conv = |store: &mut Store<R>, layer: &Layer| -> Result<Conv> {
            let values = LayerValues::read(store, layer, &mut source)?;
            Ok(values.place(store, prefix, layer, build))
        };
        let has_stem = *blocks.start() == 1;
        let stem = if has_stem { Some(conv(store, &spec.stem_layer())?) } else { None };
        let normalise =
            spec.normalisation.as_ref().filter(|_| has_stem).map(|n| place_normalisation(store, prefix, n));
        let mut all = vec![Vec::new(); spec.blocks()];
        for b in blocks {
            for unit in spec.block_layers(b) {
                let body = unit.body.iter().map(|l| conv(store, l)).collect::<Result<_>>()?;
                let shortcut = unit.shortcut.as_ref().map(|l| conv(store, l)).transpose()?;
                all[b - 1].push(Unit { body, shortcut });
            }
        }
        let head = match labels {
            None => None,
            Some(labels) => {
                let c = spec.widths[spec.blocks() - 1];
                let (w, b) = match &mut source {
                    Source::Tensors(t) => (t.take("fc.weight", &[labels, c])?, t.take("fc.bias", &[labels])?),
                    Source::Random(seed) => {
                        let shape = Shape::new(labels, 1, 1, c);
                        let draw = || init::he_normal(*seed, "fc.weight", shape, 1.0 / 3.0);
                        (store.drawn(draw), vec![0.0; labels])
                    }
                };
                let weight = store.add_with(&format!("{prefix}.fc.weight"), Shape::new(labels, 1, 1, c), &w);
                Some([weight, store.add_with(&format!("{prefix}.fc.bias"), Shape::vector(labels), &b)])
            }
        };
        Ok(ResNet { spec: spec.clone(), normalise, stem, blocks: all, head })
    }

    /// Records block `b` (1-based; block 1 begins with the images' normalisation and the stem).
    pub fn block<R: Real>(
        &self,
        r: &mut Recorder<R>,
        b: usize,
        mut x: Value,
        mode: Mode,
        mut watch: Option<&mut Vec<Value>>,
    ) -> Result<Value> {
        if let (1, Some(constants)) = (b, self.normalise) {
            // An op of its own: inside the stem's filters it would also move the zeros of the padding.
            let [gamma, beta, mean, var] = constants.map(|t| r.leaf(t, Learn::Frozen));
            let op = BatchNorm { stats: Stats::Running, act: Act::None, momentum: 0.0, eps: 0.0 };
            x = r.apply(op, &[x, gamma, beta, mean, var])?;
        }
        if let (1, Some(stem)) = (b, &self.stem) {
            x = stem.record(r, x, None, Act::Relu, mode, watch.as_deref_mut())?;
            if self.spec.stem.max_pool {
                x = r.apply(MaxPool { window: 3, stride: 2, pad: 1 }, &[x])?;
            }
        }
        for unit in &self.blocks[b - 1] {
            let skip = match &unit.shortcut {
                Some(conv) => conv.record(r, x, None, Act::None, mode, watch.as_deref_mut())?,
                None => x,
            };
            let last = unit.body.len() - 1;
            for (i, conv) in unit.body.iter().enumerate() {
                x = conv.record(r, x, (i == last).then_some(skip), Act::Relu, mode, watch.as_deref_mut())?;
            }
        }
        Ok(x)
    }

    /// Records the head: the pooled features `[n, 1, 1, c]` and the logits `[n, 1, 1, labels]`.
    pub fn head<R: Real>(&self, r: &mut Recorder<R>, x: Value, mode: Mode) -> Result<(Value, Value)> {
        let [w, b] = self.head.ok_or_else(|| Error::Run("this network was built without a head".into()))?;
        let pooled = r.apply(GlobalAvgPool, &[x])?;
        let (w, b) = (r.leaf(w, mode.learn), r.leaf(b, mode.learn));
        let logits = r.apply(Conv2d::linear(), &[pooled, w, b])?;
        Ok((pooled, logits))
    }

    fn convs(&self, blocks: std::ops::RangeInclusive<usize>) -> impl Iterator<Item = &Conv> {
        let stem = (*blocks.start() == 1).then_some(self.stem.as_ref()).flatten();
        let units = self.blocks[blocks.start() - 1..*blocks.end()].iter().flatten();
        stem.into_iter().chain(units.flat_map(|u| u.body.iter().chain(&u.shortcut)))
    }

    /// What an optimiser may change in some blocks: filters, gammas and betas (or biases). The head is not among them.
    pub fn learning(&self, blocks: std::ops::RangeInclusive<usize>) -> Vec<TensorId> {
        self.convs(blocks).flat_map(Conv::learning).collect()
    }

    /// Everything that belongs to the blocks, running estimates included.
    pub fn tensors(&self, blocks: std::ops::RangeInclusive<usize>) -> Vec<TensorId> {
        self.convs(blocks).flat_map(Conv::tensors).collect()
    }

    /// Adds some blocks to `out` under torchvision's names and layouts, as they are or with batch norms folded.
    pub fn export<R: Real>(
        &self,
        store: &Store<R>,
        blocks: std::ops::RangeInclusive<usize>,
        prefix: &str,
        build: Build,
        out: &mut Tensors,
    ) -> Result<()> {
        for conv in self.convs(blocks) {
            let shape = store.shape(conv.weight);
            let [k, r, s, c] = shape.0;
            let w = store.to_f32(conv.weight);
            let norm = match &conv.norm {
                Norm::Stored(n) => Some(n.map(|t| store.to_f32(t))),
                Norm::Folded { .. } => None,
            };
            let (w, bias) = match (&norm, &conv.norm, build) {
                (Some([gamma, beta, mean, var]), _, Build::Folded) => {
                    let (w, b) = fold::fold(shape, &w, &StoredNorm { gamma, beta, mean, var });
                    let narrow = |v: Vec<f64>| v.iter().map(|v| *v as f32).collect::<Vec<_>>();
                    (narrow(w), Some(narrow(b)))
                }
                (_, Norm::Folded { bias, .. }, _) => (w, Some(store.to_f32(*bias))),
                _ => (w, None),
            };
            out.insert(format!("{prefix}{}.weight", conv.name), &[k, c, r, s], fold::to_oihw(shape, &w))?;
            match (bias, norm) {
                (Some(bias), _) => out.insert(format!("{prefix}{}.bias", conv.name), &[k], bias)?,
                (None, Some(norm)) => {
                    for (part, v) in NORM_PARTS.iter().zip(norm) {
                        out.insert(format!("{prefix}{}.{part}", conv.norm_name), &[k], v)?;
                    }
                }
                (None, None) => {}
            }
        }
        Ok(())
    }
}

/// `(x - mean') / sqrt(var')` with mean' = 2 mean - 1 and var' = (2 std)^2: pixels from 0 to 1 are (x + 1) / 2.
fn place_normalisation<R: Real>(store: &mut Store<R>, prefix: &str, n: &Normalisation) -> [TensorId; 4] {
    let channel = |f: fn(f64) -> f64, v: &[f32]| v.iter().map(|v| f(f64::from(*v))).collect::<Vec<f64>>();
    let values = [
        ("gamma", channel(|_| 1.0, &n.mean)),
        ("beta", channel(|_| 0.0, &n.mean)),
        ("mean", channel(|mean| 2.0 * mean - 1.0, &n.mean)),
        ("var", channel(|std| 4.0 * std * std, &n.std)),
    ];
    values.map(|(part, v)| store.add_with(&format!("{prefix}.normalise.{part}"), Shape::vector(v.len()), &v))
}

const NORM_PARTS: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];

/// Values of one convolution, in the engine's layout.
struct LayerValues {
    w: Vec<f32>,
    norm: LayerNorm,
}

enum LayerNorm {
    Stored([Vec<f32>; 4]),
    Folded(Vec<f32>),
}

impl LayerValues {
    fn read<R: Real>(store: &Store<R>, layer: &Layer, source: &mut Source) -> Result<LayerValues> {
        let [k, r, s, c] = layer.shape.0;
        match source {
            Source::Random(seed) => Ok(LayerValues {
                w: store.drawn(|| init::he_normal(*seed, &layer.conv, layer.shape, 2.0)),
                norm: LayerNorm::Stored([vec![1.0; k], vec![0.0; k], vec![0.0; k], vec![1.0; k]]),
            }),
            Source::Tensors(t) => {
                let w =
                    fold::from_oihw(layer.shape, &t.take(&format!("{}.weight", layer.conv), &[k, c, r, s])?);
                let bias = format!("{}.bias", layer.conv);
                let norm = if t.get(&bias).is_some() {
                    LayerNorm::Folded(t.take(&bias, &[k])?)
                } else {
                    let mut part = |p: &str| t.take(&format!("{}.{p}", layer.norm), &[k]);
                    let norm = [
                        part(NORM_PARTS[0])?,
                        part(NORM_PARTS[1])?,
                        part(NORM_PARTS[2])?,
                        part(NORM_PARTS[3])?,
                    ];
                    if let Some(i) = norm[3].iter().position(|v| *v < 0.0) {
                        return Err(Error::data(
                            t.file(),
                            format!(
                                "{}.running_var: expected variances, found {} at {i}",
                                layer.norm, norm[3][i]
                            ),
                        ));
                    }
                    LayerNorm::Stored(norm)
                };
                Ok(LayerValues { w, norm })
            }
        }
    }

    fn place<R: Real>(self, store: &mut Store<R>, prefix: &str, layer: &Layer, build: Build) -> Conv {
        let k = layer.shape.n();
        let full = |name: String| format!("{prefix}.{name}");
        let weight_name = full(format!("{}.weight", layer.conv));
        let bias_name = full(format!("{}.bias", layer.conv));
        let (weight, norm) = match (self.norm, build) {
            (LayerNorm::Folded(bias), _) => {
                let weight = store.add_with(&weight_name, layer.shape, &self.w);
                let bias = store.add_with(&bias_name, Shape::vector(k), &bias);
                (weight, Norm::Folded { bias, targets: None })
            }
            (LayerNorm::Stored([gamma, beta, mean, var]), Build::Folded) => {
                let norm = StoredNorm { gamma: &gamma, beta: &beta, mean: &mean, var: &var };
                let (w, b) = fold::fold(layer.shape, &self.w, &norm);
                let weight = store.add_with(&weight_name, layer.shape, &w);
                let bias = store.add_with(&bias_name, Shape::vector(k), &b);
                let std: Vec<f32> = gamma.iter().map(|g| g.abs()).collect();
                let targets = [("target_mean", &beta), ("target_std", &std)].map(|(part, v)| {
                    store.add_with(&full(format!("{}.{part}", layer.norm)), Shape::vector(k), v)
                });
                (weight, Norm::Folded { bias, targets: Some(targets) })
            }
            (LayerNorm::Stored(parts), Build::Normed) => {
                let weight = store.add_with(&weight_name, layer.shape, &self.w);
                let mut names = NORM_PARTS.iter();
                let ids = parts.map(|v| {
                    let part = names.next().copied().unwrap_or_default();
                    store.add_with(&full(format!("{}.{part}", layer.norm)), Shape::vector(k), &v)
                });
                (weight, Norm::Stored(ids))
            }
        };
        Conv {
            name: layer.conv.clone(),
            norm_name: layer.norm.clone(),
            weight,
            stride: layer.stride,
            pad: layer.shape.h() / 2,
            norm,
        }
    }
}
