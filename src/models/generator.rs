//! The group-stack generator, from noise through features to an image. Each level has the shape of a
//! teacher's block output.

use super::fold::BN_EPS;
use super::resnet::ResNetSpec;
use super::{Recorder, init};
use crate::autograd::tape::{Learn, Value};
use crate::autograd::{Store, TensorId};
use crate::error::Result;
use crate::ops::layers::activation::{Act, Activation};
use crate::ops::layers::batch_norm::{BatchNorm, Stats};
use crate::ops::layers::conv2d::Conv2d;
use crate::ops::layers::upsample::{Mode, Upsample};
use crate::tensor::{Real, Shape};

/// The levels that `groups` = K groups end at (docs/method.md 2): `K - 1` feature levels of the teachers,
/// deepest first, then the image (level 0).
///
/// Level `l` has the shape of the teachers' `F^l`. The levels are spread evenly over the `blocks` = B blocks:
/// with B = 4, K = 2 keeps level 2 and K = 4 keeps 3, 2, 1; K = 1 is a plain generator. *[ours: the
/// supplement leaves the choice open]*
pub fn levels(blocks: usize, groups: usize) -> Vec<usize> {
    let round = |j: usize| (2 * blocks * (groups - j) + groups) / (2 * groups);
    (1..groups).map(round).chain([0]).collect()
}

/// LeakyReLU slope of DCGAN-style generators.
const LEAK: Act = Act::LeakyRelu(0.2);

/// A 3x3 convolution, with the upsampling before it and the normalisation and activation after it.
struct Step {
    /// Upsampling by two before the convolution.
    upsample: Option<Mode>,
    filter: TensorId,
    /// Gamma, beta, running mean and variance of the batch norm; the last layer has a bias instead.
    norm: Option<[TensorId; 4]>,
    bias: Option<TensorId>,
    act: Act,
    /// Set where the step ends a group: its output is `F_g` of this level.
    ends_level: Option<usize>,
}

/// A generator in a store.
pub struct Generator {
    /// The levels that its groups end at (see [`levels`]).
    pub levels: Vec<usize>,
    project: TensorId,
    project_norm: [TensorId; 4],
    /// Shape of the projected noise, for one sample.
    start: Shape,
    steps: Vec<Step>,
    learning: Vec<TensorId>,
    tensors: Vec<TensorId>,
}

/// Adds tensors to a store under one prefix.
struct Builder<'a, R> {
    store: &'a mut Store<R>,
    prefix: &'a str,
    seed: u64,
    learning: Vec<TensorId>,
    tensors: Vec<TensorId>,
}

impl<R: Real> Builder<'_, R> {
    fn tensor(&mut self, name: &str, shape: Shape, values: Vec<f32>, is_learnt: bool) -> TensorId {
        let id = self.store.add_with(&format!("{}.{name}", self.prefix), shape, &values);
        self.tensors.push(id);
        if is_learnt {
            self.learning.push(id);
        }
        id
    }
    fn filter(&mut self, name: &str, shape: Shape, gain: f64) -> TensorId {
        let values = self.store.drawn(|| init::he_normal(self.seed, name, shape, gain));
        self.tensor(&format!("{name}.weight"), shape, values, true)
    }
    fn norm(&mut self, name: &str, c: usize) -> [TensorId; 4] {
        let parts = [
            ("weight", 1.0, true),
            ("bias", 0.0, true),
            ("running_mean", 0.0, false),
            ("running_var", 1.0, false),
        ];
        parts.map(|(part, v, is_learnt)| {
            self.tensor(&format!("{name}.norm.{part}"), Shape::vector(c), vec![v; c], is_learnt)
        })
    }
}

impl Generator {
    /// Builds a generator of `groups` groups for teachers of architecture `spec`, under the names `prefix.*`
    /// in the store. `z_len` is the length of its input. `widths` are the channels of the projected noise,
    /// then of the convolutions at each resolution from the deepest level's to the image's; the last one is
    /// repeated as needed.
    pub fn new<R: Real>(
        store: &mut Store<R>,
        prefix: &str,
        spec: &ResNetSpec,
        groups: usize,
        z_len: usize,
        widths: &[usize],
        seed: u64,
    ) -> Generator {
        let levels = levels(spec.blocks(), groups);
        let width = |i: usize| widths.get(i).or(widths.last()).copied().unwrap_or(32);
        let deepest = spec.feature(spec.blocks() - 1, 1);
        let start = deepest.with_c(width(0));
        let mut b = Builder { store, prefix, seed, learning: vec![], tensors: vec![] };
        let project = b.filter("project", Shape::new(start.elems(), 1, 1, z_len), 1.0);
        let project_norm = b.norm("project", width(0));
        let mut steps = Vec::new();
        let mut channels = width(0);
        let mut size = [deepest.h(), deepest.w()];
        let image = spec.feature(0, 1);
        // Feature maps of the deep groups are upsampled by repetition; after the last feature level
        // upsampling is bilinear, which leaves no checkerboard in the image.
        let shallowest = levels[levels.len().saturating_sub(2)].min(spec.blocks() - 1);
        let image_only = levels.len() == 1;
        for i in 0.. {
            let level =
                (1..spec.blocks()).find(|l| [spec.feature(*l, 1).h(), spec.feature(*l, 1).w()] == size);
            let smooth = image_only || level.is_none_or(|l| l < shallowest);
            let upsample = (i > 0).then_some(if smooth { Mode::Bilinear } else { Mode::Nearest });
            let name = format!("up{i}");
            let mut conv =
                |b: &mut Builder<R>, name: String, upsample, c: usize, k: usize, act, ends_level| {
                    let filter = b.filter(&name, Shape::new(k, 3, 3, c), 2.0);
                    let norm = Some(b.norm(&name, k));
                    steps.push(Step { upsample, filter, norm, bias: None, act, ends_level });
                };
            conv(&mut b, format!("{name}.conv"), upsample, channels, width(i + 1), LEAK, None);
            channels = width(i + 1);
            if let Some(l) = level.filter(|l| levels.contains(l)) {
                let k = spec.widths[l - 1];
                conv(&mut b, format!("{name}.feature"), None, channels, k, Act::Relu, Some(l));
                channels = k;
            }
            if size[0] >= image.h() && size[1] >= image.w() {
                break;
            }
            size = size.map(|s| s * 2);
        }
        let filter = b.filter("image", Shape::new(image.c(), 3, 3, channels), 1.0);
        let bias = b.tensor("image.bias", Shape::vector(image.c()), vec![0.0; image.c()], true);
        steps.push(Step {
            upsample: None,
            filter,
            norm: None,
            bias: Some(bias),
            act: Act::Tanh,
            ends_level: Some(0),
        });
        let Builder { learning, tensors, .. } = b;
        Generator { levels, project, project_norm, start, steps, learning, tensors }
    }

    /// Records the generator on `z` `[n, 1, 1, z_len]`; returns `F_g` of each level, in the order of
    /// `self.levels`. Batch norm uses the batch's statistics even when the generator is frozen: it was
    /// trained to produce that distribution.
    pub fn record<R: Real>(&self, r: &mut Recorder<R>, z: Value, learn: Learn) -> Result<Vec<Value>> {
        let n = r.tape.shape(z).n();
        let w = r.leaf(self.project, learn);
        let flat = r.apply(Conv2d::new(1, 0), &[z, w])?;
        let x = r.tape.reshape(flat, self.start.with_n(n))?;
        let mut x = self.norm(r, x, &self.project_norm, LEAK, learn)?;
        let mut out = Vec::new();
        for step in &self.steps {
            if let Some(mode) = step.upsample {
                x = r.apply(Upsample { mode }, &[x])?;
            }
            let w = r.leaf(step.filter, learn);
            x = match (&step.norm, step.bias) {
                (Some(norm), _) => {
                    let u = r.apply(Conv2d::new(1, 1), &[x, w])?;
                    self.norm(r, u, norm, step.act, learn)?
                }
                (None, bias) => {
                    let bias = bias.map(|b| r.leaf(b, learn));
                    let conv = Conv2d { bias: bias.is_some(), ..Conv2d::new(1, 1) };
                    let operands: Vec<Value> = [x, w].into_iter().chain(bias).collect();
                    let u = r.apply(conv, &operands)?;
                    r.apply(Activation(step.act), &[u])?
                }
            };
            out.extend(step.ends_level.map(|_| x));
        }
        Ok(out)
    }

    fn norm<R: Real>(
        &self,
        r: &mut Recorder<R>,
        x: Value,
        norm: &[TensorId; 4],
        act: Act,
        learn: Learn,
    ) -> Result<Value> {
        let [gamma, beta] = [norm[0], norm[1]].map(|t| r.leaf(t, learn));
        let [mean, var] = [norm[2], norm[3]].map(|t| r.leaf(t, Learn::Frozen));
        // A frozen generator keeps its running estimates as they are.
        let momentum = if learn == Learn::Frozen { 0.0 } else { 0.1 };
        let bn = BatchNorm { stats: Stats::Batch, act, momentum, eps: BN_EPS as f32 };
        r.apply(bn, &[x, gamma, beta, mean, var])
    }

    /// The tensors that an optimiser may change.
    pub fn learning(&self) -> &[TensorId] {
        &self.learning
    }

    /// All tensors, running estimates included, in the order in which they are used.
    pub fn tensors(&self) -> &[TensorId] {
        &self.tensors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Tape;
    use crate::models::resnet::{BlockKind, Stem};

    #[test]
    fn levels_spread_over_the_blocks() {
        assert_eq!(levels(4, 1), [0]);
        assert_eq!(levels(4, 2), [2, 0]);
        assert_eq!(levels(4, 3), [3, 1, 0]);
        assert_eq!(levels(4, 4), [3, 2, 1, 0]);
        assert_eq!(levels(3, 2), [2, 0]);
    }

    /// Equation 2: every level has the shape of the teachers' block output, for any number of groups.
    #[test]
    fn every_level_has_the_teachers_shape() {
        let stem = Stem { width: 4, kernel: 3, stride: 2, max_pool: false };
        let widths = vec![4, 8, 16, 32];
        let small = ResNetSpec::new(BlockKind::Basic, [32, 32, 1], stem, widths, vec![1; 4]);
        let wide = ResNetSpec { stem: Stem { max_pool: true, ..stem }, image: [64, 64, 3], ..small.clone() };
        for spec in [small, wide] {
            for groups in 1..=4 {
                let mut store = Store::<f32>::default();
                let g = Generator::new(&mut store, "G", &spec, groups, 10, &[8, 6, 5], 1);
                let z = store.add("z", Shape::rows(3, 10));
                let mut tape = Tape::default();
                let mut r = Recorder { tape: &mut tape, store: &store };
                let z = r.leaf(z, Learn::Frozen);
                let out = g.record(&mut r, z, Learn::Trainable).unwrap();
                assert_eq!(out.len(), groups);
                for (level, v) in g.levels.iter().zip(out) {
                    assert_eq!(tape.shape(v), spec.feature(*level, 3), "{groups} groups, level {level}");
                }
            }
        }
    }
}
