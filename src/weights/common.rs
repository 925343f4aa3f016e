//! Limits, checks and error wording that every weights format shares.

use std::path::Path;

use crate::error::{Error, Result};

/// The most bytes that all arrays of one file may take uncompressed. It is about ten times the largest model
/// of the paper (89 M parameters), and it stops a small file that would inflate without end.
pub const MAX_BYTES: u64 = 4 << 30;

/// Requires that `path`, if it exists, is a file or a folder. Opening a pipe would wait for its writer, and weights are read
/// more than once.
///
/// Errors: a pipe, a device or a socket.
pub fn refuse_pipe(path: &Path) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() && !found.is_dir() => Err(Error::data(
            path,
            "expected a file, found a pipe, a device or a socket; save its contents to a file",
        )),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Elements that a reader or writer converts at a time.
pub const CHUNK: usize = 1 << 14;

/// The error for a checkpoint in PyTorch's own format, a pickle.
pub const PICKLE: &str = "expected an npz or safetensors file, found a PyTorch pickle, which runs code when \
                          it is read; convert it with scripts/torch_to_npz.py";

/// The number of elements of a shape, or `None` if the product overflows.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d))
}

/// Requires that all of `data`, an array of this shape in C order, is finite.
///
/// Errors: the first element that is not, with its index.
pub fn check_finite(data: &[f32], shape: &[usize]) -> Result<(), String> {
    let Some(flat) = data.iter().position(|v| !v.is_finite()) else { return Ok(()) };
    let mut rest = flat;
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&d| {
            let i = rest % d;
            rest /= d;
            i
        })
        .collect();
    index.reverse();
    Err(format!(
        "expected finite numbers, found {} at index {index:?} (element {flat} of {})",
        data[flat],
        data.len()
    ))
}

/// Whether `name` is PyTorch's step counter of a batch norm: an integer that the engine does not need.
pub fn is_batch_counter(name: &str) -> bool {
    name.ends_with("num_batches_tracked")
}

/// The error for the array `name` of `file`.
pub fn array_error(file: &Path, name: &str, message: impl AsRef<str>) -> Error {
    Error::data(file, format!("array {name:?}: {}", message.as_ref()))
}
