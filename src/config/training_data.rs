//! The `[data]` table of a teacher's training: the labelled images it learns from.

use serde::{Deserialize, Serialize};

use super::evaluation::{csv_files, voc_folder};
use super::fixed_length;
use super::keys::{seed, value_or};
use super::labels::RawLabels;
use super::source::Source;
use crate::error::Result;
use crate::labelled::spec::{CropSpec, TrainingData};

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawData {
    labels: Option<RawLabels>,
    train: Option<String>,
    scenes: Option<RawScenes>,
    voc: Option<RawVoc>,
    coco: Option<RawCoco>,
    csv: Option<RawCsv>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawScenes {
    archives: String,
    count: i64,
    seed: Option<i64>,
    #[serde(default, deserialize_with = "fixed_length::optional")]
    objects: Option<[i64; 2]>,
    #[serde(default, deserialize_with = "fixed_length::optional")]
    side: Option<[i64; 2]>,
    tries: Option<i64>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawVoc {
    root: String,
    year: Option<i64>,
    split: Option<String>,
    #[serde(default, deserialize_with = "fixed_length::optional")]
    scale: Option<[f64; 2]>,
    #[serde(default, deserialize_with = "fixed_length::optional")]
    ratio: Option<[f64; 2]>,
    flip: Option<f64>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawCoco {
    images: String,
    annotations: String,
    #[serde(default, deserialize_with = "fixed_length::optional")]
    scale: Option<[f64; 2]>,
    #[serde(default, deserialize_with = "fixed_length::optional")]
    ratio: Option<[f64; 2]>,
    flip: Option<f64>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawCsv {
    folder: String,
    labels: Option<String>,
    #[serde(default, deserialize_with = "fixed_length::optional")]
    scale: Option<[f64; 2]>,
    #[serde(default, deserialize_with = "fixed_length::optional")]
    ratio: Option<[f64; 2]>,
    flip: Option<f64>,
}

impl RawData {
    /// The labels to learn, in order; an empty list for all.
    pub fn labels(&mut self, source: &Source) -> Result<Vec<String>> {
        value_or(&mut self.labels, RawLabels::Word("all".into())).names(source, "data.labels")
    }

    pub fn build(&mut self, source: &Source) -> Result<TrainingData> {
        match (&mut self.train, &mut self.scenes, &mut self.voc, &mut self.coco, &mut self.csv) {
            (Some(path), None, None, None, None) => {
                Ok(TrainingData::Labelled(source.file("data.train", path)?))
            }
            (None, Some(scenes), None, None, None) => scenes.build(source),
            (None, None, Some(v), None, None) => {
                let split = value_or(&mut v.split, "trainval".into());
                Ok(TrainingData::Voc {
                    folder: voc_folder(source, "data.voc", &mut v.root, &mut v.year, &split)?,
                    split,
                    crop: crop(source, "data.voc", &mut v.scale, &mut v.ratio, &mut v.flip)?,
                })
            }
            (None, None, None, None, Some(csv)) => {
                let (folder, table) = csv_files(source, "data.csv", &mut csv.folder, &mut csv.labels)?;
                let crop = crop(source, "data.csv", &mut csv.scale, &mut csv.ratio, &mut csv.flip)?;
                Ok(TrainingData::Csv { folder, table, crop })
            }
            (None, None, None, Some(coco), None) => Ok(TrainingData::Coco {
                images: source.file("data.coco.images", &mut coco.images)?,
                annotations: source.file("data.coco.annotations", &mut coco.annotations)?,
                crop: crop(source, "data.coco", &mut coco.scale, &mut coco.ratio, &mut coco.flip)?,
            }),
            _ => {
                let message = "`data` takes either `train = \"FILE.npz\"` or one of the tables [data.scenes], [data.voc], \
                               [data.coco] and [data.csv]";
                Err(source.fail("data", message))
            }
        }
    }
}

impl RawScenes {
    fn build(&mut self, source: &Source) -> Result<TrainingData> {
        Ok(TrainingData::Scenes {
            archives: source.file("data.scenes.archives", &mut self.archives)?,
            count: source.count("data.scenes.count", self.count, 1..=1_000_000)?,
            seed: seed(source, "data.scenes.seed", value_or(&mut self.seed, 0))?,
            objects: ascending(source, "data.scenes.objects", value_or(&mut self.objects, [1, 3]))?,
            side: ascending(source, "data.scenes.side", value_or(&mut self.side, [11, 15]))?,
            tries: source.count("data.scenes.tries", value_or(&mut self.tries, 10), 1..=1000)?,
        })
    }
}

/// The random crop and mirror of photographs. Defaults are those of torchvision's RandomResizedCrop and
/// RandomHorizontalFlip.
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
        scale: range("scale", value_or(scale, [0.08, 1.0]), 1e-4, 1.0)?,
        ratio: range("ratio", value_or(ratio, [0.75, 4.0 / 3.0]), 0.01, 100.0)?,
        flip: source.number(&format!("{path}.flip"), value_or(flip, 0.5), 0.0..=1.0)?,
    })
}

/// The pair of counts at `path`, the second at least the first.
fn ascending(source: &Source, path: &str, [from, to]: [i64; 2]) -> Result<[usize; 2]> {
    let low = source.count(&format!("{path}.0"), from, 1..=1024)?;
    Ok([low, source.count(&format!("{path}.1"), to, from..=1024)?])
}
