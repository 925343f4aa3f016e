//! Checks and ranges that several tables share.

use std::ops::Bound::{Excluded, Included};
use std::ops::{Bound, RangeBounds, RangeInclusive};

use super::source::Source;
use crate::error::Result;

pub(super) const STEPS: RangeInclusive<i64> = 1..=100_000_000;
pub(super) const BATCH: RangeInclusive<i64> = 1..=65_536;
/// No optimiser here converges above 1; a larger rate is a slip such as 1e3 for 1e-3.
pub(super) const LEARNING_RATE: (Bound<f64>, Bound<f64>) = (Excluded(0.0), Included(1.0));
/// Weights of losses.
pub(super) const WEIGHT: RangeInclusive<f64> = 0.0..=1e6;

/// The value of an optional key. If the key is missing, the raw table gets the default too, and
/// `resolved.toml` with it.
pub(super) fn value_or<T: Clone>(slot: &mut Option<T>, default: T) -> T {
    slot.get_or_insert(default).clone()
}

/// The pair of numbers at `path`, both within `range`.
pub(super) fn pair(
    source: &Source,
    path: &str,
    values: [f64; 2],
    range: impl RangeBounds<f64> + Clone,
) -> Result<[f32; 2]> {
    Ok([
        source.number(&format!("{path}.0"), values[0], range.clone())?,
        source.number(&format!("{path}.1"), values[1], range)?,
    ])
}

/// The name at `path`, which must be safe as the name of a folder.
pub(super) fn folder_name(source: &Source, path: &str, name: &str) -> Result<String> {
    let is_safe = !name.is_empty()
        && name.chars().count() <= 80
        && !name.starts_with('.')
        && !name.chars().any(|c| c.is_control() || "/\\:*?\"<>|".contains(c));
    if is_safe {
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

/// The seed at `path`: at most 2^63 - 1, as TOML's integers are.
pub(super) fn seed(source: &Source, path: &str, value: i64) -> Result<u64> {
    u64::try_from(value)
        .map_err(|_| source.fail(path, format!("`{path}` is {value}; expected 0 to {}", i64::MAX)))
}

/// Refuses the key at `path` if it is given: it has a meaning with `setting` only, and ignoring it would
/// hide a mistake.
pub(super) fn only_with(source: &Source, path: &str, is_given: bool, setting: &str) -> Result<()> {
    if !is_given {
        return Ok(());
    }
    Err(source.fail(path, format!("`{path}` applies to {setting} only")))
}
