//! Students and teachers for use elsewhere: npz, safetensors and ONNX, each with labels, normalisation and
//! thresholds.

mod describe;
mod emit;
mod files;
pub mod graph;

pub use describe::{Contents, Facts, PREPROCESSING, THRESHOLD, thresholds};
pub use files::{LABELS, STUDENTS, export, student_file, write_student};
