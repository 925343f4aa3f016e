//! One convolution with the batch norm after it: its values, its tensors in the store, its recording.

use super::build::{Build, Mode, Source};
use super::spec::{Layer, NORM_PARTS};
use crate::autograd::tape::{Learn, Value};
use crate::autograd::{Store, TensorId};
use crate::error::{Error, Result};
use crate::models::fold::{self, StoredNorm};
use crate::models::{Recorder, init};
use crate::ops::layers::activation::{Act, Activation};
use crate::ops::layers::batch_norm::BatchNorm;
use crate::ops::layers::conv2d::Conv2d;
use crate::ops::losses::statistics_loss::StatisticsLoss;
use crate::tensor::{Real, Shape};

/// A convolution's tensors in the store.
#[derive(Clone, Debug)]
pub(super) struct Conv {
    pub(super) name: String,
    pub(super) norm_name: String,
    pub(super) weight: TensorId,
    pub(super) stride: usize,
    pub(super) pad: usize,
    pub(super) norm: Norm,
}

/// A convolution's batch norm.
#[derive(Clone, Debug)]
pub(super) enum Norm {
    /// Folded into the convolution. `targets`: the mean and standard deviation that the layer's output had on
    /// the training data (beta and |gamma|), for the statistics loss.
    Folded { bias: TensorId, targets: Option<[TensorId; 2]> },
    /// gamma, beta, running mean, running variance.
    Stored([TensorId; 4]),
}

/// Momentum of the running statistics: PyTorch's default.
const MOMENTUM: f32 = 0.1;

/// Keeps the slope of the standard deviation finite where a channel does not vary over the batch.
const STATISTICS_EPS: f32 = 1e-5;

impl Conv {
    /// Records `act(norm(conv(x)) + residual)`. A layer that was folded here, and not in its file already,
    /// adds its batch-statistics loss to `statistics`.
    pub(super) fn record<R: Real>(
        &self,
        r: &mut Recorder<R>,
        x: Value,
        residual: Option<Value>,
        act: Act,
        mode: Mode,
        statistics: Option<&mut Vec<Value>>,
    ) -> Result<Value> {
        let w = r.leaf(self.weight, mode.learn);
        let conv = Conv2d::new(self.stride, self.pad);
        match (&self.norm, statistics) {
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

    /// The tensors that an optimiser may change.
    pub(super) fn learning(&self) -> Vec<TensorId> {
        match &self.norm {
            Norm::Folded { bias, .. } => vec![self.weight, *bias],
            Norm::Stored(n) => vec![self.weight, n[0], n[1]],
        }
    }

    /// All tensors that belong to the network: running statistics included, targets of the statistics loss
    /// not.
    pub(super) fn tensors(&self) -> Vec<TensorId> {
        match &self.norm {
            Norm::Folded { bias, .. } => vec![self.weight, *bias],
            Norm::Stored(n) => [self.weight].into_iter().chain(*n).collect(),
        }
    }
}

/// The values of one convolution, in the engine's layout `[k, r, s, c]`.
pub(super) struct LayerValues {
    w: Vec<f32>,
    norm: LayerNorm,
}

enum LayerNorm {
    /// Gamma, beta, running mean, running variance.
    Stored([Vec<f32>; 4]),
    /// The bias of a convolution with a folded batch norm.
    Folded(Vec<f32>),
}

impl LayerValues {
    /// Takes a layer's values from `source`.
    ///
    /// Errors: a tensor that is missing or has another shape; a negative variance.
    pub(super) fn read<R: Real>(store: &Store<R>, layer: &Layer, source: &mut Source) -> Result<LayerValues> {
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

    /// Adds the values to the store under the names `prefix.*`.
    pub(super) fn place<R: Real>(
        self,
        store: &mut Store<R>,
        prefix: &str,
        layer: &Layer,
        build: Build,
    ) -> Conv {
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
