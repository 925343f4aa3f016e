//! The `[[teachers]]` tables of a run.

use serde::{Deserialize, Serialize};

use super::keys::only_with;
use super::labels::RawLabels;
use super::network::RawNetwork;
use super::source::Source;
use crate::error::Result;
use crate::models::resnet::{Architecture, Normalisation, ResNetSpec, Stem, StridePlace};
use crate::pipeline::spec::{Stated, TeacherSpec};
use crate::pipeline::teacher_file::IMAGE_SIZE;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTeacher {
    name: String,
    weights: String,
    network: Option<RawNetwork>,
    image_size: Option<i64>,
    labels: Option<Vec<String>>,
    mean: Option<Vec<f64>>,
    std: Option<Vec<f64>>,
    stride: Option<StridePlace>,
    stem_stride: Option<i64>,
    head: Option<String>,
}

/// Far more than any machine holds. The limit bounds the comparison of every teacher's name with every other.
pub(super) const MOST_TEACHERS: usize = 1000;

/// Words that mean something else beside the teachers' names: keys of `summary.json`, and columns of the
/// tables.
pub const RESERVED: [&str; 5] = ["mean", "teachers", "student", "KA", "noise"];

/// Builds the teachers of a run.
///
/// Errors: none of them or more than [`MOST_TEACHERS`], names that are empty, reserved, equal or could clash,
/// and the errors of each table.
pub(super) fn teachers(source: &Source, raw: &mut [RawTeacher]) -> Result<Vec<TeacherSpec>> {
    if raw.is_empty() {
        return Err(source.fail("teachers", "`teachers` is empty; expected at least one [[teachers]] table"));
    }
    if raw.len() > MOST_TEACHERS {
        let message = format!("`teachers` has {} tables; expected at most {MOST_TEACHERS}", raw.len());
        return Err(source.fail("teachers", message));
    }
    let mut teachers: Vec<TeacherSpec> = Vec::new();
    for (i, t) in raw.iter_mut().enumerate() {
        let path = format!("teachers.{i}.name");
        if t.name.trim().is_empty() {
            return Err(source.fail(&path, format!("`{path}` is empty")));
        }
        if RESERVED.contains(&t.name.as_str()) {
            let message = format!(
                "a teacher is named `{}`, which is a word of the run's tables and of summary.json; expected a name other than {}",
                t.name,
                RESERVED.join(", ")
            );
            return Err(source.fail(&path, message));
        }
        if teachers.iter().any(|other| other.name == t.name) {
            return Err(source.fail(&path, format!("two teachers are named `{}`", t.name)));
        }
        // Tensors are named TEACHER.TENSOR: `conv1` of a teacher `a.layer1` and `layer1.conv1` of a teacher
        // `a` would clash.
        let extends = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.starts_with('.'));
        if let Some(other) = teachers.iter().find(|o| extends(&o.name, &t.name) || extends(&t.name, &o.name))
        {
            let message = format!(
                "two teachers are named `{}` and `{}`; expected names of which none begins with another one and a dot",
                other.name, t.name
            );
            return Err(source.fail(&path, message));
        }
        let weights = source.file(&format!("teachers.{i}.weights"), &mut t.weights)?;
        let stated = stated(source, &format!("teachers.{i}"), t)?;
        teachers.push(TeacherSpec { name: t.name.clone(), weights, stated });
    }
    Ok(teachers)
}

/// What the config states about a teacher besides the path of its file.
fn stated(source: &Source, path: &str, raw: &mut RawTeacher) -> Result<Stated> {
    let image_size = match raw.image_size {
        Some(size) => Some(source.count(&format!("{path}.image_size"), size, 8..=4096)?),
        None => None,
    };
    let normalisation = normalisation(source, path, raw)?;
    let stem_stride =
        raw.stem_stride.map(|s| source.count(&format!("{path}.stem_stride"), s, 1..=8)).transpose()?;
    let is_sigmoid = is_sigmoid(source, &format!("{path}.head"), raw.head.as_deref())?;
    let at_labels = format!("{path}.labels");
    let labels = match &raw.labels {
        None => Vec::new(),
        Some(labels) if labels.is_empty() => {
            let message = format!("`{at_labels}` is empty; omit it to take the labels in the file");
            return Err(source.fail(&at_labels, message));
        }
        Some(labels) => RawLabels::List(labels.clone()).names(source, &at_labels)?,
    };
    let (network, stride) = (None, raw.stride);
    let mut stated = Stated { network, labels, image_size, normalisation, stride, stem_stride, is_sigmoid };
    if let Some(raw) = &raw.network {
        let network = stated_network(source, path, raw, &stated)?;
        if let RawNetwork::Table(_) = raw {
            let path = format!("{path}.stem_stride");
            only_with(source, &path, stem_stride.is_some(), "a `network` that is not a table")?;
            stated.stem_stride = Some(network.stem.stride);
        }
        stated.network = Some(network);
    }
    Ok(stated)
}

/// The network of the key `network`, with what else the config states. A table does not say how many channels the images
/// have: three, unless the normalisation has other ones.
fn stated_network(source: &Source, path: &str, raw: &RawNetwork, stated: &Stated) -> Result<ResNetSpec> {
    let (rgb, given) = (3, stated.normalisation.as_ref().map(|n| n.mean.len()));
    let channels = match raw {
        RawNetwork::Named(name) if given.is_some_and(|given| given != rgb) => {
            let message = format!(
                "`{path}.mean` has {} numbers; expected {rgb}, one for each channel that {name} takes",
                given.unwrap_or_default()
            );
            return Err(source.fail(&format!("{path}.mean"), message));
        }
        RawNetwork::Named(_) => rgb,
        RawNetwork::Table(_) => given.unwrap_or(rgb),
    };
    let path = format!("{path}.network");
    let Architecture { block, stem, widths, depths, variant } = raw.build(source, &path)?;
    let stem = Stem { stride: stated.stem_stride.unwrap_or(stem.stride), ..stem };
    let size = stated.image_size.unwrap_or(IMAGE_SIZE);
    // torchvision's weights expect images normalised by ImageNet's mean and deviation.
    let normalisation = stated.normalisation.clone().unwrap_or_else(Normalisation::imagenet);
    let network = ResNetSpec {
        normalisation: Some(normalisation).filter(|n| !n.is_identity()),
        stride: stated.stride.unwrap_or_default(),
        variant,
        ..ResNetSpec::new(block, [size, size, channels], stem, widths, depths)
    };
    network.validate().map_err(|e| source.fail(&path, format!("`{path}`: {e}")))?;
    Ok(network)
}

/// Whether a config insists that a teacher's logits are those of probabilities.
///
/// Errors: a head whose labels exclude each other.
fn is_sigmoid(source: &Source, path: &str, head: Option<&str>) -> Result<bool> {
    match head {
        None => Ok(false),
        Some("sigmoid") => Ok(true),
        Some("softmax") => Err(source.fail(
            path,
            format!(
                "`{path}` is \"softmax\": such a classifier gives one label to an image, and the method needs a probability \
                 for each label on its own (eq. 5); train the head again with binary cross-entropy: dfka-engine teach, with \
                 these weights as `init`"
            ),
        )),
        Some(other) => Err(source.fail(path, format!("`{path}` is {other:?}; expected \"sigmoid\" or \"softmax\""))),
    }
}

/// `mean` and `std` of pixels from 0 to 1, one number per channel. How many channels there are is known only
/// once the file is open.
fn normalisation(source: &Source, path: &str, raw: &RawTeacher) -> Result<Option<Normalisation>> {
    let (mean, std) = match (&raw.mean, &raw.std) {
        (None, None) => return Ok(None),
        (Some(mean), Some(std)) => (mean, std),
        (Some(_), None) | (None, Some(_)) => {
            let message = format!("`{path}.mean` and `{path}.std` must be given together or not at all");
            return Err(source.fail(path, message));
        }
    };
    if mean.is_empty() || mean.len() != std.len() {
        let message = format!(
            "`{path}.mean` has {} numbers and `{path}.std` has {}; expected one of each for every channel",
            mean.len(),
            std.len()
        );
        return Err(source.fail(&format!("{path}.std"), message));
    }
    let numbers = |key: &str, values: &[f64], range: std::ops::RangeInclusive<f64>| {
        let number = |(i, v): (usize, &f64)| source.number(&format!("{path}.{key}.{i}"), *v, range.clone());
        values.iter().enumerate().map(number).collect::<Result<Vec<_>>>()
    };
    let n = Normalisation {
        mean: numbers("mean", mean, Normalisation::MEANS)?,
        std: numbers("std", std, Normalisation::STDS)?,
    };
    Ok(Some(n))
}
