//! Images: [`unlabelled`] for everything that learns without data, [`labelled`] for teachers and evaluation alone.
//!
//! The two live in separate files so that a reader, and a test, can see from the imports which code can know a label.
//! [`scenes`] makes both kinds from public archives, which [`idx`] and [`digits`] read.

pub mod average_precision;
pub mod digits;
pub mod idx;
pub mod labelled;
mod rng;
pub mod scenes;
pub mod unlabelled;
