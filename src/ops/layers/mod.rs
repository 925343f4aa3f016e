//! The layers of the networks.

pub mod activation;
pub mod avg_pool;
pub mod batch_norm;
pub mod conv2d;
pub mod fold_norm;
pub mod global_avg_pool;
pub mod max_pool;
pub mod se_filter;
pub mod upsample;
