//! Images with and without labels.
//!
//! [`unlabelled`] and [`folder`] hold images without labels, for the amalgamation. [`labelled`] and
//! [`dataset`] hold images with labels, for training teachers and for evaluation only. They are separate
//! files so that the imports show, to a reader and to a test, which code has access to labels.
//!
//! [`scenes`] makes both kinds from public archives, which [`idx`] and [`digits`] read. [`voc`] and [`coco`]
//! read the layouts of those data sets, [`csv`] a table of labels beside a folder of images. [`image`]
//! decodes a file, [`transform`] converts the pixels to a network's input, and [`loader`] does both in
//! threads, ahead of time.

pub mod average_precision;
pub mod coco;
pub mod csv;
pub mod dataset;
pub mod digits;
mod files;
pub mod folder;
pub mod idx;
pub mod image;
mod jpeg;
pub mod labelled;
pub mod loader;
mod rng;
pub mod scenes;
mod targets;
pub mod transform;
pub mod unlabelled;
pub mod voc;
