//! The model card: `README.md` in a run's folder, for whoever gets the student.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde::Deserialize;

use super::files::{CARD, read_if_present};
use super::origin::Origin;
use super::table::{millions, models, percent};
use crate::error::{Error, Result};
use crate::summary::Summary;
use crate::text::label;
use crate::weights::write_atomic;

/// The first line, by which a later run knows that the file may be replaced.
pub(super) const MARK: &str =
    "<!-- Model card, written by dfka-engine. A run with --force replaces this file. -->";

/// The file that describes the student's predictions.
const LABELS: &str = "labels.json";

/// What `labels.json` says.
#[derive(Deserialize)]
struct Labels {
    labels: Vec<String>,
    #[serde(default)]
    teachers: Option<Vec<String>>,
    thresholds: Vec<f32>,
    mean: Vec<f32>,
    std: Vec<f32>,
    /// Height, width and channels.
    image: [usize; 3],
}

/// Writes the card of a run whose student is in `folder`. Without a student there is no card, and a `README.md` that this
/// program did not write stays as it is.
///
/// Errors: a `labels.json` that does not parse; files that cannot be read or written.
pub(super) fn write(folder: &Path, summary: &Summary) -> Result<()> {
    let path = folder.join(LABELS);
    let Some(bytes) = read_if_present(&path)? else { return Ok(()) };
    let labels: Labels = serde_json::from_slice(&bytes).map_err(|e| Error::data(&path, e.to_string()))?;
    let card = folder.join(CARD);
    if card.exists() && !is_ours(&card)? {
        return Ok(());
    }
    let text = text(summary, &labels, Origin::read(folder)?.as_ref());
    write_atomic(card, |w| w.write_all(text.as_bytes()))
}

/// Removes the card of an earlier run.
///
/// Errors: a file that cannot be read or removed.
pub(super) fn remove(folder: &Path) -> Result<()> {
    let card = folder.join(CARD);
    if card.exists() && is_ours(&card)? {
        fs::remove_file(&card).map_err(|e| Error::io("replace", &card, e))?;
    }
    Ok(())
}

pub(super) fn is_ours(card: &Path) -> Result<bool> {
    Ok(read_if_present(card)?.is_some_and(|bytes| bytes.starts_with(MARK.as_bytes())))
}

fn text(s: &Summary, labels: &Labels, origin: Option<&Origin>) -> String {
    let (p, verdict) = (&s.parameters, s.verdict());
    let mut text = format!(
        "{MARK}\n\n# {}\n\n\
         An image classifier with {} labels, any number of which an image can have. It has {} parameters, {:.1} % of its \
         teachers' {}, and was amalgamated from them without any label, by dfka-engine {} (knowledge amalgamation, \
         [arXiv 2003.09088](https://arxiv.org/abs/2003.09088)).\n\n\
         **Verdict: {}.** {}.\n",
        cell(&s.name),
        labels.labels.len(),
        millions(p.student),
        100.0 * p.student as f64 / p.teachers.max(1) as f64,
        millions(p.teachers),
        s.version,
        verdict.word.text(),
        capitalised(&verdict.reason),
    );
    text += "\n## Labels\n\nA label is predicted if its probability is above the threshold.\n\n\
             | label | threshold | learnt from teacher |\n|---|---|---|\n";
    for (i, name) in labels.labels.iter().enumerate() {
        let threshold = labels.thresholds.get(i).map_or("-".into(), |t| format!("{t:.3}"));
        let teacher = labels.teachers.as_ref().and_then(|t| t.get(i)).map_or("-".into(), |t| cell(t));
        text += &format!("| {} | {threshold} | {teacher} |\n", cell(&label(name)));
    }
    text + &scores(s) + &use_of(labels) + &origin.map_or(String::new(), made_by)
}

/// The models' scores; empty without any.
fn scores(s: &Summary) -> String {
    let models = models(s);
    let Some((_, any)) = models.first() else { return String::new() };
    let mut text = format!(
        "\n## Scores\n\nIn percent, on the {} labelled images that the config names, which training did not see. Precision, recall \
         and F1 are at the thresholds.\n\n\
         | model | mAP | mAP, 11 points | precision | recall | F1 |\n|---|---|---|---|---|---|\n",
        any.images
    );
    for (name, score) in models {
        let d = score.decisions.as_ref();
        text += &format!(
            "| {} | {} | {} | {} | {} | {} |\n",
            cell(&name),
            percent(Some(score.map)),
            percent(Some(score.map_11_point)),
            percent(d.map(|d| d.precision)),
            percent(d.map(|d| d.recall)),
            percent(d.map(|d| d.f1))
        );
    }
    text
}

/// Preprocessing, and how to load the student.
fn use_of(labels: &Labels) -> String {
    let [h, w, c] = labels.image;
    let (kind, mode) = if c == 1 { ("Gray", "L") } else { ("RGB", "RGB") };
    let numbers = |v: &[f32]| v.iter().map(|x| format!("{x}")).collect::<Vec<_>>().join(", ");
    format!(
        "\n## Preprocessing\n\n\
         {kind} images are resized so that the shorter side has 256/224 of the network's, cropped at the centre to {w} x {h} \
         pixels, and divided by 255; the normalisation by mean ({}) and deviation ({}) is part of the model.\n\n\
         ## PyTorch\n\nThe package `dfka` comes with dfka-engine: `pip install \".[torch]\"` in a clone of its repository.\n\n```python\n\
         import dfka; from PIL import Image\n\
         model = dfka.load_student(\"student.safetensors\")\n\
         print(model.predict(model.preprocess(Image.open(\"photo.jpg\"))[None]))\n```\n\n\
         ## ONNX\n\n```python\n\
         import json, numpy, onnxruntime; from PIL import Image\n\
         from dfka.resize import evaluation_view\n\
         session = onnxruntime.InferenceSession(\"student.onnx\")\n\
         about = {{k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}}\n\
         picture = Image.open(\"photo.jpg\").convert(\"{mode}\")\n\
         pixels = numpy.asarray(picture).reshape(picture.height, picture.width, {c})\n\
         pixels = evaluation_view(pixels, {h}, {w}).astype(\"float32\") / 255  # then [1, {c}, {h}, {w}]\n\
         probabilities, = session.run([\"probabilities\"], {{\"image\": pixels.transpose(2, 0, 1)[None]}})\n\
         print([l for l, p, least in zip(about[\"labels\"], probabilities[0], about[\"thresholds\"]) if p > least])\n```\n",
        numbers(&labels.mean),
        numbers(&labels.std),
    )
}

/// The command and the files that made the student.
fn made_by(origin: &Origin) -> String {
    let mut text = "\n## Origin\n".to_owned();
    if let Some(call) = origin.calls.first() {
        let resumed = match origin.calls.len() - 1 {
            0 => String::new(),
            1 => ", resumed once".into(),
            n => format!(", resumed {n} times"),
        };
        let line = call.line().replace('\n', " ");
        text += &format!("\nMade on {} by this command{resumed}:\n\n    {line}\n", cell(&call.device));
    }
    if !origin.weights.is_empty() {
        text += "\n| role | file | SHA-256 |\n|---|---|---|\n";
    }
    for f in &origin.weights {
        text += &format!(
            "| {} | {} | `{}` |\n",
            cell(&f.name),
            cell(&f.file.display().to_string()),
            cell(&f.sha256)
        );
    }
    text
}

/// Text that ends no cell and begins no markup.
pub(super) fn cell(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '|' | '<' | '>' | '*' | '_' | '`' | '[' | ']' | '\\' | '#' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::super::origin::{Call, WeightsFile};
    use super::super::table::example;
    use super::*;

    #[test]
    fn a_card_has_labels_scores_files_and_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let s = example(2);
        write(dir.path(), &s).unwrap();
        assert!(!dir.path().join(CARD).exists(), "there is no student");
        let labels = r#"{"labels":["a|b","car"],"teachers":["left","right"],"thresholds":[0.5,0.25],
                         "mean":[0.5],"std":[0.25],"image":[16,24,1]}"#;
        fs::write(dir.path().join(LABELS), labels).unwrap();
        let command = ["dfka-engine", "run", "my.toml"].map(String::from).to_vec();
        let call = Call { command, device: "cpu".into(), ..Call::default() };
        let file = WeightsFile {
            name: "teacher left".into(),
            file: "l.npz".into(),
            bytes: 3,
            sha256: "ba78".into(),
        };
        let origin = Origin { calls: vec![call.clone(), call], weights: vec![file], failure: None };
        origin.write(dir.path()).unwrap();
        write(dir.path(), &s).unwrap();
        let text = fs::read_to_string(dir.path().join(CARD)).unwrap();
        for part in [
            "**Verdict: good.** The student has a mAP of 71.7 %, ",
            "\n| a\\|b | 0.500 | left |\n| car | 0.250 | right |\n",
            "on the 4952 labelled images",
            "cropped at the centre to 24 x 16 pixels",
            "mean (0.5) and deviation (0.25)",
            "dfka.load_student(\"student.safetensors\")",
            "evaluation_view(pixels, 16, 24).astype(\"float32\") / 255  # then [1, 1, 16, 24]",
            "Made on cpu by this command, resumed once:\n\n    dfka-engine run my.toml\n",
            "| teacher left | l.npz | `ba78` |\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        remove(dir.path()).unwrap();
        assert!(!dir.path().join(CARD).exists());
    }

    #[test]
    fn a_readme_of_someone_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let labels = r#"{"labels":["a"],"thresholds":[0.5],"mean":[],"std":[],"image":[8,8,3]}"#;
        fs::write(dir.path().join(LABELS), labels).unwrap();
        fs::write(dir.path().join(CARD), "mine").unwrap();
        write(dir.path(), &Summary::default()).unwrap();
        remove(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(CARD)).unwrap(), "mine");
        fs::write(dir.path().join(LABELS), "{").unwrap();
        assert_eq!(write(dir.path(), &Summary::default()).unwrap_err().exit_code(), 4);
    }
}
