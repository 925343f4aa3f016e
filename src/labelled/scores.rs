//! Average precision of a model on labelled images.

use crate::data::average_precision::{DIFFICULT, label_precisions};
use crate::data::dataset::Dataset;
use crate::data::loader::Loader;
use crate::data::transform::{Transform, View};
use crate::error::{Error, Result};
use crate::pipeline::predictor::{BATCH, Predictor, probability};
use crate::summary::{Decisions, Score, mean_of_known};
use std::sync::Arc;

/// Logits `[n, labels]` of all images of a set; only a few batches are in memory at once. The images of an
/// npz are used as they are; files are resized and cropped as torchvision does for evaluation.
fn logits_of(model: &mut Predictor, data: &Arc<Dataset>) -> Result<Vec<f32>> {
    let image = model.image();
    let transform = match data.image_size() {
        Some(found) if found != image => {
            return Err(Error::Usage(format!("the model expects images {image:?}, found {found:?}")));
        }
        Some(_) => Transform { image, view: View::Squash },
        None => Transform::eval(image),
    };
    let batch = data.len().clamp(1, BATCH);
    let mut loader = Loader::in_order(data.clone(), transform, batch)?;
    let logits = model.predict(data.len(), |range, to| loader.read((range.start / batch) as u64, to))?;
    model.expect_finite(&logits, |i| data.name(i))?;
    Ok(logits)
}

/// Average precision of a model on the labels that it and `wanted` share; with no `wanted`, on all of the
/// model's labels. A label that no image has, or that no image lacks, gets no number (see [`Score`]).
///
/// Errors: a label that the data does not have, images of another size, a damaged file, a model that computes infinity or
/// no number.
pub fn score(model: &mut Predictor, data: &Arc<Dataset>, wanted: &[String]) -> Result<Score> {
    let keep: Vec<usize> =
        (0..model.labels.len()).filter(|i| wanted.is_empty() || wanted.contains(&model.labels[*i])).collect();
    let labels: Vec<String> = keep.iter().map(|i| model.labels[*i].clone()).collect();
    let columns = data.columns(&labels)?;
    let logits = logits_of(model, data)?;
    let scores: Vec<f32> =
        logits.chunks(model.labels.len()).flat_map(|row| keep.iter().map(|i| row[*i])).collect();
    let rows = (0..data.len()).map(|i| data.targets(i));
    let targets: Vec<u8> = rows.flat_map(|row| columns.iter().map(|c| row[*c])).collect();
    let found = label_precisions(&scores, &targets, labels.len())?;
    let thresholds: Vec<f32> = keep.iter().map(|i| model.thresholds[*i]).collect();
    let decisions = Some(decisions(&scores, &targets, &thresholds));
    let mut score = Score { images: data.len(), decisions, ..Score::default() };
    for (i, ((label, column), ap)) in labels.iter().zip(&columns).zip(&found.per_label).enumerate() {
        let counted = || targets.iter().skip(i).step_by(labels.len()).filter(|t| **t != DIFFICULT);
        let positives = counted().filter(|t| **t == 1).count();
        score.chance.insert(label.clone(), 100.0 * positives as f64 / counted().count().max(1) as f64);
        let ap = ap.filter(|_| data.is_rankable(*column));
        score.ap.insert(label.clone(), ap.map_or(f64::NAN, |ap| 100.0 * ap.all_point));
        score.ap_11_point.insert(label.clone(), ap.map_or(f64::NAN, |ap| 100.0 * ap.eleven_point));
    }
    score.take_means();
    Ok(score)
}

/// Decisions at the thresholds, which are probabilities by label. `logits` and `targets` are `[n, labels]`. Difficult
/// entries count neither as right nor as wrong. A label that is never predicted has no precision, one that no image has
/// no recall, and one of which both is true no F1: the means leave them out.
fn decisions(logits: &[f32], targets: &[u8], thresholds: &[f32]) -> Decisions {
    let labels = thresholds.len();
    let is_right = |logit: f32, target: u8, threshold: f32| {
        target == DIFFICULT || (probability(logit) > threshold) == (target == 1)
    };
    let of_image = |(logits, targets): (&[f32], &[u8])| {
        (0..labels).all(|k| is_right(logits[k], targets[k], thresholds[k]))
    };
    let exact = logits.chunks(labels).zip(targets.chunks(labels)).filter(|image| of_image(*image)).count();
    let counts = (0..labels).map(|k| {
        let column = (k..logits.len()).step_by(labels).filter(|i| targets[*i] != DIFFICULT);
        column.fold([0; 3], |[hits, predicted, there], i| {
            let (says, is) = (probability(logits[i]) > thresholds[k], targets[i] == 1);
            [hits + usize::from(says && is), predicted + usize::from(says), there + usize::from(is)]
        })
    });
    let counts: Vec<[usize; 3]> = counts.collect();
    let mean = |share: fn(&[usize; 3]) -> (usize, usize)| {
        mean_of_known(counts.iter().map(share).map(|(part, whole)| 100.0 * part as f64 / whole as f64))
    };
    Decisions {
        precision: mean(|[hits, predicted, _]| (*hits, *predicted)),
        recall: mean(|[hits, _, there]| (*hits, *there)),
        f1: mean(|[hits, predicted, there]| (2 * hits, predicted + there)),
        exact: 100.0 * exact as f64 / (targets.len() / labels) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_counted_at_each_labels_threshold() {
        // Probabilities 0.73, 0.27; 0.62, 0.5; 0.27, 0.88.
        let logits = [1.0, -1.0, 0.5, 0.0, -1.0, 2.0];
        let targets = [1, 0, 0, 1, 1, DIFFICULT];
        let found = decisions(&logits, &targets, &[0.7, 0.4]);
        // Label 0: one of two found, no mistake: F1 2/3. Label 1: the one found. Image 2 lacks label 0.
        assert_eq!((found.precision, found.recall), (100.0, 75.0));
        assert!((found.f1 - 250.0 / 3.0).abs() < 1e-9 && (found.exact - 200.0 / 3.0).abs() < 1e-9);
        let none = decisions(&logits[..2], &[0, 0], &[0.9, 0.9]);
        assert!(none.precision.is_nan() && none.recall.is_nan() && none.f1.is_nan() && none.exact == 100.0);
    }
}
