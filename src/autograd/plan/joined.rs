//! The gradients of a divided batch, which are added before the optimisers use them.

use super::optimiser::Optimiser;
use crate::autograd::TensorId;
use crate::device::collective::add_in_pairs;
use crate::device::division::Division;
use crate::device::memory::{Memory, Slot};
use crate::tensor::Real;
use std::collections::HashMap;

/// The gradients of the tensors that the optimisers change, `[own shares][elements]` each, and room for their exchange.
pub(crate) struct Joined<R> {
    pub(super) division: Division,
    gradients: Vec<Slot>,
    own: Vec<R>,
    all: Vec<R>,
}

impl<R: Real> Joined<R> {
    /// `slot` says where a buffer of `leaf_grads` is.
    pub(super) fn of(
        division: Division,
        optimisers: &[Optimiser],
        leaf_grads: &HashMap<TensorId, usize>,
        slot: impl Fn(usize) -> Slot,
    ) -> Joined<R> {
        let trained = optimisers.iter().flat_map(|o| &o.tensors);
        let gradients = trained.filter_map(|(id, _)| Some(slot(*leaf_grads.get(id)?))).collect();
        Joined { division, gradients, own: Vec::new(), all: Vec::new() }
    }

    /// Replaces the first gradient of every tensor by the sum over all shares of the batch, in one exchange.
    pub(super) fn add(&mut self, memory: &mut Memory) {
        self.own.clear();
        for slot in &self.gradients {
            let sum = add_in_pairs(memory.views().write::<R>(*slot), self.division.own());
            if self.division.ranks().is_some() {
                self.own.extend_from_slice(sum);
            }
        }
        let Some(ranks) = self.division.ranks() else { return };
        self.own.resize(self.own.len().next_multiple_of(ranks.size()), R::ZERO);
        self.all.resize(self.own.len(), R::ZERO);
        ranks.add_in_slices(&mut self.own, &mut self.all);
        let mut rest = &self.all[..];
        for slot in &self.gradients {
            let gradient: &mut [R] = memory.views().write(*slot);
            let (sum, others) = rest.split_at(gradient.len() / self.division.own());
            gradient[..sum.len()].copy_from_slice(sum);
            rest = others;
        }
    }
}
