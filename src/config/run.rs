//! The config of a run.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::dual::RawDual;
use super::evaluation::RawEvaluation;
use super::generator::RawGenerator;
use super::keys::{folder_name, seed, value_or};
use super::loaded::{Loaded, print};
use super::loss::RawLoss;
use super::overrides::Override;
use super::source::Source;
use super::student::RawStudent;
use super::teacher::{RawTeacher, teachers};
use crate::error::Result;
use crate::pipeline::Device;
use crate::pipeline::session::CHECKPOINT_SECONDS;
use crate::pipeline::spec::{ImageSource, RunSpec, Split};
use crate::tensor::Elem;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawRun {
    name: String,
    seed: Option<i64>,
    checkpoint_seconds: Option<f64>,
    precision: Option<Elem>,
    teachers: Vec<RawTeacher>,
    #[serde(default)]
    student: RawStudent,
    #[serde(default)]
    generator: RawGenerator,
    #[serde(default)]
    loss: RawLoss,
    dual: RawDual,
    evaluation: Option<RawEvaluation>,
    #[serde(default)]
    baselines: RawBaselines,
    /// Not in the printed config, because the result belongs to any division.
    #[serde(default, skip_serializing)]
    parallel: RawParallel,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawParallel {
    split: Option<Split>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawBaselines {
    noise: Option<bool>,
    ka: Option<String>,
}

/// Reads a run's config and checks everything that does not depend on the teachers' files.
///
/// Errors: [`Source::open`]'s, and a value out of range or without meaning beside another one.
pub fn load_run(file: &Path, overrides: &[Override]) -> Result<Loaded<RunSpec>> {
    loaded(Source::open(file, overrides)?)
}

/// The same for a text that is to be written to `file`.
pub fn load_run_text(file: &Path, text: String) -> Result<Loaded<RunSpec>> {
    loaded(Source::of_text(file, text, &[])?)
}

fn loaded((source, mut raw): (Source, RawRun)) -> Result<Loaded<RunSpec>> {
    let spec = raw.build(&source)?;
    Ok(Loaded { spec, resolved: print(&raw)?, source })
}

impl RawRun {
    fn build(&mut self, source: &Source) -> Result<RunSpec> {
        let teachers = teachers(source, &mut self.teachers)?;
        let generator = self.generator.build(source)?;
        Ok(RunSpec {
            name: folder_name(source, "name", &self.name)?,
            seed: seed(source, "seed", value_or(&mut self.seed, 0))?,
            // bf16 halves the bytes that kernels move, which limits most of them, and keeps f32's range.
            precision: value_or(&mut self.precision, Elem::Bf16),
            device: Device::default(),
            split: self.parallel.split.unwrap_or_default(),
            checkpoint_seconds: source.number(
                "checkpoint_seconds",
                value_or(&mut self.checkpoint_seconds, CHECKPOINT_SECONDS.into()),
                0.0..=1e6,
            )?,
            student: self.student.build(source, &teachers)?,
            loss: self.loss.build(source)?,
            dual: self.dual.build(source, generator.batch)?,
            generator,
            evaluation: match &mut self.evaluation {
                Some(e) => Some(e.build(source)?),
                None => None,
            },
            baselines: self.baselines.build(source)?,
            teachers,
        })
    }
}

impl RawBaselines {
    fn build(&mut self, source: &Source) -> Result<Vec<ImageSource>> {
        let mut baselines = Vec::new();
        if value_or(&mut self.noise, false) {
            baselines.push(ImageSource::Noise);
        }
        if let Some(path) = &mut self.ka {
            baselines.push(ImageSource::Real(source.file("baselines.ka", path)?));
        }
        Ok(baselines)
    }
}
