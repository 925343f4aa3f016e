//! Average precision of a model on labelled images.

use crate::data::average_precision::label_precisions;
use crate::data::dataset::Dataset;
use crate::data::loader::Loader;
use crate::data::transform::{Transform, View};
use crate::error::{Error, Result};
use crate::pipeline::predictor::{BATCH, Predictor};
use crate::summary::Score;
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
    model.predict(data.len(), |range, to| loader.read((range.start / batch) as u64, to))
}

/// Average precision of a model on the labels that it and `wanted` share; with no `wanted`, on all of the
/// model's labels.
///
/// Errors: a label that the data does not have, images of another size, a damaged file.
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
    let mut score = Score::default();
    for (label, ap) in labels.iter().zip(&found.per_label) {
        if let Some(ap) = ap {
            score.ap.insert(label.clone(), 100.0 * ap.all_point);
            score.ap_11_point.insert(label.clone(), 100.0 * ap.eleven_point);
        }
    }
    score.take_means();
    Ok(score)
}
