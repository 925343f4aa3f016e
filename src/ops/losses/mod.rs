//! The losses: every op here reduces rows or feature maps to one number, and writes its gradient.

pub mod activation_loss;
pub mod bce;
pub mod common;
pub mod discrete_loss;
pub mod diversity;
pub mod entropy_loss;
pub mod feature_loss;
pub mod one_hot_loss;
pub mod statistics_loss;
pub mod weighted_sum;
