//! Training a teacher (or a backbone) from labelled images: multi-label cross-entropy on a ResNet.

use super::engine_on;
use super::evaluate::evaluate;
use super::generator::with_moments;
use super::observer::Observer;
use super::schedule::Schedule;
use super::session::{CHECKPOINT_SECONDS, Session, Stage, stage_seed};
use super::spec::{TeachSpec, TrainingData};
use super::teachers::Backbone;
use crate::autograd::tape::Learn;
use crate::autograd::{Engine, Plan, Tape};
use crate::data::labelled::LabelledSet;
use crate::data::scenes::{self, Sources, Split};
use crate::data::unlabelled::to_input;
use crate::error::{Error, Result};
use crate::models::Recorder;
use crate::models::resnet::{Build, Mode, ResNet, ResNetSpec, Source};
use crate::ops::adam::Adam;
use crate::ops::batch_norm::Stats;
use crate::ops::bce::{Bce, Targets};
use crate::ops::gather_images::GatherImages;
use crate::summary::Score;
use crate::tensor::Shape;
use crate::weights::{Tensors, npz};
use std::path::{Path, PathBuf};

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

/// Trains what `spec` describes and writes `weights.npz` to `out`.
pub fn teach(
    spec: &TeachSpec,
    out: &Path,
    resume: bool,
    observer: &mut dyn Observer,
) -> Result<TeachSummary> {
    let data = training_data(&spec.data)?;
    let labels = if spec.labels.is_empty() { data.labels.clone() } else { spec.labels.clone() };
    let targets = data.targets_of(&labels)?;
    let [n, h, w, c] = data.images.shape();
    let start = spec.init.as_ref().map(Backbone::open).transpose()?;
    let network = ResNetSpec {
        block: spec.block,
        image: [h, w, c],
        stem: spec.stem,
        widths: spec.widths.clone(),
        depths: spec.depths.clone(),
        stride: start.as_ref().map(|s| s.stride).unwrap_or_default(),
        normalisation: start.as_ref().and_then(|s| s.normalisation.clone()),
    };
    network.validate().map_err(|e| Error::Usage(format!("network: {e}")))?;

    let mut engine = engine_on(&spec.device, spec.precision)?;
    let images = engine.store.add("data.images", Shape::new(n, h, w, c));
    engine.store.get_mut(images).iter_mut().zip(&data.images.images).for_each(|(t, p)| *t = to_input(*p));
    let wanted = engine.store.add("data.targets", Shape::rows(n, labels.len()));
    engine
        .store
        .get_mut(wanted)
        .iter_mut()
        .zip(&targets)
        .for_each(|(t, y)| *t = f32::from(u8::from(*y == 1)));

    let net = build(&mut engine, spec, &network, start, labels.len())?;
    let mut tape = Tape::default();
    let mut r = Recorder { tape: &mut tape, store: &engine.store };
    let draw = GatherImages { n: spec.batch, stream: 1, first: 0, count: None };
    // The same stream for both: the targets of the images that were drawn.
    let (bank, answers) = (r.leaf(images, Learn::Frozen), r.leaf(wanted, Learn::Frozen));
    let mut x = r.apply(draw, &[bank])?;
    let target = r.apply(draw, &[answers])?;
    let mode = Mode { learn: Learn::Trainable, stats: Stats::Batch };
    for b in 1..=network.blocks() {
        x = net.block(&mut r, b, x, mode, None)?;
    }
    let (_, logits) = net.head(&mut r, x, mode)?;
    let loss = r.apply(Bce { targets: Targets::Probabilities, minus_entropy: false }, &[logits, target])?;
    tape.metric("loss", loss);
    let mut learning = net.learning(1..=network.blocks());
    learning.extend(net.head.into_iter().flatten());
    let adam = Adam { lr_slot: 0, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let optimiser = with_moments(&mut engine.store, "teach", adam, &learning);
    let plan = Plan::compile(&tape, &engine.store, Some(loss), &[optimiser])?;

    let fingerprint = serde_json::to_string(spec).map_err(|e| Error::Run(format!("configuration: {e}")))?;
    let mut session = Session::open(out, resume, fingerprint, CHECKPOINT_SECONDS, observer)?;
    let stage = Stage {
        name: "teach".into(),
        plan,
        steps: spec.steps,
        schedule: Schedule::OneCycle,
        learning_rates: [spec.learning_rate; 4],
        seed: stage_seed(spec.seed, "teach"),
        batch: (spec.batch, "training.batch"),
    };
    let weights = out.join("weights.npz");
    let provenance = format!("{} steps of {} on {}", spec.steps, spec.batch, data.images.provenance);
    let outcome = session.train(&mut engine, stage, |engine, _| {
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
        Some(data) => Some(evaluate(&weights, data, &spec.device)?),
        None => None,
    };
    let loss = outcome.converged.get("loss").copied().unwrap_or(f64::NAN);
    Ok(TeachSummary { weights, labels, loss, score, seconds: outcome.seconds })
}

fn training_data(data: &TrainingData) -> Result<LabelledSet> {
    match data {
        TrainingData::Labelled(path) => LabelledSet::load(path),
        TrainingData::Scenes { archives, count, seed, objects, side, tries } => {
            let spec =
                scenes::Spec { objects: objects[0]..=objects[1], side: side[0]..=side[1], tries: *tries };
            Sources::open(archives)?.labelled(Split::Train, *count, *seed, &spec)
        }
    }
}

/// The network to train: random, or from `start` with a head of its own.
fn build(
    engine: &mut Engine<f32>,
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
                &mut engine.store,
                "net",
                network,
                blocks,
                Some(labels),
                Build::Normed,
                Source::Random(seed),
            );
        }
    };
    let mut trunk = ResNet::new(
        &mut engine.store,
        "net",
        network,
        blocks,
        None,
        Build::Normed,
        Source::Tensors(&mut tensors),
    )?;
    let c = network.widths[network.blocks() - 1];
    let shape = Shape::new(labels, 1, 1, c);
    let weights = crate::models::init::he_normal(seed, "fc.weight", shape, 1.0 / 3.0);
    let head = [
        engine.store.add_with("net.fc.weight", shape, &weights),
        engine.store.add("net.fc.bias", Shape::vector(labels)),
    ];
    trunk.head = Some(head);
    Ok(trunk)
}
