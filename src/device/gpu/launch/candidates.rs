//! The choice between several kernels that can do the same launch with persistent blocks.

use super::work::{Cycles, Work};
use crate::device::gpu::kernel::Kernel;

/// A kernel that can do a launch, with its geometry. Its blocks are persistent: each takes tile after tile.
#[derive(Clone)]
pub struct Candidate {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Tiles of one member of the group.
    pub tiles: usize,
    /// Forecast cycles that a multiprocessor spends on a tile.
    pub cycles: Cycles,
    /// Rows or windows in a box of the first operand's tensor maps.
    pub box_rows: u32,
}

/// The kernels that can do a launch on so many multiprocessors. The fastest depends on the size of the
/// group: tiles are computed in rounds of one for each multiprocessor, and the last round is seldom full.
#[derive(Clone)]
pub struct Candidates {
    /// What the launch computes. Launches of one family can share a launch.
    pub family: &'static str,
    /// Whether these kernels can also do what only some members of a group ask for: forward, channel
    /// statistics. A group has such kernels if one member asks. (The gradient of a statistics loss is a family of
    /// its own.)
    pub do_more: bool,
    /// The kernels, which take the same arguments.
    pub all: Vec<Candidate>,
    /// Of the device.
    pub multiprocessors: usize,
}

impl Candidates {
    /// The fastest for a group of this size, the first of several equally fast ones, and its blocks: one for
    /// each multiprocessor, or for each tile where there are fewer.
    pub(super) fn choose(&self, group_size: usize) -> Option<(&Candidate, u32)> {
        let fastest = self.all.iter().min_by_key(|c| self.work(c).cycles_of(group_size)[0])?;
        Some((fastest, (fastest.tiles * group_size).min(self.multiprocessors) as u32))
    }
    pub(super) fn work(&self, c: &Candidate) -> Work {
        Work { tiles: c.tiles, cycles: c.cycles, multiprocessors: self.multiprocessors }
    }
}
