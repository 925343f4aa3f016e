//! The config of a teacher's training. Defaults are ours unless a comment names their source.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::evaluation::RawEvaluation;
use super::keys::{folder_name, seed, value_or};
use super::loaded::{Loaded, print};
use super::network::RawNetwork;
use super::overrides::Override;
use super::source::Source;
use super::training::RawTraining;
use super::training_data::RawData;
use crate::error::Result;
use crate::labelled::spec::{TeachSpec, TrainingData};
use crate::models::resnet::Architecture;
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

/// Reads the config of a teacher's training and checks everything that does not depend on the data.
///
/// Errors: [`Source::open`]'s, and a value out of range or without meaning beside another one.
pub fn load_teach(file: &Path, overrides: &[Override]) -> Result<Loaded<TeachSpec>> {
    let (source, mut raw) = Source::open::<RawTeach>(file, overrides)?;
    let spec = raw.build(&source)?;
    Ok(Loaded { spec, resolved: print(&raw)?, source })
}

impl RawTeach {
    fn build(&mut self, source: &Source) -> Result<TeachSpec> {
        let data = self.data.build(source)?;
        if matches!(data, TrainingData::Voc { .. } | TrainingData::Coco { .. } | TrainingData::Csv { .. }) {
            // torchvision's crop. Images of an npz and scenes have a size of their own.
            self.image_size.get_or_insert(224);
        }
        let image_size = match self.image_size {
            Some(size) => Some(source.count("image_size", size, 8..=4096)?),
            None => None,
        };
        let Architecture { block, stem, widths, depths, variant } = self.network.build(source, "network")?;
        Ok(TeachSpec {
            precision: value_or(&mut self.precision, Elem::Bf16),
            device: Device::default(),
            name: folder_name(source, "name", &self.name)?,
            seed: seed(source, "seed", value_or(&mut self.seed, 0))?,
            checkpoint_seconds: source.number(
                "checkpoint_seconds",
                value_or(&mut self.checkpoint_seconds, CHECKPOINT_SECONDS.into()),
                0.0..=1e6,
            )?,
            data,
            labels: self.data.labels(source)?,
            image_size,
            block,
            stem,
            widths,
            depths,
            variant,
            init: match &mut self.init {
                Some(path) => Some(source.file("init", path)?),
                None => None,
            },
            training: self.training.build(source, self.init.is_some())?,
            evaluation: match &mut self.evaluation {
                Some(e) => Some(e.build(source)?),
                None => None,
            },
        })
    }
}
