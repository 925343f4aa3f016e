//! The teachers: frozen, folded, all of one architecture, in one store.

use super::session::stage_seed;
use super::spec::{Stated, TeacherSpec};
use crate::autograd::Store;
use crate::error::{Error, Result};
use crate::models::resnet::{Build, ResNet, ResNetSpec, Source};
use crate::tensor::Real;
use crate::weights::{self, Tensors};
use std::collections::HashSet;

pub struct Teacher {
    pub name: String,
    pub labels: Vec<String>,
    pub net: ResNet,
    /// Its file is not there: its weights are drawn.
    pub is_drawn: bool,
}

pub struct Teachers {
    pub network: ResNetSpec,
    pub all: Vec<Teacher>,
}

/// What to do where a teacher's file is not there but its config says what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    Fails,
    /// Weights from a fixed seed: for what a step costs, and for nothing else.
    IsDrawn,
}

impl Absent {
    /// What stands in for the file, if anything may.
    fn stand_in<'a>(&self, spec: &'a TeacherSpec) -> Option<&'a Stated> {
        spec.stated.as_ref().filter(|_| *self == Absent::IsDrawn && !spec.weights.exists())
    }

    /// Whether a teacher's weights are drawn.
    pub fn draws(self, spec: &TeacherSpec) -> bool {
        self.stand_in(spec).is_some()
    }

    /// Network and labels of a teacher, and whether they are its config's alone.
    ///
    /// Errors: a file that does not open, or says otherwise than the config.
    pub fn facts(self, spec: &TeacherSpec) -> Result<(Stated, bool)> {
        if let Some(stated) = self.stand_in(spec) {
            return Ok((stated.clone(), true));
        }
        let TeacherFile { network, labels, .. } = TeacherFile::of(spec)?;
        Ok((Stated { network, labels }, false))
    }
}

/// What a teacher's file says about itself.
pub struct TeacherFile {
    pub network: ResNetSpec,
    pub labels: Vec<String>,
    pub tensors: Tensors,
}

impl TeacherFile {
    /// A teacher's file, which must agree with what the config says of it.
    pub fn of(spec: &TeacherSpec) -> Result<TeacherFile> {
        let file = TeacherFile::open(&spec.weights)?;
        let Some(stated) = &spec.stated else { return Ok(file) };
        let differs = |what: &str, config: &dyn std::fmt::Debug, found: &dyn std::fmt::Debug| {
            let message =
                format!("teacher {}: the config's {what} {config:?}, the file's {found:?}", spec.name);
            Err(Error::data(&spec.weights, message))
        };
        if stated.network != file.network {
            return differs("network is", &stated.network, &file.network);
        }
        if stated.labels != file.labels {
            return differs("labels are", &stated.labels, &file.labels);
        }
        Ok(file)
    }

    pub fn open(path: &std::path::Path) -> Result<TeacherFile> {
        let tensors = weights::load(path)?;
        let network: ResNetSpec = tensors.meta_as("network")?;
        network.validate().map_err(|e| Error::data(path, format!("__meta__: network: {e}")))?;
        let labels: Vec<String> = tensors.meta_as("labels")?;
        if labels.is_empty() {
            return Err(Error::data(path, "__meta__: labels: expected at least one label, found none"));
        }
        let mut seen = HashSet::new();
        if let Some(twice) = labels.iter().find(|l| !seen.insert(*l)) {
            return Err(Error::data(path, format!("__meta__: labels: {twice:?} stands twice")));
        }
        Ok(TeacherFile { network, labels, tensors })
    }
}

impl Teachers {
    /// Reads every file and checks that they fit together before anything is built.
    pub fn load<R: Real>(store: &mut Store<R>, specs: &[TeacherSpec]) -> Result<Teachers> {
        Self::load_or(store, specs, Absent::Fails)
    }

    /// The same, with `absent` for what is not there.
    pub fn load_or<R: Real>(store: &mut Store<R>, specs: &[TeacherSpec], absent: Absent) -> Result<Teachers> {
        let open = |spec| match absent.stand_in(spec) {
            Some(stated) => Ok((stated.clone(), None)),
            None => TeacherFile::of(spec)
                .map(|f| (Stated { network: f.network, labels: f.labels }, Some(f.tensors))),
        };
        let files = specs.iter().map(open).collect::<Result<Vec<_>>>()?;
        let network = files[0].0.network.clone();
        let mut all = Vec::new();
        for (spec, (Stated { network: found, labels }, tensors)) in specs.iter().zip(files) {
            if found != network {
                return Err(Error::data(
                    &spec.weights,
                    format!("teachers must share one architecture: expected {network:?}, found {found:?}"),
                ));
            }
            let (name, mut tensors) = (spec.name.clone(), tensors);
            let source = match &mut tensors {
                Some(tensors) => Source::Tensors(tensors),
                None => Source::Random(stage_seed(0, &name)),
            };
            let (prefix, blocks, count) =
                (format!("teacher.{name}"), 1..=network.blocks(), Some(labels.len()));
            let net = ResNet::new(store, &prefix, &network, blocks, count, Build::Folded, source)?;
            let is_drawn = tensors.is_none();
            tensors.map_or(Ok(()), Tensors::finish)?;
            all.push(Teacher { name, labels, net, is_drawn });
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

/// The end of a load of blocks without their head: nothing else may be left, for it means another network.
pub fn finish_but_head(t: &Tensors) -> Result<()> {
    match t.iter().find(|(name, _)| !name.starts_with("fc.")) {
        None => Ok(()),
        Some((name, _)) => Err(Error::data(t.file(), format!("{name}: the network has no place for it"))),
    }
}
