//! Text to a validated spec: `RawRun` and `RawTeach` mirror the TOML, [`RunSpec`](crate::pipeline::spec::RunSpec) and
//! [`TeachSpec`](crate::labelled::spec::TeachSpec) cannot hold a value that is invalid on its own.
//!
//! Adding a key takes three lines: the field of the spec (`pipeline/spec.rs`); the field of the raw table that mirrors
//! the file, an `Option` where there is a default; and one line in `build`, which gives the default and the range:
//!
//! ```text
//! shift: source.count("generator.shift", or(&mut raw.shift, 6), 0..=64)?,
//! ```
//!
//! Nothing else: `or` also stores the default in the raw table, which is what `resolved.toml` is printed from; unknown
//! keys, wrong types and the nearest suggestion follow from the struct; the line of an error follows from the path.
//!
//! What only the teachers' files can tell (labels, blocks, channels) is checked by [`check_labels`] and
//! [`check_network`], which still know the lines.

mod evaluation;
pub mod experiment;
mod fit;
mod fixed;
mod keys;
mod labels;
mod loaded;
mod run;
mod source;
mod suggest;
mod teach;
mod teacher;
mod training;

pub use fit::{check_labels, check_network};
pub use loaded::Loaded;
pub use run::load_run;
pub use source::{Override, Source};
pub use suggest::nearest;
pub use teach::load_teach;

#[cfg(test)]
mod tests;
