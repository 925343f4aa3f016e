//! dfka-engine: data-free knowledge amalgamation with a group-stack dual GAN (Ye et al., CVPR 2020).
//!
//! The inputs are several trained multi-label classifiers, the teachers. The output is one smaller network,
//! the student, that predicts a chosen set of their labels. No image is needed. The modules form a chain:
//!
//! ```text
//! main -> cli -> config -> labelled -> pipeline -> models -> autograd -> ops -> device
//! ```
//!
//! An arrow means "may use", also over several arrows, and a test checks every import against it. Read from
//! the right, each module uses only what has been read before. `weights`, `data` and `report` are leaves
//! beside the chain, which `models` and everything to its left may use. Every module may use `tensor`, `text`,
//! `summary`, `splitmix`, `machine` and `error`. `docs/architecture.md` has a drawing and a glossary.

pub mod autograd;
pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod error;
pub mod labelled;
pub mod machine;
pub mod models;
pub mod ops;
pub mod pipeline;
pub mod report;
pub mod splitmix;
pub mod summary;
pub mod tensor;
pub mod text;
pub mod weights;
