//! The result of loading a config.

use super::source::Source;
use crate::error::{Error, Result};

/// A validated spec with the text it came from and the text that gives it again.
#[derive(Debug)]
pub struct Loaded<S> {
    pub spec: S,
    /// TOML with every default spelled out and every path absolute.
    pub resolved: String,
    /// The place of each value, for checks that need the teachers' files.
    pub source: Source,
}

/// The raw table, in which every missing key now has its default, as TOML.
pub(super) fn print(raw: &impl serde::Serialize) -> Result<String> {
    toml::to_string(raw).map_err(|e| Error::Run(format!("cannot print the resolved config: {e}")))
}
