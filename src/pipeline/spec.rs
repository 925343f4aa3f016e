//! What a run is asked to do, already validated: no value here can be invalid on its own.

use super::Device;
use super::schedule::Schedule;
use crate::models::resnet::{BlockKind, Normalisation, ResNetSpec, Stem, StridePlace};
use crate::tensor::Elem;
use std::path::{Path, PathBuf};

/// A whole run.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RunSpec {
    pub name: String,
    pub seed: u64,
    /// At least one.
    pub teachers: Vec<TeacherSpec>,
    pub student: StudentSpec,
    pub generator: GeneratorSpec,
    pub loss: LossSpec,
    pub dual: DualSpec,
    /// Labelled images for the final table. Training never sees them; absent, the table is left out.
    pub evaluation: Option<EvaluationData>,
    /// Extra students trained on other images with the same initialisation and budget, for comparison.
    pub baselines: Vec<ImageSource>,
    /// Least time between two checkpoints; 0: one after every step, on a GPU after every look at the losses. No part of
    /// the result.
    pub checkpoint_seconds: f32,
    /// How a GPU stores feature maps; the CPU computes in f32.
    pub precision: Elem,
    /// Where steps run. No part of what is asked for.
    #[serde(skip)]
    pub device: Device,
}

impl RunSpec {
    /// Files that the run reads.
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

#[derive(Clone, Debug, serde::Serialize)]
pub struct TeacherSpec {
    pub name: String,
    /// An npz or safetensors file.
    pub weights: PathBuf,
    pub stated: Stated,
}

impl TeacherSpec {
    /// A teacher of which only its file speaks.
    pub fn new(name: &str, weights: impl Into<PathBuf>) -> TeacherSpec {
        TeacherSpec { name: name.into(), weights: weights.into(), stated: Stated::default() }
    }
}

/// What a config says of a teacher's file. What the file says, too, must agree; what it does not say is taken from here;
/// where it is not there, network and labels serve a forecast.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Stated {
    /// Block, stem, widths and depths, and the rest as a forecast needs it.
    pub network: Option<ResNetSpec>,
    /// Each once; none: not stated.
    pub labels: Vec<String>,
    /// Pixels a side.
    pub image_size: Option<usize>,
    pub normalisation: Option<Normalisation>,
    pub stride: Option<StridePlace>,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct StudentSpec {
    /// Wanted labels, in order; empty: all labels of all teachers.
    pub labels: Vec<String>,
    pub init: StudentInit,
    pub norm: StudentNorm,
    pub branch: Branch,
    /// Channel reduction `r` of the teacher-level filters (supplement 1.2: 4).
    pub filter_reduction: usize,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StudentInit {
    Scratch,
    /// The mean of all teachers' blocks: data-free, and the best start when they share a backbone (ours).
    Mean,
    /// Copies the blocks of the teacher of this index.
    Teacher(usize),
    /// Copies the blocks of a backbone file.
    Weights(PathBuf),
}

/// What the student's batch norms normalise by while it learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StudentNorm {
    /// Folded into the convolutions from the start; nothing to normalise (ours, the fastest).
    Folded,
    /// The statistics that came with the initial weights.
    Stored,
    /// The batch's own.
    Batch,
}

/// Where the TargetNet leaves the shared trunk.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Branch {
    /// By the data-free rule, per task, no earlier than `least` (1-based block).
    Auto { least: usize },
    /// The same block for every task.
    Block(usize),
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct GeneratorSpec {
    /// Groups K: the image and K-1 feature levels (docs/method.md 2).
    pub groups: usize,
    /// Length of the noise vector z.
    pub latent: usize,
    /// Channels of the projected noise, then of the convolutions at each resolution, deepest first.
    pub widths: Vec<usize>,
    pub steps: usize,
    pub batch: usize,
    pub learning_rate: f32,
    pub betas: [f32; 2],
    /// Pixels by which the images are shifted at random before the teachers see them.
    pub shift: usize,
}

/// The adversarial loss of stage one.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LossSpec {
    pub recipe: Recipe,
    /// Weight of L_a.
    pub alpha: f32,
    /// Weight of L_ie.
    pub beta: f32,
    /// Weight of L_dis.
    pub gamma: f32,
    /// Weight of the batch-statistics loss (ours; 0 in the published recipe).
    pub statistics: f32,
    /// The run stops as collapsed below this diversity of the generated images' features (see `ops::diversity`) ...
    pub least_diversity: f32,
    /// ... or this mean label entropy, in bits.
    pub least_entropy: f32,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// Equations 5-8 as printed.
    Published,
    /// A wanted label set is part of z, and L_oh is taken against it (ours).
    Conditional { max_labels: usize },
    /// The top `share` of each label in the batch counts as positive (ours).
    Balanced { share: f32 },
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct DualSpec {
    /// Where stage two's images come from; `Generator` is the method itself.
    pub images: ImageSource,
    /// Steps for each block, first block first.
    pub steps: Vec<usize>,
    pub batch: usize,
    pub learning_rate: f32,
    /// Weight of the relative feature error beside eq. 13 (ours; 0: exactly eq. 13).
    pub feature: f32,
    /// Weight of the relative feature errors at the teacher's later blocks and before its head, their mean (ours).
    pub late_features: f32,
    /// Train only block b in stage b, as published; otherwise all blocks up to b (ours).
    pub freeze_earlier: bool,
    /// Weights of the two inputs of eq. 16.
    pub lambda_in: [f32; 2],
    pub augment: AugmentSpec,
    /// Images kept in the bank that stage two draws from.
    pub bank: usize,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSource {
    Generator,
    /// Gaussian noise images.
    Noise,
    /// Real images without labels ("KA"): an npz, or a folder of JPEG and PNG files.
    Real(PathBuf),
}

/// Labelled images to judge by, and where they lie.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EvaluationData {
    /// An npz of images and targets.
    Npz(PathBuf),
    /// One year of PASCAL VOC, such as `VOCdevkit/VOC2007`, and the name of a list in its `ImageSets/Main`.
    Voc { folder: PathBuf, split: String },
    /// MS-COCO: the images' folder and the `instances` JSON.
    Coco { images: PathBuf, annotations: PathBuf },
}

impl EvaluationData {
    /// The file it is, if it is one.
    fn file(&self) -> Option<&Path> {
        match self {
            EvaluationData::Npz(file) | EvaluationData::Coco { annotations: file, .. } => Some(file),
            EvaluationData::Voc { .. } => None,
        }
    }
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct AugmentSpec {
    /// Pixels.
    pub shift: usize,
    /// Probabilities.
    pub flip: f32,
    pub mix_max: f32,
    pub cutmix: f32,
}

/// A teacher to train from labelled data.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TeachSpec {
    pub name: String,
    pub seed: u64,
    pub data: TrainingData,
    /// Labels to learn, in order; empty: all that the data has.
    pub labels: Vec<String>,
    pub block: BlockKind,
    pub stem: Stem,
    /// Output channels of each block.
    pub widths: Vec<usize>,
    /// Residual units of each block.
    pub depths: Vec<usize>,
    /// Side of the images that the network takes; `None`: of those that the data has.
    pub image_size: Option<usize>,
    /// Weights to start from; a head for other labels starts afresh.
    pub init: Option<PathBuf>,
    pub training: TrainingSpec,
    /// Labelled images to score the result on.
    pub evaluation: Option<EvaluationData>,
    /// As in [`RunSpec`].
    pub checkpoint_seconds: f32,
    /// As in [`RunSpec`].
    pub precision: Elem,
    #[serde(skip)]
    pub device: Device,
}

impl TeachSpec {
    /// Files that the training reads.
    pub fn inputs(&self) -> Vec<&Path> {
        let data = match &self.data {
            TrainingData::Labelled(file) | TrainingData::Coco { annotations: file, .. } => Some(file),
            TrainingData::Scenes { .. } | TrainingData::Voc { .. } => None,
        };
        let all = self.init.iter().chain(data).map(PathBuf::as_path);
        all.chain(self.evaluation.as_ref().and_then(EvaluationData::file)).collect()
    }
}

/// How a teacher learns.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct TrainingSpec {
    pub steps: usize,
    pub batch: usize,
    pub optimiser: OptimiserSpec,
    pub schedule: Schedule,
    /// Peak rate of the head.
    pub learning_rate: f32,
    /// Peak rate of the last block ...
    pub backbone_learning_rate: f32,
    /// ... the factor to the rate of the block before it, and from there to the one that all earlier blocks share.
    pub layer_decay: f32,
    pub norm: TeacherNorm,
}

#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimiserSpec {
    /// Adam with beta 0.9 and 0.999, and decoupled weight decay.
    Adam { weight_decay: f32 },
    /// Stochastic gradient descent with (heavy-ball) momentum, weight decay in the gradient.
    Sgd { momentum: f32, weight_decay: f32 },
}

/// What a teacher's batch norms normalise by while it learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TeacherNorm {
    /// The batch's statistics, whose running means are then the network's.
    Batch,
    /// The statistics that came with the initial weights, which stay: for batches too small to have any.
    Stored,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainingData {
    /// An npz of images and targets.
    Labelled(PathBuf),
    /// One year of PASCAL VOC, such as `VOCdevkit/VOC2007`, and a split of it.
    Voc { folder: PathBuf, split: String, crop: CropSpec },
    /// MS-COCO: its images' folder and the JSON of their instances.
    Coco { images: PathBuf, annotations: PathBuf, crop: CropSpec },
    /// Scenes composed from archives of single objects.
    Scenes {
        /// The folder of the archives.
        archives: PathBuf,
        count: usize,
        seed: u64,
        /// Objects in a scene, from and to.
        objects: [usize; 2],
        /// Side of an object in pixels, from and to.
        side: [usize; 2],
        /// Places tried for an object before it may overlap another.
        tries: usize,
    },
}

/// What is seen of a training image (torchvision's `RandomResizedCrop` and `RandomHorizontalFlip`).
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct CropSpec {
    /// Share of the image's area, from and to.
    pub scale: [f32; 2],
    /// Width over height, from and to.
    pub ratio: [f32; 2],
    /// Probability that it is mirrored.
    pub flip: f32,
}
