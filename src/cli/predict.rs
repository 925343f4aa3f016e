//! `predict`: the labels of images, by a student or a teacher.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use super::args::DeviceArgs;
use super::output::pretty;
use crate::data::folder;
use crate::error::Result;
use crate::pipeline::Device;
use crate::pipeline::export::student_file;
use crate::pipeline::predictor::{BATCH, Predictor, probability};

#[derive(Args)]
pub struct PredictArgs {
    /// Weights in any of the formats, or the folder of a run for its student
    model: PathBuf,
    /// JPEG and PNG files of any size, and folders of them. Each is resized and cropped as for `eval`
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Print the result as JSON, with the probability of every label
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Returns a line for each image, with the labels whose probabilities are above their thresholds.
pub fn predict(args: &PredictArgs) -> Result<String> {
    let mut files = Vec::new();
    for path in &args.images {
        if path.is_dir() { files.extend(folder::list(path)?) } else { files.push(path.clone()) }
    }
    let (choice, _) = args.device.open()?;
    let device = Device { choice, ..Device::default() };
    let mut model = Predictor::open(&student_file(&args.model)?, &device)?;
    let mut rows = Vec::new();
    for files in files.chunks(BATCH) {
        let images = folder::load_files(files, model.image(), String::new())?;
        let logits = model.logits(&images)?;
        model.expect_finite(&logits, |i| files[i].display().to_string())?;
        let labels = model.labels.len();
        rows.extend(files.iter().zip(logits.chunks(labels)).map(|(file, logits)| Row {
            file: file.display().to_string(),
            probabilities: logits.iter().map(|l| probability(*l)).collect(),
        }));
    }
    let (labels, thresholds) = (&model.labels, &model.thresholds);
    if args.json {
        let all: Vec<Value> = rows.iter().map(|row| row.json(labels, thresholds)).collect();
        return pretty(&json!(all));
    }
    let width = rows.iter().map(|row| row.file.chars().count()).max().unwrap_or(0);
    Ok(rows.iter().map(|row| row.line(labels, thresholds, width)).collect())
}

/// The prediction for one image.
struct Row {
    file: String,
    /// By label.
    probabilities: Vec<f32>,
}

impl Row {
    /// The labels above their thresholds, the most probable first, each with its probability.
    fn shown<'a>(&self, labels: &'a [String], thresholds: &[f32]) -> Vec<(&'a str, f32)> {
        let all = labels.iter().zip(&self.probabilities).zip(thresholds);
        let mut shown: Vec<(&str, f32)> =
            all.filter(|((_, p), least)| p > least).map(|((label, p), _)| (label.as_str(), *p)).collect();
        shown.sort_by(|a, b| b.1.total_cmp(&a.1));
        shown
    }

    fn line(&self, labels: &[String], thresholds: &[f32], width: usize) -> String {
        let shown = self.shown(labels, thresholds);
        let words: Vec<String> = shown.iter().map(|(label, p)| format!("{label} {p:.2}")).collect();
        let words = if words.is_empty() { "-".into() } else { words.join(", ") };
        format!("{:<width$}  {words}\n", self.file)
    }

    fn json(&self, labels: &[String], thresholds: &[f32]) -> Value {
        let names: Vec<&str> = self.shown(labels, thresholds).into_iter().map(|(label, _)| label).collect();
        let probabilities: Map<String, Value> =
            labels.iter().zip(&self.probabilities).map(|(label, p)| (label.clone(), json!(p))).collect();
        json!({ "file": self.file, "labels": names, "probabilities": probabilities })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_what_is_above_its_threshold_the_most_probable_first() {
        let row = Row { file: "a.jpg".into(), probabilities: vec![0.4, 0.9, 0.6] };
        let labels = ["bus", "car", "dog"].map(String::from);
        assert_eq!(row.line(&labels, &[0.3, 0.5, 0.7], 7), "a.jpg    car 0.90, bus 0.40\n");
        assert_eq!(row.line(&labels, &[0.9; 3], 5), "a.jpg  -\n");
        let json = row.json(&labels, &[0.3, 0.5, 0.7]);
        assert_eq!(json["labels"], json!(["car", "bus"]));
        assert_eq!(json["probabilities"]["dog"], json!(0.6f32));
    }
}
