//! Training a teacher (or a backbone) from labelled images: multi-label cross-entropy on a ResNet.

use super::evaluate::evaluate;
use super::generator::with_moments;
use super::observer::Observer;
use super::session::{Feed, Session, Stage, stage_seed};
use super::spec::{CropSpec, OptimiserSpec, TeachSpec, TeacherNorm, TrainingData, TrainingSpec};
use super::teachers::Backbone;
use super::{engine_on, fingerprint};
use crate::autograd::tape::Learn;
use crate::autograd::{Engine, Optimiser, Plan, Store, Tape, TensorId};
use crate::data::dataset::Dataset;
use crate::data::labelled::loss_target;
use crate::data::loader::Loader;
use crate::data::scenes::{self, Sources, Split};
use crate::data::transform::{Transform, View};
use crate::data::unlabelled::to_input;
use crate::error::{Error, Result};
use crate::models::Recorder;
use crate::models::resnet::{Build, Mode, ResNet, ResNetSpec, Source};
use crate::ops::layers::batch_norm::Stats;
use crate::ops::losses::bce::{Bce, Targets};
use crate::ops::movement::gather_images::GatherImages;
use crate::ops::optim::adam::Adam;
use crate::ops::optim::sgd::Sgd;
use crate::summary::Score;
use crate::tensor::Shape;
use crate::weights::{Tensors, npz};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What training a teacher found out.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TeachSummary {
    pub weights: PathBuf,
    pub labels: Vec<String>,
    /// Cross-entropy over the last tenth of the steps.
    pub loss: f64,
    pub score: Option<Score>,
    pub seconds: f64,
}

/// Opens what a training reads, before its folder is touched: data, the weights it starts from, and the images that it is
/// scored on; all of them fit the network.
pub fn check(spec: &TeachSpec) -> Result<()> {
    let mut spec = spec.clone();
    // One scene tells as much as all of them, which take seconds to compose.
    if let TrainingData::Scenes { count, .. } = &mut spec.data {
        *count = 1;
    }
    let start = spec.init.as_ref().map(Backbone::open).transpose()?;
    let data = Data::open(&spec)?;
    let network = network(&spec, data.image, start.as_ref())?;
    // Tensor by tensor, in a store without memory.
    build(&mut Store::planned(None), &spec, &network, start, data.labels().len())?;
    match &spec.evaluation {
        Some(evaluation) => super::evaluate::check(evaluation, data.image, data.labels()),
        None => Ok(()),
    }
}

/// Trains what `spec` describes and writes `weights.npz` to `out`.
pub fn teach(
    spec: &TeachSpec,
    out: &Path,
    resume: bool,
    observer: &mut dyn Observer,
) -> Result<TeachSummary> {
    let data = Data::open(spec)?;
    let (labels, image) = (data.labels().to_vec(), data.image);
    let start = spec.init.as_ref().map(Backbone::open).transpose()?;
    let network = network(spec, image, start.as_ref())?;
    let t = &spec.training;
    let mut session =
        Session::open(out, resume, fingerprint(spec, &data)?, spec.checkpoint_seconds, observer)?;

    let mut engine = engine_on(&spec.device, spec.precision)?;
    let net = build(&mut engine.store, spec, &network, start, labels.len())?;
    let provenance = format!("{} steps of {} on {}", t.steps, t.batch, data.set.provenance);
    let (leaves, feed) = data.place(&mut engine, spec, session.first_step(STAGE))?;
    let mut tape = Tape::default();
    let mut r = Recorder { tape: &mut tape, store: &engine.store };
    let [mut x, mut target] = leaves.map(|leaf| r.leaf(leaf, Learn::Frozen));
    if feed.is_none() {
        // The same stream for both: the targets of the images that were drawn.
        let draw = GatherImages { n: t.batch, stream: 1 };
        (x, target) = (r.apply(draw, &[x])?, r.apply(draw, &[target])?);
    }
    let stats = match t.norm {
        TeacherNorm::Batch => Stats::Batch,
        TeacherNorm::Stored => Stats::Running,
    };
    let mode = Mode { learn: Learn::Trainable, stats };
    for b in 1..=network.blocks() {
        x = net.block(&mut r, b, x, mode, None)?;
    }
    let (_, logits) = net.head(&mut r, x, mode)?;
    let loss = r.apply(Bce { targets: Targets::Probabilities, minus_entropy: false }, &[logits, target])?;
    tape.metric("loss", loss);
    let (optimisers, learning_rates) = optimisers(&mut engine.store, t, &net);
    let stage = Stage {
        name: STAGE.into(),
        plan: Plan::compile(&tape, &engine.store, Some(loss), &optimisers)?,
        steps: t.steps,
        schedule: t.schedule,
        learning_rates,
        seed: stage_seed(spec.seed, STAGE),
        batch: (t.batch, "training.batch"),
    };
    let weights = out.join("weights.npz");
    let outcome = session.train_on(&mut engine, stage, feed, |engine, _| {
        let mut t = Tensors::new();
        net.export(&engine.store, 1..=network.blocks(), "", Build::Normed, &mut t)?;
        if let Some([w, b]) = net.head {
            let (classes, c) = (labels.len(), engine.store.shape(w).c());
            t.insert("fc.weight", &[classes, c], engine.store.to_f32(w))?;
            t.insert("fc.bias", &[classes], engine.store.to_f32(b))?;
        }
        let json =
            |v: serde_json::Result<serde_json::Value>| v.map_err(|e| Error::Run(format!("metadata: {e}")));
        t.meta.insert("network".into(), json(serde_json::to_value(&network))?);
        t.meta.insert("labels".into(), json(serde_json::to_value(&labels))?);
        t.meta.insert("provenance".into(), provenance.into());
        npz::save(&weights, &t)
    })?;
    let score = match &spec.evaluation {
        Some(data) => {
            session.stop_if_asked("before the evaluation")?;
            Some(evaluate(&weights, data, &spec.device)?)
        }
        None => None,
    };
    session.finish()?;
    let loss = outcome.converged.get("loss").copied().unwrap_or(f64::NAN);
    Ok(TeachSummary { weights, labels, loss, score, seconds: outcome.seconds })
}

const STAGE: &str = "teach";

/// What the weights' bits depend on. A data set of files counts by its targets and by the names and lengths of its images.
fn fingerprint(spec: &TeachSpec, data: &Data) -> Result<String> {
    let mut relevant = spec.clone();
    relevant.evaluation = None;
    relevant.checkpoint_seconds = 0.0;
    let images = match &spec.data {
        TrainingData::Labelled(path) => path.clone(),
        TrainingData::Scenes { archives, .. } => archives.clone(),
        TrainingData::Voc { folder, .. } => folder.join("JPEGImages"),
        TrainingData::Coco { images, .. } => images.clone(),
    };
    let files: Vec<&Path> = spec.init.iter().map(PathBuf::as_path).chain([images.as_path()]).collect();
    let targets: Vec<&[u8]> = (0..data.set.len()).map(|i| data.set.targets(i)).collect();
    fingerprint::of(&(relevant, targets), &files)
}

/// The training data, its labels those that are wanted.
struct Data {
    set: Dataset,
    /// Of an image as the network sees it: height, width, channels.
    image: [usize; 3],
    /// How images become of that size; none where they have it.
    crop: Option<CropSpec>,
}

impl Data {
    fn open(spec: &TeachSpec) -> Result<Data> {
        let (set, crop) = match &spec.data {
            TrainingData::Labelled(path) => (Dataset::npz(path)?, None),
            TrainingData::Scenes { archives, count, seed, objects, side, tries } => {
                let scene =
                    scenes::Spec { objects: objects[0]..=objects[1], side: side[0]..=side[1], tries: *tries };
                let set = Sources::open(archives)?.labelled(Split::Train, *count, *seed, &scene)?;
                (Dataset::from_set(set, archives), None)
            }
            TrainingData::Voc { folder, split, crop } => (Dataset::voc(folder, split)?, Some(*crop)),
            TrainingData::Coco { images, annotations, crop } => {
                (Dataset::coco(images, annotations)?, Some(*crop))
            }
        };
        let set = if spec.labels.is_empty() { set } else { set.select(&spec.labels)? };
        let image = match (set.image_size(), spec.image_size) {
            (Some([h, w, _]), Some(size)) if [h, w] != [size, size] => {
                let message = format!("images: the config says {size} pixels a side, found {h} x {w}");
                return Err(Error::data(&set.file, message));
            }
            (Some(found), _) => found,
            (None, Some(size)) => [size, size, 3],
            (None, None) => {
                let message = "images of any size: expected `image_size` in the config, found none";
                return Err(Error::data(&set.file, message));
            }
        };
        Ok(Data { set, image, crop })
    }

    fn labels(&self) -> &[String] {
        &self.set.labels
    }

    /// Puts images and targets into the store: all of them, for a step to draw from, where they have the network's size;
    /// else those of one step, which the feed then fills from `first_step` on.
    fn place(
        self,
        engine: &mut Engine<f32>,
        spec: &TeachSpec,
        first_step: u64,
    ) -> Result<([TensorId; 2], Option<Feed>)> {
        let ([h, w, c], labels) = (self.image, self.labels().len());
        let store = &mut engine.store;
        let mut leaves = |n: usize| {
            let images = store.add_alone("data.images", Shape::new(n, h, w, c));
            [images, store.add_alone("data.targets", Shape::rows(n, labels))]
        };
        let Some(CropSpec { scale, ratio, flip }) = self.crop else {
            let n = self.set.len();
            let [images, targets] = leaves(n);
            for (i, to) in engine.store.get_mut(images).chunks_exact_mut(h * w * c).enumerate() {
                to.iter_mut().zip(self.set.pixels(i)?.data).for_each(|(t, p)| *t = to_input(p));
            }
            for (i, to) in engine.store.get_mut(targets).chunks_exact_mut(labels).enumerate() {
                to.iter_mut().zip(self.set.targets(i)).for_each(|(t, y)| *t = loss_target(*y));
            }
            return Ok(([images, targets], None));
        };
        let [images, targets] = leaves(spec.training.batch);
        let transform = Transform { image: self.image, view: View::RandomCrop { scale, ratio, flip } };
        let (batch, seed) = (spec.training.batch, stage_seed(spec.seed, "teach.data"));
        let mut loader = Loader::new(Arc::new(self.set), transform, batch, seed, first_step)?;
        let mut wanted = vec![0.0; batch * labels];
        let feed = move |step: u64, store: &mut Store<f32>| {
            loader.fill(step, store.get_mut(images), &mut wanted)?;
            store.get_mut(targets).copy_from_slice(&wanted);
            Ok(())
        };
        Ok(([images, targets], Some(Box::new(feed))))
    }
}

/// The optimisers, one for each rate that tensors learn at, and the rates by slot: the head's, then the blocks' from the
/// last one back. A step has four rates, so what lies before the last two blocks shares one.
fn optimisers(store: &mut Store<f32>, t: &TrainingSpec, net: &ResNet) -> (Vec<Optimiser>, [f32; 4]) {
    let (blocks, head) = (net.spec.blocks(), net.head.into_iter().flatten());
    let rates: [f32; 4] = std::array::from_fn(|slot| match slot {
        0 => t.learning_rate,
        _ => t.backbone_learning_rate * t.layer_decay.powi(slot as i32 - 1),
    });
    let mut groups: Vec<(usize, Vec<TensorId>)> = Vec::new();
    if rates.iter().all(|rate| *rate == rates[0]) {
        groups.push((0, net.learning(1..=blocks).into_iter().chain(head).collect()));
    } else {
        groups.push((0, head.collect()));
        for slot in 1..=blocks.min(3) {
            let (last, first) = (blocks + 1 - slot, if slot == 3 { 1 } else { blocks + 1 - slot });
            groups.push((slot, net.learning(first..=last)));
        }
    }
    let of_group = |(lr_slot, tensors): (usize, Vec<TensorId>)| match t.optimiser {
        OptimiserSpec::Adam { weight_decay } => {
            let weight_decay = f64::from(weight_decay);
            let adam = Adam { lr_slot, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay };
            with_moments(store, STAGE, adam, &tensors)
        }
        OptimiserSpec::Sgd { momentum, weight_decay } => {
            let (momentum, weight_decay) = (f64::from(momentum), f64::from(weight_decay));
            let sgd = Sgd { lr_slot, momentum, weight_decay };
            let with_momentum = |id: TensorId| {
                let (name, shape) = (format!("{STAGE}.momentum.{}", store.name(id)), store.shape(id));
                (id, vec![store.add(&name, shape)])
            };
            Optimiser { op: sgd.into(), tensors: tensors.into_iter().map(with_momentum).collect() }
        }
    };
    (groups.into_iter().map(of_group).collect(), rates)
}

/// The network that the config describes for these images, with what the weights that it starts from say of it.
fn network(spec: &TeachSpec, image: [usize; 3], start: Option<&Backbone>) -> Result<ResNetSpec> {
    let network = ResNetSpec {
        block: spec.block,
        image,
        stem: spec.stem,
        widths: spec.widths.clone(),
        depths: spec.depths.clone(),
        stride: start.map(|s| s.stride).unwrap_or_default(),
        normalisation: start.and_then(|s| s.normalisation.clone()),
    };
    network.validate().map_err(|e| Error::Usage(format!("network: {e}")))?;
    Ok(network)
}

/// The network to train: random, or from `start` with a head of its own.
fn build(
    store: &mut Store<f32>,
    spec: &TeachSpec,
    network: &ResNetSpec,
    start: Option<Backbone>,
    labels: usize,
) -> Result<ResNet> {
    let seed = stage_seed(spec.seed, "teach.init");
    let blocks = 1..=network.blocks();
    let mut tensors = match start {
        Some(start) => start.fitting(network)?,
        None => {
            return ResNet::new(
                store,
                "net",
                network,
                blocks,
                Some(labels),
                Build::Normed,
                Source::Random(seed),
            );
        }
    };
    let mut trunk =
        ResNet::new(store, "net", network, blocks, None, Build::Normed, Source::Tensors(&mut tensors))?;
    let c = network.widths[network.blocks() - 1];
    let shape = Shape::new(labels, 1, 1, c);
    let weights = crate::models::init::he_normal(seed, "fc.weight", shape, 1.0 / 3.0);
    let head =
        [store.add_with("net.fc.weight", shape, &weights), store.add("net.fc.bias", Shape::vector(labels))];
    trunk.head = Some(head);
    Ok(trunk)
}
