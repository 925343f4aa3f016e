//! Named float tensors and the files they live in.
//!
//! A weights file is an npz (a zip of npy arrays, one per tensor, that `numpy.load` opens) or a safetensors file; [`load`]
//! tells them apart by their first bytes, [`save`] by the name. Beside the tensors it holds a JSON object with what is
//! none: label names, widths, provenance.

mod atomic;
mod npy;
pub mod npz;
pub mod onnx;
pub mod safetensors;
pub mod seal;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

pub use atomic::{is_temporary, write_atomic, write_keeping};

/// What a file says beside its arrays, by name.
pub type Meta = serde_json::Map<String, serde_json::Value>;

/// One array in C order (last dimension contiguous).
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// Tensors by name, in name order, so that the same tensors make the same file byte for byte.
#[derive(Clone, Debug)]
pub struct Tensors {
    /// Where they came from; error messages name it.
    file: PathBuf,
    map: BTreeMap<String, Tensor>,
    pub meta: Meta,
}

impl Default for Tensors {
    fn default() -> Self {
        Tensors::new()
    }
}

impl Tensors {
    /// An empty set that no file stands behind.
    pub fn new() -> Self {
        Tensors { file: "<memory>".into(), map: BTreeMap::new(), meta: Meta::new() }
    }

    /// An empty set whose errors name the same file: for a part of this one.
    pub fn empty_like(&self) -> Self {
        Tensors { file: self.file.clone(), ..Tensors::new() }
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Names and tensors, in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.map.iter().map(|(k, v)| (k.as_str(), v))
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.map.get(name)
    }

    /// Adds a tensor; a name twice, the reserved name, or a shape that `data` does not fill is an error.
    pub fn insert(&mut self, name: impl Into<String>, shape: &[usize], data: Vec<f32>) -> Result<()> {
        let name = name.into();
        if elems(shape) != Some(data.len()) {
            let found = data.len();
            return Err(
                self.fault(&name, format!("shape {shape:?} does not hold the {found} elements given"))
            );
        }
        if name == npz::META {
            return Err(self.fault(&name, "the name is reserved for labels and other text"));
        }
        match self.map.entry(name) {
            Entry::Vacant(v) => {
                v.insert(Tensor { shape: shape.to_vec(), data });
                Ok(())
            }
            Entry::Occupied(o) => Err(fault(&self.file, o.key(), "the name is already taken")),
        }
    }

    /// Removes and returns the tensor `name`, which must have exactly the shape `expected`.
    pub fn take(&mut self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        match self.map.get(name) {
            None => {
                let (n, first) = (self.map.len(), self.first_names());
                Err(self.fault(
                    name,
                    format!("expected shape {expected:?}, found no such tensor among the {n} left ({first})"),
                ))
            }
            Some(t) if t.shape != expected => {
                Err(self.fault(name, format!("expected shape {expected:?}, found {:?}", t.shape)))
            }
            Some(_) => Ok(self.map.remove(name).map(|t| t.data).unwrap_or_default()),
        }
    }

    /// The same tensors without the first `length` bytes of their names, all of which begin alike there.
    pub fn without_prefix(mut self, length: usize) -> Result<Tensors> {
        if length == 0 {
            return Ok(self);
        }
        for (name, tensor) in std::mem::take(&mut self.map) {
            let rest = name.get(length..).filter(|rest| !rest.is_empty());
            let rest =
                rest.ok_or_else(|| self.fault(&name, format!("nothing is left of it after {length} bytes")))?;
            self.map.insert(rest.to_owned(), tensor);
        }
        Ok(self)
    }

    /// The end of a load: every tensor must have been taken, for one that nobody wants means the wrong model.
    pub fn finish(self) -> Result<()> {
        if self.map.is_empty() {
            return Ok(());
        }
        let (n, first) = (self.map.len(), self.first_names());
        Err(Error::data(
            &self.file,
            format!("expected no further tensors, found {n} that the model has no place for: {first}"),
        ))
    }

    /// The entry `key` of the metadata as a `T`, for example the label names as `Vec<String>`.
    pub fn meta_as<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        meta_as(&self.file, &self.meta, key)
    }

    fn first_names(&self) -> String {
        let shown: Vec<&str> = self.map.keys().take(5).map(String::as_str).collect();
        let dots = if self.map.len() > shown.len() { ", ..." } else { "" };
        format!("{}{dots}", shown.join(", "))
    }

    fn fault(&self, name: &str, message: impl AsRef<str>) -> Error {
        fault(&self.file, name, message)
    }
}

/// Reads the model in `path`: npz, safetensors, or ONNX of ours, whichever its first bytes say. PyTorch's batch counters are left out.
pub fn load(path: impl AsRef<Path>) -> Result<Tensors> {
    let path = path.as_ref();
    let file = File::open(path).map_err(|e| Error::data(path, format!("cannot open: {e}")))?;
    let mut start = Vec::new();
    file.take(9).read_to_end(&mut start).map_err(|e| Error::data(path, format!("cannot read: {e}")))?;
    match &start[..] {
        // `PK` alone may be a safetensors header's length.
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => npz::load(path),
        // The length of a header comes first, then the header, which is JSON.
        [.., b'{'] if start.len() == 9 => safetensors::load(path),
        start if onnx::is_likely(start) => onnx::load(path),
        // A pickle's protocol, version 2 or later: what PyTorch wrote before 1.6.
        [0x80, 2..=5, ..] => Err(Error::data(path, PICKLE)),
        other => Err(Error::data(
            path,
            format!("expected an npz, safetensors or ONNX file, found one that begins with {other:02x?}"),
        )),
    }
}

/// What to do with a file of PyTorch's own format.
const PICKLE: &str = "expected an npz or safetensors file, found a pickle of PyTorch's, which would have to be executed to \
                      be read; convert it with scripts/torch_to_npz.py";

/// Writes `tensors` in the format that the name of `path` ends in: `.npz` or `.safetensors`.
pub fn save(path: impl AsRef<Path>, tensors: &Tensors) -> Result<()> {
    let path = path.as_ref();
    match path.extension().and_then(|e| e.to_str()) {
        Some("npz") => npz::save(path, tensors),
        Some("safetensors") => safetensors::save(path, tensors),
        Some(_) | None => Err(Error::Usage(format!(
            "{}: expected a name that ends in .npz or .safetensors",
            path.display()
        ))),
    }
}

/// PyTorch saves a step counter with every batch norm, an integer that nothing here needs.
fn is_counter(name: &str) -> bool {
    name.ends_with("num_batches_tracked")
}

/// See [`Tensors::meta_as`]; for files whose arrays are not tensors.
pub fn meta_as<T: DeserializeOwned>(file: &Path, meta: &Meta, key: &str) -> Result<T> {
    let value = meta
        .get(key)
        .ok_or_else(|| fault(file, npz::META, format!("expected an entry {key:?}, found none")))?;
    T::deserialize(value).map_err(|e| fault(file, npz::META, format!("entry {key:?}: {e}")))
}

/// The SHA-256 of a file's bytes as 64 hexadecimal digits: what a report pins its inputs by.
pub fn sha256(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let cannot = |e: std::io::Error| Error::data(path, format!("cannot read: {e}"));
    let mut file = File::open(path).map_err(cannot)?;
    let (mut hash, mut buf) = (Sha256::new(), vec![0u8; 1 << 16]);
    loop {
        match file.read(&mut buf).map_err(cannot)? {
            0 => break,
            n => hash.update(&buf[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

fn fault(file: &Path, name: &str, message: impl AsRef<str>) -> Error {
    Error::data(file, format!("array {name:?}: {}", message.as_ref()))
}

/// The element count of a shape, `None` where the product overflows.
fn elems(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tensors {
        let mut t = Tensors::new();
        t.insert("b", &[2, 2], vec![1., 2., 3., 4.]).unwrap();
        t.insert("a", &[3], vec![5., 6., 7.]).unwrap();
        t
    }

    #[test]
    fn takes_by_name_and_shape_and_finishes_empty() {
        let mut t = sample();
        assert_eq!(t.iter().map(|(n, _)| n).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(t.take("a", &[3]).unwrap(), [5., 6., 7.]);
        assert_eq!(t.take("b", &[2, 2]).unwrap(), [1., 2., 3., 4.]);
        assert!(t.is_empty());
        t.finish().unwrap();
    }

    #[test]
    fn a_wrong_shape_or_name_says_what_was_expected_and_found_and_takes_nothing() {
        let mut t = sample();
        let e = t.take("b", &[4]).unwrap_err();
        assert_eq!(e.exit_code(), 4);
        assert_eq!(e.to_string(), "<memory>: array \"b\": expected shape [4], found [2, 2]");
        let e = t.take("c", &[1]).unwrap_err().to_string();
        assert!(e.contains("\"c\"") && e.contains("(a, b)"), "{e}");
        assert_eq!(t.len(), 2);
    }

    #[test]
    fn left_over_tensors_are_named_up_to_five() {
        let mut t = Tensors::new();
        for i in 0..7 {
            t.insert(format!("t{i}"), &[], vec![0.]).unwrap();
        }
        let e = t.finish().unwrap_err();
        assert_eq!(e.exit_code(), 4);
        assert!(
            e.to_string().ends_with("found 7 that the model has no place for: t0, t1, t2, t3, t4, ..."),
            "{e}"
        );
    }

    #[test]
    fn insert_refuses_a_second_name_a_wrong_shape_and_the_reserved_name() {
        let mut t = sample();
        assert!(t.insert("a", &[1], vec![0.]).unwrap_err().to_string().contains("taken"));
        assert!(t.insert("c", &[2], vec![0.]).unwrap_err().to_string().contains("shape [2]"));
        assert!(t.insert("c", &[usize::MAX, 2], vec![]).is_err());
        assert!(t.insert(npz::META, &[1], vec![0.]).unwrap_err().to_string().contains("reserved"));
        assert_eq!(t.len(), 2);
    }

    #[test]
    fn metadata_is_read_as_a_type() {
        let mut t = sample();
        t.meta.insert("labels".into(), serde_json::json!(["dog", "cat"]));
        assert_eq!(t.meta_as::<Vec<String>>("labels").unwrap(), ["dog", "cat"]);
        let e = t.meta_as::<Vec<usize>>("labels").unwrap_err();
        assert!(e.exit_code() == 4 && e.to_string().contains("labels"), "{e}");
        assert!(t.meta_as::<String>("widths").unwrap_err().to_string().contains("found none"));
    }

    #[test]
    fn a_model_is_read_by_its_content_and_written_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let mut t = sample();
        t.meta.insert("labels".into(), serde_json::json!(["dog"]));
        for name in ["a.npz", "b.safetensors"] {
            save(file(name), &t).unwrap();
            std::fs::rename(file(name), file("moved")).unwrap();
            let back = load(file("moved")).unwrap();
            assert_eq!((back.get("b"), &back.meta), (t.get("b"), &t.meta));
        }
        for name in ["a.pth", "a", ".npz"] {
            let e = save(file(name), &t).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().contains(".safetensors"), "{e}");
        }
        for (bytes, expected) in [
            (&b""[..], "begins with []"),
            (b"\x80\x02}q\x00", "scripts/torch_to_npz.py"),
            (b"GIF89a", "[47, 49, 46"),
            (b"\x10\0\0\0\0\0\0\0{", "safetensors header"),
            (b"PK\x03\x04", "npz"),
        ] {
            std::fs::write(file("bad"), bytes).unwrap();
            let e = load(file("bad")).unwrap_err();
            assert!(e.exit_code() == 4 && e.to_string().contains(expected), "{e}");
        }
        assert!(load(file("none")).unwrap_err().to_string().contains("cannot open"));
        assert_eq!(load(dir.path()).unwrap_err().exit_code(), 4);
    }

    #[test]
    fn sha256_of_a_known_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            sha256(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(sha256(dir.path().join("none")).unwrap_err().exit_code(), 4);
        assert_eq!(sha256(dir.path()).unwrap_err().exit_code(), 4);
    }
}
