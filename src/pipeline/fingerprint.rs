//! One hash of everything that a result's bits depend on. A checkpoint with another hash is refused.

use super::spec::{ImageSource, RunSpec, StudentInit};
use crate::error::{Error, Result};
use crate::report::origin::WeightsFile;
use crate::weights::{self, sha256};
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
    let mut files: Vec<&Path> = weights.iter().map(PathBuf::as_path).collect();
    for source in spec.baselines.iter().chain([&spec.dual.images]) {
        if let ImageSource::Real(path) = source {
            files.push(path);
        }
    }
    of(&relevant, &files, hashed)
}

/// SHA-256 of `spec` and of the contents of `files`; those in `hashed` are not read again. A folder counts by
/// the names and lengths of its files, because reading the images of a large one would take minutes.
///
/// Errors: a file or folder that cannot be read.
pub fn of(spec: &impl Serialize, files: &[&Path], hashed: &[WeightsFile]) -> Result<String> {
    let mut h = Sha256::new();
    h.update(serde_json::to_vec(spec).map_err(|e| Error::Run(format!("configuration: {e}")))?);
    for path in files {
        if path.is_dir() {
            for (name, bytes) in listing(path)? {
                h.update(name.as_os_str().as_encoded_bytes());
                h.update(bytes.to_le_bytes());
            }
        } else if let Some(known) = hashed.iter().find(|f| f.file == *path) {
            h.update(&known.sha256);
        } else {
            h.update(sha256(path)?);
        }
    }
    Ok(h.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Every file below `folder` with its length, sorted by path.
fn listing(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let cannot = |path: &Path, e: std::io::Error| Error::data(path, format!("cannot read: {e}"));
    let (mut out, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(&at).map_err(|e| cannot(&at, e))? {
            let entry = entry.map_err(|e| cannot(&at, e))?;
            let path = entry.path();
            // Links to folders are not followed, because they may form a circle.
            let kind = entry.file_type().map_err(|e| cannot(&path, e))?;
            if kind.is_dir() {
                folders.push(path);
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
        let hash = |spec: u32| of(&spec, &[&file, &folder], &[]).unwrap();
        let first = hash(1);
        assert_eq!(first, hash(1));
        let hashed = WeightsFile::of("f", &file).unwrap();
        assert_eq!(first, of(&1u32, &[&file, &folder], &[hashed]).unwrap());
        assert_ne!(first, hash(2));
        fs::write(&file, "2").unwrap();
        let second = hash(1);
        assert_ne!(first, second);
        fs::write(folder.join("in/a.jpg"), "123").unwrap();
        let third = hash(1);
        assert_ne!(second, third);
        fs::rename(folder.join("in/a.jpg"), folder.join("in/b.jpg")).unwrap();
        assert_ne!(third, hash(1));
        assert_eq!(of(&1, &[&dir.path().join("none")], &[]).unwrap_err().exit_code(), 4);
    }
}
