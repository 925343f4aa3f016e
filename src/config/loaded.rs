//! What loading a config gives.

use super::source::Source;
use crate::error::{Error, Result};

/// A spec with the text it came from and the text that would give it again.
#[derive(Debug)]
pub struct Loaded<S> {
    pub spec: S,
    /// TOML with every default spelled out and every path absolute.
    pub resolved: String,
    /// Where each value was written, for checks that need the teachers' files.
    pub source: Source,
}

/// The raw table, its defaults now filled in, as TOML.
pub(super) fn print(raw: &impl serde::Serialize) -> Result<String> {
    toml::to_string(raw).map_err(|e| Error::Run(format!("cannot print the resolved config: {e}")))
}
