//! The loss of stage one, `L_joint` (docs/method.md 2).

use super::seed::stream;
use super::share::Share;
use super::spec::{LossSpec, Recipe, RunSpec};
use super::stage::part;
use super::teachers::{Teachers, by_turns, predictions};
use crate::autograd::tape::{Learn, Value};
use crate::error::Result;
use crate::models::Recorder;
use crate::models::filter::Filter;
use crate::models::resnet::Mode;
use crate::ops::losses::activation_loss::ActivationLoss;
use crate::ops::losses::bce::{Bce, Targets};
use crate::ops::losses::discrete_loss::DiscreteLoss;
use crate::ops::losses::diversity::Diversity;
use crate::ops::losses::entropy_loss::EntropyLoss;
use crate::ops::losses::one_hot_loss::{OneHotLoss, PseudoLabels};
use crate::ops::losses::weighted_sum::WeightedSum;
use crate::ops::movement::columns::Columns;
use crate::ops::random::augment::Augment;
use crate::tensor::Real;

/// Everything that the loss depends on beside the images.
pub(super) struct Objective<'a> {
    pub(super) spec: &'a RunSpec,
    pub(super) teachers: &'a Teachers,
    pub(super) recipe: &'a Recipe,
    /// The generator's levels, deepest first, the image (0) last.
    pub(super) levels: &'a [usize],
    /// By level and teacher.
    pub(super) filters: &'a [Vec<Filter>],
    /// The teachers that this process computes.
    pub(super) share: Share,
    /// How many teachers keep their activations at a time. Fewer than all are segments of the tape.
    pub(super) at_once: usize,
}

/// The teachers' outputs for a batch of images.
struct Views {
    /// Features before the head, of this rank's teachers.
    features: Vec<Value>,
    /// Logits of all teachers, side by side.
    logits: Value,
    /// Batch-statistics losses, one for each layer of each teacher; empty where the loss does not use them.
    statistics: Vec<Value>,
}

/// A term of the loss: the name of its metric, its weight, its value.
type Term = (&'static str, f32, Value);

impl Objective<'_> {
    /// Records the loss of the levels' values `levels` (deepest first, the image last), where the images are
    /// to show the labels `wanted`. A term of weight 0 is recorded as a metric only.
    pub(super) fn record<R: Real>(
        &self,
        r: &mut Recorder<R>,
        levels: &[Value],
        wanted: Option<Value>,
    ) -> Result<Value> {
        let image = levels[levels.len() - 1];
        let shifted = self.shifted(r, image)?;
        let views = self.views(r, shifted)?;
        let mut terms = self.adversarial(r, &views, wanted)?;
        terms.extend(self.inner(r, levels, views.logits)?);

        let used: Vec<_> = terms.iter().filter(|(_, w, _)| *w != 0.0).collect();
        let weights = used.iter().map(|(_, w, _)| *w).collect();
        let loss = r.apply(WeightedSum { weights }, &used.iter().map(|(_, _, v)| *v).collect::<Vec<_>>())?;
        r.tape.metric("loss", loss);
        for (name, _, v) in &terms {
            r.tape.metric(name, *v);
        }
        let features = self.share.gather(r, &views.features)?;
        let features = r.tape.detach(features);
        let diversity = r.apply(Diversity, &[features])?;
        r.tape.metric("diversity", diversity);
        Ok(loss)
    }

    /// The images as the teachers see them: shifted at random, where the config asks for it.
    fn shifted<R: Real>(&self, r: &mut Recorder<R>, image: Value) -> Result<Value> {
        let max_shift = self.spec.generator.shift;
        if max_shift == 0 {
            return Ok(image);
        }
        let augment =
            Augment { max_shift, flip: 0.0, mix_max: 0.0, cutmix: 0.0, fill: -1.0, stream: stream::SHIFT };
        // The shift of an image depends on its place in the whole batch.
        let whole = self.share.whole(r, image)?;
        let shifted = r.apply(augment, &[whole])?;
        self.share.part(r, shifted)
    }

    /// Records every teacher on the images (4).
    fn views<R: Real>(&self, r: &mut Recorder<R>, images: Value) -> Result<Views> {
        let mut statistics = Vec::new();
        let (mut features, mut logits) = (Vec::new(), Vec::new());
        let (images, own) = (self.share.spread(r, images)?, self.share.own());
        by_turns(r, &self.teachers.all, &self.share, self.at_once, |r, m, t| {
            let (f, y) = r.within(part::TEACHERS, |r| {
                let mut x = images[m - own.start];
                for b in 1..=self.teachers.network.blocks() {
                    let losses = (self.spec.loss.statistics > 0.0).then_some(&mut statistics);
                    x = t.net.block(r, b, x, Mode::FROZEN, losses)?;
                }
                t.net.head(r, x, Mode::FROZEN)
            })?;
            features.push(f);
            logits.push(y);
            Ok(())
        })?;
        let logits = self.share.gather(r, &logits)?;
        if !statistics.is_empty() {
            statistics = self.share.gather_scalars(r, statistics)?;
        }
        Ok(Views { features, logits, statistics })
    }

    /// The terms of `L_gan` (8), and the batch-statistics loss.
    fn adversarial<R: Real>(
        &self,
        r: &mut Recorder<R>,
        views: &Views,
        wanted: Option<Value>,
    ) -> Result<Vec<Term>> {
        let LossSpec { alpha, beta, gamma, statistics, .. } = self.spec.loss;
        let all = views.logits;
        let mut terms: Vec<Term> = Vec::new();
        let one_hot = match (self.recipe, wanted) {
            (Recipe::Conditional { positive, .. }, Some(wanted)) => {
                let (distinct, index) = self.teachers.distinct_labels();
                // A label of several teachers is asked of each of them.
                let is_repeated = distinct.len() < index.len();
                let wanted = if is_repeated { r.apply(Columns { index }, &[wanted])? } else { wanted };
                let bce = Bce { positive_weight: *positive, ..Bce::new(Targets::Probabilities) };
                r.apply(bce, &[all, wanted])?
            }
            (Recipe::Balanced { share }, _) => {
                r.apply(OneHotLoss { targets: PseudoLabels::Balanced { share: *share } }, &[all])?
            }
            _ => r.apply(OneHotLoss { targets: PseudoLabels::Threshold }, &[all])?,
        };
        terms.push(("one_hot", 1.0, one_hot));
        let mean_over_features = self.spec.loss.mean_activation;
        let activations = views
            .features
            .iter()
            .map(|f| {
                let f = self.share.whole(r, *f)?;
                r.apply(ActivationLoss { mean_over_features }, &[f])
            })
            .collect::<Result<Vec<_>>>()?;
        let activations = self.share.gather_scalars(r, activations)?;
        terms.push(("activation", alpha, mean(r, &activations)?));
        terms.push(("entropy", beta, r.apply(EntropyLoss, &[all])?));
        terms.push(("discrete", gamma, r.apply(DiscreteLoss, &[all])?));
        if !views.statistics.is_empty() {
            terms.push(("statistics", statistics, mean(r, &views.statistics)?));
        }
        Ok(terms)
    }

    /// The second term of (11): every feature level must predict what the image predicts. The image's
    /// prediction, without the random shift, is the constant target. There is no such term where the image is
    /// the only level.
    fn inner<R: Real>(&self, r: &mut Recorder<R>, levels: &[Value], logits: Value) -> Result<Option<Term>> {
        let count = levels.len() - 1;
        if count == 0 {
            return Ok(None);
        }
        let target = if self.spec.generator.shift > 0 {
            let image = r.tape.detach(levels[count]);
            predictions(r, self.teachers, &self.share, 1, self.at_once, |_, _| Ok(image))?
        } else {
            r.tape.detach(logits)
        };
        let mut inner = Vec::new();
        for (j, level) in self.levels[..count].iter().enumerate() {
            let (inputs, own) = (self.share.spread(r, levels[j])?, self.share.own());
            let y = predictions(r, self.teachers, &self.share, level + 1, self.at_once, |r, m| {
                let filter = &self.filters[j][m];
                r.within(part::GENERATOR, |r| filter.record(r, inputs[m - own.start], Learn::Trainable))
            })?;
            inner.push(r.apply(Bce::new(Targets::Logits), &[y, target])?);
        }
        Ok(Some(("inner", 1.0, mean(r, &inner)?)))
    }
}

/// Records the mean of some scalars.
fn mean<R: Real>(r: &mut Recorder<R>, values: &[Value]) -> Result<Value> {
    r.apply(WeightedSum { weights: vec![1.0 / values.len() as f32; values.len()] }, values)
}
