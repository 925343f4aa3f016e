//! ResNet state dicts as torchvision and timm save them. They do not describe the network: it is inferred
//! from the tensors' names and shapes.

use super::resnet::{BlockKind, ResNetSpec, Shortcut, Stem, Variant};
use crate::error::{Error, Result};
use crate::weights::{HostTensor, Tensors};
use std::collections::BTreeSet;

/// The network whose tensors these are, for images of `size` pixels a side.
///
/// Widths, inner widths and depths follow from names and shapes. What no shape shows is assumed to be torchvision's: a 7x7
/// stem has stride 2 and a max pool after it, bottlenecks have their stride in the 3x3; so has timm's stem of
/// three convolutions. A 3x3 stem is assumed to be that of networks for small images: stride 1, no pool.
///
/// Errors: tensors that belong to no such network.
pub fn infer(t: &Tensors, size: usize) -> Result<ResNetSpec> {
    let wrong = |message: String| Error::data(t.file(), message);
    let no_stem = || {
        let first: Vec<&str> = t.iter().map(|(name, _)| name).take(5).collect();
        wrong(format!(
            "no `network` in the metadata, so a ResNet under torchvision's names was expected: \
             conv1.weight with a 7x7 or 3x3 filter, or conv1.0.weight with a 3x3 filter; found {} tensors, first {first:?}",
            t.len()
        ))
    };
    let (channels, stem, deep_stem) = stem(t).ok_or_else(no_stem)?;
    // All names are read, so that a missing one is reported as missing and does not pass for a smaller
    // network.
    let mut depths: Vec<usize> = Vec::new();
    let mut block = BlockKind::Basic;
    for (name, _) in t.iter() {
        let Some((b, u, part)) = unit(name) else { continue };
        // A network cannot have more blocks or units than tensors: such a number would only be a large
        // allocation.
        if b == 0 || b > t.len() || u >= t.len() {
            return Err(wrong(format!("array {name:?}: no ResNet of {} tensors has it", t.len())));
        }
        depths.resize(depths.len().max(b), 0);
        depths[b - 1] = depths[b - 1].max(u + 1);
        if part.starts_with("conv3.") {
            block = BlockKind::Bottleneck;
        }
    }
    if depths.is_empty() || depths.iter().sum::<usize>() > t.len() {
        return Err(no_stem());
    }
    let last = if block == BlockKind::Basic { "bn2" } else { "bn3" };
    let width_of = |b: usize, depth: usize| {
        let parts = ["weight", "bias", "running_mean", "running_var"];
        let mut places =
            (0..depth).flat_map(|u| parts.map(|part| format!("layer{}.{u}.{last}.{part}", b + 1)));
        let found = places.find_map(|name| t.get(&name)?.shape.first().copied());
        let missing = || wrong(format!("expected layer{}.0.{last}.weight, found no such tensor", b + 1));
        found.ok_or_else(missing)
    };
    let widths = depths.iter().enumerate().map(|(b, d)| width_of(b, *d)).collect::<Result<Vec<_>>>()?;
    let plain = match block {
        BlockKind::Basic => Variant::default(),
        BlockKind::Bottleneck => Variant::of_inner_widths(inner_widths(t, &widths, &depths), &widths),
    };
    let variant = Variant { deep_stem, shortcut: shortcut(t), ..plain };
    let network =
        ResNetSpec { variant, ..ResNetSpec::new(block, [size, size, channels], stem, widths, depths) };
    network.validate().map_err(|e| wrong(format!("no ResNet has these tensors: {e}")))?;
    Ok(network)
}

/// The images' channels, the stem, and [`Variant::deep_stem`]; `None` for tensors that have no such stem.
fn stem(t: &Tensors) -> Option<(usize, Stem, Option<[usize; 2]>)> {
    let filter = |name: &str| match t.get(name).map(|w| &w.shape[..]) {
        Some(&[k, c, r, s]) if r == s => Some((k, c, r)),
        Some(_) | None => None,
    };
    if t.get("conv1.weight").is_some() {
        let (width, channels, kernel) = filter("conv1.weight")?;
        let is_large = kernel == 7;
        let stem = Stem { width, kernel, stride: if is_large { 2 } else { 1 }, max_pool: is_large };
        return (is_large || kernel == 3).then_some((channels, stem, None));
    }
    let (first, channels, kernel) = filter("conv1.0.weight")?;
    // A missing tensor is not a reason to guess another network: `check_names` reports it.
    let [second, width] = ["conv1.3.weight", "conv1.6.weight"].map(|n| filter(n).map_or(first, |f| f.0));
    let stem = Stem { width, kernel, stride: 2, max_pool: true };
    (kernel == 3).then_some((channels, stem, Some([first, second])))
}

/// The kind of the shortcuts: with a pool, their convolution is `downsample.1`; without, that is the batch
/// norm after it.
fn shortcut(t: &Tensors) -> Shortcut {
    let is_filter = |(name, w): (&str, &HostTensor)| {
        name.starts_with("layer") && name.ends_with(".downsample.1.weight") && w.shape.len() == 4
    };
    if t.iter().any(is_filter) { Shortcut::AveragePool } else { Shortcut::Strided }
}

/// The output channels of each block's first 1x1 convolutions, or a quarter of the width for a block that
/// lacks them all.
fn inner_widths(t: &Tensors, widths: &[usize], depths: &[usize]) -> Vec<usize> {
    let of_block = |(b, (width, depth)): (usize, (&usize, &usize))| {
        let mut names = (0..*depth).map(|u| format!("layer{}.{u}.conv1.weight", b + 1));
        names.find_map(|name| t.get(&name)?.shape.first().copied()).unwrap_or(width / 4)
    };
    widths.iter().zip(depths).enumerate().map(of_block).collect()
}

/// Block, unit and rest of a name `layerB.U.REST`.
fn unit(name: &str) -> Option<(usize, usize, &str)> {
    let (block, rest) = name.strip_prefix("layer")?.split_once('.')?;
    let (unit, part) = rest.split_once('.')?;
    Some((block.parse().ok()?, unit.parse().ok()?, part))
}

/// Compares the names in `t` with those of `network`'s blocks and, with [`Head::Wanted`], of a fully
/// connected layer.
///
/// Errors: names that are missing or unexpected; the message lists both.
pub fn check_names(t: &Tensors, network: &ResNetSpec, head: Head) -> Result<()> {
    let mut expected: BTreeSet<String> = BTreeSet::new();
    let units: usize = network.depths.iter().sum();
    if units > t.len() {
        let message = format!("expected a ResNet of {units} residual units, found {} tensors", t.len());
        return Err(Error::data(t.file(), message));
    }
    expected.extend(network.tensor_names(|conv| t.get(&format!("{conv}.bias")).is_some()));
    let fc = ["fc.weight", "fc.bias"];
    if head == Head::Wanted {
        expected.extend(fc.map(String::from));
    }
    let missing: Vec<&str> = expected.iter().map(String::as_str).filter(|n| t.get(n).is_none()).collect();
    let is_extra = |n: &&str| !expected.contains(*n) && (head == Head::Wanted || !n.starts_with("fc."));
    let unexpected: Vec<&str> = t.iter().map(|(n, _)| n).filter(is_extra).collect();
    let parts: Vec<String> = [("missing", missing), ("unexpected", unexpected)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| {
            let dots = if names.len() > SHOWN { ", ..." } else { "" };
            format!("{} {what} ({}{dots})", names.len(), names[..names.len().min(SHOWN)].join(", "))
        })
        .collect();
    if parts.is_empty() {
        return Ok(());
    }
    let message = format!("expected the tensors of {}: {}", network.in_words(), parts.join(", "));
    Err(Error::data(t.file(), message))
}

/// Most names of one kind that an error shows.
const SHOWN: usize = 5;

/// Whether a file must hold the network's fully connected layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// It must.
    Wanted,
    /// It may, and the layer is not looked at.
    Ignored,
}
