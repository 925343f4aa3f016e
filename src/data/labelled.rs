//! Images with targets, for training teachers and for evaluation. The amalgamation must not import this
//! file.

use std::path::Path;

use super::average_precision::DIFFICULT;
use super::unlabelled::ImageSet;
use crate::error::{Error, Result};
use crate::weights::npz::{self, Archive, Array, Elems};
use crate::weights::{Meta, check_labels, meta_as};

/// Images and, for each of them, one target per label: 0 absent, 1 present, 2 difficult (not counted).
///
/// On disk: an npz with `images` (uint8, `[n, h, w, c]`), `targets` (uint8, `[n, labels]`) and metadata
/// `{"labels": [names], "provenance": text}`.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledSet {
    pub images: ImageSet,
    /// `[n, labels]`.
    pub targets: Vec<u8>,
    pub labels: Vec<String>,
}

/// A target in the form that the loss on labelled data takes: 1 present, 0 absent, -1 difficult, which the
/// loss ignores.
pub fn loss_target(target: u8) -> f32 {
    match target {
        DIFFICULT => -1.0,
        other => f32::from(other),
    }
}

impl LabelledSet {
    pub fn new(images: ImageSet, targets: Vec<u8>, labels: Vec<String>) -> Result<Self> {
        let set = LabelledSet { images, targets, labels };
        set.check().map_err(|m| Error::data("<memory>", m))?;
        Ok(set)
    }

    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let file = path.as_ref();
        let mut archive = Archive::open(file)?;
        archive.expect_names(&["images", "targets"])?;
        let meta = archive.meta()?;
        let labels: Vec<String> = meta_as(file, &meta, "labels")?;
        let images = ImageSet::from_archive(&mut archive, &meta, file)?;
        let (shape, targets) = archive.bytes("targets")?;
        if shape != [images.n, labels.len()] {
            let expected = [images.n, labels.len()];
            return Err(Error::data(
                file,
                format!("array \"targets\": expected shape {expected:?}, found {shape:?}"),
            ));
        }
        let set = LabelledSet { images, targets, labels };
        set.check().map_err(|m| Error::data(file, m))?;
        Ok(set)
    }

    /// The labels of a file and the shape `[n, h, w, c]` of its images. Neither images nor targets are read.
    pub fn describe(path: impl AsRef<Path>) -> Result<(Vec<String>, [usize; 4])> {
        let file = path.as_ref();
        let mut archive = Archive::open(file)?;
        archive.expect_names(&["images", "targets"])?;
        let labels: Vec<String> = meta_as(file, &archive.meta()?, "labels")?;
        check_labels(&labels).map_err(|e| Error::data(file, format!("labels: {e}")))?;
        Ok((labels, ImageSet::shape_in(&mut archive, file)?))
    }

    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.check().map_err(|m| Error::data(&path, m))?;
        let mut meta = Meta::new();
        meta.insert("labels".into(), self.labels.clone().into());
        meta.insert("provenance".into(), self.images.provenance.clone().into());
        let targets = Array {
            name: "targets",
            shape: &[self.images.n, self.labels.len()],
            elems: Elems::U8(&self.targets),
        };
        npz::write(
            path,
            &[self.images.as_array(&self.images.shape()), targets],
            &meta,
            npz::CompressionMethod::Deflated,
        )
    }

    fn check(&self) -> std::result::Result<(), String> {
        self.images.check()?;
        check_labels(&self.labels).map_err(|e| format!("labels: {e}"))?;
        if Some(self.targets.len()) != self.images.n.checked_mul(self.labels.len()) {
            let (n, l, found) = (self.images.n, self.labels.len(), self.targets.len());
            return Err(format!("array \"targets\": expected {n} x {l} entries, found {found}"));
        }
        if let Some(i) = self.targets.iter().position(|t| *t > DIFFICULT) {
            let (row, column, found) =
                (i / self.labels.len(), &self.labels[i % self.labels.len()], self.targets[i]);
            return Err(format!(
                "array \"targets\": expected 0, 1 or 2, found {found} for image {row}, label {column:?}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images() -> ImageSet {
        ImageSet::new(vec![7; 8], [2, 2, 2, 1], "made up").unwrap()
    }

    fn sample() -> LabelledSet {
        LabelledSet::new(images(), vec![0, 1, 2, 1, 1, 0], ["dog", "cat", "bus"].map(String::from).to_vec())
            .unwrap()
    }

    #[test]
    fn a_saved_set_is_loaded_unchanged_and_refused_as_an_unlabelled_set() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l.npz");
        sample().save(&path).unwrap();
        assert_eq!(LabelledSet::load(&path).unwrap(), sample());
        let e = ImageSet::load(&path).unwrap_err();
        assert!(e.exit_code() == 4 && e.to_string().contains("targets"), "{e}");
        images().save(&path).unwrap();
        let e = LabelledSet::load(&path).unwrap_err();
        assert!(e.exit_code() == 4 && e.to_string().contains("expected the arrays"), "{e}");
    }

    #[test]
    fn malformed_sets_are_refused() {
        let names = |n: &[&str]| n.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        for (targets, labels, why) in [
            (vec![0; 5], names(&["a", "b"]), "2 x 2 entries, found 5"),
            (vec![], vec![], "at least one label"),
            (vec![0; 4], names(&["a", "a"]), "found \"a\" at places 1 and 2"),
            (vec![0; 4], names(&["a", " "]), "found an empty label at place 2"),
            (vec![0, 1, 0, 3], names(&["a", "b"]), "found 3 for image 1, label \"b\""),
        ] {
            let e = LabelledSet::new(images(), targets, labels).unwrap_err();
            assert!(e.exit_code() == 4 && e.to_string().contains(why), "{e}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l.npz");
        let mut meta = Meta::new();
        let write = |shape: &[usize], meta: &Meta| {
            let set = images();
            let targets = Array { name: "targets", shape, elems: Elems::U8(&[0; 6]) };
            npz::write(&path, &[set.as_array(&set.shape()), targets], meta, npz::CompressionMethod::Deflated)
                .unwrap();
            LabelledSet::load(&path).unwrap_err().to_string()
        };
        assert!(write(&[2, 3], &meta).contains("entry \"labels\", found none"));
        meta.insert("labels".into(), serde_json::json!(["a", "b", "c"]));
        assert!(write(&[3, 2], &meta).contains("expected shape [2, 3], found [3, 2]"));
        meta.insert("labels".into(), serde_json::json!("a"));
        assert!(write(&[2, 3], &meta).contains("entry \"labels\": invalid type"));
    }
}
