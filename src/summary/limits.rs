//! Limits on numbers that are read from files.

/// Largest number of parameters, images or steps that is accepted: no run has as many, and sums of such
/// numbers do not overflow.
pub const MOST: usize = 1 << 40;
