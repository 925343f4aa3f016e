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
    own: Vec<R>,
    all: Vec<R>,
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
        Joined { gradients, own: Vec::new(), all: Vec::new() }
    }

    /// Replaces every gradient by its sum over all ranks, in one exchange.
    pub(super) fn add(&mut self, ranks: &Ranks, memory: &mut Memory) {
        self.own.clear();
        for slot in &self.gradients {
            self.own.extend_from_slice(memory.views().read(*slot));
        }
        self.own.resize(self.own.len().next_multiple_of(ranks.size()), R::ZERO);
        self.all.resize(self.own.len(), R::ZERO);
        ranks.add_in_slices(&mut self.own, &mut self.all);
        let mut rest = &self.all[..];
        for slot in &self.gradients {
            let gradient: &mut [R] = memory.views().write(*slot);
            let (own, others) = rest.split_at(gradient.len());
            gradient.copy_from_slice(own);
            rest = others;
        }
    }
}
