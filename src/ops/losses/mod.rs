//! The losses: every op here reduces its operands to one number, and all but `diversity`, a measure, pass a
//! gradient on.

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
