//! What a plan is made for: the limits of a device that decide launches, as a value.

use super::card::Card;
use crate::tensor::Elem;

/// The device that a plan's launches are chosen for. Plans for several targets can be made in one process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Compute capability, major and minor: (9, 0) is Hopper.
    pub capability: (i32, i32),
    /// Streaming multiprocessors, which grids are sized for.
    pub multiprocessors: usize,
    /// Bytes of dynamic shared memory that a block may ask for: 227 KB on compute capability 9.0, 163 KB on
    /// 8.0, 99 KB on 8.6, 8.9 and 12.0.
    pub shared_bytes: u32,
    /// Whether kernels of an `INSTANCE_90A` line may be chosen, which feed `wgmma` through TMA.
    pub wgmma: bool,
    /// Whether cuBLASLt computes the products of 1x1 convolutions and linear layers, for comparisons
    /// (`DFKA_MATMUL=cublaslt`, on a CUDA device).
    pub library_matmul: bool,
    /// How feature maps are stored.
    pub map_dtype: Elem,
}

impl Target {
    /// A device with these limits. Kernels with `wgmma` are chosen on compute capability 9.0, if the program
    /// has them (`has_90a_kernels`) and `DFKA_TENSOR_CORES=mma` does not turn them off.
    pub fn new(
        capability: (i32, i32),
        multiprocessors: usize,
        shared_bytes: u32,
        has_90a_kernels: bool,
        map_dtype: Elem,
    ) -> Target {
        let is_mma_forced = std::env::var("DFKA_TENSOR_CORES").is_ok_and(|v| v == "mma");
        let wgmma = capability == (9, 0) && has_90a_kernels && !is_mma_forced;
        Target { capability, multiprocessors, shared_bytes, wgmma, library_matmul: false, map_dtype }
    }
    /// An H200, for which the kernels are tuned.
    pub fn h200(map_dtype: Elem) -> Target {
        Target::of_card(<&Card>::default(), map_dtype)
    }
    /// A card from the table of data sheets, with every kernel that it can run.
    pub fn of_card(card: &Card, map_dtype: Elem) -> Target {
        Target::new(card.capability, card.multiprocessors, card.shared_bytes, true, map_dtype)
    }
    /// Blocks of a grid-stride loop over `elements` that covers `per_block` of them with each block and
    /// pass: at most 16 for each multiprocessor.
    pub fn blocks_for(&self, elements: usize, per_block: usize) -> u32 {
        elements.div_ceil(per_block).clamp(1, 16 * self.multiprocessors) as u32
    }
}
