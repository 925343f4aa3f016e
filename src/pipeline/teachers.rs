//! The teachers: frozen, folded, all of one architecture, in one store.

use super::seed::stage_seed;
use super::spec::TeacherSpec;
use super::stage::part;
use super::teacher_file::{Known, TeacherFile};
use crate::autograd::Store;
use crate::autograd::tape::Value;
use crate::error::{Error, Result};
use crate::models::Recorder;
use crate::models::resnet::{Build, Mode, ResNet, ResNetSpec, Source, difference};
use crate::ops::movement::concat_columns::ConcatColumns;
use crate::tensor::Real;
use crate::weights::Tensors;
use std::path::PathBuf;
use std::sync::Arc;

/// What to do where a teacher's file does not exist but its config states network and labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// Report an error.
    Fails,
    /// Draw weights from a fixed seed, which is enough to forecast the cost of a step.
    IsDrawn,
}

impl Absent {
    /// The stated network and labels, where weights may be drawn in place of the file's.
    fn stand_in(self, spec: &TeacherSpec) -> Option<Known> {
        let network = spec.stated.network.clone()?;
        let labels = spec.stated.labels.clone();
        let may = self == Absent::IsDrawn && !labels.is_empty() && !spec.weights.exists();
        may.then_some(Known { network, labels })
    }
}

/// A teacher whose file has been read. A run opens each file once and keeps its tensors for all that need
/// them: the check of the config, the stores of all students, their initial values, and the evaluation.
#[derive(Clone)]
pub struct OpenedTeacher {
    /// As in the config.
    pub name: String,
    /// The weights file.
    pub file: PathBuf,
    /// Network and labels.
    pub known: Known,
    /// The file's tensors; `None` where the file does not exist and weights are drawn.
    pub tensors: Option<Arc<Tensors>>,
}

impl OpenedTeacher {
    /// Opens one teacher's file.
    ///
    /// Errors: a file that does not open, or that its config contradicts.
    pub fn open(spec: &TeacherSpec, absent: Absent) -> Result<OpenedTeacher> {
        let (known, tensors) = match absent.stand_in(spec) {
            Some(known) => (known, None),
            None => {
                let TeacherFile { known, tensors } = TeacherFile::open(spec)?;
                (known, Some(Arc::new(tensors)))
            }
        };
        Ok(OpenedTeacher { name: spec.name.clone(), file: spec.weights.clone(), known, tensors })
    }

    /// Opens the files of all teachers.
    pub fn open_all(specs: &[TeacherSpec], absent: Absent) -> Result<Vec<OpenedTeacher>> {
        specs.iter().map(|spec| OpenedTeacher::open(spec, absent)).collect()
    }

    /// Whether the file does not exist and weights are drawn.
    pub fn is_drawn(&self) -> bool {
        self.tensors.is_none()
    }

    /// What the user should know of how the file was read.
    pub fn notes(&self) -> &[String] {
        self.tensors.as_ref().map_or(&[], |t| &t.notes)
    }
}

/// A teacher in a store.
pub struct Teacher {
    /// As in the config.
    pub name: String,
    /// In the order of its predictions.
    pub labels: Vec<String>,
    /// All blocks and the head, folded.
    pub net: ResNet,
    /// The file's tensors; `None` where the file does not exist and weights are drawn.
    pub tensors: Option<Arc<Tensors>>,
}

impl Teacher {
    /// Whether the file does not exist and weights are drawn.
    pub fn is_drawn(&self) -> bool {
        self.tensors.is_none()
    }
}

/// All teachers of a run, in one store.
pub struct Teachers {
    /// The architecture that all of them have.
    pub network: ResNetSpec,
    /// In the order of the config.
    pub all: Vec<Teacher>,
}

impl Teachers {
    /// Opens every file, then builds the teachers.
    ///
    /// Errors: those of [`OpenedTeacher::open`] and [`Teachers::build`].
    pub fn load<R: Real>(store: &mut Store<R>, specs: &[TeacherSpec]) -> Result<Teachers> {
        Self::load_or(store, specs, Absent::Fails)
    }

    /// The same, with a choice of what to do where a file does not exist.
    pub fn load_or<R: Real>(store: &mut Store<R>, specs: &[TeacherSpec], absent: Absent) -> Result<Teachers> {
        Self::build(store, &OpenedTeacher::open_all(specs, absent)?)
    }

    /// Builds the teachers, of which there must be at least one, under the names `teacher.NAME.*` in the
    /// store.
    ///
    /// Errors: teachers of different architectures; tensors that do not fit.
    pub fn build<R: Real>(store: &mut Store<R>, opened: &[OpenedTeacher]) -> Result<Teachers> {
        let network = opened[0].known.network.clone();
        let mut all = Vec::new();
        for OpenedTeacher { name, file, known: Known { network: found, labels }, tensors } in opened {
            if *found != network {
                let first = opened[0].file.file_name().unwrap_or_default().to_string_lossy();
                let message = format!(
                    "{}; all teachers of a run must share one architecture, image size and normalisation",
                    difference(found, &network, &first)
                );
                return Err(Error::data(file, message));
            }
            // Building a network removes the tensors that it takes, so it gets a copy.
            let mut copy = tensors.as_deref().cloned();
            let source = match &mut copy {
                Some(tensors) => Source::Tensors(tensors),
                None => Source::Random(stage_seed(0, name)),
            };
            let (prefix, blocks, count) =
                (format!("teacher.{name}"), 1..=network.blocks(), Some(labels.len()));
            let net = ResNet::new(store, &prefix, &network, blocks, count, Build::Folded, source)?;
            copy.map_or(Ok(()), Tensors::finish)?;
            all.push(Teacher { name: name.clone(), labels: labels.clone(), net, tensors: tensors.clone() });
        }
        Ok(Teachers { network, all })
    }

    /// Every label of every teacher, in teacher order.
    pub fn labels(&self) -> impl Iterator<Item = &String> {
        self.all.iter().flat_map(|t| &t.labels)
    }

    /// Parameters of all teachers together, as PyTorch counts them.
    pub fn parameters(&self) -> usize {
        let net = &self.network;
        self.all.iter().map(|t| net.parameters(1..=net.blocks()) + net.head_parameters(t.labels.len())).sum()
    }
}

/// Records every teacher's blocks from `first` (1-based) on and its head, on the input that `input` records
/// for the teacher of that index (10). Returns the logits by teacher.
pub fn predictions<R: Real>(
    r: &mut Recorder<R>,
    teachers: &Teachers,
    first: usize,
    mut input: impl FnMut(&mut Recorder<R>, usize) -> Result<Value>,
) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for (m, t) in teachers.all.iter().enumerate() {
        let mut x = input(r, m)?;
        let (_, logits) = r.within(part::TEACHERS, |r| {
            for b in first..=teachers.network.blocks() {
                x = t.net.block(r, b, x, Mode::FROZEN, None)?;
            }
            t.net.head(r, x, Mode::FROZEN)
        })?;
        all.push(logits);
    }
    Ok(all)
}

/// Records every teacher on the same images, and returns their features before the head, side by side, and their logits,
/// side by side.
pub fn views<R: Real>(r: &mut Recorder<R>, teachers: &Teachers, images: Value) -> Result<(Value, Value)> {
    let (mut features, mut logits) = (Vec::new(), Vec::new());
    for t in &teachers.all {
        let mut x = images;
        for b in 1..=teachers.network.blocks() {
            x = t.net.block(r, b, x, Mode::FROZEN, None)?;
        }
        let (of_teacher, y) = t.net.head(r, x, Mode::FROZEN)?;
        features.push(of_teacher);
        logits.push(y);
    }
    Ok((concat(r, &features)?, concat(r, &logits)?))
}

/// Records the predictions or features of several teachers side by side: `[n, 1, 1, c_i]` become one
/// `[n, 1, 1, sum c_i]`.
pub fn concat<R: Real>(r: &mut Recorder<R>, parts: &[Value]) -> Result<Value> {
    if parts.len() == 1 { Ok(parts[0]) } else { r.apply(ConcatColumns, parts) }
}
