//! Stage two: the dual generator, block by block, taught by the teachers' own remaining blocks
//! (docs/method.md 3).

use super::images::load_images;
use super::schedule::Schedule;
use super::seed::{stage_seed, stream};
use super::share::Share;
use super::spec::{DualSpec, ImageSource, RunSpec, StudentNorm};
use super::stage::{Stage, part, with_moments};
use super::stage_one::StageOne;
use super::student_start::initial_tensors;
use super::tasks::{Source, TaskLabels};
use super::teachers::{Teachers, predictions};
use crate::autograd::tape::{Learn, Value};
use crate::autograd::{Engine, Optimiser, Plan, Store, Tape, TensorId};
use crate::error::{Error, Result};
use crate::models::Recorder;
use crate::models::filter::Filter;
use crate::models::resnet::{self, Build, Mode, ResNet};
use crate::models::targetnet::{TargetNetSpec, TaskSpec};
use crate::ops::layers::activation::{Act, Activation};
use crate::ops::layers::batch_norm::Stats;
use crate::ops::layers::conv2d::Conv2d;
use crate::ops::losses::bce::{Bce, Targets};
use crate::ops::losses::feature_loss::FeatureLoss;
use crate::ops::losses::weighted_sum::WeightedSum;
use crate::ops::movement::columns::Columns;
use crate::ops::movement::gather_images::GatherImages;
use crate::ops::optim::adam::Adam;
use crate::ops::random::noise::Noise;
use crate::tensor::{Real, Shape};
use crate::weights::Tensors;

/// A task's dual loss (13), and the feature errors that are trained beside it, each with its weight.
struct TaskLosses {
    dual: Value,
    features: Vec<(f32, Value)>,
}

/// The dual generator `T` and its filters.
pub struct StageTwo {
    /// The blocks `T^1..T^B`.
    pub trunk: ResNet,
    /// Teacher-level filters `f_m^b`, by block (0-based) and task.
    filters: Vec<Vec<Filter>>,
    /// The labels that the student predicts through each teacher.
    pub tasks: Vec<TaskLabels>,
    /// For each task that has labels of several teachers: the matrix `[labels, 1, 1, c]` that takes the means of the
    /// probabilities from those of all teachers side by side.
    means: Vec<Option<TensorId>>,
    images: Images,
    stats: Stats,
}

/// Where a step's images come from.
enum Images {
    /// A bank in the store.
    Bank(TensorId),
    /// Gaussian noise, drawn in the step.
    Noise,
}

impl StageTwo {
    /// Adds the trunk, the filters and, for the KA baseline, the real images to the store.
    ///
    /// Errors: initial weights that do not fit, images that do not fit; generated images without `stage_one`.
    pub fn new<R: Real>(
        store: &mut Store<R>,
        spec: &RunSpec,
        teachers: &Teachers,
        tasks: Vec<TaskLabels>,
        stage_one: Option<&StageOne>,
    ) -> Result<StageTwo> {
        let net = &teachers.network;
        let seed = stage_seed(spec.seed, "student.init");
        let build = if spec.student.norm == StudentNorm::Folded { Build::Folded } else { Build::Normed };
        let mut tensors = initial_tensors(spec, teachers)?;
        let source = match &mut tensors {
            Some(t) => resnet::Source::Tensors(t),
            None => resnet::Source::Random(seed),
        };
        let trunk = ResNet::new(store, "student", net, 1..=net.blocks(), None, build, source)?;
        let mut filters = Vec::new();
        for b in 1..=net.blocks() {
            let of_task = |t: &TaskLabels| {
                let name = format!("student.filter{b}.{}", teachers.all[t.teacher].name);
                Filter::new(store, &name, &teachers.filter(&spec.student, b, t.teacher), seed)
            };
            filters.push(tasks.iter().map(of_task).collect());
        }
        let means = tasks.iter().map(|t| t.is_averaged().then(|| mean_matrix(store, teachers, t))).collect();
        let images = match &spec.dual.images {
            ImageSource::Generator => {
                Images::Bank(stage_one.ok_or_else(|| Error::Run("stage two without stage one".into()))?.bank)
            }
            ImageSource::Noise => Images::Noise,
            ImageSource::Real(path) => Images::Bank(load_images(store, path, teachers)?),
        };
        let stats = if spec.student.norm == StudentNorm::Batch { Stats::Batch } else { Stats::Running };
        Ok(StageTwo { trunk, filters, tasks, means, images, stats })
    }

    /// Records and compiles a step of block `b` (1-based): `L_u^b` (16) and the update of the trained
    /// tensors.
    pub fn stage(
        &self,
        engine: &mut Engine<f32>,
        name: &str,
        spec: &RunSpec,
        teachers: &Teachers,
        stage_one: Option<&StageOne>,
        b: usize,
    ) -> Result<Stage> {
        let mut tape = Tape::default();
        let mut r = Recorder { tape: &mut tape, store: &engine.store };
        let loss = self.record_loss(&mut r, spec, teachers, stage_one, b)?;
        let optimiser = self.optimiser(&mut engine.store, spec, b);
        let of_task = |id| self.filters[b - 1].iter().position(|f| f.tensors().contains(&id));
        let owned = self.share(spec)?.owned(&optimiser, of_task);
        Ok(Stage {
            name: name.into(),
            plan: Plan::compile(&tape, &engine.store, Some(loss), &[optimiser])?,
            steps: spec.dual.steps[b - 1],
            schedule: Schedule::OneCycle,
            learning_rates: [spec.dual.learning_rate; 4],
            seed: stage_seed(spec.seed, name),
            batch: (spec.dual.batch, "dual.batch"),
            teachers_at_once: None,
            owned,
        })
    }

    /// The optimiser of the tensors that block `b` (1-based) trains, whose moments it adds to the store.
    pub(super) fn optimiser<R: Real>(&self, store: &mut Store<R>, spec: &RunSpec, b: usize) -> Optimiser {
        let first = if spec.dual.freeze_earlier { b } else { 1 };
        let mut learning = self.trunk.learning(first..=b);
        learning.extend(self.filters[b - 1].iter().flat_map(|f| f.tensors()));
        let adam = Adam { lr_slot: 0, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
        with_moments(store, &format!("block{b}"), adam, &learning)
    }

    /// Records `L_u^b` (16). Metrics: the loss, and each task's dual loss `L_d^{b,m}` (13).
    pub fn record_loss<R: Real>(
        &self,
        r: &mut Recorder<R>,
        spec: &RunSpec,
        teachers: &Teachers,
        stage_one: Option<&StageOne>,
        b: usize,
    ) -> Result<Value> {
        let (d, share) = (&spec.dual, self.share(spec)?);
        share.begin(r.tape, spec.dual.batch);
        let image_shape = teachers.network.feature(0, d.batch);
        let drawn = match self.images {
            Images::Bank(bank) => {
                let bank = r.leaf(bank, Learn::Frozen);
                r.apply(GatherImages { n: d.batch, stream: stream::GATHER }, &[bank])?
            }
            Images::Noise => r.apply(Noise { shape: image_shape, stream: stream::NOISE_IMAGES }, &[])?,
        };
        let whole = r.apply(d.augment.op(), &[drawn])?;
        let image = share.part(r, whole)?;

        let mut terms = Vec::new();
        let first = self.record_input(r, spec, teachers, image, image, 1, b)?;
        for (m, TaskLosses { dual, features }) in first.iter().enumerate() {
            r.tape.metric(&format!("dual.{}", teachers.all[self.tasks[m].teacher].name), *dual);
            terms.push((d.lambda_in[0], *dual));
            terms.extend(features.iter().map(|(w, f)| (d.lambda_in[0] * w, *f)));
        }
        // F_in^2 (15): the generator's own features at the level that block b reads, where it has a group for
        // it.
        if let (Some(one), true) = (stage_one, b > 1 && d.lambda_in[1] > 0.0)
            && let Some(j) = one.generator.levels.iter().position(|l| *l == b - 1)
        {
            let (levels, _) = one.record_share(r, d.batch, Learn::Frozen, &share)?;
            let second = self.record_input(r, spec, teachers, levels[levels.len() - 1], levels[j], b, b)?;
            for TaskLosses { dual, features } in second {
                terms.push((d.lambda_in[1], dual));
                terms.extend(features.iter().map(|(w, f)| (d.lambda_in[1] * w, *f)));
            }
        }
        let (weights, values): (Vec<f32>, Vec<Value>) = terms.into_iter().unzip();
        let loss = r.apply(WeightedSum { weights }, &values)?;
        r.tape.metric("loss", loss);
        Ok(loss)
    }

    /// Records one input of (16): `x` enters the trunk at block `from`; the teachers' predictions for `image`
    /// are the targets. Returns each task's losses.
    #[allow(clippy::too_many_arguments)]
    fn record_input<R: Real>(
        &self,
        r: &mut Recorder<R>,
        spec: &RunSpec,
        teachers: &Teachers,
        image: Value,
        mut x: Value,
        from: usize,
        b: usize,
    ) -> Result<Vec<TaskLosses>> {
        let (d, last) = (&spec.dual, teachers.network.blocks());
        for block in from..=b {
            let learn = if d.freeze_earlier && block < b { Learn::Frozen } else { Learn::Trainable };
            let stats = if learn == Learn::Frozen { Stats::Running } else { self.stats };
            x = r.within(part::STUDENT, |r| self.trunk.block(r, block, x, Mode { learn, stats }, None))?;
        }
        // Every rank records what all of them compute together, before what it computes alone.
        let means =
            |mean: &Option<TensorId>| mean.map(|m| record_means(r, spec, teachers, m, image)).transpose();
        let means: Vec<Option<Value>> = self.means.iter().map(means).collect::<Result<_>>()?;
        let share = self.share(spec)?;
        let (inputs, mut own) = (share.spread(r, x)?, Vec::new());
        for (m, x) in share.own().zip(inputs) {
            let (task, filter) = (&self.tasks[m], &self.filters[b - 1][m]);
            let teacher = &teachers.all[task.teacher].net;
            let block_b = r.within(part::TEACHERS, |r| {
                (1..=b).try_fold(image, |x, block| teacher.block(r, block, x, Mode::FROZEN, None))
            })?;
            let filtered = r.within(part::STUDENT, |r| filter.record(r, x, Learn::Trainable))?;
            // Features at block b, at every later one, and before the head; then the wanted predictions.
            let suffix = |r: &mut Recorder<R>, first: Value| -> Result<(Vec<Value>, Value)> {
                let mut features = vec![first];
                let (pooled, logits) = r.within(part::TEACHERS, |r| {
                    for block in b + 1..=last {
                        let input = features[features.len() - 1];
                        features.push(teacher.block(r, block, input, Mode::FROZEN, None)?);
                    }
                    teacher.head(r, features[features.len() - 1], Mode::FROZEN)
                })?;
                features.push(pooled);
                let logits = share.whole(r, logits)?;
                Ok((features, r.apply(Columns { index: task.columns.clone() }, &[logits])?))
            };
            let (wanted_features, wanted) = suffix(r, block_b)?;
            let (features, found) = suffix(r, filtered)?;
            let (targets, wanted) = match means[m] {
                None => (Targets::Logits, wanted),
                Some(mean) => (Targets::Probabilities, mean),
            };
            own.push(r.apply(Bce { minus_entropy: true, ..Bce::new(targets) }, &[found, wanted])?);
            for ((f, w), weight) in features.iter().zip(&wanted_features).zip(feature_weights(d, last - b)) {
                if weight > 0.0 {
                    own.push(r.apply(FeatureLoss, &[*f, *w])?);
                }
            }
        }
        // Each task has as many losses as every other.
        let weights: Vec<f32> = feature_weights(d, last - b).filter(|w| *w > 0.0).collect();
        let all = share.gather_scalars(r, own)?;
        let task = |losses: &[Value]| TaskLosses {
            dual: losses[0],
            features: weights.iter().copied().zip(losses[1..].iter().copied()).collect(),
        };
        Ok(all.chunks(1 + weights.len()).map(task).collect())
    }

    /// The tasks that this process computes.
    fn share(&self, spec: &RunSpec) -> Result<Share> {
        Share::of(spec.split, self.tasks.len(), "tasks of the student")
    }

    /// Architecture and labels of the student that branches after block `b` for every task.
    pub fn describe(&self, spec: &RunSpec, teachers: &Teachers, b: usize) -> TargetNetSpec {
        let task = |t: &TaskLabels| {
            let teacher = &teachers.all[t.teacher];
            let names = |s: &Vec<Source>| s.iter().map(|(m, _)| teachers.all[*m].name.clone()).collect();
            let averaged = t.labels.iter().zip(&t.sources).filter(|(_, sources)| sources.len() > 1);
            let averaged = averaged.map(|(label, sources)| (label.clone(), names(sources))).collect();
            let (of_teacher, trunk) = (&teacher.net.spec, &teachers.network);
            TaskSpec { averaged, ..TaskSpec::new(&teacher.name, &t.labels, b, of_teacher, trunk) }
        };
        let labels = if spec.student.labels.is_empty() {
            self.tasks.iter().flat_map(|t| t.labels.clone()).collect()
        } else {
            spec.student.labels.clone()
        };
        TargetNetSpec {
            network: teachers.network.clone(),
            filter_reduction: spec.student.filter_reduction,
            filter: spec.student.filter,
            tasks: self.tasks.iter().map(task).collect(),
            labels,
        }
    }

    /// The student that branches after block `b` for every task, as a file's tensors (docs/method.md 4).
    pub fn export(
        &self,
        store: &Store<f32>,
        spec: &RunSpec,
        teachers: &Teachers,
        b: usize,
    ) -> Result<Tensors> {
        let last = teachers.network.blocks();
        let mut out = Tensors::new();
        self.trunk.export(store, 1..=b, "trunk.", Build::Folded, &mut out)?;
        for (i, (task, filter)) in self.tasks.iter().zip(&self.filters[b - 1]).enumerate() {
            let (net, prefix) = (&teachers.all[task.teacher].net, format!("task{i}."));
            let shapes = teachers.filter(&spec.student, b, task.teacher).shapes();
            for ((what, shape), id) in shapes.into_iter().zip(filter.tensors()) {
                let shape = Filter::file_shape(what, shape);
                out.insert(format!("{prefix}filter.{what}"), &shape, store.to_f32(id))?;
            }
            if b < last {
                net.export(store, b + 1..=last, &prefix, Build::Folded, &mut out)?;
            }
            if let Some([w, bias]) = net.head {
                let (w, bias, c) = (store.to_f32(w), store.to_f32(bias), net.spec.widths[last - 1]);
                let rows: Vec<f32> =
                    task.columns.iter().flat_map(|k| &w[*k as usize * c..][..c]).copied().collect();
                out.insert(format!("{prefix}fc.weight"), &[task.columns.len(), c], rows)?;
                let bias = task.columns.iter().map(|k| bias[*k as usize]).collect();
                out.insert(format!("{prefix}fc.bias"), &[task.columns.len()], bias)?;
            }
        }
        let student = serde_json::to_value(self.describe(spec, teachers, b))
            .map_err(|e| Error::Run(format!("student metadata: {e}")))?;
        out.meta.insert("student".into(), student);
        Ok(out)
    }
}

/// The weights of the feature errors: at block b, at the `later` blocks behind it, and before the head.
fn feature_weights(d: &DualSpec, later: usize) -> impl Iterator<Item = f32> {
    let late = d.late_features / (later + 1) as f32;
    std::iter::once(d.feature).chain(std::iter::repeat_n(late, later + 1))
}

/// Adds the matrix of a task's means to the store: row i has `1 / k` in the columns of the k teachers that label i is
/// learnt from.
fn mean_matrix<R: Real>(store: &mut Store<R>, teachers: &Teachers, task: &TaskLabels) -> TensorId {
    let counts: Vec<usize> = teachers.all.iter().map(|t| t.labels.len()).collect();
    let width = counts.iter().sum();
    let mut values = vec![0.0; task.labels.len() * width];
    for (row, sources) in values.chunks_mut(width).zip(&task.sources) {
        for (m, column) in sources {
            row[counts[..*m].iter().sum::<usize>() + *column as usize] = 1.0 / sources.len() as f32;
        }
    }
    let name = format!("data.means.{}", teachers.all[task.teacher].name);
    store.add_with(&name, Shape::new(task.labels.len(), 1, 1, width), &values)
}

/// Records the targets of a task that has labels of several teachers: the means of their probabilities for `image`.
fn record_means<R: Real>(
    r: &mut Recorder<R>,
    spec: &RunSpec,
    teachers: &Teachers,
    matrix: TensorId,
    image: Value,
) -> Result<Value> {
    let count = teachers.all.len();
    let share = Share::of(spec.split, count, "teachers")?;
    let logits = predictions(r, teachers, &share, 1, count, |_, _| Ok(image))?;
    let all = r.apply(Activation(Act::Sigmoid), &[logits])?;
    let matrix = r.leaf(matrix, Learn::Frozen);
    r.apply(Conv2d::new(1, 0), &[all, matrix])
}
