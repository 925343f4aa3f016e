//! Who leaves the moments of its output's channels for whom.
//!
//! A batch norm on batch statistics and a statistics loss begin with sums over a whole map. Whoever makes the map has it at
//! hand, tile by tile, and can leave what the sums are made of (`kernels/lib/channel_stats.cuh`).

use super::each;
use super::needs::Needs;
use super::placer::Placer;
use crate::autograd::tape::Tape;
use crate::tensor::Elem;

/// By node, of those that leave moments and of those that take them: the buffer, and of how many pixels each part is.
pub(super) fn place(
    tape: &Tape,
    needs: &Needs,
    forward: &[Vec<usize>],
    placer: &mut Placer,
) -> Vec<Option<(usize, usize)>> {
    let mut all: Vec<Option<(usize, usize)>> = vec![None; tape.nodes.len()];
    for (t, i) in each(forward).filter(|(_, i)| needs.fusions[*i].reads_channel_stats) {
        let x = tape.nodes[i].inputs[0];
        let maker = each(forward).find(|(_, p)| tape.nodes[*p].outputs[..] == [x]);
        let Some((made, p)) = maker.filter(|(_, p)| needs.live[*p]) else { continue };
        let Some(rows) = needs.fusions[p].writes_channel_stats else { continue };
        let (pixels, c) = (tape.shape(x).elems() / tape.shape(x).c(), tape.shape(x).c());
        let bytes = pixels.div_ceil(rows) * 2 * c * Elem::F32.bytes();
        let (b, _) = *all[p].get_or_insert_with(|| (placer.add(bytes, made), rows));
        placer.extend(b, t);
        all[i] = Some((b, rows));
    }
    all
}
