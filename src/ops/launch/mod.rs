//! How ops become kernel launches: the builder that ops use, and the geometry of kernels on feature maps.

pub mod channel_tiles;
pub mod chunks;
pub mod late_sums;
pub mod launches;
