//! One hash of everything that a result's bits depend on. A checkpoint with another hash is refused.

use super::spec::{ImageSource, RunSpec, StudentInit};
use crate::data::folder;
use crate::error::{Error, Result};
use crate::report::origin::WeightsFile;
use crate::weights::{self, digits, sha256};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// The fingerprint of a run: its configuration, except the evaluation data, the interval of checkpoints and
/// the thresholds of the collapse check, and the contents of the files that it names (teachers, initial weights, KA's
/// images), wherever they are. Files in `hashed` are not read again.
///
/// Errors: a file that cannot be read.
pub fn of_run(spec: &RunSpec, hashed: &[WeightsFile]) -> Result<String> {
    let mut relevant = spec.clone();
    relevant.evaluation = None;
    relevant.checkpoint_seconds = 0.0;
    relevant.generator.teachers_at_once = None;
    // A user may lower the thresholds of the collapse check and resume, without repeating stage one.
    let loss = &mut relevant.loss;
    (loss.least_diversity, loss.least_entropy) = (0.0, 0.0);
    (loss.least_information, loss.least_found) = (0.0, 0.0);
    relevant.teachers.iter_mut().for_each(|t| t.weights = PathBuf::new());
    if let StudentInit::Weights(path) = &mut relevant.student.init {
        *path = PathBuf::new();
    }
    for source in relevant.baselines.iter_mut().chain([&mut relevant.dual.images]) {
        if let ImageSource::Real(path) = source {
            *path = PathBuf::new();
        }
    }
    let mut weights: Vec<&Path> = spec.teachers.iter().map(|t| t.weights.as_path()).collect();
    if let StudentInit::Weights(path) = &spec.student.init {
        weights.push(path);
    }
    // Where the weights are an index, the files that it lists count too.
    let weights: Vec<PathBuf> = weights.into_iter().flat_map(weights::files).collect();
    let files: Vec<&Path> = weights.iter().map(PathBuf::as_path).collect();
    let images = spec.baselines.iter().chain([&spec.dual.images]).filter_map(|source| match source {
        ImageSource::Real(path) => Some(path.as_path()),
        ImageSource::Generator | ImageSource::Noise => None,
    });
    of(&relevant, &files, &images.collect::<Vec<_>>(), hashed)
}

/// SHA-256 of `spec` and of the contents of `files` and `images`; those in `hashed` are not read again. A folder counts by
/// the names and lengths of its files, because reading the images of a large one would take minutes. Of a folder in
/// `images` only images count, and hidden files and folders count nowhere, as in [`folder::list`].
///
/// Errors: a file or folder that cannot be read.
pub fn of(
    spec: &impl Serialize,
    files: &[&Path],
    images: &[&Path],
    hashed: &[WeightsFile],
) -> Result<String> {
    let mut h = Sha256::new();
    h.update(serde_json::to_vec(spec).map_err(|e| Error::Run(format!("configuration: {e}")))?);
    for (i, path) in files.iter().chain(images).enumerate() {
        if path.is_dir() {
            let counts = |file: &Path| i < files.len() || folder::is_image(file);
            for (name, bytes) in listing(path, counts)? {
                h.update(name.as_os_str().as_encoded_bytes());
                h.update(bytes.to_le_bytes());
            }
        } else if let Some(known) = hashed.iter().find(|f| f.file == *path) {
            h.update(&known.sha256);
        } else {
            h.update(sha256(path)?);
        }
    }
    Ok(digits(h))
}

/// Every file below `folder` that is not hidden and for which `counts` holds, with its length, sorted by path.
fn listing(folder: &Path, counts: impl Fn(&Path) -> bool) -> Result<Vec<(PathBuf, u64)>> {
    let cannot = |path: &Path, e: std::io::Error| Error::data(path, format!("cannot read: {e}"));
    let (mut out, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(&at).map_err(|e| cannot(&at, e))? {
            let entry = entry.map_err(|e| cannot(&at, e))?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            // Links to folders are not followed, because they may form a circle.
            let kind = entry.file_type().map_err(|e| cannot(&path, e))?;
            if kind.is_dir() {
                folders.push(path);
                continue;
            }
            if !counts(&path) {
                continue;
            }
            // A broken link counts as empty here; reading the image will report it.
            let bytes = fs::metadata(&path).map_or(0, |m| m.len());
            out.push((path.strip_prefix(folder).unwrap_or(&path).to_path_buf(), bytes));
        }
    }
    out.sort();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_covers_the_spec_the_contents_of_files_and_the_listing_of_folders() {
        let dir = tempfile::tempdir().unwrap();
        let (file, folder) = (dir.path().join("f"), dir.path().join("d"));
        fs::create_dir_all(folder.join("in")).unwrap();
        fs::write(&file, "1").unwrap();
        fs::write(folder.join("in/a.jpg"), "12").unwrap();
        let hash = |spec: u32| of(&spec, &[&file], &[&folder], &[]).unwrap();
        let first = hash(1);
        assert_eq!(first, hash(1));
        let hashed = WeightsFile::of("f", &file).unwrap();
        assert_eq!(first, of(&1u32, &[&file], &[&folder], &[hashed]).unwrap());
        assert_ne!(first, hash(2));
        fs::write(&file, "2").unwrap();
        let second = hash(1);
        assert_ne!(first, second);
        fs::write(folder.join("in/a.jpg"), "123").unwrap();
        let third = hash(1);
        assert_ne!(second, third);
        fs::rename(folder.join("in/a.jpg"), folder.join("in/b.jpg")).unwrap();
        assert_ne!(third, hash(1));
        assert_eq!(of(&1, &[&dir.path().join("none")], &[], &[]).unwrap_err().exit_code(), 4);
    }

    #[test]
    fn what_is_no_image_or_hidden_does_not_count_in_a_folder_of_images() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(".cache")).unwrap();
        let put = |name: &str| fs::write(dir.path().join(name), "1").unwrap();
        let hashes = || [&[dir.path()][..], &[]].map(|files| of(&1, files, &[dir.path()], &[]).unwrap());
        put("a.PNG");
        let [all, images] = hashes();
        ["._a.png", ".cache/b.png"].into_iter().for_each(put);
        assert_eq!([&all, &images], hashes().each_ref());
        put("checkpoint.npz");
        let [with_other, same] = hashes();
        assert!(with_other != all && same == images);
        put("b.jpg");
        assert_ne!(hashes()[1], images);
    }
}
