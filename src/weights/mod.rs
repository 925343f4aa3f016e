//! Named float tensors and the files that hold them.
//!
//! A weights file is an npz (a zip of npy arrays, one per tensor, that `numpy.load` opens), a safetensors
//! file, an index of several safetensors files, or an ONNX file that the engine exported. [`load`] recognises
//! the format by the first bytes, [`save`] chooses it by the name. Beside the tensors a file holds its metadata ([`Meta`]), a JSON object.
//!
//! `common`, `meta` and `foreign`, which names files of other kinds, are what the formats share; `file`
//! dispatches to the formats, and no format imports it.

mod atomic;
mod common;
mod file;
mod foreign;
mod hash;
mod meta;
mod npy;
pub mod npz;
pub mod onnx;
pub mod safetensors;
pub mod seal;
mod shards;
mod tensors;

pub use atomic::{is_temporary, write_atomic, write_keeping};
pub use common::refuse_pipe;
pub use file::{files, load, save};
pub use hash::{digits, sha256};
pub use meta::{Meta, check_labels, meta_as};
pub use tensors::{HostTensor, Tensors};
