//! Student and teachers on newly generated images: the student's thresholds, and how often the two agree. No label of
//! an image is used.

use super::captions;
use super::export::THRESHOLD;
use super::predictor::{Predictor, probability};
use super::sample::Sampler;
use super::seed::stage_seed;
use super::spec::RunSpec;
use super::tasks::{Source, sources};
use super::teachers::OpenedTeacher;
use crate::error::{Error, Result};
use crate::summary::{Agreement, LabelAgreement};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Most images: with 1024, the standard error of a share of 5 % is 0.7 %.
const MOST_IMAGES: usize = 1024;

/// Draws images from the generator in the file `generator` that no training has seen, and compares on them the decisions
/// of the student in each of the files `students`, which predicts `labels`, with those of its teachers. The images are augmented as in the student's
/// training. Each label's threshold is chosen so that the student predicts the label for as many of the images as its
/// teacher expects to show it: the sum of the teacher's probabilities. *[ours. To count the images for which the teacher's
/// probability is above one half would copy a cautious teacher's low recall: on the demo it gives a mean F1 of 0.74, the sum
/// 0.77]*
///
/// Cost: at most 1024 images, or one for every 32 that stage one was trained on, through generator, teachers and
/// student.
///
/// Errors: no memory for a model beside the generator; files that cannot be read.
pub fn measure(
    spec: &RunSpec,
    teachers: &[OpenedTeacher],
    labels: &[String],
    generator: &Path,
    students: &[PathBuf],
) -> Result<Vec<Agreement>> {
    let mut sampler = Sampler::open(generator, &spec.device)?;
    let image = sampler.image();
    let n = (spec.generator.steps * spec.generator.batch / 32).clamp(1, MOST_IMAGES);
    let seed = stage_seed(spec.seed, "agreement");
    let drawn = sampler.images(n, Some(seed), Some(&spec.dual.augment))?;
    drop(sampler);
    let images = captions::as_images(&drawn, image)?;
    let names = || teachers.iter().map(|t| (t.name.as_str(), &t.known.labels[..]));
    let wanted: Vec<Vec<Source>> = labels.iter().map(|l| sources(&spec.student, l, names())).collect();
    let mut logits_of = HashMap::new();
    for (m, teacher) in teachers.iter().enumerate() {
        if wanted.iter().flatten().any(|(source, _)| *source == m) {
            logits_of.insert(m, Predictor::of_opened(teacher, &spec.device)?.logits(&images)?);
        }
    }
    let mut of_teachers: HashMap<&str, Vec<f32>> = HashMap::new();
    for (label, sources) in labels.iter().zip(&wanted) {
        let columns = sources
            .iter()
            .map(|(m, _)| {
                let logits = logits_of.get(m).ok_or_else(|| missing(label))?;
                column(logits, &teachers[*m].known.labels, label)
            })
            .collect::<Result<Vec<_>>>()?;
        of_teachers.insert(label.as_str(), mean_logits(columns));
    }
    let compared = |student: &PathBuf| {
        let mut predictor = Predictor::open(student, &spec.device)?;
        let logits = predictor.logits(&images)?;
        let of_label = |label: &String| {
            let teacher = of_teachers.get(label.as_str()).ok_or_else(|| missing(label))?;
            Ok(compare(label, &column(&logits, &predictor.labels, label)?, teacher))
        };
        Ok(Agreement { images: n, labels: predictor.labels.iter().map(of_label).collect::<Result<_>>()? })
    };
    students.iter().map(compared).collect()
}

/// The logits of the mean probability of several teachers, image by image; of one teacher, its own.
fn mean_logits(mut columns: Vec<Vec<f32>>) -> Vec<f32> {
    if columns.len() == 1 {
        return columns.remove(0);
    }
    let mean = |i: usize| {
        let sum: f64 = columns.iter().map(|c| 1.0 / (1.0 + f64::from(-c[i]).exp())).sum();
        // Kept away from 0 and 1, where there is no logit.
        let p = (sum / columns.len() as f64).clamp(1e-12, 1.0 - 1e-12);
        (p / (1.0 - p)).ln() as f32
    };
    (0..columns.first().map_or(0, Vec::len)).map(mean).collect()
}

/// The logits of one label.
fn column(logits: &[f32], labels: &[String], label: &str) -> Result<Vec<f32>> {
    let at = labels.iter().position(|l| l == label).ok_or_else(|| missing(label))?;
    Ok(logits.iter().skip(at).step_by(labels.len()).copied().collect())
}

fn missing(label: &str) -> Error {
    Error::Run(format!("label {label:?} is missing in the student or its teacher"))
}

/// The decisions of a student and its teacher on one label, from their logits for each image.
fn compare(label: &str, student: &[f32], teacher: &[f32]) -> LabelAgreement {
    let is_teachers = |logit: &f32| *logit >= 0.0; // a probability of 0.5
    let expected = teacher.iter().map(|l| f64::from(probability(*l))).sum::<f64>().round() as usize;
    let threshold = matching_threshold(student, expected);
    let is_students = |logit: &f32| probability(*logit) > threshold;
    LabelAgreement {
        label: label.into(),
        threshold,
        teacher: teacher.iter().filter(|l| is_teachers(l)).count(),
        student: student.iter().filter(|l| is_students(l)).count(),
        both: student.iter().zip(teacher).filter(|(s, t)| is_students(s) && is_teachers(t)).count(),
    }
}

/// The probability that `wanted` of these logits exceed: the middle between two neighbours in their order. If none or
/// all are wanted, the images do not tell where the decision lies, and it is one half. Thresholds stay within
/// [`LEAST`] and `1 - LEAST`: beyond them a decision would rest on the rounding of a sigmoid.
fn matching_threshold(logits: &[f32], wanted: usize) -> f32 {
    if wanted == 0 || wanted >= logits.len() {
        return THRESHOLD;
    }
    let mut ranked: Vec<f32> = logits.iter().map(|l| probability(*l)).collect();
    ranked.sort_by(|a, b| b.total_cmp(a));
    ((ranked[wanted - 1] + ranked[wanted]) / 2.0).clamp(LEAST, 1.0 - LEAST)
}

const LEAST: f32 = 0.01;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_student_predicts_a_label_as_often_as_its_teacher_expects_it() {
        // Two certain images, and four with a probability of 0.27: 3.08 are expected, two are above one half.
        let teacher = [9.0, 9.0, -1.0, -1.0, -1.0, -1.0];
        // Too low by far: at one half it would never predict the label.
        let student = [-1.0, -1.5, -2.0, -3.0, -4.0, -5.0];
        let found = compare("bus", &student, &teacher);
        assert_eq!((found.teacher, found.student, found.both), (2, 3, 2));
        assert_eq!(found.threshold, (probability(-2.0) + probability(-3.0)) / 2.0);
    }

    #[test]
    fn several_teachers_count_by_their_mean_probability() {
        let single = vec![0.25, -50.0];
        assert_eq!(mean_logits(vec![single.clone()]), single);
        // Probabilities 0.5 and 0.8: the logit of 0.65.
        let found = mean_logits(vec![vec![0.0, 90.0], vec![4f32.ln(), 90.0]]);
        assert!((found[0] - (0.65f32 / 0.35).ln()).abs() < 1e-6, "{found:?}");
        assert!(found[1] > 20.0 && found[1].is_finite());
    }

    #[test]
    fn a_label_that_the_images_say_nothing_of_keeps_one_half() {
        assert_eq!(matching_threshold(&[1.0, -2.0], 0), 0.5);
        assert_eq!(matching_threshold(&[1.0, -2.0], 2), 0.5);
        // Certain decisions on both sides: the threshold does not sit at 0 or 1.
        assert_eq!(matching_threshold(&[-40.0, -50.0], 1), LEAST);
        assert_eq!(matching_threshold(&[40.0, 30.0], 1), 1.0 - LEAST);
    }
}
