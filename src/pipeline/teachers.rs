//! The teachers: frozen, folded, all of one architecture, in one store.

use super::spec::TeacherSpec;
use crate::autograd::Store;
use crate::error::{Error, Result};
use crate::models::resnet::{Build, ResNet, ResNetSpec, Source};
use crate::tensor::Real;
use crate::weights::{Tensors, npz};

pub struct Teacher {
    pub name: String,
    pub labels: Vec<String>,
    pub net: ResNet,
}

pub struct Teachers {
    pub network: ResNetSpec,
    pub all: Vec<Teacher>,
}

/// What a teacher's file says about itself.
pub struct TeacherFile {
    pub network: ResNetSpec,
    pub labels: Vec<String>,
    pub tensors: Tensors,
}

impl TeacherFile {
    pub fn open(path: &std::path::Path) -> Result<TeacherFile> {
        let tensors = npz::load(path)?;
        let network: ResNetSpec = tensors.meta_as("network")?;
        network.validate().map_err(|e| Error::data(path, format!("__meta__: network: {e}")))?;
        let labels: Vec<String> = tensors.meta_as("labels")?;
        if labels.is_empty() {
            return Err(Error::data(path, "__meta__: labels: expected at least one label, found none"));
        }
        if let Some(twice) = labels.iter().enumerate().find(|(i, l)| labels[..*i].contains(l)) {
            return Err(Error::data(path, format!("__meta__: labels: {:?} stands twice", twice.1)));
        }
        Ok(TeacherFile { network, labels, tensors })
    }
}

impl Teachers {
    /// Reads every file and checks that they fit together before anything is built.
    pub fn load<R: Real>(store: &mut Store<R>, specs: &[TeacherSpec]) -> Result<Teachers> {
        let files = specs.iter().map(|s| TeacherFile::open(&s.weights)).collect::<Result<Vec<_>>>()?;
        let network = files[0].network.clone();
        let mut all = Vec::new();
        for (spec, file) in specs.iter().zip(files) {
            if file.network != network {
                return Err(Error::data(
                    &spec.weights,
                    format!(
                        "teachers must share one architecture: expected {network:?}, found {:?}",
                        file.network
                    ),
                ));
            }
            let mut tensors = file.tensors;
            let prefix = format!("teacher.{}", spec.name);
            let labels = Some(file.labels.len());
            let source = Source::Tensors(&mut tensors);
            let net =
                ResNet::new(store, &prefix, &network, 1..=network.blocks(), labels, Build::Folded, source)?;
            ignore_batch_counters(&mut tensors)?;
            tensors.finish()?;
            all.push(Teacher { name: spec.name.clone(), labels: file.labels, net });
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

/// PyTorch saves a step counter per batch norm that nobody needs.
pub fn ignore_batch_counters(t: &mut Tensors) -> Result<()> {
    let names: Vec<String> =
        t.iter().map(|(n, _)| n.to_string()).filter(|n| n.ends_with("num_batches_tracked")).collect();
    for name in names {
        let shape = t.get(&name).map(|t| t.shape.clone()).unwrap_or_default();
        t.take(&name, &shape)?;
    }
    Ok(())
}
