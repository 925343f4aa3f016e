//! Checks that several tables share: optional keys, names, seeds.

use super::source::Source;
use crate::error::Result;

/// The value of an optional key; a missing one becomes the default in the raw table too.
pub(super) fn or<T: Clone>(slot: &mut Option<T>, default: T) -> T {
    slot.get_or_insert(default).clone()
}

/// A name that is safe as the name of a folder.
pub(super) fn folder_name(source: &Source, path: &str, name: &str) -> Result<String> {
    let fits = !name.is_empty()
        && name.chars().count() <= 80
        && !name.starts_with('.')
        && !name.chars().any(|c| c.is_control() || "/\\:*?\"<>|".contains(c));
    if fits {
        return Ok(name.into());
    }
    Err(source.fail(
        path,
        format!(
            "`{path}` names the output folder: expected 1 to 80 characters, no leading dot, none of / \\ : * ? \" < > |; \
             found {name:?}"
        ),
    ))
}

/// A seed: TOML's integers end at 2^63 - 1.
pub(super) fn seed(source: &Source, path: &str, value: i64) -> Result<u64> {
    u64::try_from(value)
        .map_err(|_| source.fail(path, format!("`{path}` is {value}; expected 0 to {}", i64::MAX)))
}

/// A key that means something under one setting only is refused elsewhere: silence would look like consent.
pub(super) fn only_with(source: &Source, path: &str, is_given: bool, setting: &str) -> Result<()> {
    if !is_given {
        return Ok(());
    }
    Err(source.fail(path, format!("`{path}` applies to {setting} only")))
}
