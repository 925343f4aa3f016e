//! The JSON object that a file holds beside its arrays: label names, widths, provenance.

use std::collections::HashMap;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::common::array_error;
use crate::error::Result;

/// The metadata of a file, by key.
pub type Meta = serde_json::Map<String, serde_json::Value>;

/// The array of an npz that holds the metadata as JSON text. No tensor may have this name, in any format.
pub const META: &str = "__meta__";

/// The most bytes that a file's metadata may take as JSON text.
pub const MAX_META_BYTES: usize = 1 << 20;

/// Requires that there are labels, that none of them is blank or has control characters, which a terminal would obey, and
/// that each is listed once.
///
/// Errors: the first label that is not as required, with its position from 1.
pub fn check_labels(labels: &[String]) -> Result<(), String> {
    if labels.is_empty() {
        return Err("expected at least one label, found none".into());
    }
    let mut places = HashMap::new();
    for (i, label) in labels.iter().enumerate() {
        if label.trim().is_empty() {
            return Err(format!("expected names, found an empty label at place {}", i + 1));
        }
        if label.chars().any(char::is_control) {
            return Err(format!(
                "expected names without control characters, found {label:?} at place {}",
                i + 1
            ));
        }
        if let Some(first) = places.insert(label, i) {
            return Err(format!(
                "expected each label once, found {label:?} at places {} and {}",
                first + 1,
                i + 1
            ));
        }
    }
    Ok(())
}

/// The entry `key` of `meta` as a `T`, for example the label names as `Vec<String>`. `file` is for error
/// messages.
///
/// Errors: no such entry, or one of another type.
pub fn meta_as<T: DeserializeOwned>(file: &Path, meta: &Meta, key: &str) -> Result<T> {
    let value = meta
        .get(key)
        .ok_or_else(|| array_error(file, META, format!("expected an entry {key:?}, found none")))?;
    T::deserialize(value).map_err(|e| array_error(file, META, format!("entry {key:?}: {e}")))
}
