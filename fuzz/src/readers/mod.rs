//! Every reader of a file that a person brings, as a function of bytes. The fuzz targets and `tests/program/fuzz_corpus.rs` call
//! the same functions.
//!
//! None of them is content with "no panic". What a reader refuses, it refuses with the exit code of its kind and a message
//! that begins with the file; what it accepts, it accepts again after a way through the writer, or it is consistent in
//! itself where there is no writer.

mod archives;
mod config;
mod image_sets;
mod models;
mod photographs;
mod run_folder;

use dfka_engine::error::Error;
use std::path::{Path, PathBuf};

/// What a reader made of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Accepted,
    Refused,
}

pub struct Reader {
    /// Of the target, and of its folder of seeds.
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
    Reader { name: "jpeg", read: photographs::jpeg },
    Reader { name: "png", read: photographs::png },
    Reader { name: "run_folder", read: run_folder::run_folder },
];

/// Feeds `bytes` to the reader `name`.
///
/// # Panics
/// Where there is no such reader, and where the reader does: that is what a fuzzer looks for.
pub fn read(name: &str, bytes: &[u8]) -> Outcome {
    let reader = ALL.iter().find(|r| r.name == name).unwrap_or_else(|| panic!("no reader is named {name}"));
    (reader.read)(bytes)
}

/// Holds an error to what every reader owes a person.
fn refused(e: &Error, exit_code: u8, file: &Path) -> Outcome {
    let text = e.to_string();
    assert_eq!(e.exit_code(), exit_code, "{text}");
    // A decoder's panic is caught and becomes a message; a fault of ours it is all the same.
    assert!(!text.contains("panicked"), "{text}");
    assert!(text.starts_with(&*file.to_string_lossy()), "names another file than {}: {text}", file.display());
    Outcome::Refused
}

/// A folder for the files of one thread; `TMPDIR` says where, best in memory.
fn scratch(name: &str) -> PathBuf {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a writable TMPDIR");
    }
    FOLDER.with(|f| f.path().join(name))
}

/// Puts `bytes` into a file of the scratch folder.
fn written(name: &str, bytes: &[u8]) -> PathBuf {
    let path = scratch(name);
    std::fs::write(&path, bytes).expect("the scratch folder takes a file");
    path
}
