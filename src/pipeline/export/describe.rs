//! What an exported file says beside its weights: network, labels, normalisation, thresholds.

use crate::error::{Error, Result};
use crate::models::resnet::ResNetSpec;
use crate::models::targetnet::TargetNetSpec;
use crate::pipeline::spec::Stated;
use crate::pipeline::teacher_file::{Known, TeacherFile};
use crate::weights::{self, Meta, Tensors};
use std::path::Path;

/// Default threshold of a label's probability, above which it is predicted (eq. 5).
pub const THRESHOLD: f32 = 0.5;

/// The network whose weights a file holds.
pub enum Contents {
    /// A student.
    Student(Box<TargetNetSpec>),
    /// A teacher.
    Teacher {
        /// Its architecture.
        network: Box<ResNetSpec>,
        /// In the order of the predictions.
        labels: Vec<String>,
    },
}

impl Contents {
    /// Reads a student's or a teacher's file. A teacher's network is added to its metadata, because its file
    /// may describe it by its tensors only.
    ///
    /// Errors: a file that is neither's.
    pub(super) fn open(path: &Path) -> Result<(Tensors, Contents)> {
        let tensors = weights::load(path)?;
        if tensors.meta.contains_key("student") {
            let student = TargetNetSpec::of(&tensors)?;
            return Ok((tensors, Contents::Student(Box::new(student))));
        }
        let TeacherFile { known: Known { network, labels }, mut tensors } =
            TeacherFile::read(tensors, &Stated::default())?;
        // The network that is added below does not say that this program trained the head.
        if !tensors.meta.contains_key("network") && !tensors.meta.contains_key("head") {
            tensors.meta.insert("head".into(), "unknown".into());
        }
        let json = serde_json::to_value(&network).map_err(|e| Error::Run(format!("network as JSON: {e}")))?;
        tensors.meta.insert("network".into(), json);
        Ok((tensors, Contents::Teacher { network: Box::new(network), labels }))
    }

    /// The architecture; of a student, its trunk's.
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

/// What a user of the weights needs to know beside them. It is in the metadata of every format, and in
/// `labels.json`.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Facts {
    /// Order of the predictions.
    pub labels: Vec<String>,
    /// The teacher that each label's predictions were learnt from, or several, as "A and B"; empty for a teacher.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub teachers: Vec<String>,
    /// Threshold of each label's probability.
    pub thresholds: Vec<f32>,
    /// Mean of each channel, for images in [0, 1].
    pub mean: Vec<f32>,
    /// Deviation of each channel.
    pub std: Vec<f32>,
    /// Height, width and channels of an image.
    pub image: [usize; 3],
    /// How pixels of a file become the network's input, in words.
    pub preprocessing: &'static str,
    /// What the user should know of how the file was read. It is not written.
    #[serde(skip)]
    pub notes: Vec<String>,
}

/// [`Facts::preprocessing`]: the rule of [`Transform::eval`](crate::data::transform::Transform::eval), and the
/// normalisation.
pub const PREPROCESSING: &str = "resize so that the shorter side is 256/224 of the image's (bilinear, antialiased), crop \
     the centre, divide by 255, subtract mean and divide by std";

impl Facts {
    /// Errors: thresholds in the file that do not fit its labels.
    pub(super) fn of(t: &Tensors, contents: &Contents) -> Result<Facts> {
        let (network, labels) = (contents.network(), contents.labels().to_vec());
        let teachers = match contents {
            Contents::Student(s) => s.labels.iter().filter_map(|l| s.teachers_of(l)).collect(),
            Contents::Teacher { .. } => vec![],
        };
        let thresholds = thresholds(t, labels.len())?;
        // The engine's own range, [-1, 1], has mean and deviation one half.
        let half = || vec![0.5; network.image[2]];
        let (mean, std) = match &network.normalisation {
            Some(n) => (n.mean.clone(), n.std.clone()),
            None => (half(), half()),
        };
        let (image, preprocessing, notes) = (network.image, PREPROCESSING, t.notes.clone());
        Ok(Facts { labels, teachers, thresholds, mean, std, image, preprocessing, notes })
    }

    /// As a JSON object, for metadata.
    pub fn json(&self) -> Result<Meta> {
        // Through text, in which the f32 0.485 is written as 0.485; converted directly it would be
        // 0.48500001430511475.
        let parsed = serde_json::to_string(self).and_then(|text| serde_json::from_str(&text));
        parsed.map_err(|e| Error::Run(format!("labels as JSON: {e}")))
    }
}

/// The thresholds in a file's metadata, or the default for each label.
///
/// Errors: the number of thresholds is not that of the labels; a threshold is no probability.
pub fn thresholds(t: &Tensors, labels: usize) -> Result<Vec<f32>> {
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
