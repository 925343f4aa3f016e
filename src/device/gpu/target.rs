//! What a plan is made for: the limits of a device that decide launches, as a value.

use super::card::Card;
use crate::tensor::Elem;

/// The device that a plan's launches are chosen for. Plans for several targets can be made in one process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Compute capability: (9, 0) is Hopper.
    pub capability: (i32, i32),
    pub multiprocessors: usize,
    /// Dynamic shared memory that a block may ask for, in bytes.
    pub shared_bytes: u32,
    /// Whether kernels that feed `wgmma` through TMA may be chosen: compute capability 9.0, and the emulator.
    pub wgmma: bool,
    /// How feature maps are stored.
    pub map_dtype: Elem,
}

impl Target {
    /// An H200, which kernels are tuned for.
    pub fn h200(map_dtype: Elem) -> Target {
        Target::of_card(<&Card>::default(), map_dtype)
    }
    /// A card from the table of data sheets.
    pub fn of_card(card: &Card, map_dtype: Elem) -> Target {
        let Card { capability, shared_bytes, .. } = *card;
        Target { capability, multiprocessors: 132, shared_bytes, wgmma: capability == (9, 0), map_dtype }
    }
    /// Blocks for `elements` at `per_block` a pass of a grid-stride loop: at most 16 per multiprocessor.
    pub fn blocks_for(&self, elements: usize, per_block: usize) -> u32 {
        elements.div_ceil(per_block).clamp(1, 16 * self.multiprocessors) as u32
    }
}
