//! Everything that sees a label of an image: the evaluation of a run, and the training of teachers.
//!
//! No file of [`pipeline`](crate::pipeline), or of what it is built on, imports this module or a reader of
//! labels; a test checks that. [`run`] calls the pipeline, and evaluates what it has stored.

pub mod evaluate;
pub mod run;
pub mod scores;
pub mod spec;
pub mod teach;
mod training_data;
