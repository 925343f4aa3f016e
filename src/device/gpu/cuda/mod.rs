//! A CUDA device through its driver.

mod compile;
mod copies;
mod cublaslt;
mod device;
mod driver;
mod handles;
mod inlet;
mod launches;
mod library;
mod modules;
mod nccl;
mod pinned;
mod profiling;
mod tensor_maps;

pub use compile::cache_folder;
pub use cublaslt::is_asked_for as is_cublaslt_asked_for;
pub use device::Cuda;
pub use driver::{Found, LEAST_CAPABILITY, devices};
pub use inlet::Turn;
pub use launches::Graph;
pub use library::file as driver_file;
pub use nccl::{Id, Nccl};
pub use profiling::Mark;
