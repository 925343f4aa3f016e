//! Keys that choose labels: `"all"` or a list of names.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use super::source::Source;
use crate::error::Result;

/// `"all"` or a list of names.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(untagged)]
pub(super) enum RawLabels {
    Word(String),
    List(Vec<String>),
}

// Written by hand because a derived untagged enum loses the place of an error and says only that no variant
// matched.
impl<'de> Deserialize<'de> for RawLabels {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct WordOrList;
        impl<'de> Visitor<'de> for WordOrList {
            type Value = RawLabels;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("\"all\" or a list of labels")
            }
            fn visit_str<E: Error>(self, v: &str) -> Result<RawLabels, E> {
                Ok(RawLabels::Word(v.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<RawLabels, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(RawLabels::List(list))
            }
        }
        d.deserialize_any(WordOrList)
    }
}

impl RawLabels {
    /// The names, or an empty list for `"all"`. `path` is the key's.
    ///
    /// Errors: another word, an empty list, an empty label, a label that is listed more than once.
    pub fn names(&self, source: &Source, path: &str) -> Result<Vec<String>> {
        let list = match self {
            RawLabels::Word(word) if word == "all" => return Ok(Vec::new()),
            RawLabels::Word(word) => {
                let message =
                    format!("`{path}` is \"{word}\"; expected \"all\" or a list such as [\"{word}\"]");
                return Err(source.fail(path, message));
            }
            RawLabels::List(list) => list,
        };
        if list.is_empty() {
            return Err(source.fail(path, format!("`{path}` is an empty list; write \"all\" for all labels")));
        }
        let mut seen = HashSet::new();
        for (i, label) in list.iter().enumerate() {
            let fail = |message: String| Err(source.fail(&format!("{path}.{i}"), message));
            if label.trim().is_empty() {
                return fail(format!("`{path}` contains an empty label"));
            }
            if label.chars().any(char::is_control) {
                return fail(format!(
                    "`{path}` contains {label:?}; expected a label without control characters"
                ));
            }
            if !seen.insert(label) {
                return fail(format!("label `{label}` is listed more than once in `{path}`"));
            }
        }
        Ok(list.clone())
    }
}
