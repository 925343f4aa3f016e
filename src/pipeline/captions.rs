//! What drawn images are said to show.

use super::Device;
use super::predictor::{Predictor, probability};
use super::spec::TeacherSpec;
use crate::data::unlabelled::{ImageSet, to_pixel};
use crate::error::Result;
use std::path::Path;

/// The labels of each image that a model predicts at its thresholds, in the order of the images.
pub type Predicted = Vec<Vec<String>>;

/// Images `[n, h, w, c]` in [-1, 1] as models take them.
///
/// Errors: values that are no whole number of images.
pub fn as_images(values: &[f32], [h, w, c]: [usize; 3]) -> Result<ImageSet> {
    let n = values.len() / (h * w * c);
    ImageSet::new(values.iter().map(|x| to_pixel(*x)).collect(), [n, h, w, c], "generated")
}

/// What the teachers predict, one after the other.
///
/// Errors: a file that is no teacher's; too little memory.
pub fn by_teachers(teachers: &[TeacherSpec], images: &ImageSet, device: &Device) -> Result<Predicted> {
    let mut all = vec![Vec::new(); images.shape()[0]];
    for teacher in teachers {
        let of_teacher = predicted(Predictor::open_teacher(teacher, device)?, images)?;
        all.iter_mut().zip(of_teacher).for_each(|(all, more)| {
            for label in more {
                if !all.contains(&label) {
                    all.push(label);
                }
            }
        });
    }
    Ok(all)
}

/// What the student in this file predicts.
///
/// Errors: as [`by_teachers`].
pub fn by_student(file: &Path, images: &ImageSet, device: &Device) -> Result<Predicted> {
    predicted(Predictor::open(file, device)?, images)
}

fn predicted(mut model: Predictor, images: &ImageSet) -> Result<Predicted> {
    let logits = model.logits(images)?;
    model.expect_finite(&logits, |i| format!("generated image {}", i + 1))?;
    let above = |row: &[f32]| {
        let all = row.iter().zip(&model.thresholds).zip(&model.labels);
        all.filter(|((logit, least), _)| probability(**logit) > **least)
            .map(|(_, label)| label.clone())
            .collect()
    };
    Ok(logits.chunks(model.labels.len()).map(above).collect())
}
