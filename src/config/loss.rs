//! The `[loss]` table: the generator's losses. Defaults are ours unless a comment names their source.

use std::ops::Bound::Excluded;

use serde::{Deserialize, Serialize};

use super::keys::{WEIGHT, only_with, value_or};
use super::source::Source;
use super::suggest::suggest;
use crate::error::Result;
use crate::pipeline::spec::{LossSpec, Recipe};
use crate::summary::Collapse;

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLoss {
    recipe: Option<String>,
    max_labels: Option<i64>,
    positive: Option<f64>,
    share: Option<f64>,
    alpha: Option<f64>,
    activation: Option<String>,
    beta: Option<f64>,
    gamma: Option<f64>,
    statistics: Option<f64>,
    least_diversity: Option<f64>,
    least_entropy: Option<f64>,
    least_information: Option<f64>,
    least_found: Option<f64>,
}

/// A recipe's default weights of the terms of the loss.
struct Weights {
    alpha: f64,
    beta: f64,
    gamma: f64,
    statistics: f64,
}

/// Supplement Table 1: alpha 1, beta 1, gamma 5. The paper has no statistics loss.
const PUBLISHED: Weights = Weights { alpha: 1.0, beta: 1.0, gamma: 5.0, statistics: 0.0 };
/// For `conditional` and `balanced`. Both choose the labels themselves, which is the purpose of L_ie (beta)
/// and L_dis (gamma).
const CHOSEN_LABELS: Weights = Weights { alpha: 0.1, beta: 0.0, gamma: 0.0, statistics: 5.0 };

impl RawLoss {
    pub fn build(&mut self, source: &Source) -> Result<LossSpec> {
        let (recipe, weights) = self.recipe(source)?;
        let limits = Collapse::default();
        let weight = |key: &str, slot: &mut Option<f64>, default: f64| {
            source.number(&format!("loss.{key}"), value_or(slot, default), WEIGHT)
        };
        Ok(LossSpec {
            recipe,
            alpha: weight("alpha", &mut self.alpha, weights.alpha)?,
            mean_activation: self.mean_activation(source)?,
            beta: weight("beta", &mut self.beta, weights.beta)?,
            gamma: weight("gamma", &mut self.gamma, weights.gamma)?,
            statistics: weight("statistics", &mut self.statistics, weights.statistics)?,
            least_diversity: source.number(
                "loss.least_diversity",
                value_or(&mut self.least_diversity, limits.diversity),
                0.0..=2.0,
            )?,
            least_entropy: source.number(
                "loss.least_entropy",
                value_or(&mut self.least_entropy, limits.entropy),
                0.0..=1.0,
            )?,
            least_information: source.number(
                "loss.least_information",
                value_or(&mut self.least_information, limits.information),
                0.0..=1.0,
            )?,
            least_found: source.number(
                "loss.least_found",
                value_or(&mut self.least_found, limits.found),
                0.0..=1.0,
            )?,
        })
    }

    /// Whether L_a is a mean over features. The published one is a sum, which grows with the network's width.
    fn mean_activation(&mut self, source: &Source) -> Result<bool> {
        let is_published = self.recipe.as_deref() == Some("published");
        let default = if is_published { "sum" } else { "mean" };
        match value_or(&mut self.activation, default.into()).as_str() {
            "mean" => Ok(true),
            "sum" => Ok(false),
            other => {
                let message =
                    format!("unknown `loss.activation` \"{other}\"; {}", suggest(other, &["mean", "sum"]));
                Err(source.fail("loss.activation", message))
            }
        }
    }

    fn recipe(&mut self, source: &Source) -> Result<(Recipe, Weights)> {
        let name = value_or(&mut self.recipe, "conditional".into());
        if name != "conditional" {
            only_with(source, "loss.max_labels", self.max_labels.is_some(), "recipe = \"conditional\"")?;
            only_with(source, "loss.positive", self.positive.is_some(), "recipe = \"conditional\"")?;
        }
        if name != "balanced" {
            only_with(source, "loss.share", self.share.is_some(), "recipe = \"balanced\"")?;
        }
        match name.as_str() {
            "published" => Ok((Recipe::Published, PUBLISHED)),
            "conditional" => {
                let max_labels = value_or(&mut self.max_labels, 3);
                let max_labels = source.count("loss.max_labels", max_labels, 1..=10_000)?;
                // An image is asked for two labels of, say, twenty: with a weight of 1 the eighteen that it is not to show
                // weigh far more (docs/experiments.md).
                let positive = source.number("loss.positive", value_or(&mut self.positive, 4.0), WEIGHT)?;
                Ok((Recipe::Conditional { max_labels, positive }, CHOSEN_LABELS))
            }
            "balanced" => {
                let within = (Excluded(0.0), Excluded(1.0));
                let share = source.number("loss.share", value_or(&mut self.share, 0.08), within)?;
                Ok((Recipe::Balanced { share }, CHOSEN_LABELS))
            }
            other => {
                let known = ["published", "conditional", "balanced"];
                let message = format!("unknown `loss.recipe` \"{other}\"; {}", suggest(other, &known));
                Err(source.fail("loss.recipe", message))
            }
        }
    }
}
