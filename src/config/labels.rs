//! Two keys that take a word or something longer: `labels = "all"` or a list, `branch = "auto"` or a block.

use std::collections::HashSet;
use std::fmt;

use super::source::Source;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// `"all"` or a list of names.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(untagged)]
pub enum Labels {
    Word(String),
    List(Vec<String>),
}

/// `"auto"` or a block.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(untagged)]
pub enum Block {
    Word(String),
    Number(i64),
}

// By hand, not as untagged enums: those lose the place of an error inside, and say only that no variant matched.
impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Labels;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("\"all\" or a list of labels")
            }
            fn visit_str<E: Error>(self, v: &str) -> Result<Labels, E> {
                Ok(Labels::Word(v.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Labels, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Labels::List(list))
            }
        }
        d.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Block;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("\"auto\" or the number of a block")
            }
            fn visit_str<E: Error>(self, v: &str) -> Result<Block, E> {
                Ok(Block::Word(v.into()))
            }
            fn visit_i64<E: Error>(self, v: i64) -> Result<Block, E> {
                Ok(Block::Number(v))
            }
        }
        d.deserialize_any(Either)
    }
}

impl Labels {
    /// The names, none for `"all"`: each once, none of them empty.
    pub fn names(&self, source: &Source, path: &str) -> crate::error::Result<Vec<String>> {
        let list = match self {
            Labels::Word(word) if word == "all" => return Ok(Vec::new()),
            Labels::Word(word) => {
                let message =
                    format!("`{path}` is \"{word}\"; expected \"all\" or a list such as [\"{word}\"]");
                return Err(source.fail(path, message));
            }
            Labels::List(list) => list,
        };
        if list.is_empty() {
            return Err(source.fail(path, format!("`{path}` is an empty list; write \"all\" for all labels")));
        }
        let mut seen = HashSet::new();
        for (i, label) in list.iter().enumerate() {
            let fail = |message: String| Err(source.fail(&format!("{path}.{i}"), message));
            if label.trim().is_empty() {
                return fail(format!("`{path}` holds an empty label"));
            }
            if !seen.insert(label) {
                return fail(format!("label `{label}` is listed twice in `{path}`"));
            }
        }
        Ok(list.clone())
    }
}
