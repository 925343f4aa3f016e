//! Every reader of a user-supplied file, as a function of bytes. The fuzz targets and
//! `tests/program/fuzz_corpus.rs` call the same functions.
//!
//! Each function checks more than "no panic". If a reader refuses an input, the error must have the right
//! exit code and a message that begins with the file's name. If it accepts the input, the content must be
//! the same after writing and reading it again or, where the engine has no writer, it must be consistent.

mod archives;
mod config;
mod image_sets;
mod models;
mod photographs;
mod run_folder;

use dfka_engine::error::Error;
use std::path::{Path, PathBuf};

/// Whether a reader accepted an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Accepted,
    Refused,
}

pub struct Reader {
    /// The name of the fuzz target and of its folder of seeds.
    pub name: &'static str,
    pub read: fn(&[u8]) -> Outcome,
}

pub const ALL: &[Reader] = &[
    Reader { name: "npz", read: archives::npz },
    Reader { name: "npy", read: archives::npy },
    Reader { name: "safetensors", read: archives::safetensors },
    Reader { name: "onnx", read: models::onnx },
    Reader { name: "run_config", read: config::run },
    Reader { name: "teach_config", read: config::teach },
    Reader { name: "experiment_config", read: config::experiment },
    Reader { name: "labelled", read: image_sets::labelled },
    Reader { name: "unlabelled", read: image_sets::unlabelled },
    Reader { name: "idx", read: image_sets::idx },
    Reader { name: "digits", read: image_sets::digits },
    Reader { name: "teacher", read: models::teacher },
    Reader { name: "student", read: models::student },
    Reader { name: "generator", read: models::generator },
    Reader { name: "checkpoint", read: models::checkpoint },
    Reader { name: "voc_list", read: photographs::voc_list },
    Reader { name: "voc_xml", read: photographs::voc_xml },
    Reader { name: "coco_json", read: photographs::coco_json },
    Reader { name: "csv", read: photographs::csv },
    Reader { name: "jpeg", read: photographs::jpeg },
    Reader { name: "png", read: photographs::png },
    Reader { name: "run_folder", read: run_folder::run_folder },
];

/// Passes `bytes` to the reader `name`.
///
/// # Panics
/// If there is no such reader, and if the reader panics or one of its checks fails, which is what fuzzing
/// looks for.
pub fn read(name: &str, bytes: &[u8]) -> Outcome {
    let reader = ALL.iter().find(|r| r.name == name).unwrap_or_else(|| panic!("no reader is named {name}"));
    (reader.read)(bytes)
}

/// Checks the exit code and the message of an error about `file`.
fn refused(e: &Error, exit_code: u8, file: &Path) -> Outcome {
    let text = e.to_string();
    assert_eq!(e.exit_code(), exit_code, "{text}");
    // The engine turns a panic of a decoder into this message. For fuzzing it is a fault nevertheless.
    assert!(!text.contains("panicked"), "{text}");
    assert!(
        text.starts_with(&*file.to_string_lossy()),
        "does not begin with the file {}: {text}",
        file.display()
    );
    Outcome::Refused
}

/// The path of the file `name` in a temporary folder of the current thread. `TMPDIR` says where; a folder in
/// memory is fastest.
fn scratch(name: &str) -> PathBuf {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a writable TMPDIR");
    }
    FOLDER.with(|f| f.path().join(name))
}

/// Writes `bytes` to the file `name` in the scratch folder.
fn written(name: &str, bytes: &[u8]) -> PathBuf {
    let path = scratch(name);
    std::fs::write(&path, bytes).expect("a file in the scratch folder");
    path
}
