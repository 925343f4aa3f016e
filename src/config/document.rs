//! A parsed TOML document: overrides are merged into it, and the place of every value is recorded.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a key and its value were written, in bytes. An override has offsets beyond the end of the file's
/// text, each override in a range of its own.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub key: usize,
    pub value: Range<usize>,
}

/// The place of every value by its dotted path. Items of a list are numbered from 0: `teachers.0.weights`.
pub(super) type Places = BTreeMap<String, Place>;

/// Writes the values of `change` over those of `into`. Where `into` has a list, a key of `change` is the
/// number of an item, from 0.
///
/// Errors: an item that the list does not have.
pub(super) fn merge<'i>(into: &mut DeTable<'i>, change: DeTable<'i>) -> Result<(), String> {
    for (key, value) in change {
        match (into.get_mut(key.get_ref().as_ref()), value) {
            (Some(old), value) => merge_value(key.get_ref(), old, value)?,
            (None, value) => {
                into.insert(key, value);
            }
        }
    }
    Ok(())
}

fn merge_value<'i>(
    key: &str,
    old: &mut Spanned<DeValue<'i>>,
    value: Spanned<DeValue<'i>>,
) -> Result<(), String> {
    let span = value.span();
    match (old.get_mut(), value.into_inner()) {
        (DeValue::Table(table), DeValue::Table(change)) => merge(table, change),
        (DeValue::Array(items), DeValue::Table(change)) => {
            for (index, value) in change {
                let index = index.into_inner();
                let length = items.len();
                let item = index.parse().ok().and_then(|i: usize| items.get_mut(i)).ok_or_else(|| {
                    format!("`{key}` is a list of {length}, counted from 0; there is no `{key}.{index}`")
                })?;
                merge_value(&format!("{key}.{index}"), item, value)?;
            }
            Ok(())
        }
        (_, value) => {
            *old = Spanned::new(span, value);
            Ok(())
        }
    }
}

/// The places of all values in `document`.
pub(super) fn places(document: &DeTable) -> Places {
    let mut places = Places::new();
    record_table("", document, &mut places);
    places
}

fn record_table(path: &str, table: &DeTable, places: &mut Places) {
    for (key, value) in table {
        let dot = if path.is_empty() { "" } else { "." };
        record(&format!("{path}{dot}{}", key.get_ref()), key.span().start, value, places);
    }
}

fn record(path: &str, key: usize, value: &Spanned<DeValue>, places: &mut Places) {
    places.insert(path.into(), Place { key, value: value.span() });
    match value.get_ref() {
        DeValue::Table(table) => record_table(path, table, places),
        DeValue::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                record(&format!("{path}.{i}"), item.span().start, item, places);
            }
        }
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => {}
    }
}
