//! The teachers: frozen, folded, all of one architecture, in one store.

use super::session::stage_seed;
use super::spec::{Stated, TeacherSpec};
use crate::autograd::Store;
use crate::error::{Error, Result};
use crate::models::resnet::{Build, Normalisation, ResNet, ResNetSpec, Source, StridePlace};
use crate::models::torchvision::{self, Head};
use crate::tensor::Real;
use crate::weights::{self, Tensors};
use std::collections::HashSet;
use std::fmt::Debug;
use std::path::Path;

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

/// What a run must know of a teacher beside its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    pub network: ResNetSpec,
    /// At least one, each once.
    pub labels: Vec<String>,
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
    fn stand_in(&self, spec: &TeacherSpec) -> Option<Known> {
        let network = spec.stated.network.clone()?;
        let labels = spec.stated.labels.clone();
        let may = *self == Absent::IsDrawn && !labels.is_empty() && !spec.weights.exists();
        may.then_some(Known { network, labels })
    }

    /// Whether a teacher's weights are drawn.
    pub fn draws(self, spec: &TeacherSpec) -> bool {
        self.stand_in(spec).is_some()
    }

    /// Network and labels of a teacher, and whether they are its config's alone.
    ///
    /// Errors: a file that does not open, or says otherwise than the config.
    pub fn facts(self, spec: &TeacherSpec) -> Result<(Known, bool)> {
        match self.stand_in(spec) {
            Some(known) => Ok((known, true)),
            None => Ok((TeacherFile::open(spec)?.known, false)),
        }
    }
}

/// A teacher's file, and what it and its config say of it.
pub struct TeacherFile {
    pub known: Known,
    /// torchvision's names, no wrapper's prefix.
    pub tensors: Tensors,
}

/// torchvision's crop.
pub const IMAGE_SIZE: usize = 224;

impl TeacherFile {
    pub fn open(spec: &TeacherSpec) -> Result<TeacherFile> {
        TeacherFile::read(weights::load(&spec.weights)?, &spec.stated)
    }

    /// Our metadata says what a network is; without, names and shapes do, and what those leave open is as torchvision's
    /// unless the config says otherwise.
    ///
    /// Errors: tensors that are no ResNet's, no labels, a config that the file contradicts.
    pub fn read(tensors: Tensors, stated: &Stated) -> Result<TeacherFile> {
        let tensors = torchvision::strip_wrappers(tensors)?;
        let file = tensors.file().to_path_buf();
        let mut network = network(&tensors, stated.image_size)?;
        let agree = Agreement(&file);
        if let Some(stated) = &stated.network {
            let same = stated.architecture() == network.architecture();
            agree.on("network is", &stated.in_words(), &network.in_words(), same)?;
        }
        if let Some(size) = stated.image_size {
            let [h, w, _] = network.image;
            agree.on("image_size is", &size, &[h, w], h == size && w == size)?;
        }
        if let Some(stride) = stated.stride {
            let said = |key: &str| tensors.meta.contains_key(key);
            let is_open = !said("stride") && !said("network");
            let (config, found) = (stride.in_words(), network.stride.in_words());
            agree.on("stride is", &config, &found, is_open || config == found)?;
            network.stride = stride;
        }
        network.normalisation = normalisation(&tensors, &network, stated.normalisation.as_ref())?;
        network.validate().map_err(|e| Error::data(&file, format!("network: {e}")))?;
        torchvision::check_names(&tensors, &network, Head::Wanted)?;
        let labels = labels(&tensors, stated)?;
        Ok(TeacherFile { known: Known { network, labels }, tensors })
    }
}

/// Compares a config with the file it names.
struct Agreement<'a>(&'a Path);

impl Agreement<'_> {
    fn on(&self, what: &str, config: &dyn Debug, found: &dyn Debug, agree: bool) -> Result<()> {
        if agree {
            return Ok(());
        }
        Err(Error::data(self.0, format!("the config's {what} {config:?}, the file's {found:?}")))
    }
}

/// What the metadata says of the network, or else its tensors.
fn network(tensors: &Tensors, image_size: Option<usize>) -> Result<ResNetSpec> {
    if tensors.meta.contains_key("student") {
        return Err(Error::data(tensors.file(), "expected a teacher or a backbone, found a student"));
    }
    if !tensors.meta.contains_key("network") {
        let said = |key: &str| tensors.meta.contains_key(key);
        let size = if said("image_size") { Some(tensors.meta_as("image_size")?) } else { image_size };
        let mut network = torchvision::infer(tensors, size.unwrap_or(IMAGE_SIZE))?;
        if said("stride") {
            network.stride = tensors.meta_as("stride")?;
        }
        return Ok(network);
    }
    let network: ResNetSpec = tensors.meta_as("network")?;
    network.validate().map_err(|e| Error::data(tensors.file(), format!("__meta__: network: {e}")))?;
    Ok(network)
}

/// What the file says of its images, with its network or as `mean` and `std` of its own; or else the config; or else, for
/// three channels and a network that our metadata does not describe, torchvision's. `None`: [-1, 1].
fn normalisation(
    tensors: &Tensors,
    network: &ResNetSpec,
    stated: Option<&Normalisation>,
) -> Result<Option<Normalisation>> {
    let has = |key: &str| tensors.meta.contains_key(key);
    let found = match &network.normalisation {
        None if has("mean") || has("std") => {
            Some(Normalisation { mean: tensors.meta_as("mean")?, std: tensors.meta_as("std")? })
        }
        // A network of ours that names none takes [-1, 1]; numbers for other channels have an error of their own.
        None if has("network") && stated.is_none_or(|n| n.mean.len() == network.image[2]) => {
            let half = || vec![0.5; network.image[2]];
            Some(Normalisation { mean: half(), std: half() })
        }
        found => found.clone(),
    };
    if let (Some(stated), Some(found)) = (stated, &found) {
        Agreement(tensors.file()).on("mean and std are", stated, found, stated == found)?;
    }
    let is_torchvisions = network.image[2] == 3;
    let n = found.or(stated.cloned()).or_else(|| is_torchvisions.then(Normalisation::imagenet));
    Ok(n.filter(|n| !n.is_identity()))
}

/// The file's labels, or else the config's: one for each row of the head.
fn labels(tensors: &Tensors, stated: &Stated) -> Result<Vec<String>> {
    let file = tensors.file();
    let rows = tensors.get("fc.weight").and_then(|w| w.shape.first()).copied().unwrap_or(0);
    let labels: Vec<String> = match tensors.meta.contains_key("labels") {
        true => tensors.meta_as("labels")?,
        false => stated.labels.clone(),
    };
    let whose = if tensors.meta.contains_key("labels") { "__meta__: labels" } else { "the config's labels" };
    if labels.is_empty() {
        let message = format!(
            "labels: expected {rows}, one for each row of fc.weight, found none in the file or the config"
        );
        return Err(Error::data(file, message));
    }
    let mut seen = HashSet::new();
    if let Some(twice) = labels.iter().find(|l| !seen.insert(*l)) {
        return Err(Error::data(file, format!("{whose}: {twice:?} stands twice")));
    }
    if labels.len() != rows {
        let found = labels.len();
        let message = format!("{whose}: expected {rows}, one for each row of fc.weight, found {found}");
        return Err(Error::data(file, message));
    }
    let agree = stated.labels.is_empty() || stated.labels == labels;
    Agreement(file).on("labels are", &stated.labels, &labels, agree)?;
    Ok(labels)
}

/// Blocks to start from: of a teacher's file, or of a backbone that knows no labels.
pub struct Backbone {
    pub stride: StridePlace,
    pub normalisation: Option<Normalisation>,
    tensors: Tensors,
}

impl Backbone {
    pub fn open(path: impl AsRef<Path>) -> Result<Backbone> {
        let tensors = torchvision::strip_wrappers(weights::load(path)?)?;
        let network = network(&tensors, None)?;
        let normalisation = normalisation(&tensors, &network, None)?;
        Ok(Backbone { stride: network.stride, normalisation, tensors })
    }

    /// Its tensors, which must be all that the blocks of `network` need and, save for a head, nothing else.
    pub fn fitting(self, network: &ResNetSpec) -> Result<Tensors> {
        torchvision::check_names(&self.tensors, network, Head::Ignored)?;
        Ok(self.tensors)
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
            Some(known) => Ok((known, None)),
            None => TeacherFile::open(spec).map(|f| (f.known, Some(f.tensors))),
        };
        let files = specs.iter().map(open).collect::<Result<Vec<_>>>()?;
        let network = files[0].0.network.clone();
        let mut all = Vec::new();
        for (spec, (Known { network: found, labels }, mut tensors)) in specs.iter().zip(files) {
            if found != network {
                return Err(Error::data(
                    &spec.weights,
                    format!("teachers must share one architecture: expected {network:?}, found {found:?}"),
                ));
            }
            let name = spec.name.clone();
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
