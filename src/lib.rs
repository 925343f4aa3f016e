//! dfka-engine: data-free knowledge amalgamation with a group-stack dual GAN.

pub mod error;
pub mod tensor;
pub mod weights;
