//! Average precision of a weights file on labelled images. The only part of the pipeline that sees labels.

use super::spec::{EvaluationData, Stated, TeacherSpec};
use super::teachers::{Known, TeacherFile};
use super::{Device, engine_on};
use crate::autograd::tape::Learn;
use crate::autograd::{Engine, Plan, Tape};
use crate::data::average_precision::label_precisions;
use crate::data::dataset::Dataset;
use crate::data::labelled::LabelledSet;
use crate::data::loader::Loader;
use crate::data::transform::{Transform, View};
use crate::data::unlabelled::ImageSet;
use crate::device::StepState;
use crate::error::{Error, Result};
use crate::models::Recorder;
use crate::models::resnet::{Build, Mode, ResNet, ResNetSpec, Source};
use crate::models::targetnet::TargetNet;
use crate::summary::Score;
use crate::tensor::Elem;
use crate::weights;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Images a forward pass takes at once.
const BATCH: usize = 128;

enum Model {
    Teacher(Box<ResNet>),
    Student(Box<TargetNet>),
}

/// A model from a weights file, ready to predict.
pub struct Predictor {
    engine: Engine<f32>,
    model: Model,
    network: ResNetSpec,
    pub labels: Vec<String>,
}

impl Predictor {
    /// Opens a teacher's or a student's file. Maps are f32 on every device: a score is then the model's, not a rounding's.
    pub fn open(path: &Path, device: &Device) -> Result<Predictor> {
        let tensors = weights::load(path)?;
        if tensors.meta.contains_key("student") {
            let mut engine = engine_for(device)?;
            let student = TargetNet::load(&mut engine.store, "student", tensors)?;
            let (network, labels) = (student.spec.network.clone(), student.spec.labels.clone());
            return Ok(Predictor { engine, model: Model::Student(Box::new(student)), network, labels });
        }
        Predictor::of(TeacherFile::read(tensors, &Stated::default())?, device)
    }

    /// Opens a teacher as a run sees it: with what its config says of its file.
    pub fn open_teacher(spec: &TeacherSpec, device: &Device) -> Result<Predictor> {
        Predictor::of(TeacherFile::open(spec)?, device)
    }

    fn of(teacher: TeacherFile, device: &Device) -> Result<Predictor> {
        let TeacherFile { known: Known { network, labels }, mut tensors } = teacher;
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
        tensors.finish()?;
        Ok(Predictor { engine, model: Model::Teacher(Box::new(net)), network, labels })
    }

    /// Logits `[n, labels]` of all images.
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

    /// Logits `[n, labels]` of `n` images, of which `read` writes a batch as network input.
    fn predict(
        &mut self,
        n: usize,
        mut read: impl FnMut(Range<usize>, &mut [f32]) -> Result<()>,
    ) -> Result<Vec<f32>> {
        // A few images need no plan, and no memory, for many.
        let batch = n.clamp(1, BATCH);
        let (store, name) = (&mut self.engine.store, format!("data.input.{batch}"));
        let input = match store.id(&name) {
            Some(id) => id,
            None => store.add(&name, self.network.feature(0, batch)),
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
        for first in (0..n).step_by(batch) {
            let count = batch.min(n - first);
            read(first..first + count, &mut self.engine.store.get_mut(input)[..count * image_len])?;
            plan.replay(&mut self.engine, &StepState::default())?;
            out.extend_from_slice(&plan.output(&self.engine, y)?[..count * self.labels.len()]);
        }
        Ok(out)
    }

    /// Logits `[n, labels]` of all images of a set, which pass through a window of a few batches. An npz's images are
    /// taken as they are; files are resized and cut as torchvision does for evaluation.
    fn logits_of(&mut self, data: &Arc<Dataset>) -> Result<Vec<f32>> {
        let image = self.network.image;
        let transform = match data.image_size() {
            Some(found) if found != image => {
                return Err(Error::Usage(format!("the model expects images {image:?}, found {found:?}")));
            }
            Some(_) => Transform { image, view: View::Squash },
            None => Transform::eval(image),
        };
        let batch = data.len().clamp(1, BATCH);
        let mut loader = Loader::in_order(data.clone(), transform, batch)?;
        self.predict(data.len(), |range, to| loader.read((range.start / batch) as u64, to))
    }

    /// Average precision on the labels that the model and `wanted` share; empty `wanted`: all of the model's.
    pub fn score(&mut self, data: &Arc<Dataset>, wanted: &[String]) -> Result<Score> {
        let keep: Vec<usize> = (0..self.labels.len())
            .filter(|i| wanted.is_empty() || wanted.contains(&self.labels[*i]))
            .collect();
        let labels: Vec<String> = keep.iter().map(|i| self.labels[*i].clone()).collect();
        let columns = data.columns(&labels)?;
        let logits = self.logits_of(data)?;
        let scores: Vec<f32> =
            logits.chunks(self.labels.len()).flat_map(|row| keep.iter().map(|i| row[*i])).collect();
        let rows = (0..data.len()).map(|i| data.targets(i));
        let targets: Vec<u8> = rows.flat_map(|row| columns.iter().map(|c| row[*c])).collect();
        let found = label_precisions(&scores, &targets, labels.len())?;
        let mut score = Score::default();
        for (label, ap) in labels.iter().zip(&found.per_label) {
            if let Some(ap) = ap {
                score.ap.insert(label.clone(), 100.0 * ap.all_point);
                score.ap_11_point.insert(label.clone(), 100.0 * ap.eleven_point);
            }
        }
        score.take_means();
        Ok(score)
    }
}

/// A profiler records training steps only.
fn engine_for(device: &Device) -> Result<Engine<f32>> {
    engine_on(&Device { choice: device.choice, ..Device::default() }, Elem::F32)
}

/// Average precision of the model in `weights` on `data`.
pub fn evaluate(weights: &Path, data: &EvaluationData, device: &Device) -> Result<Score> {
    let mut model = Predictor::open(weights, device)?;
    check(data, model.network.image, &model.labels)?;
    model.score(&open(data)?, &[])
}

/// Opens labelled images: their names and targets, and of an npz the pixels.
pub fn open(data: &EvaluationData) -> Result<Arc<Dataset>> {
    let set = match data {
        EvaluationData::Npz(file) => Dataset::npz(file)?,
        EvaluationData::Voc { folder, split } => Dataset::voc(folder, split)?,
        EvaluationData::Coco { images, annotations } => Dataset::coco(images, annotations)?,
    };
    Ok(Arc::new(set))
}

/// Fails unless `data` has the labels `wanted`, and images of the size `image` or of any. What it looks at it forgets, so
/// it may run before the training that must not see labels.
pub fn check(data: &EvaluationData, image: [usize; 3], wanted: &[String]) -> Result<()> {
    let (file, labels) = match data {
        EvaluationData::Npz(file) => {
            let (labels, [_, h, w, c]) = LabelledSet::describe(file)?;
            if [h, w, c] != image {
                return Err(Error::data(
                    file,
                    format!("images: the networks expect {image:?}, found {:?}", [h, w, c]),
                ));
            }
            (file.clone(), labels)
        }
        EvaluationData::Voc { .. } | EvaluationData::Coco { .. } => {
            Transform::eval(image).check()?;
            let set = open(data)?;
            (set.file.clone(), set.labels.clone())
        }
    };
    if let Some(missing) = wanted.iter().find(|w| !labels.contains(w)) {
        return Err(Error::data(
            file,
            format!("expected a label {missing:?}, found only {}", labels.join(", ")),
        ));
    }
    Ok(())
}
