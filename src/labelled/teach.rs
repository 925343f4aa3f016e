//! Training a teacher (or a backbone) from labelled images: multi-label cross-entropy on a ResNet.

use super::evaluate::{self, evaluate};
use super::spec::{OptimiserSpec, TeachSpec, TeacherNorm, TrainingData, TrainingSpec};
use super::training_data::Data;
use crate::autograd::tape::{Learn, Value};
use crate::autograd::{Engine, Optimiser, Plan, Store, Tape, TensorId};
use crate::error::{Error, Result};
use crate::models::resnet::{Build, Mode, ResNet, ResNetSpec, Source};
use crate::models::{Recorder, init};
use crate::ops::layers::batch_norm::Stats;
use crate::ops::losses::bce::{Bce, Targets};
use crate::ops::movement::gather_images::GatherImages;
use crate::ops::movement::to_maps::ToMaps;
use crate::ops::optim::adam::Adam;
use crate::ops::optim::sgd::Sgd;
use crate::pipeline::observer::Observer;
use crate::pipeline::seed::{stage_seed, stream};
use crate::pipeline::session::{Extras, Session};
use crate::pipeline::stage::{Stage, with_moments};
use crate::pipeline::teacher_file::Backbone;
use crate::pipeline::{engine_on, fingerprint, room};
use crate::summary::Score;
use crate::tensor::Shape;
use crate::weights::{Tensors, npz};
use std::path::{Path, PathBuf};

/// The result of a teacher's training.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TeachSummary {
    /// The file that was written.
    #[serde(serialize_with = "as_shown")]
    pub weights: PathBuf,
    /// In the order of the predictions.
    pub labels: Vec<String>,
    /// Mean cross-entropy over the last tenth of the steps.
    pub loss: f64,
    /// Where there is evaluation data.
    pub score: Option<Score>,
    /// Wall clock of the training.
    pub seconds: f64,
}

/// A path that is not UTF-8 must not make a finished training fail.
fn as_shown<S: serde::Serializer>(path: &Path, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(&path.display())
}

/// Checks everything that a training reads, before its folder is touched: the data, the initial weights, and
/// the evaluation data. Returns what the user should know of them.
///
/// Errors: the first file that does not open or does not fit the network; labels of which no image has any.
pub fn check(spec: &TeachSpec) -> Result<Vec<String>> {
    let mut spec = spec.clone();
    // One scene is enough for a check; composing all of them takes seconds.
    if let TrainingData::Scenes { count, .. } = &mut spec.data {
        *count = 1;
    }
    let start = spec.init.as_ref().map(Backbone::open).transpose()?;
    let data = Data::open(&spec)?;
    let network = network(&spec, data.image, start.as_ref())?;
    // Every tensor's shape is checked, in a store without memory.
    build(&mut Store::planned(None), &spec, &network, start, data.labels().len())?;
    let mut notes = match &spec.data {
        TrainingData::Scenes { .. } => Vec::new(), // one scene does not have all labels
        _ => data.absent_labels()?.into_iter().collect(),
    };
    if let Some(evaluation) = &spec.evaluation {
        notes.extend(evaluate::check(evaluation, data.image, data.labels())?);
    }
    Ok(notes)
}

/// Trains the network that `spec` describes, writes it to `weights.npz` in the folder `out`, and scores it
/// where there is evaluation data.
///
/// Errors: those of [`check`], [`Session::open`] and [`Session::train`].
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

    expect_room(spec, &network, &data)?;
    let mut engine = engine_on(&spec.device, spec.precision)?;
    let net = build(&mut engine.store, spec, &network, start, labels.len())?;
    let provenance = format!("{} steps of {} on {}", t.steps, t.batch, data.set.provenance);
    let (leaves, feed) = data.place(&mut engine, spec, session.first_step(STAGE))?;
    let mode = Mode {
        learn: Learn::Trainable,
        stats: match t.norm {
            TeacherNorm::Batch => Stats::Batch,
            TeacherNorm::Stored => Stats::Running,
        },
    };
    let mut tape = Tape::default();
    let mut r = Recorder { tape: &mut tape, store: &engine.store };
    let leaves = leaves.map(|leaf| r.leaf(leaf, Learn::Frozen));
    let [x, target] = match leaves {
        [x, target] if feed.is_some() => [to_maps(&mut r, &net, x)?, target],
        all => draw(&mut r, t.batch, all)?,
    };
    let loss = record(&mut r, &net, mode, x, target)?;
    let (optimisers, learning_rates) = optimisers(&mut engine.store, t, &net);
    let stage = Stage {
        name: STAGE.into(),
        plan: Plan::compile(&tape, &engine.store, Some(loss), &optimisers)?,
        steps: t.steps,
        schedule: t.schedule,
        learning_rates,
        seed: stage_seed(spec.seed, STAGE),
        batch: (t.batch, "training.batch"),
        teachers_at_once: None,
        owned: Vec::new(),
    };
    session.plan(&[(STAGE.into(), t.steps)])?;
    let weights = out.join("weights.npz");
    let result =
        session.train_with(&mut engine, stage, Extras { feed, ..Extras::default() }, |engine, _| {
            save(&weights, engine, &net, &labels, provenance)?;
            Ok(vec![weights.clone()])
        })?;
    let score = match &spec.evaluation {
        Some(data) => {
            session.stop_if_asked("before the evaluation")?;
            Some(evaluate(&weights, data, &spec.device)?)
        }
        None => None,
    };
    session.finish()?;
    let loss = result.converged.get("loss").copied().unwrap_or(f64::NAN);
    Ok(TeachSummary { weights, labels, loss, score, seconds: result.seconds })
}

/// Checks that this machine has room for the network, its moments and the images.
///
/// Errors: out of memory.
fn expect_room(spec: &TeachSpec, network: &ResNetSpec, data: &Data) -> Result<()> {
    let mut store = Store::planned(None);
    let net = build(&mut store, spec, network, None, data.labels().len())?;
    optimisers(&mut store, &spec.training, &net);
    let [h, w, c] = data.image;
    store.add("data.images", Shape::new(data.stored(spec), h, w, c));
    room::expect_room_for(&store, "network.widths, network.depths or training.batch")
}

/// Name of the one stage.
const STAGE: &str = "teach";

/// Records the draw of a batch from all images and targets. Both are drawn from the same stream, so that
/// images keep their targets.
fn draw(r: &mut Recorder<f32>, n: usize, [images, targets]: [Value; 2]) -> Result<[Value; 2]> {
    let draw = GatherImages { n, stream: stream::TEACH_GATHER };
    Ok([r.apply(draw, &[images])?, r.apply(draw, &[targets])?])
}

/// Images that are fed lie in the store, in f32. The normalisation of a network that has one converts them.
fn to_maps(r: &mut Recorder<f32>, net: &ResNet, x: Value) -> Result<Value> {
    if net.spec.normalisation.is_some() { Ok(x) } else { r.apply(ToMaps, &[x]) }
}

/// Records the network on images `x` and its loss against `target` `[n, 1, 1, labels]`.
fn record(r: &mut Recorder<f32>, net: &ResNet, mode: Mode, mut x: Value, target: Value) -> Result<Value> {
    for b in 1..=net.spec.blocks() {
        x = net.block(r, b, x, mode, None)?;
    }
    let (_, logits) = net.head(r, x, mode)?;
    let loss = r.apply(Bce::new(Targets::Probabilities), &[logits, target])?;
    r.tape.metric("loss", loss);
    Ok(loss)
}

/// Writes the trained network.
fn save(
    path: &Path,
    engine: &Engine<f32>,
    net: &ResNet,
    labels: &[String],
    provenance: String,
) -> Result<()> {
    let mut t = Tensors::new();
    net.export(&engine.store, 1..=net.spec.blocks(), "", Build::Normed, &mut t)?;
    if let Some([w, b]) = net.head {
        let (classes, c) = (labels.len(), engine.store.shape(w).c());
        t.insert("fc.weight", &[classes, c], engine.store.to_f32(w))?;
        t.insert("fc.bias", &[classes], engine.store.to_f32(b))?;
    }
    let json = |v: serde_json::Result<serde_json::Value>| v.map_err(|e| Error::Run(format!("metadata: {e}")));
    t.meta.insert("network".into(), json(serde_json::to_value(&net.spec))?);
    t.meta.insert("labels".into(), json(serde_json::to_value(labels))?);
    t.meta.insert("provenance".into(), provenance.into());
    npz::save(path, &t)
}

/// The fingerprint of a training. Files of images count by their targets, names and lengths.
fn fingerprint(spec: &TeachSpec, data: &Data) -> Result<String> {
    let mut relevant = spec.clone();
    relevant.evaluation = None;
    relevant.checkpoint_seconds = 0.0;
    let (files, images) = match &spec.data {
        TrainingData::Labelled(path) => (Some(path), None),
        TrainingData::Scenes { archives, .. } => (Some(archives), None),
        TrainingData::Voc { folder, .. } => (None, Some(folder.join("JPEGImages"))),
        TrainingData::Coco { images, .. } => (None, Some(images.clone())),
        TrainingData::Csv { folder, .. } => (None, Some(folder.clone())),
    };
    let files: Vec<&Path> = spec.init.iter().chain(files).map(PathBuf::as_path).collect();
    let images: Vec<&Path> = images.iter().map(PathBuf::as_path).collect();
    let targets: Vec<&[u8]> = (0..data.set.len()).map(|i| data.set.targets(i)).collect();
    fingerprint::of(&(relevant, targets), &files, &images, &[])
}

/// The optimisers, one for each learning rate, and the rates by slot: first the head's, then the blocks',
/// last block first. A step has four slots, so all blocks before the last two share one.
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

/// The network that the config describes, for images `[h, w, c]`. Normalisation and the place of the strides
/// are those of the initial weights.
fn network(spec: &TeachSpec, image: [usize; 3], start: Option<&Backbone>) -> Result<ResNetSpec> {
    let network = ResNetSpec {
        block: spec.block,
        image,
        stem: spec.stem,
        widths: spec.widths.clone(),
        depths: spec.depths.clone(),
        variant: spec.variant.clone(),
        stride: start.map(|s| s.stride).unwrap_or_default(),
        normalisation: start.and_then(|s| s.normalisation.clone()),
    };
    network.validate().map_err(|e| Error::Usage(format!("network: {e}")))?;
    let maps = network.feature(network.blocks(), spec.training.batch);
    if spec.training.norm == TeacherNorm::Batch && maps.n() * maps.h() * maps.w() == 1 {
        return Err(Error::Usage(
            "training.batch is 1; expected at least 2, because the last block's maps have one pixel, and training.norm = \
             \"batch\" normalises each channel by its statistics over the batch"
                .into(),
        ));
    }
    Ok(network)
}

/// Builds the network to train: from random values, or from the blocks of `start` and a random head.
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
    let weights = init::he_normal(seed, "fc.weight", shape, 1.0 / 3.0);
    let head =
        [store.add_with("net.fc.weight", shape, &weights), store.add("net.fc.bias", Shape::vector(labels))];
    trunk.head = Some(head);
    Ok(trunk)
}
