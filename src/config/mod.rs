//! From a TOML file to a validated spec. [`load_run`] gives a [`RunSpec`](crate::pipeline::spec::RunSpec),
//! [`load_teach`] a [`TeachSpec`](crate::labelled::spec::TeachSpec); neither can hold a value that is
//! invalid on its own.
//!
//! Each table of a file has a struct here, `RawGenerator` for `[generator]`, whose fields mirror the keys
//! and whose `build` checks them and gives the spec. Adding a key takes three lines: the field of the spec
//! (`pipeline/spec.rs`), the field of the raw struct (an `Option` if the key has a default), and one line in
//! `build` with the default and the range:
//!
//! ```text
//! shift: source.count("generator.shift", value_or(&mut self.shift, 6), 0..=64)?,
//! ```
//!
//! The rest follows. `value_or` also stores the default in the raw struct, from which `resolved.toml` is
//! printed. Errors for unknown keys and wrong types follow from the struct, and the line in an error follows
//! from the key's path.
//!
//! What depends on the teachers' files (labels, blocks, channels, sizes, heads) is checked by [`check_labels`],
//! [`check_student`], [`check_network`], [`check_sizes`] and [`check_heads`] once they are open. Their errors name the
//! config's line too.

mod compatibility;
mod document;
mod dual;
mod evaluation;
pub mod experiment;
mod fixed_length;
mod generator;
mod keys;
mod labels;
mod loaded;
mod loss;
mod network;
mod overrides;
mod run;
mod source;
mod student;
mod suggest;
mod teach;
mod teacher;
mod training;
mod training_data;
mod wording;

pub use compatibility::{check_heads, check_labels, check_network, check_sizes, check_student};
pub use loaded::Loaded;
pub use overrides::Override;
pub use run::{load_run, load_run_text};
pub use source::Source;
pub use suggest::suggest;
pub use teach::load_teach;
pub use teacher::RESERVED;

#[cfg(test)]
mod tests;
