//! Predictions of a trained model for images.

use super::export::thresholds;
use super::spec::{Stated, TeacherSpec};
use super::teacher_file::{Known, TeacherFile};
use super::teachers::OpenedTeacher;
use super::{Device, engine_on};
use crate::autograd::tape::Learn;
use crate::autograd::{Engine, Plan, Tape};
use crate::data::unlabelled::ImageSet;
use crate::device::StepState;
use crate::error::{Error, Result};
use crate::models::Recorder;
use crate::models::resnet::{Build, Mode, ResNet, ResNetSpec, Source};
use crate::models::targetnet::{TargetNet, TargetNetSpec};
use crate::tensor::{Elem, ImagesMut};
use crate::weights::{self, Tensors};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Most images in one forward pass.
pub const BATCH: usize = 128;

/// The probability that a logit stands for.
pub fn probability(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// A network of either kind.
enum Model {
    Teacher(Box<ResNet>),
    Student(Box<TargetNet>),
}

/// A model from a weights file, ready to predict.
pub struct Predictor<'w> {
    /// Is called after each batch, with its number of images.
    watcher: Option<Box<dyn FnMut(usize) + 'w>>,
    /// The weights file.
    file: PathBuf,
    engine: Engine<f32>,
    model: Model,
    network: ResNetSpec,
    /// In the order of the predictions.
    pub labels: Vec<String>,
    /// The probability above which each label is predicted.
    pub thresholds: Vec<f32>,
    /// What the user should know of how the file was read.
    pub notes: Vec<String>,
}

impl<'w> Predictor<'w> {
    /// The same model, which calls `watcher` after each batch with its number of images.
    pub fn watched<'n>(self, watcher: impl FnMut(usize) + 'n) -> Predictor<'n>
    where
        'w: 'n,
    {
        Predictor { watcher: Some(Box::new(watcher)), ..self }
    }

    /// Opens a teacher's or a student's file. Feature maps are f32 on every device, so that predictions do
    /// not depend on the precision of a training.
    ///
    /// Errors: a file that is neither's; no such device.
    pub fn open(path: &Path, device: &Device) -> Result<Predictor<'w>> {
        let tensors = weights::load(path)?;
        if tensors.meta.contains_key("student") {
            let (mut engine, file) = (engine_for(device)?, path.into());
            let thresholds =
                TargetNetSpec::of(&tensors).and_then(|student| thresholds(&tensors, student.labels.len()))?;
            let student = TargetNet::load(&mut engine.store, "student", tensors)?;
            let (network, labels) = (student.spec.network.clone(), student.spec.labels.clone());
            let (model, notes) = (Model::Student(Box::new(student)), Vec::new());
            return Ok(Predictor { watcher: None, file, engine, model, network, labels, thresholds, notes });
        }
        let TeacherFile { known, tensors } = TeacherFile::read(tensors, &Stated::default())?;
        Predictor::of(known, tensors, device)
    }

    /// Opens the file of a run's teacher, with what the config states of it.
    ///
    /// Errors: see [`TeacherFile::open`]; no such device.
    pub fn open_teacher(spec: &TeacherSpec, device: &Device) -> Result<Predictor<'w>> {
        let TeacherFile { known, tensors } = TeacherFile::open(spec)?;
        Predictor::of(known, tensors, device)
    }

    /// A predictor of a teacher whose file has been read.
    ///
    /// Errors: a teacher without a file; no such device.
    pub fn of_opened(teacher: &OpenedTeacher, device: &Device) -> Result<Predictor<'w>> {
        let missing = || Error::data(&teacher.file, "cannot open: no such file");
        let tensors = teacher.tensors.as_deref().ok_or_else(missing)?;
        Predictor::of(teacher.known.clone(), tensors.clone(), device)
    }

    /// A predictor of a teacher with these tensors.
    ///
    /// Errors: tensors that do not fit; no such device.
    pub fn of(known: Known, mut tensors: Tensors, device: &Device) -> Result<Predictor<'w>> {
        let Known { network, labels } = known;
        let (thresholds, file) = (thresholds(&tensors, labels.len())?, tensors.file().to_path_buf());
        let mut engine = engine_for(device)?;
        let (b, n) = (network.blocks(), Some(labels.len()));
        let net = ResNet::new(
            &mut engine.store,
            "teacher",
            &network,
            1..=b,
            n,
            Build::Folded,
            Source::Tensors(&mut tensors),
        )?;
        let notes = std::mem::take(&mut tensors.notes);
        tensors.finish()?;
        let model = Model::Teacher(Box::new(net));
        Ok(Predictor { watcher: None, file, engine, model, network, labels, thresholds, notes })
    }

    /// Height, width and channels of the images that the model takes.
    pub fn image(&self) -> [usize; 3] {
        self.network.image
    }

    /// Requires that `logits`, `[n, labels]`, are finite. `name` says what the image of an index is called.
    ///
    /// Errors: the first logit that is not finite, with its label and image.
    pub fn expect_finite(&self, logits: &[f32], name: impl Fn(usize) -> String) -> Result<()> {
        let Some(at) = logits.iter().position(|l| !l.is_finite()) else { return Ok(()) };
        let (image, label) = (name(at / self.labels.len()), &self.labels[at % self.labels.len()]);
        let message = format!(
            "computes {} for the label {label:?} of {image}; expected a number: the weights are too large for single precision",
            logits[at]
        );
        Err(Error::data(&self.file, message))
    }

    /// Logits `[n, labels]` of all images.
    ///
    /// Errors: images of another size.
    pub fn logits(&mut self, images: &ImageSet) -> Result<Vec<f32>> {
        let [n, h, w, c] = images.shape();
        if [h, w, c] != self.network.image {
            return Err(Error::Usage(format!(
                "the model expects images {:?}, found {:?}",
                self.network.image,
                [h, w, c]
            )));
        }
        let all: Vec<usize> = (0..n).collect();
        self.predict(n, |range, to| images.gather(&all[range], to))
    }

    /// Logits `[n, labels]` of `n` images in batches of at most [`BATCH`]. `read` writes the images of a
    /// range. A GPU computes a batch while the next one is read.
    ///
    /// Errors: those of `read`; too little memory.
    pub fn predict(
        &mut self,
        n: usize,
        mut read: impl FnMut(Range<usize>, ImagesMut) -> Result<()>,
    ) -> Result<Vec<f32>> {
        // A plan for fewer images needs less memory.
        let batch = n.clamp(1, BATCH);
        let (store, name) = (&mut self.engine.store, format!("data.input.{batch}"));
        let input = match store.id(&name) {
            Some(id) => id,
            None => store.add_images(&name, self.network.feature(0, batch)),
        };
        let mut tape = Tape::default();
        let mut r = Recorder { tape: &mut tape, store: &self.engine.store };
        let mut x = r.leaf(input, Learn::Frozen);
        let y = match &self.model {
            Model::Student(s) => s.record(&mut r, x)?,
            Model::Teacher(t) => {
                for b in 1..=self.network.blocks() {
                    x = t.block(&mut r, b, x, Mode::FROZEN, None)?;
                }
                t.head(&mut r, x, Mode::FROZEN)?.1
            }
        };
        tape.output(y);
        let mut plan = Plan::compile(&tape, &self.engine.store, None, &[])?;
        plan.reserve(&mut self.engine)?;
        let mut out = Vec::with_capacity(n * self.labels.len());
        let image_len: usize = self.network.image.iter().product();
        let mut batches = (0..n).step_by(batch).map(|first| first..n.min(first + batch)).peekable();
        let mut read = |engine: &mut Engine<f32>, range: Range<usize>| {
            let images = engine.store.images_mut(input).first(range.len() * image_len);
            read(range, images)?;
            engine.push()
        };
        if let Some(first) = batches.peek() {
            read(&mut self.engine, first.clone())?;
        }
        while let Some(range) = batches.next() {
            plan.replay(&mut self.engine, &StepState::default())?;
            if let Some(next) = batches.peek() {
                read(&mut self.engine, next.clone())?;
            }
            out.extend_from_slice(&plan.output(&self.engine, y)?[..range.len() * self.labels.len()]);
            self.watcher.iter_mut().for_each(|watcher| watcher(range.len()));
        }
        Ok(out)
    }
}

/// The engine of a model. A profiler records training steps only, so its steps are not passed on.
fn engine_for(device: &Device) -> Result<Engine<f32>> {
    engine_on(&Device { choice: device.choice, ..Device::default() }, Elem::F32)
}
