//! Reads MS-COCO's `instances` annotations as multi-label targets (Lin et al., "Microsoft COCO", 2014).
//!
//! The labels are the categories in the order of their ids (COCO has 80, with ids from 1 to 90). A label is
//! present in an image if any annotation of the image has it, including one of a crowd (`iscrowd`). In an
//! image without annotations all labels are absent.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::files::{Listing, encoding_error, is_plain_name, read};
use crate::error::{Error, Result};
use crate::text;

/// The largest JSON file that is read; `instances_train2017.json` has 448 MB.
const MAX_JSON_BYTES: u64 = 2 << 30;
/// The most targets, one gigabyte; COCO has 80 labels and a hundred thousand images.
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

/// The content of an `instances` file.
#[derive(Debug, PartialEq)]
pub struct Instances {
    /// File names, in the order of the images' ids.
    pub files: Vec<String>,
    /// `[n, labels]`: 0 absent, 1 present.
    pub targets: Vec<u8>,
    /// In the order of the category ids.
    pub labels: Vec<String>,
}

/// The content of an `instances` file, with the paths of its images.
#[derive(Debug, PartialEq)]
pub struct Listed {
    pub images: Vec<PathBuf>,
    pub targets: Vec<u8>,
    pub labels: Vec<String>,
}

/// Reads the annotations and looks up their images in the folder `images`. No image is opened.
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

/// Parses the JSON text of an `instances` file. `path` is for error messages.
///
/// Errors: JSON of another structure, no image or category, a duplicate id or name, a file name that
/// contains a folder, an annotation of an unknown image or category.
pub fn parse_instances(json: &[u8], path: &Path) -> Result<Instances> {
    let fault = |m: String| Error::data(path, m);
    let RawInstances { mut images, annotations, mut categories } =
        serde_json::from_slice(text::without_mark(json)).map_err(|e| match text::fault(json) {
            Some(encoding) => encoding_error(path, &encoding),
            None => fault(format!("expected COCO's instances: {e}")),
        })?;
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
        places(images.iter().map(|i| i.id)).map_err(|id| fault(format!("images: id {id} occurs twice")))?;
    let columns = places(categories.iter().map(|c| c.id))
        .map_err(|id| fault(format!("categories: id {id} occurs twice")))?;
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

/// The position of each id.
///
/// Errors: the first id that occurs twice.
fn places(ids: impl Iterator<Item = u64>) -> std::result::Result<HashMap<u64, usize>, u64> {
    let mut places = HashMap::new();
    for (i, id) in ids.enumerate() {
        if places.insert(id, i).is_some() {
            return Err(id);
        }
    }
    Ok(places)
}
