//! An H200's limits as constants. For conv2d only; this file goes when conv2d takes a `Target`.

/// Streaming multiprocessors.
pub const MULTIPROCESSORS: usize = 132;

/// `Target::blocks_for`.
pub fn blocks_for(elements: usize, per_block: usize) -> u32 {
    elements.div_ceil(per_block).clamp(1, 16 * MULTIPROCESSORS) as u32
}

/// `Target::shared_bytes`.
pub fn shared_limit() -> u32 {
    227 << 10
}

/// `Target::wgmma`.
pub fn has_wgmma() -> bool {
    true
}
