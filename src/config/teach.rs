//! The config of a teacher's training. Defaults are ours.

use std::ops::Bound::{Excluded, Included};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::evaluation::RawEvaluation;
use super::labels::Labels;
use super::{Loaded, Override, Source, fixed, folder_name, or, print, seed};
use crate::error::Result;
use crate::models::resnet::{BlockKind, Stem};
use crate::pipeline::Device;
use crate::pipeline::spec::{TeachSpec, TrainingData};
use crate::tensor::Elem;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawTeach {
    name: String,
    seed: Option<i64>,
    init: Option<String>,
    precision: Option<Elem>,
    data: RawData,
    network: RawNetwork,
    #[serde(default)]
    training: RawTraining,
    evaluation: Option<RawEvaluation>,
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
    seed: Option<i64>,
    #[serde(default, deserialize_with = "fixed::optional")]
    objects: Option<[i64; 2]>,
    #[serde(default, deserialize_with = "fixed::optional")]
    side: Option<[i64; 2]>,
    tries: Option<i64>,
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
    width: i64,
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
        precision: or(&mut raw.precision, Elem::Bf16),
        device: Device::default(),
        name: folder_name(source, "name", &raw.name)?,
        seed: seed(source, or(&mut raw.seed, 0))?,
        data: data(source, &mut raw.data)?,
        labels: labels.names(source, "data.labels")?,
        block: raw.network.block,
        stem: stem(source, &raw.network.stem)?,
        widths: blocks(source, &raw.network, "widths", &raw.network.widths, 65_536)?,
        depths: blocks(source, &raw.network, "depths", &raw.network.depths, 1024)?,
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
        evaluation: match &mut raw.evaluation {
            Some(e) => Some(e.build(source)?),
            None => None,
        },
    })
}

fn data(source: &Source, raw: &mut RawData) -> Result<TrainingData> {
    match (&mut raw.train, &mut raw.scenes) {
        (Some(path), None) => Ok(TrainingData::Labelled(source.file("data.train", path)?)),
        (None, Some(s)) => Ok(TrainingData::Scenes {
            archives: source.file("data.scenes.archives", &mut s.archives)?,
            count: source.count("data.scenes.count", s.count, 1..=1_000_000)?,
            seed: seed(source, or(&mut s.seed, 0))?,
            objects: ascending(source, "data.scenes.objects", or(&mut s.objects, [1, 3]))?,
            side: ascending(source, "data.scenes.side", or(&mut s.side, [11, 15]))?,
            tries: source.count("data.scenes.tries", or(&mut s.tries, 10), 1..=1000)?,
        }),
        (Some(_), Some(_)) | (None, None) => {
            let message = "`data` takes either `train = \"FILE.npz\"` or a [data.scenes] table";
            Err(source.fail("data", message))
        }
    }
}

fn blocks(source: &Source, raw: &RawNetwork, name: &str, values: &[i64], most: i64) -> Result<Vec<usize>> {
    if raw.widths.is_empty() || raw.depths.len() != raw.widths.len() {
        let message = format!(
            "`network.depths` has {} entries and `network.widths` {}; expected one of each for every block",
            raw.depths.len(),
            raw.widths.len()
        );
        return Err(source.fail("network.depths", message));
    }
    let at = |i| format!("network.{name}.{i}");
    values.iter().enumerate().map(|(i, &v)| source.count(&at(i), v, 1..=most)).collect()
}

fn stem(source: &Source, raw: &RawStem) -> Result<Stem> {
    let kernel = source.count("network.stem.kernel", raw.kernel, 1..=15)?;
    if kernel % 2 == 0 {
        let message = format!("`network.stem.kernel` is {kernel}; expected an odd number");
        return Err(source.fail("network.stem.kernel", message));
    }
    Ok(Stem {
        width: source.count("network.stem.width", raw.width, 1..=65_536)?,
        kernel,
        stride: source.count("network.stem.stride", raw.stride, 1..=8)?,
        max_pool: raw.max_pool,
    })
}

fn ascending(source: &Source, path: &str, [from, to]: [i64; 2]) -> Result<[usize; 2]> {
    let low = source.count(&format!("{path}.0"), from, 1..=1024)?;
    Ok([low, source.count(&format!("{path}.1"), to, from..=1024)?])
}
