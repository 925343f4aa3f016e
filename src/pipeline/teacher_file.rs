//! A weights file of a teacher or a backbone: its tensors, and what it and the config say of the network.

use super::spec::{Stated, TeacherSpec};
use crate::error::{Error, Result};
use crate::models::resnet::{Normalisation, ResNetSpec, Stem, StridePlace};
use crate::models::state_dict;
use crate::models::torchvision::{self, Head};
use crate::weights::{self, Tensors};
use std::fmt::Display;
use std::path::Path;

/// The network and labels of a teacher: all that a run needs of it beside its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// Architecture.
    pub network: ResNetSpec,
    /// At least one, each once, in the order of the predictions.
    pub labels: Vec<String>,
}

/// The contents of a teacher's file, checked against its config.
pub struct TeacherFile {
    /// Network and labels.
    pub known: Known,
    /// The network's tensors under torchvision's names. Their `notes` say what of the file was left out.
    pub tensors: Tensors,
}

/// Side of the images where neither file nor config gives one: torchvision's crop.
pub const IMAGE_SIZE: usize = 224;

impl TeacherFile {
    /// Opens the file that a config names.
    ///
    /// Errors: see [`TeacherFile::read`]; a file that cannot be read.
    pub fn open(spec: &TeacherSpec) -> Result<TeacherFile> {
        TeacherFile::read(weights::load(&spec.weights)?, &spec.stated)
    }

    /// Reads network and labels from a file's tensors and metadata. Our metadata describes the network. A
    /// file without it is described by the names and shapes of its tensors; what these leave open is taken
    /// from the config, or else is torchvision's.
    ///
    /// Errors: tensors that belong to no ResNet, no labels, an unknown kind of head, a config that contradicts the file.
    pub fn read(tensors: Tensors, stated: &Stated) -> Result<TeacherFile> {
        refuse_student(&tensors)?;
        check_head(&tensors)?;
        let mut tensors = state_dict::network_of(tensors, Head::Wanted)?;
        let file = tensors.file().to_path_buf();
        let mut network = network(&tensors, stated.image_size)?;
        let agree = Agreement(&file);
        let said = |key: &str| tensors.meta.contains_key(key);
        if let Some(stride) = stated.stem_stride {
            let is_unknown = !said("stem_stride") && !said("network");
            let found = network.stem.stride;
            agree.on("stem_stride is", stride, found, is_unknown || stride == found)?;
            network.stem.stride = stride;
        }
        if let Some(stated) = &stated.network {
            let same = stated.architecture() == network.architecture();
            let (config, found) = (stated.in_words(), network.in_words());
            if !same && config == found {
                // The words leave out most of the stem.
                let stem =
                    |s: Stem| format!("{} channels, stride {}, max_pool {}", s.width, s.stride, s.max_pool);
                agree.on("network has a stem of", stem(stated.stem), stem(network.stem), false)?;
            }
            agree.on("network is", config, found, same)?;
        }
        if let Some(size) = stated.image_size {
            let [h, w, _] = network.image;
            agree.on("image_size is", size, format!("{h} x {w}"), h == size && w == size)?;
        }
        if let Some(stride) = stated.stride {
            let is_unknown = !said("stride") && !said("network");
            let (config, found) = (stride.in_words(), network.stride.in_words());
            agree.on("stride is", config, found, is_unknown || config == found)?;
            network.stride = stride;
        }
        let stem = stated.stem_stride.is_none().then(|| assumed_stem(&tensors, &network)).flatten();
        let (normalisation, assumed) = normalisation(&tensors, &network, stated.normalisation.as_ref())?;
        network.normalisation = normalisation;
        tensors.notes.extend(stem.into_iter().chain(assumed));
        network.validate().map_err(|e| Error::data(&file, format!("network: {e}")))?;
        torchvision::check_names(&tensors, &network, Head::Wanted)?;
        let labels = labels(&tensors, stated)?;
        Ok(TeacherFile { known: Known { network, labels }, tensors })
    }
}

/// Compares a config with the file of this path, which it names.
struct Agreement<'a>(&'a Path);

impl Agreement<'_> {
    fn on(&self, what: &str, config: impl Display, found: impl Display, agree: bool) -> Result<()> {
        if agree {
            return Ok(());
        }
        Err(Error::data(self.0, format!("the config's {what} {config}, the file's {found}")))
    }
}

fn refuse_student(tensors: &Tensors) -> Result<()> {
    match tensors.meta.contains_key("student") {
        true => Err(Error::data(tensors.file(), "expected a teacher or a backbone, found a student")),
        false => Ok(()),
    }
}

/// Checks what a file says of its head's training: `unknown` is what an export writes where nothing said it.
///
/// Errors: another word.
fn check_head(tensors: &Tensors) -> Result<()> {
    match tensors.meta.get("head") {
        Some(head) if !["sigmoid", "softmax", "unknown"].iter().any(|known| head == known) => {
            let message =
                format!("__meta__: head: expected \"sigmoid\", \"softmax\" or \"unknown\", found {head}");
            Err(Error::data(tensors.file(), message))
        }
        Some(_) | None => Ok(()),
    }
}

/// The network by the file's metadata, or else by its tensors.
fn network(tensors: &Tensors, image_size: Option<usize>) -> Result<ResNetSpec> {
    if !tensors.meta.contains_key("network") {
        let said = |key: &str| tensors.meta.contains_key(key);
        let size = if said("image_size") { Some(tensors.meta_as("image_size")?) } else { image_size };
        let mut network = torchvision::infer(tensors, size.unwrap_or(IMAGE_SIZE))?;
        if said("stride") {
            network.stride = tensors.meta_as("stride")?;
        }
        if said("stem_stride") {
            network.stem.stride = tensors.meta_as("stem_stride")?;
        }
        return Ok(network);
    }
    let network: ResNetSpec = tensors.meta_as("network")?;
    network.validate().map_err(|e| Error::data(tensors.file(), format!("__meta__: network: {e}")))?;
    Ok(network)
}

/// What is assumed of a 3x3 stem, in words; none where the file says it. The tensors do not show it.
pub fn assumed_stem(tensors: &Tensors, network: &ResNetSpec) -> Option<String> {
    let is_said = ["network", "stem_stride"].iter().any(|key| tensors.meta.contains_key(*key));
    let is_open = network.stem.kernel == 3 && network.variant.deep_stem.is_none() && !is_said;
    is_open.then(|| {
        "conv1 is 3x3: stride 1 and no max pool are assumed, as in networks for small images; if it has stride 2, say so \
         (stem_stride = 2)"
            .into()
    })
}

/// The normalisation of the images: the file's, in its network's description or as entries `mean` and `std`;
/// or else the config's; or else, for three channels and a file without our metadata, ImageNet's. `None`
/// means images in [-1, 1]. The text says what is assumed where neither file nor config states it.
///
/// Errors: a normalisation by more or fewer numbers than conv1 has input channels; a config that contradicts
/// the file.
fn normalisation(
    tensors: &Tensors,
    network: &ResNetSpec,
    stated: Option<&Normalisation>,
) -> Result<(Option<Normalisation>, Option<String>)> {
    let channels = network.image[2];
    let fits = |whose: &str, n: &Normalisation| {
        if n.mean.len() == channels && n.std.len() == channels {
            return Ok(());
        }
        let message = format!(
            "{whose} mean and std: expected {channels}, one for each input channel of conv1.weight, found {} and {}",
            n.mean.len(),
            n.std.len()
        );
        Err(Error::data(tensors.file(), message))
    };
    let has = |key: &str| tensors.meta.contains_key(key);
    let found = match &network.normalisation {
        None if has("mean") || has("std") => {
            Some(Normalisation { mean: tensors.meta_as("mean")?, std: tensors.meta_as("std")? })
        }
        // Our metadata without a normalisation means [-1, 1].
        None if has("network") => Some(Normalisation::identity(channels)),
        found => found.clone(),
    };
    if let Some(found) = &found {
        fits("the file's", found)?;
    }
    if let Some(stated) = stated {
        fits("the config's", stated)?;
    }
    if let (Some(stated), Some(found)) = (stated, &found) {
        let (config, file) = (stated.in_words(), found.in_words());
        Agreement(tensors.file()).on("normalisation is", config, file, stated == found)?;
    }
    let (n, assumed) = match found.or(stated.cloned()) {
        Some(n) => (n, None),
        None => {
            let (n, whose) = match channels {
                3 => (Normalisation::imagenet(), "ImageNet's"),
                _ => (Normalisation::identity(channels), "that of images in [-1, 1]"),
            };
            let text = format!(
                "{}: neither the file nor the config states a normalisation; {whose} is assumed ({})",
                tensors.file().display(),
                n.in_words()
            );
            (n, Some(text))
        }
    };
    Ok((Some(n).filter(|n| !n.is_identity()), assumed))
}

/// The labels of the file, or else of the config: one for each row of the head.
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
    weights::check_labels(&labels).map_err(|e| Error::data(file, format!("{whose}: {e}")))?;
    if labels.len() != rows {
        let found = labels.len();
        let message = format!("{whose}: expected {rows}, one for each row of fc.weight, found {found}");
        return Err(Error::data(file, message));
    }
    let agree = stated.labels.is_empty() || stated.labels == labels;
    Agreement(file).on("labels are", stated.labels.join(", "), labels.join(", "), agree)?;
    Ok(labels)
}

/// Blocks that a network can start from: those of a teacher's file, or of a backbone without labels.
pub struct Backbone {
    /// Which convolution of a block's first bottleneck has stride 2.
    pub stride: StridePlace,
    /// Normalisation of the images; `None` means images in [-1, 1].
    pub normalisation: Option<Normalisation>,
    tensors: Tensors,
}

impl Backbone {
    /// Opens a file of any known format.
    ///
    /// Errors: tensors that belong to no ResNet; a student's file.
    pub fn open(path: impl AsRef<Path>) -> Result<Backbone> {
        let tensors = weights::load(path)?;
        refuse_student(&tensors)?;
        let tensors = state_dict::network_of(tensors, Head::Ignored)?;
        let network = network(&tensors, None)?;
        let (normalisation, _) = normalisation(&tensors, &network, None)?;
        Ok(Backbone { stride: network.stride, normalisation, tensors })
    }

    /// The tensors.
    ///
    /// Errors: tensors that the blocks of `network` lack, or that neither the blocks nor a head have.
    pub fn fitting(self, network: &ResNetSpec) -> Result<Tensors> {
        torchvision::check_names(&self.tensors, network, Head::Ignored)?;
        Ok(self.tensors)
    }
}
