//! Named float tensors in host memory.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::common::{array_error, element_count};
use super::meta::{META, Meta, meta_as};
use crate::error::{Error, Result};

/// A float array in host memory, in C order (the last dimension is contiguous).
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// Tensors by name, with the metadata of their file. They are kept in name order, so that the same tensors
/// always make the same file, byte for byte.
#[derive(Clone, Debug)]
pub struct Tensors {
    /// The file they came from, for error messages.
    file: PathBuf,
    map: BTreeMap<String, HostTensor>,
    /// Tensors that are no finite floats, by name, each with the message for a model that needs it: integers,
    /// Python objects, NaN. A checkpoint may have some beside the network.
    unread: BTreeMap<String, String>,
    pub meta: Meta,
    /// What the user should know of how the file was read.
    pub notes: Vec<String>,
}

impl Default for Tensors {
    fn default() -> Self {
        Tensors::new()
    }
}

impl Tensors {
    /// An empty set that comes from no file; its errors name `<memory>`.
    pub fn new() -> Self {
        Tensors::of_file(Path::new("<memory>"), Meta::new())
    }

    /// An empty set with the metadata of `file`, for a reader to fill.
    pub(super) fn of_file(file: &Path, meta: Meta) -> Self {
        let (map, unread) = (BTreeMap::new(), BTreeMap::new());
        Tensors { file: file.into(), map, unread, meta, notes: Vec::new() }
    }

    /// An empty set whose errors name the same file, for a part of this set.
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
    pub fn iter(&self) -> impl Iterator<Item = (&str, &HostTensor)> {
        self.map.iter().map(|(k, v)| (k.as_str(), v))
    }

    pub fn get(&self, name: &str) -> Option<&HostTensor> {
        self.map.get(name)
    }

    /// Adds a tensor.
    ///
    /// Errors: a name that is taken or reserved (`__meta__`), a shape that does not hold exactly the
    /// elements of `data`.
    pub fn insert(&mut self, name: impl Into<String>, shape: &[usize], data: Vec<f32>) -> Result<()> {
        self.insert_tensor(name.into(), HostTensor { shape: shape.to_vec(), data })
    }

    /// As [`Tensors::insert`].
    pub(super) fn insert_tensor(&mut self, name: String, tensor: HostTensor) -> Result<()> {
        let HostTensor { shape, data } = &tensor;
        if element_count(shape) != Some(data.len()) {
            let found = data.len();
            return Err(
                self.error(&name, format!("shape {shape:?} does not hold the {found} elements given"))
            );
        }
        if name == META {
            return Err(self.error(&name, "the name is reserved for labels and other text"));
        }
        match self.map.entry(name) {
            Entry::Vacant(v) => {
                v.insert(tensor);
                Ok(())
            }
            Entry::Occupied(o) => Err(array_error(&self.file, o.key(), "the name is already taken")),
        }
    }

    /// Leaves out the tensor `name`, which is not of finite floats. `message` is for a model that needs it.
    pub(super) fn leave_unread(&mut self, name: String, message: String) {
        self.unread.insert(name, message);
    }

    /// All tensors: the values, or the message of one that is not of finite floats.
    pub(super) fn into_contents(self) -> impl Iterator<Item = (String, Result<HostTensor, String>)> {
        let floats = self.map.into_iter().map(|(name, tensor)| (name, Ok(tensor)));
        floats.chain(self.unread.into_iter().map(|(name, message)| (name, Err(message))))
    }

    /// The names of the tensors that are not of finite floats.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        self.unread.keys().map(String::as_str)
    }

    /// Requires that all tensors of the file are finite floats.
    ///
    /// Errors: the first one that is not.
    pub fn expect_all_read(&self) -> Result<()> {
        self.unread.iter().next().map_or(Ok(()), |(name, message)| Err(self.error(name, message)))
    }

    /// Renames each tensor by `rename`, and removes it where that returns `None`. Of two that would get the
    /// same name, the first in the order of the old names is kept.
    pub fn renamed(mut self, rename: impl Fn(&str) -> Option<String>) -> Tensors {
        for (name, tensor) in std::mem::take(&mut self.map) {
            if let Some(name) = rename(&name) {
                self.map.entry(name).or_insert(tensor);
            }
        }
        for (name, message) in std::mem::take(&mut self.unread) {
            if let Some(name) = rename(&name) {
                self.unread.entry(name).or_insert(message);
            }
        }
        self
    }

    /// Removes and returns the tensor `name`, which must have exactly the shape `expected`.
    ///
    /// Errors: no such tensor, or one of another shape, which then stays.
    pub fn take(&mut self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        if let Some(message) = self.unread.get(name) {
            return Err(self.error(name, message));
        }
        match self.map.get(name) {
            None => {
                let (n, first) = (self.map.len(), self.first_names());
                Err(self.error(
                    name,
                    format!("expected shape {expected:?}, found no such tensor among the {n} left ({first})"),
                ))
            }
            Some(t) if t.shape != expected => {
                Err(self.error(name, format!("expected shape {expected:?}, found {:?}", t.shape)))
            }
            Some(_) => Ok(self.map.remove(name).map(|t| t.data).unwrap_or_default()),
        }
    }

    /// Ends a load: every tensor must have been taken, because a tensor that the model does not use means
    /// that the file is of another model.
    ///
    /// Errors: tensors that are left, up to five of them by name.
    pub fn finish(self) -> Result<()> {
        self.expect_all_read()?;
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

    fn error(&self, name: &str, message: impl AsRef<str>) -> Error {
        array_error(&self.file, name, message)
    }
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
    fn tensors_are_taken_by_name_and_shape_until_none_is_left() {
        let mut t = sample();
        assert_eq!(t.iter().map(|(n, _)| n).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(t.take("a", &[3]).unwrap(), [5., 6., 7.]);
        assert_eq!(t.take("b", &[2, 2]).unwrap(), [1., 2., 3., 4.]);
        assert!(t.is_empty());
        t.finish().unwrap();
    }

    #[test]
    fn a_wrong_shape_or_name_is_refused_with_what_was_expected_and_found() {
        let mut t = sample();
        let e = t.take("b", &[4]).unwrap_err();
        assert_eq!(e.exit_code(), 4);
        assert_eq!(e.to_string(), "<memory>: array \"b\": expected shape [4], found [2, 2]");
        let e = t.take("c", &[1]).unwrap_err().to_string();
        assert!(e.contains("\"c\"") && e.contains("(a, b)"), "{e}");
        assert_eq!(t.len(), 2);
    }

    #[test]
    fn the_error_for_leftover_tensors_names_up_to_five() {
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
    fn insert_refuses_a_duplicate_name_a_wrong_shape_and_the_reserved_name() {
        let mut t = sample();
        assert!(t.insert("a", &[1], vec![0.]).unwrap_err().to_string().contains("taken"));
        assert!(t.insert("c", &[2], vec![0.]).unwrap_err().to_string().contains("shape [2]"));
        assert!(t.insert("c", &[usize::MAX, 2], vec![]).is_err());
        assert!(t.insert(META, &[1], vec![0.]).unwrap_err().to_string().contains("reserved"));
        assert_eq!(t.len(), 2);
    }

    #[test]
    fn a_tensor_that_is_no_float_is_an_error_only_where_it_is_needed() {
        let mut t = sample();
        t.leave_unread("n".into(), "found int64".into());
        assert!(t.expect_all_read().unwrap_err().to_string().ends_with("array \"n\": found int64"));
        assert!(t.take("n", &[1]).unwrap_err().to_string().ends_with("found int64"));
        assert_eq!(t.unread().collect::<Vec<_>>(), ["n"]);
        let rename = |name: &str| (name != "b").then(|| format!("x.{name}"));
        assert!(t.clone().renamed(rename).finish().unwrap_err().to_string().contains("x.n"));
        let mut kept = t.renamed(|name| (name == "a").then(|| "c".into()));
        kept.take("c", &[3]).unwrap();
        kept.finish().unwrap();
    }

    #[test]
    fn metadata_entries_are_read_as_a_type() {
        let mut t = sample();
        t.meta.insert("labels".into(), serde_json::json!(["dog", "cat"]));
        assert_eq!(t.meta_as::<Vec<String>>("labels").unwrap(), ["dog", "cat"]);
        let e = t.meta_as::<Vec<usize>>("labels").unwrap_err();
        assert!(e.exit_code() == 4 && e.to_string().contains("labels"), "{e}");
        assert!(t.meta_as::<String>("widths").unwrap_err().to_string().contains("found none"));
    }
}
