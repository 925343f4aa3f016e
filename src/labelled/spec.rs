//! The options of a teacher's training, already validated: no value here is invalid on its own.

use crate::models::resnet::{BlockKind, Stem, Variant};
use crate::pipeline::Device;
use crate::pipeline::schedule::Schedule;
use crate::pipeline::spec::EvaluationData;
use crate::tensor::Elem;
use std::path::{Path, PathBuf};

/// A teacher to train from labelled data.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TeachSpec {
    /// Name of the training; also of its default output folder.
    pub name: String,
    /// Seed of every random draw.
    pub seed: u64,
    /// Where the labelled images lie.
    pub data: TrainingData,
    /// Labels to learn, in the order of the predictions; empty means all labels of the data.
    pub labels: Vec<String>,
    /// The kind of the network's residual units.
    pub block: BlockKind,
    /// The layers before the first block.
    pub stem: Stem,
    /// Output channels of each block.
    pub widths: Vec<usize>,
    /// Residual units of each block.
    pub depths: Vec<usize>,
    /// How the network differs from those of He et al.
    #[serde(skip_serializing_if = "Variant::is_none")]
    pub variant: Variant,
    /// Side of the images that the network takes; `None` means the size that all images of the data have.
    pub image_size: Option<usize>,
    /// A weights file whose blocks the network starts from. The head always starts from random values.
    pub init: Option<PathBuf>,
    /// How the network is trained.
    pub training: TrainingSpec,
    /// Labelled images that the result is scored on.
    pub evaluation: Option<EvaluationData>,
    /// Least seconds between two checkpoints, as in [`RunSpec`](crate::pipeline::spec::RunSpec).
    pub checkpoint_seconds: f32,
    /// How a GPU stores feature maps; the CPU computes in f32.
    pub precision: Elem,
    /// Where steps run. Set by the caller, not by the config.
    #[serde(skip)]
    pub device: Device,
}

impl TeachSpec {
    /// All files that the training reads.
    pub fn inputs(&self) -> Vec<&Path> {
        let data = match &self.data {
            TrainingData::Labelled(file)
            | TrainingData::Coco { annotations: file, .. }
            | TrainingData::Csv { table: file, .. } => Some(file),
            TrainingData::Scenes { archives, .. } => Some(archives),
            TrainingData::Voc { .. } => None,
        };
        let all = self.init.iter().chain(data).map(PathBuf::as_path);
        all.chain(self.evaluation.as_ref().and_then(EvaluationData::file)).collect()
    }
}

/// How a teacher is trained.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct TrainingSpec {
    /// Number of steps.
    pub steps: usize,
    /// Images per step.
    pub batch: usize,
    /// The optimiser.
    pub optimiser: OptimiserSpec,
    /// How the learning rates change over the training.
    pub schedule: Schedule,
    /// Peak learning rate of the head.
    pub learning_rate: f32,
    /// Peak learning rate of the last block.
    pub backbone_learning_rate: f32,
    /// Factor from the last block's rate to that of the block before it, and from there to the one rate of
    /// all earlier blocks.
    pub layer_decay: f32,
    /// What batch norms do during training.
    pub norm: TeacherNorm,
}

/// The optimiser of a teacher's training.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimiserSpec {
    /// Adam with betas 0.9 and 0.999.
    Adam {
        /// Decoupled from the gradient.
        weight_decay: f32,
    },
    /// Stochastic gradient descent.
    Sgd {
        /// Heavy-ball momentum.
        momentum: f32,
        /// Added to the gradient.
        weight_decay: f32,
    },
}

/// What a teacher's batch norms normalise by during training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TeacherNorm {
    /// The statistics of the batch; their running means become the network's.
    Batch,
    /// The running statistics of the initial weights, unchanged: for batches that are too small for
    /// statistics.
    Stored,
}

/// Where the images of a teacher's training lie.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainingData {
    /// An npz of images and targets.
    Labelled(PathBuf),
    /// One year of PASCAL VOC.
    Voc {
        /// Its folder, such as `VOCdevkit/VOC2007`.
        folder: PathBuf,
        /// The name of a list in its `ImageSets/Main`.
        split: String,
        /// How images are cropped.
        crop: CropSpec,
    },
    /// MS-COCO.
    Coco {
        /// The folder of the images.
        images: PathBuf,
        /// The `instances` JSON.
        annotations: PathBuf,
        /// How images are cropped.
        crop: CropSpec,
    },
    /// A folder of images with a table of their labels.
    Csv {
        /// The folder of the images.
        folder: PathBuf,
        /// The table, a CSV file.
        table: PathBuf,
        /// How images are cropped.
        crop: CropSpec,
    },
    /// Scenes composed from archives of single objects.
    Scenes {
        /// The folder of the archives.
        archives: PathBuf,
        /// Number of scenes.
        count: usize,
        /// Seed of the composition.
        seed: u64,
        /// Least and most objects in a scene.
        objects: [usize; 2],
        /// Least and greatest side of an object, in pixels.
        side: [usize; 2],
        /// Places that are tried for an object before it may overlap another.
        tries: usize,
    },
}

/// The random crop of a training image (torchvision's `RandomResizedCrop` and `RandomHorizontalFlip`).
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct CropSpec {
    /// Least and greatest share of the image's area.
    pub scale: [f32; 2],
    /// Least and greatest width over height.
    pub ratio: [f32; 2],
    /// Probability that the crop is mirrored.
    pub flip: f32,
}
