//! Ops that draw random numbers. The generator is counter-based (Philox), so every device draws the same
//! bits.

pub mod augment;
pub mod draw_labels;
pub mod noise;
