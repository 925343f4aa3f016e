//! Which activations a GPU computes where their input is made.
//!
//! A convolution whose output is watched (a statistics loss looks at it in front of the activation) cannot have its activation
//! recorded as its own. Its kernel can still write both: what it computes, and what the activation makes of it; nobody then
//! reads the map again.

use crate::autograd::tape::Tape;
use crate::ops::fusion::Fusion;
use std::collections::HashMap;

/// All such pairs of a step.
#[derive(Default)]
pub(super) struct Absorbed {
    /// The activation of each producer.
    by: HashMap<usize, usize>,
    /// The producer of each activation.
    into: HashMap<usize, usize>,
}

impl Absorbed {
    /// `nodes`: those that run, as they were recorded.
    pub(super) fn of(tape: &Tape, fusions: &[Fusion], nodes: &[usize]) -> Absorbed {
        let made: HashMap<usize, usize> = nodes
            .iter()
            .flat_map(|i| tape.nodes[*i].outputs.iter().map(move |v| (tape.root(*v), *i)))
            .collect();
        let mut all = Absorbed::default();
        for &i in nodes {
            let node = &tape.nodes[i];
            let [x, more @ ..] = &node.inputs[..] else { continue };
            let Some(&producer) = made.get(&tape.root(*x)) else { continue };
            // What comes later may need the producer first.
            let earlier = |v| made.get(&tape.root(v)).is_none_or(|m| *m < producer);
            let ready = more.iter().all(|v| earlier(*v)) && tape.nodes[producer].outputs[..] == [*x];
            let fits = fusions[i].is_fusable_activation && fusions[producer].fuses_activation;
            if ready && fits && !all.by.contains_key(&producer) {
                all.by.insert(producer, i);
                all.into.insert(i, producer);
            }
        }
        all
    }
    /// The activation that node `i` computes too.
    pub(super) fn by(&self, i: usize) -> Option<usize> {
        self.by.get(&i).copied()
    }
    /// Whether another node computes node `i`.
    pub(super) fn is_fused_into_producer(&self, i: usize) -> bool {
        self.into.contains_key(&i)
    }
}
