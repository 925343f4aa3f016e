//! dfka-engine: data-free knowledge amalgamation with a group-stack dual GAN.

pub mod autograd;
pub mod cli;
pub mod config;
pub mod device;
pub mod error;
pub mod ops;
pub mod pipeline;
pub mod report;
pub mod tensor;
