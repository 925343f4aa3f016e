//! The config of a teacher's training. Defaults are ours.

use std::fmt;
use std::path::Path;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::evaluation::{RawEvaluation, voc};
use super::fixed;
use super::keys::{folder_name, or, seed};
use super::labels::Labels;
use super::loaded::{Loaded, print};
use super::source::{Override, Source};
use super::suggest::nearest;
use super::training::{self, RawTraining};
use crate::error::Result;
use crate::labelled::spec::{CropSpec, TeachSpec, TrainingData};
use crate::models::resnet::{BlockKind, ResNetSpec, Stem};
use crate::pipeline::Device;
use crate::pipeline::session::CHECKPOINT_SECONDS;
use crate::tensor::Elem;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawTeach {
    name: String,
    seed: Option<i64>,
    init: Option<String>,
    precision: Option<Elem>,
    checkpoint_seconds: Option<f64>,
    image_size: Option<i64>,
    network: RawNetwork,
    data: RawData,
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
    voc: Option<RawVoc>,
    coco: Option<RawCoco>,
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
struct RawVoc {
    root: String,
    year: Option<i64>,
    split: Option<String>,
    #[serde(default, deserialize_with = "fixed::optional")]
    scale: Option<[f64; 2]>,
    #[serde(default, deserialize_with = "fixed::optional")]
    ratio: Option<[f64; 2]>,
    flip: Option<f64>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawCoco {
    images: String,
    annotations: String,
    #[serde(default, deserialize_with = "fixed::optional")]
    scale: Option<[f64; 2]>,
    #[serde(default, deserialize_with = "fixed::optional")]
    ratio: Option<[f64; 2]>,
    flip: Option<f64>,
}

/// `"resnet101"`, or a table.
#[derive(Serialize)]
#[serde(untagged)]
enum RawNetwork {
    Named(String),
    Table(RawTable),
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawTable {
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

// By hand, as for labels: an untagged enum loses the place of an error inside.
impl<'de> Deserialize<'de> for RawNetwork {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = RawNetwork;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a name such as \"resnet101\" or a table")
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> std::result::Result<RawNetwork, E> {
                Ok(RawNetwork::Named(v.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<RawNetwork, A::Error> {
                RawTable::deserialize(MapAccessDeserializer::new(map)).map(RawNetwork::Table)
            }
        }
        d.deserialize_any(Either)
    }
}

/// Reads and validates the config of a teacher's training, as far as that goes without the data.
pub fn load_teach(file: &Path, overrides: &[Override]) -> Result<Loaded<TeachSpec>> {
    let (source, mut raw) = Source::open::<RawTeach>(file, overrides)?;
    let spec = build(&source, &mut raw)?;
    Ok(Loaded { spec, resolved: print(&raw)?, source })
}

fn build(source: &Source, raw: &mut RawTeach) -> Result<TeachSpec> {
    let labels = or(&mut raw.data.labels, Labels::Word("all".into()));
    let data = data(source, &mut raw.data)?;
    let has_files = matches!(data, TrainingData::Voc { .. } | TrainingData::Coco { .. });
    if has_files {
        // torchvision's crop.
        raw.image_size.get_or_insert(224);
    }
    let image_size = match raw.image_size {
        Some(size) => Some(source.count("image_size", size, 8..=4096)?),
        None => None,
    };
    let Architecture { block, stem, widths, depths } = architecture(source, &raw.network)?;
    Ok(TeachSpec {
        precision: or(&mut raw.precision, Elem::Bf16),
        device: Device::default(),
        name: folder_name(source, "name", &raw.name)?,
        seed: seed(source, "seed", or(&mut raw.seed, 0))?,
        checkpoint_seconds: source.number(
            "checkpoint_seconds",
            or(&mut raw.checkpoint_seconds, CHECKPOINT_SECONDS.into()),
            0.0..=1e6,
        )?,
        data,
        labels: labels.names(source, "data.labels")?,
        image_size,
        block,
        stem,
        widths,
        depths,
        init: match &mut raw.init {
            Some(path) => Some(source.file("init", path)?),
            None => None,
        },
        training: training::build(source, &mut raw.training, raw.init.is_some())?,
        evaluation: match &mut raw.evaluation {
            Some(e) => Some(e.build(source)?),
            None => None,
        },
    })
}

fn data(source: &Source, raw: &mut RawData) -> Result<TrainingData> {
    match (&mut raw.train, &mut raw.scenes, &mut raw.voc, &mut raw.coco) {
        (Some(path), None, None, None) => Ok(TrainingData::Labelled(source.file("data.train", path)?)),
        (None, Some(s), None, None) => Ok(TrainingData::Scenes {
            archives: source.file("data.scenes.archives", &mut s.archives)?,
            count: source.count("data.scenes.count", s.count, 1..=1_000_000)?,
            seed: seed(source, "data.scenes.seed", or(&mut s.seed, 0))?,
            objects: ascending(source, "data.scenes.objects", or(&mut s.objects, [1, 3]))?,
            side: ascending(source, "data.scenes.side", or(&mut s.side, [11, 15]))?,
            tries: source.count("data.scenes.tries", or(&mut s.tries, 10), 1..=1000)?,
        }),
        (None, None, Some(v), None) => {
            let split = or(&mut v.split, "trainval".into());
            Ok(TrainingData::Voc {
                folder: voc(source, "data.voc", &mut v.root, &mut v.year, &split)?,
                split,
                crop: crop(source, "data.voc", &mut v.scale, &mut v.ratio, &mut v.flip)?,
            })
        }
        (None, None, None, Some(coco)) => Ok(TrainingData::Coco {
            images: source.file("data.coco.images", &mut coco.images)?,
            annotations: source.file("data.coco.annotations", &mut coco.annotations)?,
            crop: crop(source, "data.coco", &mut coco.scale, &mut coco.ratio, &mut coco.flip)?,
        }),
        _ => {
            let message = "`data` takes either `train = \"FILE.npz\"` or one of the tables [data.scenes], [data.voc] and \
                           [data.coco]";
            Err(source.fail("data", message))
        }
    }
}

/// Defaults are torchvision's.
fn crop(
    source: &Source,
    path: &str,
    scale: &mut Option<[f64; 2]>,
    ratio: &mut Option<[f64; 2]>,
    flip: &mut Option<f64>,
) -> Result<CropSpec> {
    let range = |name: &str, [from, to]: [f64; 2], least: f64, most: f64| {
        let low = source.number(&format!("{path}.{name}.0"), from, least..=most)?;
        Ok([low, source.number(&format!("{path}.{name}.1"), to, from..=most)?])
    };
    Ok(CropSpec {
        scale: range("scale", or(scale, [0.08, 1.0]), 1e-4, 1.0)?,
        ratio: range("ratio", or(ratio, [0.75, 4.0 / 3.0]), 0.01, 100.0)?,
        flip: source.number(&format!("{path}.flip"), or(flip, 0.5), 0.0..=1.0)?,
    })
}

/// The parts of a network that do not depend on its images.
struct Architecture {
    block: BlockKind,
    stem: Stem,
    widths: Vec<usize>,
    depths: Vec<usize>,
}

fn architecture(source: &Source, raw: &RawNetwork) -> Result<Architecture> {
    let raw = match raw {
        RawNetwork::Table(table) => table,
        RawNetwork::Named(name) => {
            let depth = name.strip_prefix("resnet").and_then(|depth| depth.parse().ok());
            let Some(known) = depth.and_then(|depth| ResNetSpec::torchvision(depth, 224)) else {
                let known = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"];
                let hint = match nearest(name, known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("expected one of: {}", known.join(", ")),
                };
                return Err(source.fail("network", format!("unknown `network` \"{name}\"; {hint}")));
            };
            let ResNetSpec { block, stem, widths, depths, .. } = known;
            return Ok(Architecture { block, stem, widths, depths });
        }
    };
    Ok(Architecture {
        block: raw.block,
        stem: stem(source, &raw.stem)?,
        widths: blocks(source, raw, "widths", &raw.widths, 65_536)?,
        depths: blocks(source, raw, "depths", &raw.depths, 1024)?,
    })
}

fn blocks(source: &Source, raw: &RawTable, name: &str, values: &[i64], most: i64) -> Result<Vec<usize>> {
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
