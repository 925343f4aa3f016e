//! A ResNet in a store: building, recording and exporting its blocks.

use super::build::{Build, Mode, Source};
use super::layer::{Conv, LayerValues, Norm};
use super::spec::{Layer, NORM_PARTS, Normalisation, ResNetSpec};
use crate::autograd::tape::{Learn, Value};
use crate::autograd::{Store, TensorId};
use crate::error::{Error, Result};
use crate::models::fold::{self, StoredNorm};
use crate::models::{Recorder, init};
use crate::ops::layers::activation::Act;
use crate::ops::layers::avg_pool::AvgPool;
use crate::ops::layers::batch_norm::{BatchNorm, Stats};
use crate::ops::layers::conv2d::Conv2d;
use crate::ops::layers::global_avg_pool::GlobalAvgPool;
use crate::ops::layers::max_pool::MaxPool;
use crate::tensor::{Real, Shape};
use crate::weights::Tensors;
use std::ops::RangeInclusive;

/// One residual unit.
#[derive(Clone, Debug)]
struct Unit {
    body: Vec<Conv>,
    /// Whether a 2x2 average pool comes before the shortcut's convolution.
    has_pool: bool,
    shortcut: Option<Conv>,
}

/// Some consecutive blocks of a ResNet, and perhaps its head, in a store.
#[derive(Clone, Debug)]
pub struct ResNet {
    /// The whole network's architecture.
    pub spec: ResNetSpec,
    /// Gamma, beta, mean and variance that normalise the images ([`ResNetSpec::normalisation`]); block 1
    /// alone has them.
    normalise: Option<[TensorId; 4]>,
    /// The stem's convolutions; block 1 alone has them.
    stem: Vec<Conv>,
    /// The units of each block (0-based); empty for a block that was not built.
    blocks: Vec<Vec<Unit>>,
    /// Weight `[labels, 1, 1, c]` and bias of the fully connected layer.
    pub head: Option<[TensorId; 2]>,
}

impl ResNet {
    /// Builds the blocks `blocks` (1-based) under the names `prefix.*` in the store, and, where `labels` is
    /// given, a head for that many labels. The stem belongs to block 1.
    ///
    /// Errors: a tensor that `source` does not have, or has in another shape; a negative variance.
    pub fn new<R: Real>(
        store: &mut Store<R>,
        prefix: &str,
        spec: &ResNetSpec,
        blocks: RangeInclusive<usize>,
        labels: Option<usize>,
        build: Build,
        mut source: Source,
    ) -> Result<ResNet> {
        let mut conv = |store: &mut Store<R>, layer: &Layer| -> Result<Conv> {
            let values = LayerValues::read(store, layer, &mut source)?;
            Ok(values.place(store, prefix, layer, build))
        };
        let has_stem = *blocks.start() == 1;
        let stem = if has_stem { spec.stem_layers() } else { Vec::new() };
        let stem = stem.iter().map(|l| conv(store, l)).collect::<Result<_>>()?;
        let normalise =
            spec.normalisation.as_ref().filter(|_| has_stem).map(|n| place_normalisation(store, prefix, n));
        let mut all = vec![Vec::new(); spec.blocks()];
        for b in blocks {
            for unit in spec.block_layers(b) {
                let body = unit.body.iter().map(|l| conv(store, l)).collect::<Result<_>>()?;
                let shortcut = unit.shortcut.as_ref().map(|l| conv(store, l)).transpose()?;
                all[b - 1].push(Unit { body, has_pool: unit.has_pool, shortcut });
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

    /// Records block `b` (1-based) on `x` `[n, h, w, c]`. Block 1 begins with the images' normalisation and
    /// the stem. Where `statistics` is given, every layer that has targets (see [`Build::Folded`]) adds its
    /// batch-statistics loss to it.
    pub fn block<R: Real>(
        &self,
        r: &mut Recorder<R>,
        b: usize,
        mut x: Value,
        mode: Mode,
        mut statistics: Option<&mut Vec<Value>>,
    ) -> Result<Value> {
        if let (1, Some(constants)) = (b, self.normalise) {
            // Not folded into the stem's filters: that would also shift the zeros of the padding.
            let [gamma, beta, mean, var] = constants.map(|t| r.leaf(t, Learn::Frozen));
            let op = BatchNorm { stats: Stats::Running, act: Act::None, momentum: 0.0, eps: 0.0 };
            x = r.apply(op, &[x, gamma, beta, mean, var])?;
        }
        if b == 1 && !self.stem.is_empty() {
            for conv in &self.stem {
                x = conv.record(r, x, None, Act::Relu, mode, statistics.as_deref_mut())?;
            }
            if self.spec.stem.max_pool {
                x = r.apply(MaxPool { window: 3, stride: 2, pad: 1 }, &[x])?;
            }
        }
        for unit in &self.blocks[b - 1] {
            let skip = match &unit.shortcut {
                Some(conv) => {
                    let x = if unit.has_pool { r.apply(AvgPool, &[x])? } else { x };
                    conv.record(r, x, None, Act::None, mode, statistics.as_deref_mut())?
                }
                None => x,
            };
            let last = unit.body.len() - 1;
            for (i, conv) in unit.body.iter().enumerate() {
                x = conv.record(
                    r,
                    x,
                    (i == last).then_some(skip),
                    Act::Relu,
                    mode,
                    statistics.as_deref_mut(),
                )?;
            }
        }
        Ok(x)
    }

    /// Records the head: the pooled features `[n, 1, 1, c]` and the logits `[n, 1, 1, labels]`.
    ///
    /// Errors: a network that was built without a head.
    pub fn head<R: Real>(&self, r: &mut Recorder<R>, x: Value, mode: Mode) -> Result<(Value, Value)> {
        let [w, b] = self.head.ok_or_else(|| Error::Run("this network was built without a head".into()))?;
        let pooled = r.apply(GlobalAvgPool, &[x])?;
        let (w, b) = (r.leaf(w, mode.learn), r.leaf(b, mode.learn));
        let logits = r.apply(Conv2d::linear(), &[pooled, w, b])?;
        Ok((pooled, logits))
    }

    fn convs(&self, blocks: RangeInclusive<usize>) -> impl Iterator<Item = &Conv> {
        let stem = if *blocks.start() == 1 { &self.stem[..] } else { &[] };
        let units = self.blocks[blocks.start() - 1..*blocks.end()].iter().flatten();
        stem.iter().chain(units.flat_map(|u| u.body.iter().chain(&u.shortcut)))
    }

    /// The tensors of some blocks that an optimiser may change: filters, gammas and betas (or biases). The
    /// head is not among them.
    pub fn learning(&self, blocks: RangeInclusive<usize>) -> Vec<TensorId> {
        self.convs(blocks).flat_map(Conv::learning).collect()
    }

    /// All tensors of some blocks that belong to the network: running estimates included, targets of the
    /// statistics loss not.
    pub fn tensors(&self, blocks: RangeInclusive<usize>) -> Vec<TensorId> {
        self.convs(blocks).flat_map(Conv::tensors).collect()
    }

    /// Adds some blocks to `out`, in torchvision's layouts and under its names after `prefix`. With
    /// [`Build::Folded`], batch norms are folded into the convolutions.
    ///
    /// Errors: a name that `out` already has.
    pub fn export<R: Real>(
        &self,
        store: &Store<R>,
        blocks: RangeInclusive<usize>,
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

/// Stores the constants of `(x - mean') / sqrt(var')`, with mean' = 2 mean - 1 and var' = (2 std)^2: `n` is
/// stated for pixels p in [0, 1], and the engine's images are x = 2 p - 1.
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
