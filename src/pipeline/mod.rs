//! A run, as a few readable lines: teachers, generator, dual blocks, branch, evaluation.

pub mod observer;
pub mod spec;
pub mod summary;
