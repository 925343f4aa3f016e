//! dfka-engine: data-free knowledge amalgamation with a group-stack dual GAN.
//!
//! Several trained multi-label classifiers go in, one smaller student that predicts a chosen set of their labels comes
//! out, and no image is ever needed. A reader can stop at any level of
//!
//! ```text
//! main -> cli -> config -> labelled -> pipeline -> models -> autograd -> ops -> device
//! ```
//!
//! and has understood everything above it: an arrow means "may use", and a test holds every import to it. `weights`,
//! `data` and `report` are leaves; `tensor`, `splitmix` and `error` are vocabulary.

pub mod autograd;
pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod error;
pub mod labelled;
pub mod models;
pub mod ops;
pub mod pipeline;
pub mod report;
pub mod splitmix;
pub mod summary;
pub mod tensor;
pub mod weights;
