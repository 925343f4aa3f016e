//! The config of a teacher's training. Defaults are ours.

use std::ops::Bound::{Excluded, Included};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::labels::Labels;
use super::{Loaded, Override, Source, folder_name, or, print, seed};
use crate::error::Result;
use crate::pipeline::spec::{BlockKind, NetworkSpec, Optimiser, StemSpec, TeachSpec, TrainingData};

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawTeach {
    name: String,
    seed: Option<i64>,
    init: Option<String>,
    data: RawData,
    network: RawNetwork,
    #[serde(default)]
    training: RawTraining,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawData {
    labels: Option<Labels>,
    train: Option<String>,
    scenes: Option<RawScenes>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawScenes {
    archives: String,
    count: i64,
    objects: Option<[i64; 2]>,
    side: Option<[i64; 2]>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawNetwork {
    block: BlockKind,
    widths: Vec<i64>,
    depths: Vec<i64>,
    stem: RawStem,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawStem {
    kernel: i64,
    stride: i64,
    max_pool: bool,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawTraining {
    steps: Option<i64>,
    batch: Option<i64>,
    learning_rate: Option<f64>,
    optimiser: Option<RawOptimiser>,
    momentum: Option<f64>,
    weight_decay: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum RawOptimiser {
    Adam,
    Sgd,
}

/// Reads and validates the config of a teacher's training, as far as that goes without the data.
pub fn load_teach(file: &Path, overrides: &[Override]) -> Result<Loaded<TeachSpec>> {
    let (source, mut raw) = Source::open::<RawTeach>(file, overrides)?;
    let spec = build(&source, &mut raw)?;
    Ok(Loaded { spec, resolved: print(&raw)?, source })
}

fn build(source: &Source, raw: &mut RawTeach) -> Result<TeachSpec> {
    let labels = or(&mut raw.data.labels, Labels::Word("all".into()));
    let t = &mut raw.training;
    Ok(TeachSpec {
        name: folder_name(source, "name", &raw.name)?,
        seed: seed(source, or(&mut raw.seed, 0))?,
        data: data(source, &mut raw.data)?,
        labels: labels.names(source, "data.labels")?,
        network: network(source, &raw.network)?,
        init: match &mut raw.init {
            Some(path) => Some(source.file("init", path)?),
            None => None,
        },
        steps: source.count("training.steps", or(&mut t.steps, 2000), 1..=100_000_000)?,
        batch: source.count("training.batch", or(&mut t.batch, 64), 1..=65_536)?,
        learning_rate: source.number(
            "training.learning_rate",
            or(&mut t.learning_rate, 1e-3),
            (Excluded(0.0), Included(1.0)),
        )?,
        optimiser: optimiser(source, t)?,
    })
}

fn data(source: &Source, raw: &mut RawData) -> Result<TrainingData> {
    match (&mut raw.train, &mut raw.scenes) {
        (Some(path), None) => Ok(TrainingData::Labelled(source.file("data.train", path)?)),
        (None, Some(s)) => Ok(TrainingData::Scenes {
            archives: source.file("data.scenes.archives", &mut s.archives)?,
            count: source.count("data.scenes.count", s.count, 1..=1_000_000)?,
            objects: ascending(source, "data.scenes.objects", or(&mut s.objects, [1, 3]))?,
            side: ascending(source, "data.scenes.side", or(&mut s.side, [14, 20]))?,
        }),
        (Some(_), Some(_)) | (None, None) => {
            let message = "`data` takes either `train = \"FILE.npz\"` or a [data.scenes] table";
            Err(source.fail("data", message))
        }
    }
}

fn network(source: &Source, raw: &RawNetwork) -> Result<NetworkSpec> {
    if raw.widths.is_empty() || raw.depths.len() != raw.widths.len() {
        let message = format!(
            "`network.depths` has {} entries and `network.widths` {}; expected one of each for every block",
            raw.depths.len(),
            raw.widths.len()
        );
        return Err(source.fail("network.depths", message));
    }
    let all = |name: &str, values: &[i64], most: i64| -> Result<Vec<usize>> {
        let at = |i| format!("network.{name}.{i}");
        values.iter().enumerate().map(|(i, &v)| source.count(&at(i), v, 1..=most)).collect()
    };
    let kernel = source.count("network.stem.kernel", raw.stem.kernel, 1..=31)?;
    if kernel % 2 == 0 {
        let message = format!("`network.stem.kernel` is {kernel}; expected an odd number");
        return Err(source.fail("network.stem.kernel", message));
    }
    Ok(NetworkSpec {
        block: raw.block,
        stem: StemSpec {
            kernel,
            stride: source.count("network.stem.stride", raw.stem.stride, 1..=8)?,
            max_pool: raw.stem.max_pool,
        },
        widths: all("widths", &raw.widths, 65_536)?,
        depths: all("depths", &raw.depths, 1024)?,
    })
}

fn optimiser(source: &Source, raw: &mut RawTraining) -> Result<Optimiser> {
    let kind = or(&mut raw.optimiser, RawOptimiser::Adam);
    let weight_decay = source.number("training.weight_decay", or(&mut raw.weight_decay, 0.0), 0.0..=1.0)?;
    match kind {
        RawOptimiser::Adam if raw.momentum.is_some() => {
            let message = "`training.momentum` applies to optimiser = \"sgd\" only";
            Err(source.fail("training.momentum", message))
        }
        RawOptimiser::Adam => Ok(Optimiser::Adam { weight_decay }),
        RawOptimiser::Sgd => {
            let momentum = source.number("training.momentum", or(&mut raw.momentum, 0.9), 0.0..1.0)?;
            Ok(Optimiser::Sgd { momentum, weight_decay })
        }
    }
}

fn ascending(source: &Source, path: &str, [from, to]: [i64; 2]) -> Result<[usize; 2]> {
    let low = source.count(&format!("{path}.0"), from, 1..=1024)?;
    Ok([low, source.count(&format!("{path}.1"), to, from..=1024)?])
}
