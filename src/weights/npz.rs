//! The npz format: a zip of npy arrays. The array `__meta__` (uint8, one-dimensional) holds the metadata as
//! JSON text.
//!
//! Reading accepts little- and big-endian float32, float64 and float16 for tensors (converted to float32),
//! uint8 for images and targets, C and Fortran order (converted to C), npy versions 1 to 3, and stored and
//! deflated entries. Everything else is a data error that names the file, the array, and what was expected
//! and found.
//!
//! A damaged or malicious file cannot exhaust memory: the shape in an array's header is checked against the
//! size of its zip entry before anything is allocated, buffers grow only as bytes arrive, and all entries
//! together may declare at most 4 GiB. Writing is atomic.

mod archive;
mod write;

pub(super) use archive::load_floats;
pub use archive::{Archive, load};
pub use write::{Array, Elems, save, write, write_sealed};
pub use zip::CompressionMethod;

#[cfg(test)]
mod tests;
