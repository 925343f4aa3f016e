//! The `[dual]` table: the student's training in stage two. Defaults are ours unless a comment names their
//! source.

use serde::{Deserialize, Serialize};

use super::fixed_length;
use super::keys::{BATCH, LEARNING_RATE, STEPS, WEIGHT, pair, value_or};
use super::source::Source;
use super::suggest::suggest;
use crate::error::Result;
use crate::pipeline::spec::{AugmentSpec, DualSpec, ImageSource};

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDual {
    images: Option<String>,
    steps: Vec<i64>,
    batch: Option<i64>,
    learning_rate: Option<f64>,
    feature: Option<f64>,
    late_features: Option<f64>,
    freeze_earlier: Option<bool>,
    #[serde(default, deserialize_with = "fixed_length::optional")]
    lambda_in: Option<[f64; 2]>,
    bank: Option<i64>,
    #[serde(default)]
    augment: RawAugment,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawAugment {
    shift: Option<i64>,
    flip: Option<f64>,
    mix_max: Option<f64>,
    cutmix: Option<f64>,
}

impl RawDual {
    /// `generator_batch`: images of one step of the generator. The bank must hold at least that many.
    pub fn build(&mut self, source: &Source, generator_batch: usize) -> Result<DualSpec> {
        let images = images(source, self.images.get_or_insert("generator".into()))?;
        let bank = source.count("dual.bank", value_or(&mut self.bank, 4096), 1..=100_000_000)?;
        if images == ImageSource::Generator && bank < generator_batch {
            let message = format!(
                "`dual.bank` is {bank}; expected at least `generator.batch`, which is {generator_batch} images"
            );
            return Err(source.fail("dual.bank", message));
        }
        if images == ImageSource::Generator && generator_batch == 1 {
            let message = "`generator.batch` is 1; expected at least 2, because the diversity of its images is measured in pairs";
            return Err(source.fail("generator.batch", message));
        }
        let batch = source.count("dual.batch", value_or(&mut self.batch, 64), BATCH)?;
        let augment = self.augment.build(source, batch)?;
        // Supplement Table 2: both 1.
        let lambda_in = pair(source, "dual.lambda_in", value_or(&mut self.lambda_in, [1.0, 1.0]), WEIGHT)?;
        if lambda_in == [0.0; 2] {
            let message = "`dual.lambda_in` is 0 for both inputs; expected a weight above 0, or the student learns nothing";
            return Err(source.fail("dual.lambda_in", message));
        }
        Ok(DualSpec {
            images,
            steps: steps(source, &self.steps)?,
            batch,
            learning_rate: source.number(
                "dual.learning_rate",
                value_or(&mut self.learning_rate, 1e-3),
                LEARNING_RATE,
            )?,
            feature: source.number("dual.feature", value_or(&mut self.feature, 0.0), WEIGHT)?,
            late_features: source.number(
                "dual.late_features",
                value_or(&mut self.late_features, 0.0),
                WEIGHT,
            )?,
            freeze_earlier: value_or(&mut self.freeze_earlier, false),
            lambda_in,
            bank,
            augment,
        })
    }
}

impl RawAugment {
    /// `batch`: images of one step.
    fn build(&mut self, source: &Source, batch: usize) -> Result<AugmentSpec> {
        let spec = AugmentSpec {
            shift: source.count("dual.augment.shift", value_or(&mut self.shift, 0), 0..=64)?,
            flip: source.number("dual.augment.flip", value_or(&mut self.flip, 0.0), 0.0..=1.0)?,
            mix_max: source.number("dual.augment.mix_max", value_or(&mut self.mix_max, 0.0), 0.0..=1.0)?,
            cutmix: source.number("dual.augment.cutmix", value_or(&mut self.cutmix, 0.0), 0.0..=1.0)?,
        };
        let mixed = spec.mix_max + spec.cutmix;
        if mixed > 1.0 {
            let message = format!(
                "`dual.augment.mix_max` and `dual.augment.cutmix` are {} and {}; expected probabilities of at most 1 together",
                spec.mix_max, spec.cutmix
            );
            return Err(source.fail("dual.augment.cutmix", message));
        }
        if mixed > 0.0 && batch == 1 {
            let message = "`dual.batch` is 1; expected at least 2, because `dual.augment` mixes images of a batch (mix_max, \
                           cutmix)";
            return Err(source.fail("dual.batch", message));
        }
        Ok(spec)
    }
}

fn steps(source: &Source, raw: &[i64]) -> Result<Vec<usize>> {
    if raw.is_empty() {
        let message = "`dual.steps` is empty; expected one number of steps for each block";
        return Err(source.fail("dual.steps", message));
    }
    raw.iter().enumerate().map(|(i, &n)| source.count(&format!("dual.steps.{i}"), n, STEPS)).collect()
}

/// Parses `"generator"`, `"noise"` or `"real:PATH"`. The path in `raw` becomes absolute.
fn images(source: &Source, raw: &mut String) -> Result<ImageSource> {
    match raw.as_str() {
        "generator" => return Ok(ImageSource::Generator),
        "noise" => return Ok(ImageSource::Noise),
        _ => {} // a path, or an error
    }
    let Some(path) = raw.strip_prefix("real:") else {
        let hint = suggest(raw, &["generator", "noise", "real:PATH"]);
        return Err(source.fail("dual.images", format!("unknown `dual.images` \"{raw}\"; {hint}")));
    };
    let mut path = path.to_owned();
    let joined = source.file("dual.images", &mut path)?;
    *raw = format!("real:{path}");
    Ok(ImageSource::Real(joined))
}
