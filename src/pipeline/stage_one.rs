//! Stage one: a generator whose images, and whose features at every level, the teachers recognise
//! (docs/method.md 2).

use super::objective::Objective;
use super::schedule::Schedule;
use super::seed::{stage_seed, stream};
use super::share::Share;
use super::spec::{Recipe, RunSpec};
use super::stage::{Stage, part, with_moments};
use super::teachers::{Teacher, Teachers};
use crate::autograd::plan::Optimiser;
use crate::autograd::tape::{Learn, Value};
use crate::autograd::{Engine, Plan, Store, Tape, TensorId};
use crate::device::memory;
use crate::device::philox::{Draws, below};
use crate::error::Result;
use crate::models::Recorder;
use crate::models::filter::Filter;
use crate::models::generator::Generator;
use crate::models::resnet::ResNetSpec;
use crate::ops::movement::concat_columns::ConcatColumns;
use crate::ops::movement::scatter_images::ScatterImages;
use crate::ops::optim::adam::Adam;
use crate::ops::random::draw_labels::DrawLabels;
use crate::ops::random::noise::Noise;
use crate::tensor::{Real, Shape};

/// The name of the stage.
pub const NAME: &str = "generator";

/// The generator, and everything else that stage one trains or fills.
pub struct StageOne {
    /// The generator `G`.
    pub generator: Generator,
    /// Teacher-level filters `f_m^j`, by level (as in `generator.levels`, the image's entry empty) and
    /// teacher.
    filters: Vec<Vec<Filter>>,
    /// The bank of recent images `[n, h, w, c]`, which stage two draws from.
    pub bank: TensorId,
    /// How the generator's input is drawn.
    pub draw: Draw,
    recipe: Recipe,
}

/// How the generator's input is drawn; part of the generator's file.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Draw {
    /// Length of the noise.
    pub latent: usize,
    /// Number of labels that condition the generator, where a label of several teachers counts once; 0 for an
    /// unconditional one.
    pub conditions: usize,
    /// Most labels that one image is to show.
    pub max_labels: usize,
}

impl Draw {
    /// Records the draw of z (noise, and for a conditional generator the labels to show) and the generator on
    /// it. Returns the levels' values, deepest first, and the labels to show `[n, 1, 1, labels]`.
    pub fn record<R: Real>(
        &self,
        r: &mut Recorder<R>,
        generator: &Generator,
        batch: usize,
        learn: Learn,
    ) -> Result<(Vec<Value>, Option<Value>)> {
        self.record_part(r, generator, batch, learn, &Share::alone(1))
    }

    /// The same, of the part of the batch that is this rank's share. The labels to show are those of the whole batch.
    fn record_part<R: Real>(
        &self,
        r: &mut Recorder<R>,
        generator: &Generator,
        batch: usize,
        learn: Learn,
        share: &Share,
    ) -> Result<(Vec<Value>, Option<Value>)> {
        if self.conditions == 0 {
            return Ok((self.levels(r, generator, batch, learn, (None, share))?, None));
        }
        let (labels, max) = (self.conditions, self.max_labels);
        let wanted = r.apply(DrawLabels { n: batch, labels, min: 1, max, stream: stream::LABELS }, &[])?;
        Ok((self.levels(r, generator, batch, learn, (Some(wanted), share))?, Some(wanted)))
    }

    /// The labels to show of one batch `[batch, labels]`: in the first `rows` rows those for which `asked` holds, in the
    /// others one to `max_labels` random ones.
    pub(super) fn labels_of_a_batch(
        &self,
        batch: usize,
        rows: usize,
        asked: &[bool],
        seed: u64,
        step: u64,
    ) -> Vec<f32> {
        let draws = Draws::new(seed, stream::LABELS, step);
        let mut values: Vec<f32> =
            asked.iter().map(|a| f32::from(u8::from(*a))).collect::<Vec<_>>().repeat(rows);
        values.resize(batch * self.conditions, 0.0);
        for (i, row) in values.chunks_mut(self.conditions).enumerate().skip(rows) {
            let count = 1 + below(draws.words(i as u32, 0)[0], self.max_labels);
            for lane in 1..=count as u32 {
                row[below(draws.words(i as u32, lane)[0], self.conditions)] = 1.0;
            }
        }
        values
    }

    /// The same for given labels to show `[n, 1, 1, labels]`; without any for an unconditional generator.
    pub fn record_for<R: Real>(
        &self,
        r: &mut Recorder<R>,
        generator: &Generator,
        batch: usize,
        learn: Learn,
        wanted: Option<Value>,
    ) -> Result<Vec<Value>> {
        self.levels(r, generator, batch, learn, (wanted, &Share::alone(1)))
    }

    /// Noise and labels are drawn for the whole batch, because a draw depends on its place in it.
    fn levels<R: Real>(
        &self,
        r: &mut Recorder<R>,
        generator: &Generator,
        batch: usize,
        learn: Learn,
        (wanted, share): (Option<Value>, &Share),
    ) -> Result<Vec<Value>> {
        let mut z = r.apply(Noise { shape: Shape::rows(batch, self.latent), stream: stream::LATENT }, &[])?;
        if let Some(wanted) = wanted {
            z = r.apply(ConcatColumns, &[z, wanted])?;
        }
        let z = share.part(r, z)?;
        r.within(part::GENERATOR, |r| generator.record(r, z, learn))
    }
}

/// The bank has no more rows than stage one fills after its first fifth; earlier images are not worth
/// keeping.
fn bank_shape(spec: &RunSpec, network: &ResNetSpec) -> Shape {
    let g = &spec.generator;
    network.feature(0, ((g.steps - g.steps / 5) * g.batch).clamp(1, spec.dual.bank.max(1)))
}

impl StageOne {
    /// Errors: a bank of images (the config may ask for any number) that does not fit in this machine's
    /// memory.
    pub fn expect_room(spec: &RunSpec, network: &ResNetSpec) -> Result<()> {
        memory::expect_room("`dual.bank`", bank_shape(spec, network).elems().saturating_mul(size_of::<f32>()))
    }

    /// Adds the generator, its filters and the bank to the store.
    pub fn new<R: Real>(store: &mut Store<R>, spec: &RunSpec, teachers: &Teachers) -> StageOne {
        let (net, g) = (&teachers.network, &spec.generator);
        let seed = stage_seed(spec.seed, "generator.init");
        let (conditions, max_labels) = match spec.loss.recipe {
            Recipe::Conditional { max_labels, .. } => {
                let labels = teachers.distinct_labels().0.len();
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
                let filter = |(m, t): (usize, &Teacher)| {
                    let name = format!("generator.filter{level}.{}", t.name);
                    Filter::new(store, &name, &teachers.filter(&spec.student, *level, m), seed)
                };
                if *level == 0 { vec![] } else { teachers.all.iter().enumerate().map(filter).collect() }
            })
            .collect();
        let bank = store.add("generator.bank", bank_shape(spec, net));
        let draw = Draw { latent: g.latent, conditions, max_labels };
        StageOne { generator, filters, bank, draw, recipe: spec.loss.recipe.clone() }
    }

    /// Records `batch` images of the generator; see [`Draw::record`].
    pub fn record_images<R: Real>(
        &self,
        r: &mut Recorder<R>,
        batch: usize,
        learn: Learn,
    ) -> Result<(Vec<Value>, Option<Value>)> {
        self.draw.record(r, &self.generator, batch, learn)
    }

    /// The same for the part of the batch that is this rank's share.
    pub(super) fn record_share<R: Real>(
        &self,
        r: &mut Recorder<R>,
        batch: usize,
        learn: Learn,
        share: &Share,
    ) -> Result<(Vec<Value>, Option<Value>)> {
        self.draw.record_part(r, &self.generator, batch, learn, share)
    }

    /// Records and compiles one step: `L_joint` (11) and the update of the generator and its filters, with as many
    /// teachers at a time as `generator.teachers_at_once` says, or all.
    pub fn stage(&self, engine: &mut Engine<f32>, spec: &RunSpec, teachers: &Teachers) -> Result<Stage> {
        self.stage_that(engine, spec, teachers, |_, _| Ok(true))
    }

    /// The same. If the config has no `generator.teachers_at_once`: all teachers at a time, or half of them, a quarter ...
    /// until `fits` holds, down to one.
    ///
    /// Errors: those of `fits`.
    pub fn stage_that(
        &self,
        engine: &mut Engine<f32>,
        spec: &RunSpec,
        teachers: &Teachers,
        mut fits: impl FnMut(&mut Engine<f32>, &Plan<f32>) -> Result<bool>,
    ) -> Result<Stage> {
        let g = &spec.generator;
        let optimiser = [self.optimiser(&mut engine.store, spec)];
        let share = Share::of(spec.split, teachers.all.len(), "teachers")?;
        let owned = share.owned(&optimiser[0], |id| self.teacher_of(id));
        let all = share.most();
        let mut at_once = g.teachers_at_once.unwrap_or(all).min(all);
        let plan = loop {
            let plan = self.plan(engine, spec, teachers, (at_once, share), &optimiser)?;
            if g.teachers_at_once.is_some() || at_once == 1 || share.all_agree(fits(engine, &plan)?) {
                break plan;
            }
            at_once = at_once.div_ceil(2);
        };
        Ok(Stage {
            name: NAME.into(),
            plan,
            steps: g.steps,
            schedule: Schedule::Constant,
            learning_rates: [g.learning_rate; 4],
            seed: stage_seed(spec.seed, "generator"),
            batch: (g.batch, "generator.batch"),
            teachers_at_once: Some((at_once, all)),
            owned,
        })
    }

    /// The optimiser of the generator and its filters, whose moments it adds to the store.
    pub(super) fn optimiser<R: Real>(&self, store: &mut Store<R>, spec: &RunSpec) -> Optimiser {
        let mut learning = self.generator.learning().to_vec();
        learning.extend(self.filters.iter().flatten().flat_map(|f| f.tensors()));
        let [beta1, beta2] = spec.generator.betas.map(f64::from);
        let adam = Adam { lr_slot: 0, beta1, beta2, eps: 1e-8, weight_decay: 0.0 };
        with_moments(store, "generator", adam, &learning)
    }

    /// The teacher whose filter this tensor belongs to.
    fn teacher_of(&self, id: TensorId) -> Option<usize> {
        let has = |f: &Filter| f.tensors().contains(&id);
        self.filters.iter().find_map(|level| level.iter().position(has))
    }

    fn plan(
        &self,
        engine: &Engine<f32>,
        spec: &RunSpec,
        teachers: &Teachers,
        (at_once, share): (usize, Share),
        optimisers: &[Optimiser],
    ) -> Result<Plan<f32>> {
        let mut tape = Tape::default();
        let mut r = Recorder { tape: &mut tape, store: &engine.store };
        let (loss, image) = self.record_loss_of(&mut r, spec, teachers, at_once, share)?;
        let bank = r.leaf(self.bank, Learn::Frozen);
        let image = r.tape.detach(image);
        let image = share.whole(&mut r, image)?;
        r.tape.apply_all(ScatterImages {}.into(), &[bank, image])?;
        Plan::compile(&tape, &engine.store, Some(loss), optimisers)
    }

    /// Records `L_joint` (11) on a batch that the generator draws, with all teachers at a time; returns the loss and the
    /// images, of several ranks what this one computes of them.
    pub fn record_loss<R: Real>(
        &self,
        r: &mut Recorder<R>,
        spec: &RunSpec,
        teachers: &Teachers,
    ) -> Result<(Value, Value)> {
        let share = Share::of(spec.split, teachers.all.len(), "teachers")?;
        self.record_loss_of(r, spec, teachers, share.most(), share)
    }

    fn record_loss_of<R: Real>(
        &self,
        r: &mut Recorder<R>,
        spec: &RunSpec,
        teachers: &Teachers,
        at_once: usize,
        share: Share,
    ) -> Result<(Value, Value)> {
        share.begin(r.tape, spec.generator.batch);
        let (levels, wanted) = self.record_share(r, spec.generator.batch, Learn::Trainable, &share)?;
        let loss = self.objective(spec, teachers, at_once, share).record(r, &levels, wanted)?;
        Ok((loss, levels[levels.len() - 1]))
    }

    /// Records `L_joint` (11) of given levels (deepest first, the image last), where the images are to show
    /// the labels `wanted`, with `at_once` teachers at a time. Metrics: the loss, its terms, and the diversity of the
    /// images' features.
    pub fn record_objective<R: Real>(
        &self,
        r: &mut Recorder<R>,
        spec: &RunSpec,
        teachers: &Teachers,
        levels: &[Value],
        wanted: Option<Value>,
        at_once: usize,
    ) -> Result<Value> {
        let alone = Share::alone(teachers.all.len());
        self.objective(spec, teachers, at_once, alone).record(r, levels, wanted)
    }

    fn objective<'a>(
        &'a self,
        spec: &'a RunSpec,
        teachers: &'a Teachers,
        at_once: usize,
        share: Share,
    ) -> Objective<'a> {
        let levels = &self.generator.levels;
        Objective { spec, teachers, recipe: &self.recipe, levels, filters: &self.filters, share, at_once }
    }
}
