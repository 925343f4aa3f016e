//! Sums over the pixels of each channel, from the statistics that a producer stored or by a pass over the
//! input.

use crate::device::gpu::launch::KernelArg;
use crate::error::Result;
use crate::ops::launch::channel_tiles::{Tiles, fold_blocks, instance};
use crate::ops::launch::launches::{ChannelStats, DeviceTensor, Launches};

/// Launches the sums of the first input's channels about a shift near their mean: writes the shift to
/// `shift` `[c]` and the sums to `parts` `[chunks][2][c]`, and returns the number of chunks. If the input's
/// producer stored channel statistics, they are folded into one chunk. Otherwise `kernel` makes a pass over
/// the input.
///
/// Errors: as [`Launches::launch`].
pub fn sum_channel_stats(
    l: &mut Launches,
    kernel: &str,
    parts: DeviceTensor,
    shift: DeviceTensor,
) -> Result<usize> {
    let (x, shape) = (l.x(0), l.shape(0));
    if let Some(stats) = l.channel_stats() {
        fold_channel_stats(l, stats, parts, shift, [shape.elems() / shape.c(), shape.c()])?;
        return Ok(1);
    }
    let tiles = Tiles::sums(l.target(), shape, x.elem);
    let args = [parts.into(), shift.into(), x.into(), tiles.into()];
    l.launch(instance(kernel, x.elem, tiles.pack), tiles.grid(), tiles.block(), 0, args)?;
    Ok(tiles.chunks())
}

/// Launches the fold of a producer's channel statistics into `sums` `[2][c]` about the shift that it writes
/// to `shift` `[c]`: the format of one chunk.
fn fold_channel_stats(
    l: &mut Launches,
    stats: ChannelStats,
    sums: DeviceTensor,
    shift: DeviceTensor,
    [pixels, c]: [usize; 2],
) -> Result<()> {
    let args = [
        sums.into(),
        shift.into(),
        stats.parts.into(),
        KernelArg::from(pixels as i64),
        KernelArg::from(c as i32),
        KernelArg::from(stats.rows as i32),
    ];
    l.launch("channel_stats_fold", fold_blocks(c), 1024, 0, args)
}
