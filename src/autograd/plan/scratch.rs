//! The temporary buffers of a step. Most are in use while their node runs; some are kept from step to step
//! ([`Packed`](super::packed::Packed)), and on a GPU the parts of the gradients of trained tensors and folded filters until
//! backward ends.

use super::groups::Pass;
use super::lifetimes::Buffers;
use super::step::Step;
use crate::ops::operator::Extent;

impl Buffers {
    /// The temporary buffers of all nodes. `end` is the last time of the step.
    pub(super) fn add_scratch(&mut self, step: &Step, end: usize) {
        let (lives, packed) = (&mut self.lives, &mut self.packed);
        let mut add = |extents: &[Extent], t: usize, of: (usize, Pass)| -> Vec<usize> {
            let bytes: Vec<usize> = extents.iter().map(|e| step.storage.extent_bytes(e)).collect();
            let kept = packed.buffer(step, of, || lives.add_from_to(bytes[0], 0, end));
            let rest = bytes.iter().skip(usize::from(kept.is_some())).map(|b| lives.add(*b, t));
            kept.into_iter().chain(rest).collect()
        };
        for (t, pass, i) in step.groups.in_order().filter(|(_, pass, _)| *pass != Pass::Backward) {
            let mut extents = step.needs.signatures[i].scratch_forward.clone();
            let unneeded = step.needs.fusions[i].scratch_without_stats;
            if let Some(unneeded) = unneeded.filter(|_| self.channel_stats[i].is_some()) {
                extents[unneeded] = Extent::Bytes(0);
            }
            let is_again = pass == Pass::Again;
            (if is_again { &mut self.again_scratch } else { &mut self.forward_scratch })[i] =
                add(&extents, t, (i, pass));
        }
        for (t, i) in step.groups.backward_nodes() {
            let mut extents = step.needs.signatures[i].scratch_backward.clone();
            let mask = step.needs.fusions[i].act_mask.filter(|_| step.masks.dy_is_masked(i));
            if let Some(unneeded) = mask.and_then(|m| m.scratch) {
                extents[unneeded] = Extent::Bytes(0);
            }
            self.backward_scratch[i] = add(&extents, t, (i, Pass::Backward));
        }
        for (_, i) in step.groups.backward_nodes() {
            for (_, parts) in step.late_inputs(i) {
                self.lives.extend(self.backward_scratch[i][parts], step.groups.end());
            }
        }
    }
}
