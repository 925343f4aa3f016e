//! dfka-engine: data-free knowledge amalgamation with a group-stack dual GAN.

pub mod data;
pub mod error;
pub mod tensor;
pub mod weights;
