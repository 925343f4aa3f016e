//! Students and teachers for use elsewhere: npz, safetensors and ONNX, each with labels, normalisation and
//! thresholds.

mod describe;
mod emit;
mod files;
pub mod graph;

pub use describe::{Contents, Facts, PREPROCESSING, THRESHOLD, thresholds};
pub use files::{Floats, LABELS, STUDENTS, export, export_as, student_file, write_student};
