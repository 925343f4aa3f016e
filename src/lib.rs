//! dfka-engine: data-free knowledge amalgamation with a group-stack dual GAN.

pub mod autograd;
pub mod data;
pub mod device;
pub mod error;
pub mod models;
pub mod ops;
pub mod pipeline;
pub mod tensor;
pub mod weights;
