//! Networks, each a sequence of recorded ops over the tensors of a store. There is no arithmetic here.

#![warn(missing_docs)]

pub mod filter;
pub mod fold;
pub mod generator;
pub mod init;
mod recorder;
pub mod resnet;
pub mod state_dict;
pub mod targetnet;
pub mod torchvision;

pub use recorder::Recorder;
