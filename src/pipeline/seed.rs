//! Seeds and streams of a run's random draws. A draw is a function of (seed, stream, step), so that stages
//! and ops draw independently and a resumed run draws the same numbers.

use crate::device::philox::derive_seed;

/// The seed of a stage's random draws, or of initial values: each name of a stage gives another seed.
pub fn stage_seed(seed: u64, stage: &str) -> u64 {
    stage.bytes().fold(derive_seed(seed, 1), |s, b| derive_seed(s, u64::from(b)))
}

/// Streams of the ops that draw, one for each op of a step.
pub(crate) mod stream {
    /// Stage one: the noise z.
    pub const LATENT: u32 = 1;
    /// Stage one: the labels that images are to show.
    pub const LABELS: u32 = 2;
    /// Stage one: the shift of the images before the teachers see them.
    pub const SHIFT: u32 = 3;
    /// Stage two: which images of the bank a step uses.
    pub const GATHER: u32 = 11;
    /// Stage two: noise images.
    pub const NOISE_IMAGES: u32 = 12;
    /// Stage two: augmentation.
    pub const AUGMENT: u32 = 13;
    /// Teaching: which images a step uses. Their targets are drawn from the same stream.
    pub const TEACH_GATHER: u32 = 1;
}
