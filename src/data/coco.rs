//! MS-COCO's `instances` annotations as multi-label targets (Lin et al., "Microsoft COCO", 2014).
//!
//! The labels are the categories in the order of their ids (80, numbered 1 to 90 with gaps). A label is present in an
//! image that has any annotation of it, a crowd (`iscrowd`) too; images without annotations show none of the labels.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::files::{Listing, is_plain_name, read};
use crate::error::{Error, Result};

/// `instances_train2017.json` has 448 MB.
const MAX_JSON_BYTES: u64 = 2 << 30;
/// A gigabyte of targets: COCO has 80 labels and a hundred thousand images.
const MAX_TARGETS: usize = 1 << 30;

#[derive(Deserialize)]
struct RawInstances {
    images: Vec<RawImage>,
    annotations: Vec<RawAnnotation>,
    categories: Vec<RawCategory>,
}

#[derive(Deserialize)]
struct RawImage {
    id: u64,
    file_name: String,
}

#[derive(Deserialize)]
struct RawAnnotation {
    image_id: u64,
    category_id: u64,
}

#[derive(Deserialize)]
struct RawCategory {
    id: u64,
    name: String,
}

/// What an `instances` file says.
#[derive(Debug, PartialEq)]
pub struct Instances {
    /// File names, in the order of the images' ids.
    pub files: Vec<String>,
    /// `[n, labels]`: 0 absent, 1 present.
    pub targets: Vec<u8>,
    /// By category id.
    pub labels: Vec<String>,
}

/// The same with its images found.
#[derive(Debug, PartialEq)]
pub struct Listed {
    pub images: Vec<PathBuf>,
    pub targets: Vec<u8>,
    pub labels: Vec<String>,
}

/// Reads the annotations and looks for their images in the folder `images`, without opening one.
///
/// Errors: those of [`parse_instances`]; an image that is not in the folder.
pub fn open(images: &Path, annotations: &Path) -> Result<Listed> {
    let Instances { files, targets, labels } =
        parse_instances(&read(annotations, MAX_JSON_BYTES)?, annotations)?;
    let listing = Listing::of(images)?;
    let path = |name: &String| {
        listing.path(name).ok_or_else(|| {
            let message = format!("expected {name} in {}, found no such file", images.display());
            Error::data(annotations, message)
        })
    };
    let images = files.iter().map(path).collect::<Result<_>>()?;
    Ok(Listed { images, targets, labels })
}

/// Errors: JSON of another shape, no image or category, an id or name twice, a file name with a folder in it, an
/// annotation of an unknown image or category.
pub fn parse_instances(json: &[u8], path: &Path) -> Result<Instances> {
    let fault = |m: String| Error::data(path, m);
    let RawInstances { mut images, annotations, mut categories } =
        serde_json::from_slice(json).map_err(|e| fault(format!("expected COCO's instances: {e}")))?;
    if images.is_empty() || categories.is_empty() {
        let (n, labels) = (images.len(), categories.len());
        return Err(fault(format!("expected images and categories, found {n} and {labels}")));
    }
    if images.len().checked_mul(categories.len()).is_none_or(|n| n > MAX_TARGETS) {
        let (n, labels) = (images.len(), categories.len());
        return Err(fault(format!(
            "expected at most {MAX_TARGETS} targets, found {n} images of {labels} labels"
        )));
    }
    categories.sort_by_key(|c| c.id);
    images.sort_by_key(|i| i.id);
    let mut names = HashSet::new();
    for c in &categories {
        if c.name.trim().is_empty() || !names.insert(&*c.name) {
            return Err(fault(format!(
                "categories: expected distinct names, found {:?} (id {})",
                c.name, c.id
            )));
        }
    }
    let mut names = HashSet::new();
    for i in &images {
        if !is_plain_name(&i.file_name) {
            return Err(fault(format!(
                "images: expected a file's name, found {:?} (id {})",
                i.file_name, i.id
            )));
        }
        if !names.insert(&*i.file_name) {
            return Err(fault(format!(
                "images: expected each file once, found {:?} again (id {})",
                i.file_name, i.id
            )));
        }
    }
    let rows =
        places(images.iter().map(|i| i.id)).map_err(|id| fault(format!("images: id {id} stands twice")))?;
    let columns = places(categories.iter().map(|c| c.id))
        .map_err(|id| fault(format!("categories: id {id} stands twice")))?;
    let mut targets = vec![0; images.len() * categories.len()];
    for (i, a) in annotations.iter().enumerate() {
        let unknown = |what: &str, id: u64| fault(format!("annotations[{i}]: {what} {id} is not listed"));
        let row = rows.get(&a.image_id).ok_or_else(|| unknown("image_id", a.image_id))?;
        let column = columns.get(&a.category_id).ok_or_else(|| unknown("category_id", a.category_id))?;
        targets[row * categories.len() + column] = 1;
    }
    Ok(Instances {
        files: images.into_iter().map(|i| i.file_name).collect(),
        targets,
        labels: categories.into_iter().map(|c| c.name).collect(),
    })
}

/// Where each id stands; the id that stands twice.
fn places(ids: impl Iterator<Item = u64>) -> std::result::Result<HashMap<u64, usize>, u64> {
    let mut places = HashMap::new();
    for (i, id) in ids.enumerate() {
        if places.insert(id, i).is_some() {
            return Err(id);
        }
    }
    Ok(places)
}
