//! How one launch covers many tensors: in chunks, one row of a table for each.

use crate::device::gpu::launch::KernelArg;
use crate::device::gpu::target::Target;

/// The arguments for a launch on many tensors (`Chunk` of kernels/lib/chunks.cuh): a table with a row
/// `[tensor, first element]` for each chunk of each tensor, the number of rows, the largest chunk, and the grid.
pub struct Chunks {
    /// The table.
    pub table: KernelArg,
    /// Its rows.
    pub count: KernelArg,
    /// Elements of a chunk, but for the last one of a tensor.
    pub size: KernelArg,
    /// Blocks.
    pub grid: u32,
}

impl Chunks {
    /// Of tensors with so many elements each, in chunks of at most `size`.
    pub fn of(elems: impl Iterator<Item = usize>, size: usize, target: &Target) -> Self {
        let rows = elems.enumerate().flat_map(|(tensor, elems)| {
            (0..elems).step_by(size).map(move |first| [(tensor as i64).into(), (first as i64).into()])
        });
        let rows: Vec<[KernelArg; 2]> = rows.collect();
        let (count, grid) = (rows.len() as i32, target.blocks_for(rows.len(), 1));
        Chunks { table: KernelArg::table(rows), count: count.into(), size: (size as i32).into(), grid }
    }
}
