//! The files of finished stages on which the rest of a run builds: a resumed run must find them as they were written.

use crate::error::{Error, Result};
use crate::models::targetnet::TargetNetSpec;
use crate::weights::{self, digits, sha256};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The files that a stage has written, by name, each with the hash of its contents ([`contents`]).
///
/// Errors: a file that cannot be read.
pub fn hashes(files: &[PathBuf]) -> Result<BTreeMap<String, String>> {
    let name = |file: &Path| file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    files.iter().map(|file| Ok((name(file), contents(file)?))).collect()
}

/// Checks that the files in the folder `out` have the contents of which `written` has the hashes.
///
/// Errors: the first file that is missing, cannot be read, or has other contents.
pub fn expect_unchanged(out: &Path, written: &BTreeMap<String, String>) -> Result<()> {
    for (name, expected) in written {
        let file = out.join(name);
        let found = if file.exists() { Some(contents(&file)?) } else { None };
        if found.as_ref() != Some(expected) {
            let short = |hash: &String| format!("contents with the hash {}", hash.get(..12).unwrap_or(hash));
            return Err(Error::data(
                &file,
                format!(
                    "expected the file that this run wrote, {}, found {}; put the run's own file back, or start over \
                     with --force",
                    short(expected),
                    found.as_ref().map_or("no file".into(), short)
                ),
            ));
        }
    }
    Ok(())
}

/// SHA-256 of a file's bytes; of an npz, of its tensors and metadata without the thresholds, which the end of the run
/// writes into the students of single blocks.
fn contents(file: &Path) -> Result<String> {
    if file.extension().is_none_or(|e| e != "npz") {
        return sha256(file);
    }
    let tensors = weights::load(file)?;
    let mut meta = tensors.meta.clone();
    meta.remove("thresholds");
    if let Some(student) = meta.get_mut("student") {
        // Its numbers are f32. A file that is read and written again may give them another last digit in f64.
        let spec: TargetNetSpec = tensors.meta_as("student")?;
        *student = serde_json::to_value(spec).map_err(|e| Error::Run(format!("student metadata: {e}")))?;
    }
    let mut h = Sha256::new();
    for (name, tensor) in tensors.iter() {
        h.update(format!("{name} {:?} ", tensor.shape));
        h.update(bytemuck::cast_slice::<f32, u8>(&tensor.data));
    }
    h.update(serde_json::Value::Object(meta).to_string());
    Ok(digits(h))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Tensors;

    #[test]
    fn thresholds_do_not_count_and_everything_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.npz");
        let saved = |shape: &[usize], values: [f32; 2], meta: &[(&str, f32)]| {
            let mut t = Tensors::new();
            t.insert("w", shape, values.to_vec()).unwrap();
            t.meta.extend(meta.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())));
            weights::save(&file, &t).unwrap();
            hashes(std::slice::from_ref(&file)).unwrap()
        };
        let first = saved(&[2], [1.0, 2.0], &[("x", 1.0)]);
        assert!(first.keys().eq(["a.npz"]));
        assert_eq!(first, saved(&[2], [1.0, 2.0], &[("x", 1.0), ("thresholds", 0.5)]));
        expect_unchanged(dir.path(), &first).unwrap();
        for (shape, values, meta) in [
            (&[2][..], [1.0, 3.0], &[("x", 1.0)][..]),
            (&[2, 1], [1.0, 2.0], &[("x", 1.0)]),
            (&[2], [1.0, 2.0], &[("x", 2.0)]),
        ] {
            assert_ne!(first, saved(shape, values, meta));
            let e = expect_unchanged(dir.path(), &first).unwrap_err();
            assert!(e.exit_code() == 4 && e.to_string().contains("a.npz: expected the file"), "{e}");
        }
        std::fs::remove_file(&file).unwrap();
        let e = expect_unchanged(dir.path(), &first).unwrap_err().to_string();
        assert!(e.contains("found no file; put the run's own file back, or start over with --force"), "{e}");
        let text = dir.path().join("a.json");
        std::fs::write(&text, "abc").unwrap();
        assert!(hashes(&[text]).unwrap()["a.json"].starts_with("ba7816bf"));
    }
}
