//! The options of a run, already validated: no value here is invalid on its own.

use super::Device;
use super::seed::stream;
use crate::models::filter::FilterKind;
use crate::models::resnet::{Architecture, Normalisation, ResNetSpec, StridePlace};
use crate::ops::random::augment::Augment;
use crate::tensor::Elem;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A whole run.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RunSpec {
    /// Name of the run; also of its default output folder.
    pub name: String,
    /// Seed of every random draw.
    pub seed: u64,
    /// At least one.
    pub teachers: Vec<TeacherSpec>,
    /// The student.
    pub student: StudentOptions,
    /// The generator, and how stage one trains it.
    pub generator: GeneratorOptions,
    /// The loss of stage one.
    pub loss: LossSpec,
    /// Stage two.
    pub dual: DualSpec,
    /// Where labelled images for the final table lie; `None` means no table. Training never opens them.
    pub evaluation: Option<EvaluationData>,
    /// More students, trained on other images from the same initial values with the same budget, for
    /// comparison.
    pub baselines: Vec<ImageSource>,
    /// Least seconds between two checkpoints. With 0 there is one after every step, on a GPU after every read
    /// of the losses. The result does not depend on it.
    pub checkpoint_seconds: f32,
    /// How a GPU stores feature maps; the CPU computes in f32.
    pub precision: Elem,
    /// Where steps run. Set by the caller, not by the config.
    #[serde(skip)]
    pub device: Device,
    /// What several ranks divide among themselves. `--resume` may change it.
    #[serde(skip)]
    pub split: Split,
}

/// What the ranks of a launch divide among themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// The teachers and the student's tasks; each rank has the whole batch.
    #[default]
    Teachers,
    /// The batch; each rank has all teachers.
    Batch,
}

impl RunSpec {
    /// All files that the run reads.
    pub fn inputs(&self) -> Vec<&Path> {
        let init = match &self.student.init {
            StudentInit::Weights(file) => Some(file),
            StudentInit::Scratch | StudentInit::Mean | StudentInit::Teacher(_) => None,
        };
        let images = self.baselines.iter().chain([&self.dual.images]).filter_map(|source| match source {
            ImageSource::Real(path) => Some(path),
            ImageSource::Generator | ImageSource::Noise => None,
        });
        let all = self.teachers.iter().map(|t| &t.weights).chain(init).chain(images);
        all.map(PathBuf::as_path).chain(self.evaluation.as_ref().and_then(EvaluationData::file)).collect()
    }
}

/// A teacher of a run.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TeacherSpec {
    /// Unique within the run.
    pub name: String,
    /// The weights file: npz, safetensors or an ONNX file of ours.
    pub weights: PathBuf,
    /// What the config says of the file's contents.
    pub stated: Stated,
}

impl TeacherSpec {
    /// A teacher whose config says nothing of the file's contents.
    pub fn new(name: &str, weights: impl Into<PathBuf>) -> TeacherSpec {
        TeacherSpec { name: name.into(), weights: weights.into(), stated: Stated::default() }
    }
}

/// What a config says of the contents of a teacher's file. It must agree with the file, and completes what
/// the file does not say. Where the file does not exist, network and labels are enough for a forecast.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Stated {
    /// Architecture. Block kind, channels, stem, widths and depths must be the file's; a forecast uses all of
    /// it.
    pub network: Option<ResNetSpec>,
    /// Each once; empty where the config states none.
    pub labels: Vec<String>,
    /// Side of the images, in pixels.
    pub image_size: Option<usize>,
    /// Normalisation of the images.
    pub normalisation: Option<Normalisation>,
    /// Which convolution of a block's first bottleneck has stride 2.
    pub stride: Option<StridePlace>,
    /// Stride of the stem's first convolution.
    pub stem_stride: Option<usize>,
    /// Whether the config insists that each logit is that of a probability. It changes no bit of a student.
    #[serde(skip)]
    pub is_sigmoid: bool,
}

/// The options of the student.
#[derive(Clone, Debug, serde::Serialize)]
pub struct StudentOptions {
    /// Wanted labels, in the order of the predictions; empty means all labels of all teachers.
    pub labels: Vec<String>,
    /// The values that its blocks start from.
    pub init: StudentInit,
    /// What its batch norms do during training.
    pub norm: StudentNorm,
    /// Where its tasks leave the trunk.
    pub branch: Branch,
    /// Its own architecture; `None`: that of its teachers, which must then share one.
    // Left out where it is the default, like `filter`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Architecture>,
    /// What its teacher-level filters are, and those of the generator.
    #[serde(skip_serializing_if = "FilterKind::is_gain")]
    pub filter: FilterKind,
    /// For labels of several teachers: the name of the one from which the student learns the label. Of other such labels
    /// it learns the mean of their probabilities.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub teachers_of: BTreeMap<String, String>,
    /// Channel reduction `r` of the teacher-level filters (supplement 1.2: 4).
    pub filter_reduction: usize,
}

/// The values that the student's blocks start from.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StudentInit {
    /// Random values.
    Scratch,
    /// The mean of all teachers' blocks (ours): data-free, and the best start where the teachers share a
    /// backbone.
    Mean,
    /// The blocks of the teacher of this index.
    Teacher(usize),
    /// The blocks of a backbone file.
    Weights(PathBuf),
}

/// What the student's batch norms normalise by during training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StudentNorm {
    /// Nothing: they are folded into the convolutions from the start (ours, the fastest).
    Folded,
    /// The running statistics of the initial weights.
    Stored,
    /// The statistics of the batch.
    Batch,
}

/// Where the TargetNet leaves the shared trunk.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Branch {
    /// After the block with the lowest dual loss, which needs no data.
    Auto {
        /// The earliest block (1-based) that is allowed.
        least: usize,
    },
    /// After this block (1-based).
    Block(usize),
}

/// The options of the generator and of stage one.
#[derive(Clone, Debug, serde::Serialize)]
pub struct GeneratorOptions {
    /// Number of groups K: the image and K-1 feature levels (docs/method.md 2).
    pub groups: usize,
    /// Length of the noise vector z.
    pub latent: usize,
    /// Channels of the projected noise, then of the convolutions at each resolution, deepest first.
    pub widths: Vec<usize>,
    /// Steps of stage one.
    pub steps: usize,
    /// Images per step.
    pub batch: usize,
    /// Learning rate, constant over the stage.
    pub learning_rate: f32,
    /// Adam's betas.
    pub betas: [f32; 2],
    /// Most pixels by which the images are shifted at random before the teachers see them.
    pub shift: usize,
    /// How many teachers keep their activations at a time. Fewer need less memory; each then runs forward twice a step.
    /// None: all, or as many as fit the memory. The results have the same bits on the CPU, and are the same up to
    /// rounding on a GPU, where the order of the teachers' additions to a bf16 gradient differs.
    pub teachers_at_once: Option<usize>,
}

/// The adversarial loss of stage one.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LossSpec {
    /// The variant of the loss.
    pub recipe: Recipe,
    /// Weight of L_a.
    pub alpha: f32,
    /// Whether L_a is a mean over a teacher's features (ours) or their sum (as printed).
    pub mean_activation: bool,
    /// Weight of L_ie.
    pub beta: f32,
    /// Weight of L_dis.
    pub gamma: f32,
    /// Weight of the batch-statistics loss (ours; 0 in the published recipe).
    pub statistics: f32,
    /// The run stops, as collapsed, if the diversity of the generated images' features (see
    /// [`Diversity`](crate::ops::losses::diversity::Diversity)) is below this ...
    pub least_diversity: f32,
    /// ... or the entropy of a label's mean probability, in bits, is below this ...
    pub least_entropy: f32,
    /// ... or what the teachers' predictions tell about the image, in bits a label (see
    /// [`LabelStatistics`](crate::summary::LabelStatistics)), is below this ...
    pub least_information: f32,
    /// ... or the share of the labels that are found in any image is below this.
    pub least_found: f32,
}

/// How the targets of L_oh are chosen.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// Equations 5-8 as printed.
    Published,
    /// A set of labels to show is drawn as part of z, and is the target of L_oh (ours).
    Conditional {
        /// Most labels in the set.
        max_labels: usize,
        /// Weight in L_oh of the labels that an image is to show, against the others.
        positive: f32,
    },
    /// For each label, the images of the batch with the highest predictions count as positive (ours).
    Balanced {
        /// Their share of the batch.
        share: f32,
    },
}

/// The options of stage two.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DualSpec {
    /// Where the images come from; `Generator` is the method itself.
    pub images: ImageSource,
    /// Steps for each block, first block first.
    pub steps: Vec<usize>,
    /// Images per step.
    pub batch: usize,
    /// Peak learning rate.
    pub learning_rate: f32,
    /// Weight of the relative feature error beside eq. 13 (ours; 0 gives exactly eq. 13).
    pub feature: f32,
    /// Weight of the mean relative feature error at the teacher's later blocks and before its head (ours).
    pub late_features: f32,
    /// Whether stage b trains only block b, as published, or all blocks up to b (ours).
    pub freeze_earlier: bool,
    /// Weights of the two inputs of eq. 16.
    pub lambda_in: [f32; 2],
    /// Augmentation of the images.
    pub augment: AugmentSpec,
    /// Most images in the bank that stage two draws from.
    pub bank: usize,
}

/// Where the images of stage two come from.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSource {
    /// Stage one's generator.
    Generator,
    /// Gaussian noise images.
    Noise,
    /// Real images without labels ("KA"): an npz, or a folder of JPEG and PNG files.
    Real(PathBuf),
}

/// Where labelled images for an evaluation lie. Only [`labelled`](crate::labelled) opens them.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EvaluationData {
    /// An npz of images and targets.
    Npz(PathBuf),
    /// One year of PASCAL VOC.
    Voc {
        /// Its folder, such as `VOCdevkit/VOC2007`.
        folder: PathBuf,
        /// The name of a list in its `ImageSets/Main`.
        split: String,
    },
    /// MS-COCO.
    Coco {
        /// The folder of the images.
        images: PathBuf,
        /// The `instances` JSON.
        annotations: PathBuf,
    },
    /// A folder of images with a table of their labels.
    Csv {
        /// The folder of the images.
        folder: PathBuf,
        /// The table, a CSV file.
        table: PathBuf,
    },
}

impl EvaluationData {
    /// The data's one file, unless it is a folder.
    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            EvaluationData::Npz(file)
            | EvaluationData::Coco { annotations: file, .. }
            | EvaluationData::Csv { table: file, .. } => Some(file),
            EvaluationData::Voc { .. } => None,
        }
    }
}

/// Augmentation of stage two's images.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AugmentSpec {
    /// Most pixels of a random shift.
    pub shift: usize,
    /// Probability that an image is mirrored.
    pub flip: f32,
    /// Probability that an image is replaced by its elementwise maximum with another one.
    pub mix_max: f32,
    /// Probability that a rectangle of another image is pasted in.
    pub cutmix: f32,
}

impl AugmentSpec {
    /// The op that does it.
    pub(super) fn op(&self) -> Augment {
        let AugmentSpec { shift: max_shift, flip, mix_max, cutmix } = *self;
        // Black moves in, which is -1 in the range of images.
        Augment { max_shift, flip, mix_max, cutmix, fill: -1.0, stream: stream::AUGMENT }
    }
}
