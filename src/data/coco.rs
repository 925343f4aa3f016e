//! Reads MS-COCO's `instances` annotations as multi-label targets (Lin et al., "Microsoft COCO", 2014).
//!
//! The labels are the categories in the order of their ids (COCO has 80, with ids from 1 to 90). A label is
//! present in an image if any annotation of the image has it, including one of a crowd (`iscrowd`). In an
//! image without annotations all labels are absent.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::files::{encoding_error, is_plain_name, read};
use super::targets::{Listed, Named};
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
    id: Id,
    file_name: String,
}

#[derive(Deserialize)]
struct RawAnnotation {
    image_id: Id,
    category_id: Id,
}

#[derive(Deserialize)]
struct RawCategory {
    id: Id,
    name: String,
}

/// COCO's ids are positive numbers. Other programs write negative ones, numbers with a point, and texts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Id {
    Number(i128),
    Text(String),
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Id::Number(number) => write!(f, "{number}"),
            Id::Text(text) => write!(f, "{text:?}"),
        }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Id, D::Error> {
        struct NumberOrText;
        impl Visitor<'_> for NumberOrText {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an id, which is a whole number or a text")
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Id, E> {
                Ok(Id::Number(v.into()))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Id, E> {
                Ok(Id::Number(v.into()))
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Id, E> {
                // Larger numbers of this type are not exact, so that two ids could become one.
                let is_exact = v.fract() == 0.0 && v.abs() <= (1u64 << 53) as f64;
                let wrong =
                    || E::custom(format!("expected an id, which is a whole number or a text, found {v}"));
                is_exact.then_some(Id::Number(v as i128)).ok_or_else(wrong)
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Id, E> {
                // What `without_non_numbers` puts in place of NaN.
                if v.is_empty() {
                    return Err(E::custom("expected an id, found NaN, an infinite number or an empty text"));
                }
                Ok(Id::Text(v.into()))
            }
        }
        d.deserialize_any(NumberOrText)
    }
}

/// The JSON text with an empty text in place of NaN, Infinity and -Infinity, which Python's `json` writes
/// although JSON does not have them. All bytes keep their places. `None` if there are none.
fn without_non_numbers(json: &[u8]) -> Option<Vec<u8>> {
    const WORDS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
    let mut changed: Option<Vec<u8>> = None;
    let (mut at, mut is_text) = (0, false);
    while at < json.len() {
        let word = WORDS.iter().find(|word| !is_text && json[at..].starts_with(word));
        match (json[at], word) {
            (_, Some(word)) => {
                let to = &mut changed.get_or_insert_with(|| json.to_vec())[at..at + word.len()];
                to.fill(b' ');
                to[..2].fill(b'"');
                at += word.len();
                continue;
            }
            (b'\\', None) if is_text => at += 1,
            (b'"', None) => is_text = !is_text,
            _ => {}
        }
        at += 1;
    }
    changed
}

/// Reads the annotations and looks up their images in the folder `images`. No image is opened.
///
/// Errors: those of [`parse_instances`]; an image that is not in the folder.
pub fn open(images: &Path, annotations: &Path) -> Result<Listed> {
    parse_instances(&read(annotations, MAX_JSON_BYTES)?, annotations)?.below(images, annotations)
}

fn parse_raw(json: &[u8], path: &Path) -> Result<RawInstances> {
    let fault = |m: String| Error::data(path, m);
    if json.starts_with(b"\x1f\x8b") {
        return Err(fault("expected COCO's instances, found a gzip file: unpack it with gunzip".into()));
    }
    let json = text::without_mark(json);
    let first = match serde_json::from_slice(json) {
        Ok(raw) => return Ok(raw),
        Err(e) => e,
    };
    if let Some(encoding) = text::fault(json) {
        return Err(encoding_error(path, &encoding));
    }
    let again = without_non_numbers(json).map_or(Err(first), |json| serde_json::from_slice(&json));
    again.map_err(|e| fault(format!("expected COCO's instances: {e}")))
}

/// Parses the JSON text of an `instances` file. `path` is for error messages.
///
/// Errors: JSON of another structure, no image or category, a duplicate id or name, a file name that leads
/// out of its folder, an annotation of an unknown image or category.
pub fn parse_instances(json: &[u8], path: &Path) -> Result<Named> {
    let fault = |m: String| Error::data(path, m);
    let RawInstances { mut images, annotations, mut categories } = parse_raw(json, path)?;
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
    categories.sort_by(|a, b| a.id.cmp(&b.id));
    images.sort_by(|a, b| a.id.cmp(&b.id));
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
        if !i.file_name.split('/').all(is_plain_name) {
            return Err(fault(format!(
                "images: expected the name of a file in the images' folder or below it, found {:?} (id {})",
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
        places(images.iter().map(|i| &i.id)).map_err(|id| fault(format!("images: id {id} occurs twice")))?;
    let columns = places(categories.iter().map(|c| &c.id))
        .map_err(|id| fault(format!("categories: id {id} occurs twice")))?;
    let mut targets = vec![0; images.len() * categories.len()];
    for (i, a) in annotations.iter().enumerate() {
        let unknown = |what: &str, id: &Id| fault(format!("annotations[{i}]: {what} {id} is not listed"));
        let row = rows.get(&a.image_id).ok_or_else(|| unknown("image_id", &a.image_id))?;
        let column = columns.get(&a.category_id).ok_or_else(|| unknown("category_id", &a.category_id))?;
        targets[row * categories.len() + column] = 1;
    }
    Ok(Named {
        files: images.into_iter().map(|i| i.file_name).collect(),
        targets,
        labels: categories.into_iter().map(|c| c.name).collect(),
    })
}

/// The position of each id.
///
/// Errors: the first id that occurs twice.
fn places<'a>(ids: impl Iterator<Item = &'a Id>) -> Result<HashMap<&'a Id, usize>, &'a Id> {
    let mut places = HashMap::new();
    for (i, id) in ids.enumerate() {
        if places.insert(id, i).is_some() {
            return Err(id);
        }
    }
    Ok(places)
}
