//! Reads PASCAL VOC 2007 to 2012 in the layout of its devkit, which has one folder per year (Everingham et
//! al., "The PASCAL Visual Object Classes Challenge", 2010):
//!
//! ```text
//! VOC2007/ImageSets/Main/<split>.txt           one image per line
//!         ImageSets/Main/<label>_<split>.txt   one image per line, then 1 (present), -1 (absent)
//!                                              or 0 (difficult)
//!         JPEGImages/<image>.jpg
//!         Annotations/<image>.xml              the objects, some with <difficult>1</difficult>
//! ```
//!
//! Targets come from the class lists (`<label>_<split>.txt`). If there are none, they come from the
//! annotations, by the devkit's rule: a label is present if any object of it is not difficult, and difficult
//! if all are.
//!
//! Annotations may have names of one's own. If all names in the annotations of a split are among VOC's twenty,
//! these are the labels; otherwise the names are, in alphabetical order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::average_precision::DIFFICULT;
use super::files::{Listing, is_plain_name, read_text};
use super::targets::Listed;
use crate::error::{Error, Result};

/// The twenty classes, in the devkit's order.
pub const LABELS: [&str; 20] = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
];

/// The largest list that is read: a hundred times as many images as VOC 2012 has.
const MAX_LIST_BYTES: u64 = 32 << 20;
/// The largest annotation that is read; the largest of VOC 2012 has 30 kB.
const MAX_XML_BYTES: u64 = 4 << 20;
/// The most XML nodes of an annotation; 4 MB could hold a million.
const MAX_NODES: u32 = 200_000;
/// The most targets, one gigabyte, as of COCO. Annotations with a name for each object could ask for more.
const MAX_TARGETS: usize = 1 << 30;

/// The target of each label that an annotation names: 1 present, 2 difficult.
pub type Annotation = BTreeMap<String, u8>;

/// Reads the lists of `split` in `folder` (such as `VOCdevkit/VOC2007`): the images in the split's order, their
/// targets, and the labels. No image is opened.
///
/// Errors: a list that is missing, empty or malformed, an image that a list repeats or lacks, a JPEG file
/// that is missing, a malformed annotation, annotations without any object.
pub fn open(folder: &Path, split: &str) -> Result<Listed> {
    let sets = folder.join("ImageSets/Main");
    let list = sets.join(format!("{split}.txt"));
    let ids = parse_split(&read_text(&list, MAX_LIST_BYTES)?, &list)?;
    let jpegs = Listing::of(&folder.join("JPEGImages"))?;
    let path = |(i, id): (usize, &String)| {
        jpegs.path(&format!("{id}.jpg")).ok_or_else(|| {
            let message = format!("line {}: expected {id}.jpg in JPEGImages, found no such file", i + 1);
            Error::data(&list, message)
        })
    };
    let images = ids.iter().enumerate().map(path).collect::<Result<Vec<_>>>()?;
    let class_list = |label: &str| format!("{label}_{split}.txt");
    let has_lists = {
        let names = Listing::of(&sets)?;
        LABELS.iter().any(|label| names.contains(&class_list(label)))
    };
    if has_lists {
        let targets = from_class_lists(&ids, |label| sets.join(class_list(label)))?;
        return Ok(Listed { images, targets, labels: LABELS.map(String::from).to_vec() });
    }
    let (labels, targets) = from_annotations(&ids, &folder.join("Annotations"))?;
    Ok(Listed { images, targets, labels })
}

fn from_class_lists(ids: &[String], file: impl Fn(&str) -> PathBuf) -> Result<Vec<u8>> {
    let place: HashMap<&str, usize> = ids.iter().enumerate().map(|(i, id)| (&**id, i)).collect();
    let mut targets = vec![0; ids.len() * LABELS.len()];
    for (column, label) in LABELS.iter().enumerate() {
        let file = file(label);
        let mut is_seen = vec![false; ids.len()];
        for (id, line, target) in parse_class_list(&read_text(&file, MAX_LIST_BYTES)?, &file)? {
            let at = |m: &str| Error::data(&file, format!("line {line}: {m}"));
            let Some(&i) = place.get(&*id) else {
                return Err(at(&format!("expected an image of the split, found {id:?}")));
            };
            if std::mem::replace(&mut is_seen[i], true) {
                return Err(at(&format!("expected each image once, found {id:?} again")));
            }
            targets[i * LABELS.len() + column] = target;
        }
        if let Some(i) = is_seen.iter().position(|s| !s) {
            return Err(Error::data(
                &file,
                format!("expected every image of the split, found no {:?}", ids[i]),
            ));
        }
    }
    Ok(targets)
}

/// The labels and the targets of the images.
fn from_annotations(ids: &[String], folder: &Path) -> Result<(Vec<String>, Vec<u8>)> {
    let read = |id: &String| {
        let file = folder.join(format!("{id}.xml"));
        parse_annotation(&read_text(&file, MAX_XML_BYTES)?, &file)
    };
    let rows = ids.par_iter().map(read).collect::<Result<Vec<Annotation>>>()?;
    let names: BTreeSet<&str> = rows.iter().flat_map(|row| row.keys().map(String::as_str)).collect();
    if names.is_empty() {
        let message =
            format!("expected annotations with objects, found none in the {} of the split", ids.len());
        return Err(Error::data(folder, message));
    }
    let labels: Vec<&str> = match names.iter().all(|name| LABELS.contains(name)) {
        true => LABELS.to_vec(),
        false => names.into_iter().collect(),
    };
    if labels.len().saturating_mul(ids.len()) > MAX_TARGETS {
        let (n, count) = (ids.len(), labels.len());
        let message = format!("expected at most {MAX_TARGETS} targets, found {n} images of {count} labels");
        return Err(Error::data(folder, message));
    }
    let target = |row: &Annotation, label: &&str| row.get(*label).copied().unwrap_or(0);
    let targets = rows.iter().flat_map(|row| labels.iter().map(move |label| target(row, label))).collect();
    Ok((labels.iter().map(|l| l.to_string()).collect(), targets))
}

/// Parses a split list: the names of its images. `path` is for error messages.
///
/// Errors: an empty list, a line that is not a single file name, an image that is listed twice.
pub fn parse_split(text: &str, path: &Path) -> Result<Vec<String>> {
    let mut seen = HashMap::new();
    let mut ids = Vec::new();
    for (line, words) in lines(text) {
        let fail = |m: String| Err(Error::data(path, format!("line {line}: {m}")));
        let [id] = words[..] else {
            return fail(format!("expected the name of an image alone, found {} columns", words.len()));
        };
        if !is_plain_name(id) {
            return fail(format!("expected the name of an image, found {id:?}"));
        }
        if let Some(first) = seen.insert(id, line) {
            return fail(format!("expected each image once, found {id:?} again (first on line {first})"));
        }
        ids.push(id.to_owned());
    }
    if ids.is_empty() {
        return Err(Error::data(path, "expected a list of images, found none"));
    }
    Ok(ids)
}

/// Parses a class list: the image, the line (1-based) and the target of every entry. `path` is for error
/// messages.
///
/// Errors: an empty list, a line without exactly two columns, a number other than 1, -1 and 0.
pub fn parse_class_list(text: &str, path: &Path) -> Result<Vec<(String, usize, u8)>> {
    let mut out = Vec::new();
    for (line, words) in lines(text) {
        let fail = |m: String| Err(Error::data(path, format!("line {line}: {m}")));
        let [id, mark] = words[..] else {
            return fail(format!("expected an image and 1, -1 or 0, found {} columns", words.len()));
        };
        let target = match mark {
            "1" => 1,
            "-1" => 0,
            "0" => DIFFICULT,
            other => {
                return fail(format!("expected 1 (present), -1 (absent) or 0 (difficult), found {other:?}"));
            }
        };
        out.push((id.to_owned(), line, target));
    }
    if out.is_empty() {
        return Err(Error::data(path, "expected a list of images, found none"));
    }
    Ok(out)
}

/// Parses an annotation in XML. `path` is for error messages.
///
/// Errors: malformed XML, a document type (entities are never expanded), a root element other than
/// `annotation`, an object without a name, a `difficult` other than 0 and 1.
pub fn parse_annotation(xml: &str, path: &Path) -> Result<Annotation> {
    let fault = |m: String| Error::data(path, m);
    let options =
        roxmltree::ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(xml, options)
        .map_err(|e| fault(format!("expected an annotation in XML: {e}")))?;
    let root = document.root_element();
    if root.tag_name().name() != "annotation" {
        return Err(fault(format!("expected an element <annotation>, found <{}>", root.tag_name().name())));
    }
    let mut targets = Annotation::new();
    for object in root.children().filter(|n| n.has_tag_name("object")) {
        let line = document.text_pos_at(object.range().start).row;
        let at = |m: String| Error::data(path, format!("line {line}: {m}"));
        let text = |tag: &str| {
            object.children().find(|n| n.has_tag_name(tag)).map(|n| n.text().unwrap_or_default().trim())
        };
        let name = text("name").filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| at("expected an object with a <name>, found none".into()))?;
        match text("difficult") {
            None | Some("0") => {
                targets.insert(name.into(), 1);
            }
            // An earlier object of the label is present or difficult, and this one changes neither.
            Some("1") => {
                targets.entry(name.into()).or_insert(DIFFICULT);
            }
            Some(other) => return Err(at(format!("expected <difficult> of 0 or 1, found {other:?}"))),
        }
    }
    Ok(targets)
}

/// The words of every line that is not empty, with the 1-based number of the line.
fn lines(text: &str) -> impl Iterator<Item = (usize, Vec<&str>)> {
    let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.enumerate().map(|(i, words)| (i + 1, words)).filter(|(_, words)| !words.is_empty())
}
