//! Update rules.

pub mod adam;
pub mod sgd;
