//! Optimisers.

pub mod adam;
pub mod sgd;
