//! Images: [`unlabelled`] and [`folder`] for everything that learns without data, [`labelled`] and [`dataset`] for
//! teachers and evaluation alone.
//!
//! The two live in separate files so that a reader, and a test, can see from the imports which code can know a label.
//! [`scenes`] makes both kinds from public archives, which [`idx`] and [`digits`] read; [`voc`] and [`coco`] read the
//! public sets' own layouts. [`image`] decodes a file, [`transform`] makes it what a network takes, and [`loader`] does
//! so ahead of time.

pub mod average_precision;
pub mod coco;
pub mod dataset;
pub mod digits;
mod files;
pub mod folder;
pub mod idx;
pub mod image;
mod jpeg;
pub mod labelled;
pub mod loader;
mod resizer;
mod rng;
pub mod scenes;
pub mod transform;
pub mod unlabelled;
pub mod voc;
