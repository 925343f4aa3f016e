//! Launches that turn partial channel statistics into sums over all pixels. They belong to no op:
//! convolutions write the partials, batch norms and statistics losses read the sums.

use crate::device::gpu::launch::KernelArg;
use crate::error::Result;
use crate::ops::launch::launches::{ChannelStats, DeviceTensor, Launches};

/// Launches the fold of the partial statistics of a map of `pixels` pixels and `k` channels into `sums`
/// `[2][k]` about `shift` `[k]`, which kernels/lib/channels.cuh reads as a single chunk.
pub fn fold_channel_stats(
    l: &mut Launches,
    stats: ChannelStats,
    sums: DeviceTensor,
    shift: DeviceTensor,
    [pixels, k]: [usize; 2],
) -> Result<()> {
    /// Channels of a block: CHANNELS of kernels/engine/channel_stats.cu.
    const CHANNELS: usize = 8;
    let args = [
        sums.into(),
        shift.into(),
        stats.parts.into(),
        KernelArg::from(pixels as i64),
        KernelArg::from(k as i32),
        KernelArg::from(stats.rows as i32),
    ];
    l.launch("channel_stats_fold", k.div_ceil(CHANNELS) as u32, 1024, 0, args)
}
