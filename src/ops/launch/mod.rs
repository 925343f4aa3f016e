//! How ops become kernel launches: the builder that an op sees, and the geometry of kernels on feature maps.

pub mod channel_stats;
pub mod channel_tiles;
pub mod launches;
