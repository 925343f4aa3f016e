//! The TargetNet: a shared trunk, and per task a filter, one teacher's remaining blocks and its head cut down
//! to the wanted labels (docs/method.md 4). It is frozen and folded: the result of a run.

use super::Recorder;
use super::filter::{Filter, FilterKind, FilterSpec};
use super::resnet::{Build, Mode, ResNet, ResNetSpec, Source};
use crate::autograd::Store;
use crate::autograd::tape::{Learn, Value};
use crate::error::{Error, Result};
use crate::ops::movement::columns::Columns;
use crate::ops::movement::concat_columns::ConcatColumns;
use crate::tensor::{Real, Shape};
use crate::weights::{Tensors, check_labels};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One task: the labels that are predicted through one teacher's last blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// The teacher's name.
    pub teacher: String,
    /// The task's labels, in the order of its predictions.
    pub labels: Vec<String>,
    /// The task leaves the trunk after this block (1-based).
    pub block: usize,
    /// The teacher's architecture, where it is another one than the trunk's. Its image is the trunk's, and it has no
    /// normalisation, because a task begins behind the stem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Box<ResNetSpec>>,
    /// For labels whose targets were the mean of several teachers: the names of these.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub averaged: BTreeMap<String, Vec<String>>,
}

impl TaskSpec {
    /// A task whose teacher has the architecture `teacher`, beside a trunk of the architecture `trunk`.
    pub fn new(
        name: &str,
        labels: &[String],
        block: usize,
        teacher: &ResNetSpec,
        trunk: &ResNetSpec,
    ) -> TaskSpec {
        let bare = |n: &ResNetSpec| ResNetSpec { normalisation: None, ..n.clone() };
        let network = Some(Box::new(bare(teacher))).filter(|bare_teacher| **bare_teacher != bare(trunk));
        let averaged = BTreeMap::new();
        TaskSpec { teacher: name.into(), labels: labels.to_vec(), block, network, averaged }
    }
}

/// The architecture and labels of a TargetNet, as a student file's metadata holds them under `student`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetNetSpec {
    /// The trunk's architecture, and that of every task that states no other.
    pub network: ResNetSpec,
    /// Channel reduction `r` of the filters.
    pub filter_reduction: usize,
    /// What the filters are.
    #[serde(default, skip_serializing_if = "FilterKind::is_gain")]
    pub filter: FilterKind,
    /// One task for each teacher of which the student has labels.
    pub tasks: Vec<TaskSpec>,
    /// All labels, in the order of the predictions.
    pub labels: Vec<String>,
}

impl TargetNetSpec {
    /// Reads the metadata of a student's file.
    ///
    /// Errors: no such metadata, a description that no student can have, tensors that are not of finite
    /// floats.
    pub fn of(t: &Tensors) -> Result<TargetNetSpec> {
        t.expect_all_read()?;
        let spec: TargetNetSpec = t.meta_as("student")?;
        spec.validate().map_err(|e| Error::data(t.file(), format!("__meta__: student: {e}")))?;
        Ok(spec)
    }

    /// The teacher whose predictions the label is learnt from, or the names of several, joined by " and ".
    pub fn teachers_of(&self, label: &String) -> Option<String> {
        let task = self.tasks.iter().find(|t| t.labels.contains(label))?;
        Some(task.averaged.get(label).map_or_else(|| task.teacher.clone(), |names| names.join(" and ")))
    }

    /// The architecture of the task's teacher.
    pub fn network_of<'s>(&'s self, task: &'s TaskSpec) -> &'s ResNetSpec {
        task.network.as_deref().unwrap_or(&self.network)
    }

    /// The sizes of the task's filter.
    pub fn filter_of(&self, task: &TaskSpec) -> FilterSpec {
        let [from, to] = [&self.network, self.network_of(task)].map(|n| n.widths[task.block - 1]);
        FilterSpec::new(self.filter, from, to, self.filter_reduction)
    }

    fn validate(&self) -> Result<(), String> {
        self.network.validate()?;
        let b = self.network.blocks();
        for task in &self.tasks {
            let network = self.network_of(task);
            network.validate().map_err(|e| format!("task of teacher {}: network: {e}", task.teacher))?;
            self.network
                .fits_beside(network)
                .map_err(|e| format!("task of teacher {}: network: {e}", task.teacher))?;
        }
        if let Some(t) = self.tasks.iter().find(|t| t.block == 0 || t.block > b) {
            return Err(format!(
                "task of teacher {}: branches after block {}, the network has {b}",
                t.teacher, t.block
            ));
        }
        check_labels(&self.labels).map_err(|e| format!("labels: {e}"))?;
        let mut all: Vec<&String> = self.tasks.iter().flat_map(|t| &t.labels).collect();
        let mut wanted: Vec<&String> = self.labels.iter().collect();
        all.sort();
        wanted.sort();
        if all != wanted || all.is_empty() || all.windows(2).any(|w| w[0] == w[1]) {
            return Err("the tasks' labels must be the student's labels, each once".into());
        }
        let divides = |t: &TaskSpec| {
            self.network_of(t).widths[t.block - 1].is_multiple_of(self.filter_reduction.max(1))
        };
        if self.filter_reduction == 0 || !self.tasks.iter().all(divides) {
            return Err(format!("filter reduction {} does not divide the channels", self.filter_reduction));
        }
        Ok(())
    }

    /// The same student, if all of its tasks left the trunk after block `b` (1-based).
    pub fn branching_after(&self, b: usize) -> TargetNetSpec {
        let mut other = self.clone();
        other.tasks.iter_mut().for_each(|task| task.block = b);
        other
    }

    /// Number of parameters as PyTorch counts them, and how many of them belong to filters.
    pub fn parameters(&self) -> (usize, usize) {
        let (trunk_net, last) = (&self.network, self.network.blocks());
        let trunk = self.tasks.iter().map(|t| t.block).max().unwrap_or(0);
        let filters = self.tasks.iter().map(|t| self.filter_of(t).parameters()).sum::<usize>();
        let branch = |t: &TaskSpec| {
            let net = self.network_of(t);
            let rest = if t.block < last { net.parameters(t.block + 1..=last) } else { 0 };
            rest + net.head_parameters(t.labels.len())
        };
        (trunk_net.parameters(1..=trunk) + filters + self.tasks.iter().map(branch).sum::<usize>(), filters)
    }
}

struct Task {
    /// The task leaves the trunk after this block (1-based).
    block: usize,
    filter: Filter,
    branch: ResNet,
}

/// A student in a store.
pub struct TargetNet {
    /// Architecture and labels.
    pub spec: TargetNetSpec,
    trunk: ResNet,
    tasks: Vec<Task>,
    /// Column of the concatenated task predictions for each of the student's labels.
    order: Vec<u32>,
}

impl TargetNet {
    /// Builds a student from the tensors of its file, under the names `prefix.*` in the store.
    ///
    /// Errors: no student's metadata, a tensor that is missing, has another shape, or is left over.
    pub fn load<R: Real>(store: &mut Store<R>, prefix: &str, mut t: Tensors) -> Result<TargetNet> {
        let spec = TargetNetSpec::of(&t)?;
        let (net, last) = (&spec.network, spec.network.blocks());
        let deepest = spec.tasks.iter().map(|t| t.block).max().unwrap_or(1);
        let mut part = strip(&mut t, "trunk.")?;
        let name = format!("{prefix}.trunk");
        let trunk =
            ResNet::new(store, &name, net, 1..=deepest, None, Build::Folded, Source::Tensors(&mut part))?;
        part.finish()?;
        let mut tasks = Vec::new();
        for (i, task) in spec.tasks.iter().enumerate() {
            let mut part = strip(&mut t, &format!("task{i}."))?;
            let name = format!("{prefix}.task{i}");
            let take = |what: &str, shape: &[usize]| part.take(&format!("filter.{what}"), shape);
            let filter = Filter::read(store, &format!("{name}.filter"), &spec.filter_of(task), take)?;
            let (labels, blocks) = (Some(task.labels.len()), task.block + 1..=last);
            let (source, of_teacher) = (Source::Tensors(&mut part), spec.network_of(task));
            let branch = ResNet::new(store, &name, of_teacher, blocks, labels, Build::Folded, source)?;
            part.finish()?;
            tasks.push(Task { block: task.block, filter, branch });
        }
        let columns: Vec<&String> = spec.tasks.iter().flat_map(|t| &t.labels).collect();
        let order = spec
            .labels
            .iter()
            .filter_map(|l| columns.iter().position(|c| *c == l))
            .map(|i| i as u32)
            .collect();
        t.finish()?;
        Ok(TargetNet { spec, trunk, tasks, order })
    }

    /// Records the student on images `[n, h, w, c]`: logits `[n, 1, 1, labels]`, in the order of its labels.
    pub fn record<R: Real>(&self, r: &mut Recorder<R>, mut x: Value) -> Result<Value> {
        let last = self.trunk.spec.blocks();
        let mut logits = vec![None; self.tasks.len()];
        for b in 1..=self.tasks.iter().map(|t| t.block).max().unwrap_or(0) {
            x = self.trunk.block(r, b, x, Mode::FROZEN, None)?;
            for (task, out) in self.tasks.iter().zip(&mut logits).filter(|(t, _)| t.block == b) {
                let mut y = task.filter.record(r, x, Learn::Frozen)?;
                for b in b + 1..=last {
                    y = task.branch.block(r, b, y, Mode::FROZEN, None)?;
                }
                *out = Some(task.branch.head(r, y, Mode::FROZEN)?.1);
            }
        }
        let logits: Vec<Value> = logits.into_iter().flatten().collect();
        let all = if logits.len() == 1 { logits[0] } else { r.apply(ConcatColumns, &logits)? };
        r.apply(Columns { index: self.order.clone() }, &[all])
    }
}

/// The shape in which PyTorch stores the same parameter.
pub fn torch_shape(shape: Shape) -> Vec<usize> {
    match shape.0 {
        [1, 1, 1, c] => vec![c],
        [k, 1, 1, c] => vec![k, c],
        [k, r, s, c] => vec![k, c, r, s],
    }
}

/// Moves the tensors whose names begin with `prefix` into a set of their own, without the prefix.
fn strip(t: &mut Tensors, prefix: &str) -> Result<Tensors> {
    let names: Vec<String> =
        t.iter().filter(|(n, _)| n.starts_with(prefix)).map(|(n, _)| n.to_string()).collect();
    let mut part = t.empty_like();
    for name in names {
        let shape = t.get(&name).map(|t| t.shape.clone()).unwrap_or_default();
        let values = t.take(&name, &shape)?;
        part.insert(&name[prefix.len()..], &shape, values)?;
    }
    Ok(part)
}
