//! The ResNet family (He et al. 2016): basic and bottleneck blocks, any stem, widths and depths, taps at block ends.
//!
//! One description serves the demo's small net and ResNet-18 to 152. A network is either *folded* (frozen: batch norm
//! inside the convolutions, eq. 4's discriminators) or *normed* (batch norm as ops of its own: what learns).
//! Tensor names are torchvision's.

mod layer;
mod spec;

use super::fold::{self, StoredNorm};
use super::{Recorder, init};
use crate::autograd::tape::{Learn, Value};
use crate::autograd::{Store, TensorId};
use crate::error::{Error, Result};
use crate::ops::layers::activation::Act;
use crate::ops::layers::batch_norm::{BatchNorm, Stats};
use crate::ops::layers::conv2d::Conv2d;
use crate::ops::layers::global_avg_pool::GlobalAvgPool;
use crate::ops::layers::max_pool::MaxPool;
use crate::tensor::{Real, Shape};
use crate::weights::Tensors;
use layer::{Conv, LayerValues, NORM_PARTS, Norm};
use spec::Layer;
pub use spec::{BlockKind, Normalisation, ResNetSpec, Stem, StridePlace};

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
