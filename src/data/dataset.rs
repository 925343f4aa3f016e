//! One interface to labelled images of any kind: in an npz, in PASCAL VOC's folders, or in MS-COCO's.
//!
//! Opening a VOC or COCO set reads names and targets but no pixels. The amalgamation must not import this
//! file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::image::{self, Encoded, Pixels};
use super::labelled::LabelledSet;
use super::targets::Listed;
use super::unlabelled::ImageSet;
use super::{coco, csv, voc};
use crate::error::{Error, Result};

/// The most files that [`Dataset::decode_files`] decodes: VOC 2007's test set has 4,952, which take ten seconds
/// on two cores.
pub const MOST_DECODED: usize = 5000;

/// Images, each with one target per label: 0 absent, 1 present, 2 difficult (not counted).
#[derive(Debug)]
pub struct Dataset {
    /// The file or folder that was opened, for error messages.
    pub file: PathBuf,
    /// At least one label, each listed once.
    pub labels: Vec<String>,
    /// Where the images come from, for reports.
    pub provenance: String,
    images: Images,
    /// `[n, labels]`.
    targets: Vec<u8>,
}

#[derive(Debug)]
enum Images {
    /// Decoded images, all of one size.
    Decoded(ImageSet),
    /// JPEG and PNG files, of any sizes.
    Files(Vec<PathBuf>),
}

/// An image whose size is known and that may not be decoded yet.
pub enum Opened<'a> {
    Decoded(&'a ImageSet, usize),
    Encoded(Encoded<'a>),
}

impl Opened<'_> {
    /// Height and width.
    pub fn size(&self) -> [usize; 2] {
        match self {
            Opened::Decoded(set, _) => [set.h, set.w],
            Opened::Encoded(image) => [image.h, image.w],
        }
    }

    /// The pixels of at least the first `rows` rows. `buffer` is reused for them.
    ///
    /// Errors: a file that is damaged.
    pub fn pixels(self, rows: usize, mut buffer: Vec<u8>) -> Result<Pixels> {
        match self {
            Opened::Decoded(set, i) => {
                buffer.clear();
                buffer.extend_from_slice(set.image(i));
                Ok(Pixels { h: set.h, w: set.w, c: set.c, data: buffer })
            }
            Opened::Encoded(image) => image.decode(rows, buffer),
        }
    }
}

impl Dataset {
    /// An npz of images and targets (see [`LabelledSet`]).
    pub fn npz(file: &Path) -> Result<Dataset> {
        Ok(Dataset::from_set(LabelledSet::load(file)?, file))
    }

    /// A set in memory. `file` is its name in error messages.
    pub fn from_set(set: LabelledSet, file: &Path) -> Dataset {
        let LabelledSet { images, targets, labels } = set;
        let provenance = images.provenance.clone();
        Dataset { file: file.into(), labels, provenance, images: Images::Decoded(images), targets }
    }

    /// PASCAL VOC: `folder` is one year's, such as `VOCdevkit/VOC2007`, `split` one of its `ImageSets/Main`.
    ///
    /// Errors: see [`voc::open`].
    pub fn voc(folder: &Path, split: &str) -> Result<Dataset> {
        let Listed { images, targets, labels } = voc::open(folder, split)?;
        let provenance = format!("{} ({split}), {} images", folder.display(), images.len());
        Ok(Dataset { file: folder.into(), labels, provenance, images: Images::Files(images), targets })
    }

    /// MS-COCO: the images' folder and the `instances` JSON.
    ///
    /// Errors: see [`coco::open`].
    pub fn coco(images: &Path, annotations: &Path) -> Result<Dataset> {
        let Listed { images: files, targets, labels } = coco::open(images, annotations)?;
        let provenance = format!("{}, {} images", annotations.display(), files.len());
        Ok(Dataset { file: annotations.into(), labels, provenance, images: Images::Files(files), targets })
    }

    /// A folder of images and the table of their labels.
    ///
    /// Errors: see [`csv::open`].
    pub fn csv(folder: &Path, table: &Path) -> Result<Dataset> {
        let Listed { images: files, targets, labels } = csv::open(folder, table)?;
        let provenance = format!("{}, {} images", table.display(), files.len());
        Ok(Dataset { file: table.into(), labels, provenance, images: Images::Files(files), targets })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        match &self.images {
            Images::Decoded(set) => set.n,
            Images::Files(files) => files.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The size `[h, w, c]` of all images, or `None` if images are files, whose sizes may differ.
    pub fn image_size(&self) -> Option<[usize; 3]> {
        match &self.images {
            Images::Decoded(set) => Some([set.h, set.w, set.c]),
            Images::Files(_) => None,
        }
    }

    /// The targets of image `i`, one per label. `i` must be below `len`.
    pub fn targets(&self, i: usize) -> &[u8] {
        &self.targets[i * self.labels.len()..][..self.labels.len()]
    }

    /// Restricts the set to the labels `wanted`, in that order.
    ///
    /// Errors: a label that the set does not have.
    pub fn select(mut self, wanted: &[String]) -> Result<Dataset> {
        let columns = self.columns(wanted)?;
        let rows = self.targets.chunks_exact(self.labels.len());
        self.targets = rows.flat_map(|row| columns.iter().map(|&c| row[c])).collect();
        self.labels = wanted.to_vec();
        Ok(self)
    }

    /// The indices of the labels `wanted` in the columns of the targets.
    ///
    /// Errors: a label that the set does not have.
    pub fn columns(&self, wanted: &[String]) -> Result<Vec<usize>> {
        let place: HashMap<&str, usize> = self.labels.iter().enumerate().map(|(i, l)| (&**l, i)).collect();
        let of = |w: &String| {
            place.get(&**w).copied().ok_or_else(|| {
                let message = format!("expected a label {w:?}, found only {}", self.labels.join(", "));
                Error::data(&self.file, message)
            })
        };
        wanted.iter().map(of).collect()
    }

    /// Whether some image has the label of this column and another one lacks it. Otherwise all rankings of the
    /// images are equally good. Difficult targets do not count.
    pub fn is_rankable(&self, column: usize) -> bool {
        self.has_target(column, 1) && self.has_target(column, 0)
    }

    /// Whether the label of this column has the target `wanted` for some image.
    pub fn has_target(&self, column: usize, wanted: u8) -> bool {
        self.targets.iter().skip(column).step_by(self.labels.len()).any(|t| *t == wanted)
    }

    /// Decodes all image files, or of more than [`MOST_DECODED`] an even sample, so that a damaged one is
    /// found before hours of training and not after them. Returns the number of files that were decoded.
    ///
    /// Errors: files that are missing or damaged, by their names.
    pub fn decode_files(&self) -> Result<usize> {
        let Images::Files(files) = &self.images else { return Ok(0) };
        let step = files.len().div_ceil(MOST_DECODED).max(1);
        let sample: Vec<&PathBuf> = files.iter().step_by(step).collect();
        let failed: Vec<(&PathBuf, Error)> =
            sample.par_iter().filter_map(|&file| Some((file, image::load(file).err()?))).collect();
        let mut failed = failed.into_iter();
        match failed.next() {
            None => Ok(sample.len()),
            Some((_, e)) if failed.len() == 0 => Err(e),
            Some((first, e)) => {
                const SHOWN: usize = 5;
                let dots = if failed.len() > SHOWN { ", ..." } else { "" };
                let name = |file: &PathBuf| file.file_name().map(|n| n.to_string_lossy().into_owned());
                let names: Vec<String> = failed.take(SHOWN).filter_map(|(file, _)| name(file)).collect();
                let reason = e.to_string();
                let reason = reason.strip_prefix(&format!("{}: ", first.display())).unwrap_or(&reason);
                let message =
                    format!("{reason}; further images that cannot be read: {}{dots}", names.join(", "));
                Err(Error::data(first, message))
            }
        }
    }

    /// Opens image `i` without decoding it. `i` must be below `len`.
    ///
    /// Errors: a file that is missing or not an image, by its name.
    pub fn open(&self, i: usize) -> Result<Opened<'_>> {
        match &self.images {
            Images::Decoded(set) => Ok(Opened::Decoded(set, i)),
            Images::Files(files) => Encoded::open(&files[i]).map(Opened::Encoded),
        }
    }

    /// What messages call image `i`, which must be below `len`.
    pub fn name(&self, i: usize) -> String {
        match &self.images {
            Images::Decoded(_) => format!("image {i} of {}", self.file.display()),
            Images::Files(files) => files[i].display().to_string(),
        }
    }

    /// Decodes image `i`, which must be below `len`.
    ///
    /// Errors: a file that is missing or damaged, by its name.
    pub fn pixels(&self, i: usize) -> Result<Pixels> {
        self.open(i)?.pixels(usize::MAX, Vec::new())
    }
}
