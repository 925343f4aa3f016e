//! Students (and teachers) for others to use: npz, safetensors and ONNX, each with labels, normalisation and thresholds.

pub mod graph;

use super::spec::Stated;
use super::teachers::{Known, TeacherFile};
use crate::error::{Error, Result};
use crate::models::resnet::ResNetSpec;
use crate::models::targetnet::TargetNetSpec;
use crate::weights::{self, Meta, Tensors, onnx};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A run's student in each format.
pub const STUDENTS: [&str; 3] = ["student.npz", "student.safetensors", "student.onnx"];
/// A student's labels with what belongs to each, for a program that reads no weights.
pub const LABELS: &str = "labels.json";

/// A label is predicted where its probability is above this (eq. 5).
pub const THRESHOLD: f32 = 0.5;

/// Whose weights a file holds.
pub enum Contents {
    Student(Box<TargetNetSpec>),
    Teacher { network: ResNetSpec, labels: Vec<String> },
}

impl Contents {
    /// Reads a file that may be either's. A teacher's metadata is completed by what its tensors tell.
    fn open(path: &Path) -> Result<(Tensors, Contents)> {
        let tensors = weights::load(path)?;
        if tensors.meta.contains_key("student") {
            let student = TargetNetSpec::of(&tensors)?;
            return Ok((tensors, Contents::Student(Box::new(student))));
        }
        let TeacherFile { known: Known { network, labels }, mut tensors } =
            TeacherFile::read(tensors, &Stated::default())?;
        let json = serde_json::to_value(&network).map_err(|e| Error::Run(format!("network as JSON: {e}")))?;
        tensors.meta.insert("network".into(), json);
        Ok((tensors, Contents::Teacher { network, labels }))
    }

    pub fn network(&self) -> &ResNetSpec {
        match self {
            Contents::Student(s) => &s.network,
            Contents::Teacher { network, .. } => network,
        }
    }

    fn labels(&self) -> &[String] {
        match self {
            Contents::Student(s) => &s.labels,
            Contents::Teacher { labels, .. } => labels,
        }
    }
}

/// What a user of the weights has to know beside them; stands in the metadata of every format, and in [`LABELS`].
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Facts {
    /// Order of the predictions.
    pub labels: Vec<String>,
    /// Which teacher a label's predictions were learnt from; empty for a teacher.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub teachers: Vec<String>,
    /// Of each label, as probabilities.
    pub thresholds: Vec<f32>,
    /// Of each channel of images in [0, 1].
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
    /// Height, width and channels.
    pub image: [usize; 3],
}

impl Facts {
    fn of(t: &Tensors, contents: &Contents) -> Result<Facts> {
        let (network, labels) = (contents.network(), contents.labels().to_vec());
        let teachers = match contents {
            Contents::Student(s) => s.labels.iter().filter_map(|l| s.teacher_of(l)).cloned().collect(),
            Contents::Teacher { .. } => vec![],
        };
        let thresholds = thresholds(t, labels.len())?;
        // The engine's own range, [-1, 1], is a mean and a deviation of one half.
        let half = || vec![0.5; network.image[2]];
        let (mean, std) = match &network.normalisation {
            Some(n) => (n.mean.clone(), n.std.clone()),
            None => (half(), half()),
        };
        Ok(Facts { labels, teachers, thresholds, mean, std, image: network.image })
    }

    /// By name, as files have them.
    pub fn json(&self) -> Result<Meta> {
        // By way of text, where 0.485 stays 0.485: as a value it would be the f64 next to its f32.
        let parsed = serde_json::to_string(self).and_then(|text| serde_json::from_str(&text));
        parsed.map_err(|e| Error::Run(format!("labels as JSON: {e}")))
    }
}

/// The thresholds that a file has for its labels, or the default for each.
fn thresholds(t: &Tensors, labels: usize) -> Result<Vec<f32>> {
    if !t.meta.contains_key("thresholds") {
        return Ok(vec![THRESHOLD; labels]);
    }
    let found: Vec<f32> = t.meta_as("thresholds")?;
    if found.len() != labels || found.iter().any(|v| !(0.0..=1.0).contains(v)) {
        let message = format!("thresholds: expected {labels} probabilities, found {found:?}");
        return Err(Error::data(t.file(), message));
    }
    Ok(found)
}

/// The weights that a path stands for: a folder's student, in the first format that it has.
fn student_file(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    let found = STUDENTS.iter().map(|name| path.join(name)).find(|file| file.exists());
    found.ok_or_else(|| {
        Error::data(path, format!("expected a run's folder with one of {}", STUDENTS.join(", ")))
    })
}

/// Writes the weights of `from` to `to`, in the format of its extension.
///
/// Errors: an extension other than npz, safetensors and onnx; a file that cannot be read back.
pub fn export(from: &Path, to: &Path) -> Result<Facts> {
    let is_known = to.extension().is_some_and(|e| ["npz", "safetensors", "onnx"].iter().any(|k| e == *k));
    if !is_known {
        let message = format!("{}: expected a name that ends in .npz, .safetensors or .onnx", to.display());
        return Err(Error::Usage(message));
    }
    let (mut tensors, contents) = Contents::open(&student_file(from)?)?;
    let facts = complete(&mut tensors, &contents)?;
    write(to, &tensors, &contents, &facts)?;
    Ok(facts)
}

fn write(to: &Path, tensors: &Tensors, contents: &Contents, facts: &Facts) -> Result<()> {
    if to.extension().is_some_and(|e| e == "onnx") {
        return onnx::save(to, &graph::model(tensors, contents, facts)?);
    }
    weights::save(to, tensors)
}

/// Gives the metadata the facts that stand beside the weights in every format.
fn complete(tensors: &mut Tensors, contents: &Contents) -> Result<Facts> {
    let facts = Facts::of(tensors, contents)?;
    tensors.meta.extend(facts.json()?);
    Ok(facts)
}

/// Leaves a run's student in its folder: every format, and the labels.
pub fn leave_student(folder: &Path, mut student: Tensors) -> Result<()> {
    let contents = Contents::Student(Box::new(TargetNetSpec::of(&student)?));
    let facts = complete(&mut student, &contents)?;
    for name in STUDENTS {
        write(&folder.join(name), &student, &contents, &facts)?;
    }
    let labels = serde_json::to_vec_pretty(&facts).map_err(|e| Error::Run(format!("labels as JSON: {e}")))?;
    weights::write_atomic(folder.join(LABELS), |w| {
        w.write_all(&labels)?;
        w.write_all(b"\n")
    })
}
