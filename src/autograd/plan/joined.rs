//! The gradients that ranks which divide a batch add, before the optimisers use them.

use super::optimiser::Optimiser;
use crate::autograd::TensorId;
use crate::device::collective::Ranks;
use crate::device::memory::{Memory, Slot};
use crate::tensor::Real;
use std::collections::HashMap;

/// The gradients of the tensors that the optimisers change, and room for their exchange.
pub(crate) struct Joined<R> {
    gradients: Vec<Slot>,
    values: Vec<R>,
    room: Vec<R>,
}

impl<R: Real> Joined<R> {
    /// `slot` says where a buffer of `leaf_grads` is.
    pub(super) fn of(
        optimisers: &[Optimiser],
        leaf_grads: &HashMap<TensorId, usize>,
        slot: impl Fn(usize) -> Slot,
    ) -> Joined<R> {
        let trained = optimisers.iter().flat_map(|o| &o.tensors);
        let gradients = trained.filter_map(|(id, _)| Some(slot(*leaf_grads.get(id)?))).collect();
        Joined { gradients, values: Vec::new(), room: Vec::new() }
    }

    /// Replaces every gradient by its sum over all ranks, in one exchange.
    pub(super) fn add(&mut self, ranks: &Ranks, memory: &mut Memory) {
        self.values.clear();
        for slot in &self.gradients {
            self.values.extend_from_slice(memory.views().read(*slot));
        }
        ranks.add_in_slices(&mut self.values, &mut self.room);
        let mut rest = &self.values[..];
        for slot in &self.gradients {
            let gradient: &mut [R] = memory.views().write(*slot);
            let (own, others) = rest.split_at(gradient.len());
            gradient.copy_from_slice(own);
            rest = others;
        }
    }
}
