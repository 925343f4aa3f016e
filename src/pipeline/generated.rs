//! What the images of a trained generator show, measured without any data, and the alarm for a generator that has
//! collapsed. Nothing here changes a tensor of the run.

use super::seed::stage_seed;
use super::snapshots::images_at_once;
use super::spec::{LossSpec, Recipe, RunSpec};
use super::stage_one::StageOne;
use super::teachers::{Teachers, views};
use crate::autograd::tape::{Learn, Value};
use crate::autograd::{Engine, Plan, Tape};
use crate::device::StepState;
use crate::error::{Error, Result};
use crate::models::Recorder;
use crate::ops::losses::diversity::Diversity;
use crate::report::{CAPTIONS, LABEL_STATISTICS};
use crate::summary::{Captions, Collapse, LabelShare, LabelStatistics};
use crate::weights::write_atomic;
use std::io::Write;
use std::path::Path;

/// Most images that are measured: with 512, the standard error of a share of 5 % is 1 %.
const MOST_IMAGES: usize = 512;

/// Draws new images, and measures on them the labels that the generator was to show and those that the teachers predict
/// (eq. 5: probability 0.5 or more), how much the predictions differ from image to image, and how diverse the images'
/// features are. The images are not shifted, so that the shift's own diversity is not counted. The figures are stored in
/// the run's folder.
///
/// Cost: the forward pass of at most a hundredth of stage one's images, about 0.3 % of its time.
///
/// Errors: a file that cannot be written.
pub fn measure(
    one: &StageOne,
    engine: &mut Engine<f32>,
    spec: &RunSpec,
    teachers: &Teachers,
    out: &Path,
) -> Result<()> {
    let g = &spec.generator;
    let Judged { mut plan, logits, wanted, diversity } = Judged::record(one, engine, teachers, g.batch)?;

    let (_, places) = teachers.distinct_labels();
    let labels = teachers.all.iter().flat_map(|t| t.labels.iter().map(|l| (&t.name, l)));
    let mut found = Counts::new(labels.map(|(t, l)| LabelShare::new(t, l, wanted.is_some())).collect());
    let images = (g.steps * g.batch / 100).clamp(1, MOST_IMAGES);
    for step in 0..images.div_ceil(g.batch) as u64 {
        let state = StepState { seed: stage_seed(spec.seed, "labels"), step, ..Default::default() };
        plan.replay(engine, &state)?;
        let wanted = wanted.map(|w| plan.output(engine, w)).transpose()?;
        found.add(&plan.output(engine, logits)?, wanted.as_deref(), &places);
        if let Some(diversity) = diversity {
            found.diversity.push(f64::from(plan.output(engine, diversity)?[0]));
        }
    }
    let json = serde_json::to_vec_pretty(&found.statistics())
        .map_err(|e| Error::Run(format!("cannot write label statistics as JSON: {e}")))?;
    write_atomic(out.join(LABEL_STATISTICS), |file| file.write_all(&json))
}

/// Stores what the images of the last picture were asked to show, and what the teachers predict for them.
///
/// Errors: a file that cannot be written; a device without memory for the teachers.
pub fn caption(
    one: &StageOne,
    engine: &mut Engine<f32>,
    spec: &RunSpec,
    teachers: &Teachers,
    out: &Path,
) -> Result<()> {
    let judged = Judged::record(one, engine, teachers, images_at_once(spec))?;
    let Judged { mut plan, logits, wanted, .. } = judged;
    plan.replay(engine, &StepState { seed: stage_seed(spec.seed, "samples"), ..Default::default() })?;
    let found = plan.output(engine, logits)?;
    let asked = wanted.map(|w| plan.output(engine, w)).transpose()?;
    let asked: Vec<bool> = asked.iter().flatten().map(|w| *w > 0.5).collect();
    let all: Vec<&String> = teachers.labels().collect();
    let predicted = |row: &[f32]| {
        let mut seen: Vec<String> = Vec::new();
        for (_, label) in row.iter().zip(&all).filter(|(logit, _)| **logit >= 0.0) {
            if !seen.contains(label) {
                seen.push((*label).clone());
            }
        }
        seen
    };
    let predicted = found.chunks_exact(all.len()).map(predicted).collect();
    let (distinct, _) = teachers.distinct_labels();
    let captions = Captions::new("teachers", wanted.is_some().then_some(&distinct[..]), &asked, predicted);
    let json = serde_json::to_vec_pretty(&captions)
        .map_err(|e| Error::Run(format!("cannot write captions as JSON: {e}")))?;
    write_atomic(out.join(CAPTIONS), |file| file.write_all(&json))
}

/// The forward pass of the generator and all teachers on newly drawn images.
struct Judged {
    plan: Plan<f32>,
    /// The teachers' logits, side by side.
    logits: Value,
    /// The labels that the images are to show, if the generator is conditional.
    wanted: Option<Value>,
    /// The diversity of the images' features; absent for one image, which has no other to differ from.
    diversity: Option<Value>,
}

impl Judged {
    fn record(one: &StageOne, engine: &mut Engine<f32>, teachers: &Teachers, n: usize) -> Result<Judged> {
        let mut tape = Tape::default();
        let mut r = Recorder { tape: &mut tape, store: &engine.store };
        let (levels, wanted) = one.record_images(&mut r, n, Learn::Frozen)?;
        let (features, logits) = views(&mut r, teachers, levels[levels.len() - 1])?;
        let diversity = if n > 1 { Some(r.apply(Diversity, &[features])?) } else { None };
        [Some(logits), wanted, diversity].iter().flatten().for_each(|v| tape.output(*v));
        let plan = Plan::compile(&tape, &engine.store, None, &[])?;
        plan.reserve(engine)?;
        Ok(Judged { plan, logits, wanted, diversity })
    }
}

/// Sums over images, from which the statistics follow.
struct Counts {
    images: usize,
    labels: Vec<LabelShare>,
    /// By label: the sums over images of the probability, and of its entropy in bits.
    probability: Vec<(f64, f64)>,
    /// By batch.
    diversity: Vec<f64>,
}

impl Counts {
    fn new(labels: Vec<LabelShare>) -> Counts {
        Counts { images: 0, probability: vec![(0.0, 0.0); labels.len()], labels, diversity: vec![] }
    }

    /// Counts a batch: logits `[n, labels]` and, for a conditional generator, what was asked for `[n, distinct labels]`.
    /// A label of several teachers was asked for once: `places` has the column of each label in what was asked for.
    fn add(&mut self, logits: &[f32], wanted: Option<&[f32]>, places: &[u32]) {
        let c = self.labels.len();
        let n = logits.len() / c;
        self.images += n;
        for (i, logit) in logits.iter().enumerate() {
            let is_wanted = wanted.map(|w| w[i / c * (w.len() / n) + places[i % c] as usize] > 0.5);
            self.labels[i % c].count(is_wanted, *logit >= 0.0);
            let p = 1.0 / (1.0 + (-f64::from(*logit)).exp());
            let sums = &mut self.probability[i % c];
            *sums = (sums.0 + p, sums.1 + bits(p));
        }
    }

    fn statistics(self) -> LabelStatistics {
        let n = self.images as f64;
        let (mut of_mean, mut own) = (0.0, 0.0);
        for (p, entropy) in &self.probability {
            of_mean += bits(p / n) / self.labels.len() as f64;
            own += entropy / n / self.labels.len() as f64;
        }
        let diversity = self.diversity.iter().sum::<f64>() / self.diversity.len().max(1) as f64;
        LabelStatistics {
            images: self.images,
            labels: self.labels,
            diversity: (!self.diversity.is_empty()).then_some(diversity),
            entropy: Some(of_mean),
            information: Some(of_mean - own),
        }
    }
}

/// The entropy of a yes or no of probability `p`, in bits.
fn bits(p: f64) -> f64 {
    [p, 1.0 - p].into_iter().filter(|q| *q > 0.0).map(|q| -q * q.log2()).sum()
}

/// Reads what [`measure`] stored; `None` where the run was made by a version that did not measure.
///
/// Errors: a file that is damaged.
pub fn statistics(out: &Path) -> Result<Option<LabelStatistics>> {
    let path = out.join(LABEL_STATISTICS);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::data(&path, e.to_string())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", &path, e)),
    }
}

/// Errors: a collapsed generator. A student that was trained on its images would seem to converge and be useless.
pub(super) fn expect_no_collapse(loss: &LossSpec, found: &LabelStatistics) -> Result<()> {
    let least = Collapse {
        diversity: f64::from(loss.least_diversity),
        entropy: f64::from(loss.least_entropy),
        information: f64::from(loss.least_information),
        found: f64::from(loss.least_found),
    };
    let Some((key, reason)) = least.alarm(found) else { return Ok(()) };
    let recipe = match loss.recipe {
        Recipe::Conditional { .. } => "",
        _ => "loss.recipe = \"conditional\", ",
    };
    let gamma = if loss.gamma == 0.0 { "" } else { "a lower loss.gamma, " };
    Err(Error::Diverged(format!(
        "generator: collapsed: {reason}; train it for longer (generator.steps, or --preset best) or in smaller batches \
         (generator.batch), try {recipe}{gamma}another loss.statistics, or go on all the same with --resume --set \
         loss.{key}=0"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(logits: &[f32]) -> LabelStatistics {
        let labels = ["bus", "car"].map(|l| LabelShare::new("t", l, false)).to_vec();
        let mut counts = Counts::new(labels);
        counts.add(logits, None, &[0, 1]);
        counts.statistics()
    }

    /// Two labels, each certain, each in half of the images: one bit. The same predictions for all images: none, however
    /// high the entropy of their mean.
    #[test]
    fn information_is_what_the_predictions_tell_about_the_image() {
        let certain = measured(&[50.0, -50.0, -50.0, 50.0]);
        assert!((certain.information.unwrap() - 1.0).abs() < 1e-9, "{certain:?}");
        let alike = measured(&[0.0, -2.0, 0.0, -2.0]);
        assert!(alike.information.unwrap().abs() < 1e-9 && alike.entropy.unwrap() > 0.7, "{alike:?}");
        assert_eq!((alike.labels[0].predicted, alike.labels[1].predicted), (2, 0));
    }
}
