//! Stage one: a generator whose images, and whose features at every level, the teachers recognise (docs/method.md 2).

use super::schedule::Schedule;
use super::session::{Stage, stage_seed};
use super::spec::{LossSpec, Recipe, RunSpec};
use super::teachers::Teachers;
use crate::autograd::tape::{Learn, Value};
use crate::autograd::{Engine, Optimiser, Plan, Store, Tape, TensorId};
use crate::device::memory;
use crate::error::Result;
use crate::models::Recorder;
use crate::models::filter::Filter;
use crate::models::generator::Generator;
use crate::models::resnet::{Mode, ResNetSpec};
use crate::ops::Op;
use crate::ops::losses::activation_loss::ActivationLoss;
use crate::ops::losses::bce::{Bce, Targets};
use crate::ops::losses::discrete_loss::DiscreteLoss;
use crate::ops::losses::diversity::Diversity;
use crate::ops::losses::entropy_loss::EntropyLoss;
use crate::ops::losses::one_hot_loss::{OneHotLoss, PseudoLabels};
use crate::ops::losses::weighted_sum::WeightedSum;
use crate::ops::movement::concat_columns::ConcatColumns;
use crate::ops::movement::scatter_images::ScatterImages;
use crate::ops::optim::adam::Adam;
use crate::ops::random::augment::Augment;
use crate::ops::random::draw_labels::DrawLabels;
use crate::ops::random::noise::Noise;
use crate::tensor::{Real, Shape};

/// Streams of the random draws, so that each op has its own.
mod stream {
    pub const NOISE: u32 = 1;
    pub const LABELS: u32 = 2;
    pub const SHIFT: u32 = 3;
}

/// The parts of a step that forecasts tell apart; what is in none of them is the rest: losses, optimisers, drawing.
pub(super) mod part {
    pub const TEACHERS: &str = "teachers";
    /// With the filters that stage one trains.
    pub const GENERATOR: &str = "generator";
    /// With its filters.
    pub const STUDENT: &str = "student";
}

/// The generator with all that stage one trains and fills.
pub struct StageOne {
    pub generator: Generator,
    /// Teacher-level filters `f_m^j`, by level (as in `generator.levels`, the image's entry empty) and teacher.
    filters: Vec<Vec<Filter>>,
    /// Images of the run's recent past, for stage two.
    pub bank: TensorId,
    pub draw: Draw,
    recipe: Recipe,
}

/// How the generator's input is drawn; stands in its file.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Draw {
    /// Length of the noise.
    pub latent: usize,
    /// Labels that condition the generator; 0 when it is unconditional.
    pub conditions: usize,
    /// Most labels that are wanted of one image.
    pub max_labels: usize,
}

impl Draw {
    /// Records the draw of z (noise, and the wanted labels if conditional) and the generator on it: the levels'
    /// values, deepest first, and the wanted labels.
    pub fn record<R: Real>(
        &self,
        r: &mut Recorder<R>,
        generator: &Generator,
        batch: usize,
        learn: Learn,
    ) -> Result<(Vec<Value>, Option<Value>)> {
        let z = r.apply(Noise { shape: Shape::rows(batch, self.latent), stream: stream::NOISE }, &[])?;
        let images = |r: &mut Recorder<R>, z| r.within(part::GENERATOR, |r| generator.record(r, z, learn));
        if self.conditions == 0 {
            return Ok((images(r, z)?, None));
        }
        let (labels, max) = (self.conditions, self.max_labels);
        let wanted = r.apply(DrawLabels { n: batch, labels, min: 1, max, stream: stream::LABELS }, &[])?;
        let z = r.apply(ConcatColumns, &[z, wanted])?;
        Ok((images(r, z)?, Some(wanted)))
    }
}

/// No more rows than stage one will fill after its first fifth, whose images are not worth keeping.
fn bank_shape(spec: &RunSpec, network: &ResNetSpec) -> Shape {
    let g = &spec.generator;
    network.feature(0, ((g.steps - g.steps / 5) * g.batch).clamp(1, spec.dual.bank.max(1)))
}

impl StageOne {
    /// Fails where the bank of images does not fit this machine: its rows are the config's, and may be any number.
    pub fn expect_room(spec: &RunSpec, network: &ResNetSpec) -> Result<()> {
        memory::expect_room("`dual.bank`", bank_shape(spec, network).elems().saturating_mul(size_of::<f32>()))
    }

    pub fn new<R: Real>(store: &mut Store<R>, spec: &RunSpec, teachers: &Teachers) -> StageOne {
        let (net, g) = (&teachers.network, &spec.generator);
        let seed = stage_seed(spec.seed, "generator.init");
        let (conditions, max_labels) = match spec.loss.recipe {
            Recipe::Conditional { max_labels } => {
                // Nobody can want more labels of an image than there are.
                let labels = teachers.labels().count();
                (labels, max_labels.min(labels))
            }
            Recipe::Published | Recipe::Balanced { .. } => (0, 0),
        };
        let generator =
            Generator::new(store, "generator", net, g.groups, g.latent + conditions, &g.widths, seed);
        let filters = generator
            .levels
            .iter()
            .map(|level| {
                let filter = |t: &super::teachers::Teacher| {
                    let name = format!("generator.filter{level}.{}", t.name);
                    Filter::new(store, &name, net.widths[level - 1], spec.student.filter_reduction, seed)
                };
                if *level == 0 { vec![] } else { teachers.all.iter().map(filter).collect() }
            })
            .collect();
        let bank = store.add("generator.bank", bank_shape(spec, net));
        let draw = Draw { latent: g.latent, conditions, max_labels };
        StageOne { generator, filters, bank, draw, recipe: spec.loss.recipe.clone() }
    }

    /// See [`Draw::record`].
    pub fn record_images<R: Real>(
        &self,
        r: &mut Recorder<R>,
        batch: usize,
        learn: Learn,
    ) -> Result<(Vec<Value>, Option<Value>)> {
        self.draw.record(r, &self.generator, batch, learn)
    }

    /// Records and compiles one step: `L_joint` (11) and the update of the generator and its filters.
    pub fn stage(&self, engine: &mut Engine<f32>, spec: &RunSpec, teachers: &Teachers) -> Result<Stage> {
        let mut tape = Tape::default();
        let mut r = Recorder { tape: &mut tape, store: &engine.store };
        let (loss, image) = self.record_loss(&mut r, spec, teachers)?;
        let bank = r.leaf(self.bank, Learn::Frozen);
        let image = r.tape.detach(image);
        r.tape.apply_all(ScatterImages {}.into(), &[bank, image])?;
        let mut learning = self.generator.learning().to_vec();
        learning.extend(self.filters.iter().flatten().flat_map(|f| f.tensors()));
        let g = &spec.generator;
        let adam = Adam {
            lr_slot: 0,
            beta1: f64::from(g.betas[0]),
            beta2: f64::from(g.betas[1]),
            eps: 1e-8,
            weight_decay: 0.0,
        };
        let optimiser = with_moments(&mut engine.store, "generator", adam, &learning);
        let plan = Plan::compile(&tape, &engine.store, Some(loss), &[optimiser])?;
        Ok(Stage {
            name: "generator".into(),
            plan,
            steps: g.steps,
            schedule: Schedule::Constant,
            learning_rates: [g.learning_rate; 4],
            seed: stage_seed(spec.seed, "generator"),
            batch: (g.batch, "generator.batch"),
        })
    }

    /// Records `L_joint`; returns it and the image.
    pub fn record_loss<R: Real>(
        &self,
        r: &mut Recorder<R>,
        spec: &RunSpec,
        teachers: &Teachers,
    ) -> Result<(Value, Value)> {
        let (levels, wanted) = self.record_images(r, spec.generator.batch, Learn::Trainable)?;
        let image = levels[levels.len() - 1];
        Ok((self.record_objective(r, spec, teachers, &levels, wanted)?, image))
    }

    /// Records `L_joint` of given levels (deepest first, the image last), for the labels that the image was to show.
    pub fn record_objective<R: Real>(
        &self,
        r: &mut Recorder<R>,
        spec: &RunSpec,
        teachers: &Teachers,
        levels: &[Value],
        wanted: Option<Value>,
    ) -> Result<Value> {
        let LossSpec { alpha, beta, gamma, statistics, .. } = spec.loss;
        let image = levels[levels.len() - 1];
        let shift = spec.generator.shift;
        let seen = if shift > 0 {
            let augment = Augment {
                max_shift: shift,
                flip: 0.0,
                mix_max: 0.0,
                cutmix: 0.0,
                fill: -1.0,
                stream: stream::SHIFT,
            };
            r.apply(augment, &[image])?
        } else {
            image
        };

        // The image through every teacher (4): features before the head, and logits.
        let mut watched = Vec::new();
        let (mut features, mut logits) = (Vec::new(), Vec::new());
        for t in &teachers.all {
            let (f, y) = r.within(part::TEACHERS, |r| {
                let mut x = seen;
                for b in 1..=teachers.network.blocks() {
                    let watch = (statistics > 0.0).then_some(&mut watched);
                    x = t.net.block(r, b, x, Mode::FROZEN, watch)?;
                }
                t.net.head(r, x, Mode::FROZEN)
            })?;
            features.push(f);
            logits.push(y);
        }
        let all = concat(r, &logits)?;

        let mut terms: Vec<(&str, f32, Value)> = Vec::new();
        let one_hot = match (&self.recipe, wanted) {
            (Recipe::Conditional { .. }, Some(wanted)) => {
                r.apply(Bce { targets: Targets::Probabilities, minus_entropy: false }, &[all, wanted])?
            }
            (Recipe::Balanced { share }, _) => {
                r.apply(OneHotLoss { targets: PseudoLabels::Balanced { share: *share } }, &[all])?
            }
            _ => r.apply(OneHotLoss { targets: PseudoLabels::Threshold }, &[all])?,
        };
        terms.push(("one_hot", 1.0, one_hot));
        // The published L_a sums over features; ours takes their mean, which does not grow with the network's width.
        let mean_over_features = self.recipe != Recipe::Published;
        let activations = features
            .iter()
            .map(|f| r.apply(ActivationLoss { mean_over_features }, &[*f]))
            .collect::<Result<Vec<_>>>()?;
        let m = teachers.all.len();
        let activation = r.apply(WeightedSum { weights: vec![1.0 / m as f32; m] }, &activations)?;
        terms.push(("activation", alpha, activation));
        terms.push(("entropy", beta, r.apply(EntropyLoss, &[all])?));
        terms.push(("discrete", gamma, r.apply(DiscreteLoss, &[all])?));
        if !watched.is_empty() {
            let weights = vec![1.0 / watched.len() as f32; watched.len()];
            terms.push(("statistics", statistics, r.apply(WeightedSum { weights }, &watched)?));
        }

        // Every feature level must predict what the image predicts (11); the image's prediction is the fixed target.
        let inner_levels = levels.len() - 1;
        if inner_levels > 0 {
            let target = if shift > 0 {
                let still = r.tape.detach(image);
                let y = predictions(r, teachers, 1, |_, _| Ok(still))?;
                concat(r, &y)?
            } else {
                r.tape.detach(all)
            };
            let mut inner = Vec::new();
            for (j, level) in self.generator.levels[..inner_levels].iter().enumerate() {
                let y = predictions(r, teachers, level + 1, |r, m| {
                    let filter = &self.filters[j][m];
                    r.within(part::GENERATOR, |r| filter.record(r, levels[j], Learn::Trainable))
                })?;
                let y = concat(r, &y)?;
                inner.push(r.apply(Bce { targets: Targets::Logits, minus_entropy: false }, &[y, target])?);
            }
            let weights = vec![1.0 / inner_levels as f32; inner_levels];
            terms.push(("inner", 1.0, r.apply(WeightedSum { weights }, &inner)?));
        }

        let used: Vec<_> = terms.iter().filter(|(_, w, _)| *w != 0.0).collect();
        let weights = used.iter().map(|(_, w, _)| *w).collect();
        let loss = r.apply(WeightedSum { weights }, &used.iter().map(|(_, _, v)| *v).collect::<Vec<_>>())?;
        r.tape.metric("loss", loss);
        for (name, _, v) in &terms {
            r.tape.metric(name, *v);
        }
        let features = concat(r, &features)?;
        let features = r.tape.detach(features);
        let diversity = r.apply(Diversity, &[features])?;
        r.tape.metric("diversity", diversity);
        Ok(loss)
    }
}

/// Logits of every teacher's blocks from `first` on, for the input that `input` records for it (10).
pub fn predictions<R: Real>(
    r: &mut Recorder<R>,
    teachers: &Teachers,
    first: usize,
    mut input: impl FnMut(&mut Recorder<R>, usize) -> Result<Value>,
) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for (m, t) in teachers.all.iter().enumerate() {
        let mut x = input(r, m)?;
        let (_, logits) = r.within(part::TEACHERS, |r| {
            for b in first..=teachers.network.blocks() {
                x = t.net.block(r, b, x, Mode::FROZEN, None)?;
            }
            t.net.head(r, x, Mode::FROZEN)
        })?;
        all.push(logits);
    }
    Ok(all)
}

/// Predictions or features of several teachers, side by side.
pub fn concat<R: Real>(r: &mut Recorder<R>, parts: &[Value]) -> Result<Value> {
    if parts.len() == 1 { Ok(parts[0]) } else { r.apply(ConcatColumns, parts) }
}

/// An Adam over `tensors`, with fresh moments in the store.
pub fn with_moments<R: Real>(
    store: &mut Store<R>,
    stage: &str,
    op: impl Into<Op>,
    tensors: &[TensorId],
) -> Optimiser {
    let mut owned = Vec::new();
    for id in tensors {
        let (name, shape) = (store.name(*id).to_string(), store.shape(*id));
        let moments = ["first", "second"].map(|m| store.add(&format!("{stage}.moments.{m}.{name}"), shape));
        owned.push((*id, moments.to_vec()));
    }
    Optimiser { op: op.into(), tensors: owned }
}
