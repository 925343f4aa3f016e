//! The `[generator]` table: the generator and its training in stage one. Defaults are ours unless a comment
//! names their source.

use serde::{Deserialize, Serialize};

use super::fixed_length;
use super::keys::{BATCH, LEARNING_RATE, STEPS, pair, value_or};
use super::source::Source;
use crate::error::Result;
use crate::pipeline::spec::GeneratorOptions;

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGenerator {
    groups: Option<i64>,
    latent: Option<i64>,
    widths: Option<Vec<i64>>,
    steps: Option<i64>,
    batch: Option<i64>,
    learning_rate: Option<f64>,
    #[serde(default, deserialize_with = "fixed_length::optional")]
    betas: Option<[f64; 2]>,
    shift: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    teachers_at_once: Option<i64>,
}

impl RawGenerator {
    pub fn build(&mut self, source: &Source) -> Result<GeneratorOptions> {
        Ok(GeneratorOptions {
            // The paper's best on VOC 2007 (supplement Table 3).
            groups: source.count("generator.groups", value_or(&mut self.groups, 2), 1..=64)?,
            latent: source.count("generator.latent", value_or(&mut self.latent, 128), 1..=65_536)?,
            widths: widths(source, value_or(&mut self.widths, vec![128, 64, 32, 32, 16]))?,
            steps: source.count("generator.steps", value_or(&mut self.steps, 400), STEPS)?,
            batch: source.count("generator.batch", value_or(&mut self.batch, 64), BATCH)?,
            learning_rate: source.number(
                "generator.learning_rate",
                value_or(&mut self.learning_rate, 1e-3),
                LEARNING_RATE,
            )?,
            // DCGAN's.
            betas: pair(source, "generator.betas", value_or(&mut self.betas, [0.5, 0.999]), 0.0..1.0)?,
            shift: source.count("generator.shift", value_or(&mut self.shift, 6), 0..=64)?,
            teachers_at_once: self
                .teachers_at_once
                .map(|n| source.count("generator.teachers_at_once", n, 1..=1024))
                .transpose()?,
        })
    }
}

fn widths(source: &Source, raw: Vec<i64>) -> Result<Vec<usize>> {
    if raw.is_empty() {
        return Err(
            source.fail("generator.widths", "`generator.widths` is empty; expected channels, deepest first")
        );
    }
    let all = raw.iter().enumerate();
    all.map(|(i, n)| source.count(&format!("generator.widths.{i}"), *n, 1..=8192)).collect()
}
