//! The teachers: frozen, folded, each of its own architecture, in one store.

pub use super::opened::{Absent, OpenedTeacher};

use super::seed::stage_seed;
use super::share::{Share, concat};
use super::spec::{StudentOptions, TeacherSpec};
use super::stage::part;
use super::student_network::{Misfit, common_network, student_network};
use super::teacher_file::Known;
use crate::autograd::Store;
use crate::autograd::tape::Value;
use crate::error::Result;
use crate::models::Recorder;
use crate::models::filter::FilterSpec;
use crate::models::resnet::{Build, Mode, ResNet, ResNetSpec, Source};
use crate::tensor::Real;
use crate::weights::Tensors;
use std::sync::Arc;

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

/// All teachers of a run, in one store, and the architecture of their student.
pub struct Teachers {
    /// The student's architecture, which is also that of the generator's levels. Every teacher fits beside it: it has
    /// the same image, as many blocks, and after each block maps of the same height and width.
    pub network: ResNetSpec,
    /// In the order of the config.
    pub all: Vec<Teacher>,
}

impl Teachers {
    /// Opens every file, then builds the teachers, for a student of the architecture that they share.
    ///
    /// Errors: those of [`OpenedTeacher::open`]; teachers of different architectures; tensors that do not fit.
    pub fn load<R: Real>(store: &mut Store<R>, specs: &[TeacherSpec]) -> Result<Teachers> {
        Self::load_or(store, specs, Absent::Fails)
    }

    /// The same, with a choice of what to do where a file does not exist.
    pub fn load_or<R: Real>(store: &mut Store<R>, specs: &[TeacherSpec], absent: Absent) -> Result<Teachers> {
        let opened = OpenedTeacher::open_all(specs, absent)?;
        Self::beside(store, &opened, common_network(&opened)?)
    }

    /// Builds the teachers, of which there must be at least one, under the names `teacher.NAME.*` in the
    /// store, for the student of these options.
    ///
    /// Errors: those of [`student_network`]; tensors that do not fit.
    pub fn build<R: Real>(
        store: &mut Store<R>,
        opened: &[OpenedTeacher],
        student: &StudentOptions,
    ) -> Result<Teachers> {
        Self::beside(store, opened, student_network(student, opened).map_err(Misfit::without_line)?)
    }

    /// Builds the teachers of a student of the architecture `network`. Their maps have its sizes after every block.
    fn beside<R: Real>(
        store: &mut Store<R>,
        opened: &[OpenedTeacher],
        network: ResNetSpec,
    ) -> Result<Teachers> {
        let mut all = Vec::new();
        for OpenedTeacher { name, known: Known { network, labels }, tensors, .. } in opened {
            // Building a network removes the tensors that it takes, so it gets a copy.
            let mut copy = tensors.as_deref().cloned();
            let source = match &mut copy {
                Some(tensors) => Source::Tensors(tensors),
                None => Source::Random(stage_seed(0, name)),
            };
            let (prefix, blocks, count) =
                (format!("teacher.{name}"), 1..=network.blocks(), Some(labels.len()));
            let net = ResNet::new(store, &prefix, network, blocks, count, Build::Folded, source)?;
            copy.map_or(Ok(()), Tensors::finish)?;
            all.push(Teacher { name: name.clone(), labels: labels.clone(), net, tensors: tensors.clone() });
        }
        Ok(Teachers { network, all })
    }

    /// The sizes of the filter from the student's features after block `b` (1-based) to those of the teacher of this
    /// index.
    pub fn filter(&self, student: &StudentOptions, b: usize, teacher: usize) -> FilterSpec {
        let [from, to] = [&self.network, &self.all[teacher].net.spec].map(|n| n.widths[b - 1]);
        FilterSpec::new(student.filter, from, to, student.filter_reduction)
    }

    /// Every label of every teacher, in teacher order.
    pub fn labels(&self) -> impl Iterator<Item = &String> {
        self.all.iter().flat_map(|t| &t.labels)
    }

    /// Every label once, in teacher order, and for each of [`Teachers::labels`] its place among them.
    pub fn distinct_labels(&self) -> (Vec<String>, Vec<u32>) {
        let (mut distinct, mut places) = (Vec::<String>::new(), Vec::new());
        for label in self.labels() {
            let place = distinct.iter().position(|l| l == label).unwrap_or_else(|| {
                distinct.push(label.clone());
                distinct.len() - 1
            });
            places.push(place as u32);
        }
        (distinct, places)
    }

    /// Parameters of all teachers together, as PyTorch counts them.
    pub fn parameters(&self) -> usize {
        let of_teacher = |t: &Teacher| {
            let net = &t.net.spec;
            net.parameters(1..=net.blocks()) + net.head_parameters(t.labels.len())
        };
        self.all.iter().map(of_teacher).sum()
    }
}

/// Records something for every teacher of this rank's share, in order; `record` gets the teacher's index too. If they are
/// more than `at_once`, each `at_once` of them are a segment of the tape, whose activations are in memory only while it
/// runs.
pub(super) fn by_turns<R: Real>(
    r: &mut Recorder<R>,
    teachers: &[Teacher],
    share: &Share,
    at_once: usize,
    mut record: impl FnMut(&mut Recorder<R>, usize, &Teacher) -> Result<()>,
) -> Result<()> {
    let (own, at_once) = (share.own(), at_once.max(1));
    for first in own.clone().step_by(at_once) {
        // In every rank, or in none.
        if share.most() > at_once {
            r.tape.begin_segment();
        }
        let mut turn = first..(first + at_once).min(own.end);
        let recorded = turn.try_for_each(|m| record(r, m, &teachers[m]));
        r.tape.end_segment();
        recorded?;
    }
    Ok(())
}

/// Records every teacher's blocks from `first` (1-based) on and its head, on the input that `input` records
/// for the teacher of that index (10), `at_once` teachers at a time ([`by_turns`]). Returns the logits of all teachers,
/// side by side.
pub(super) fn predictions<R: Real>(
    r: &mut Recorder<R>,
    teachers: &Teachers,
    share: &Share,
    first: usize,
    at_once: usize,
    mut input: impl FnMut(&mut Recorder<R>, usize) -> Result<Value>,
) -> Result<Value> {
    let mut own = Vec::new();
    by_turns(r, &teachers.all, share, at_once, |r, m, t| {
        let mut x = input(r, m)?;
        let (_, logits) = r.within(part::TEACHERS, |r| {
            for b in first..=teachers.network.blocks() {
                x = t.net.block(r, b, x, Mode::FROZEN, None)?;
            }
            t.net.head(r, x, Mode::FROZEN)
        })?;
        own.push(logits);
        Ok(())
    })?;
    share.gather(r, &own)
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
