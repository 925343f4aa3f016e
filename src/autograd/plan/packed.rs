//! Scratch that is kept from step to step: the packed filters of frozen convolutions on the CPU. Packing all filters took a
//! tenth of a step of the demo.
//!
//! Such a buffer is in use from the beginning of the step to its end, so that nothing else is placed there. Its values last
//! as long as the engine replays this plan and no other, and the host changes nothing in the store
//! ([`Engine`](crate::autograd::Engine)).

use super::groups::Pass;
use super::step::Step;
use crate::autograd::TensorId;
use std::collections::{HashMap, HashSet};

/// What the values of such a buffer follow from: the filter, the direction, and the op with its shapes, by which it chooses
/// how to pack.
type Key = (TensorId, bool, String);

/// The buffers that are kept.
#[derive(Default)]
pub(crate) struct Packed {
    buffers: HashMap<Key, usize>,
    /// The passes of nodes whose first scratch buffer is one of them: the node, and whether it is the backward pass.
    nodes: HashSet<(usize, bool)>,
}

impl Packed {
    /// The buffer of a node's first scratch in this pass, which `add` makes where no node before has the same. None if it is
    /// not kept: where the filter is trained, and in a segment, which runs with few activations to save memory.
    pub(crate) fn buffer(
        &mut self,
        step: &Step,
        (i, pass): (usize, Pass),
        add: impl FnOnce() -> usize,
    ) -> Option<usize> {
        let node = &step.tape.nodes[i];
        let from = node.inputs[step.needs.signatures[i].packed_from?];
        let info = &step.tape.values[step.tape.root(from)];
        let leaf = info.leaf.filter(|_| !info.needs_grad && node.segment.is_none())?;
        let shapes: Vec<_> = node.inputs.iter().map(|v| step.tape.shape(*v)).collect();
        let is_backward = pass == Pass::Backward;
        self.nodes.insert((i, is_backward));
        let key = (leaf, is_backward, format!("{:?} {shapes:?}", node.op));
        Some(*self.buffers.entry(key).or_insert_with(add))
    }
    /// Whether a node's first scratch is kept in this pass.
    pub(crate) fn keeps(&self, i: usize, pass: Pass) -> bool {
        self.nodes.contains(&(i, pass == Pass::Backward))
    }
}
