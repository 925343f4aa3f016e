//! Which op adds the gradient of a loss that is linear in its map.
//!
//! A statistics loss has a gradient `dloss * (slope * (u - shift) + offset)` for each channel of a map u. The
//! activation behind u passes on the gradient of its output, already masked by the op that wrote it last
//! (`act_mask`). That op has the sum in registers and can add the loss's gradient there: a launch and two passes
//! over the gradient less for each of the 208 maps of two ResNet-101.

use super::act_mask::MaskFusions;
use crate::autograd::plan::groups::Groups;
use crate::autograd::plan::needs::Needs;
use crate::autograd::tape::{Tape, Value};
use std::collections::HashMap;

/// The node that writes a gradient, and when it runs backward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Writer {
    pub node: usize,
    pub time: usize,
}

/// By the node of each loss whose gradient another node can add: that node. It does so if the activation's
/// gradients need no launch (`plan::lifetimes`).
#[derive(Default)]
pub(crate) struct LinearGrads(HashMap<usize, Writer>);

impl LinearGrads {
    pub(crate) fn of(tape: &Tape, needs: &Needs, groups: &Groups, masks: &MaskFusions) -> LinearGrads {
        let backward: Vec<(usize, usize)> = groups.backward_nodes().collect();
        // By map: the nodes that write to its gradient, in order.
        let mut terms: HashMap<usize, Vec<usize>> = HashMap::new();
        for (_, i) in &backward {
            let inputs = tape.nodes[*i].inputs.iter().filter(|v| tape.needs_grad(**v));
            inputs.for_each(|v| terms.entry(tape.root(*v)).or_default().push(*i));
        }
        let time: HashMap<usize, usize> = backward.iter().map(|(t, i)| (*i, *t)).collect();
        let writer = |loss: usize| {
            let first = |node: usize| -> Option<Value> { tape.nodes[node].inputs.first().copied() };
            let u = first(loss).filter(|_| needs.fusions[loss].has_linear_grad)?;
            let [activation, last] = terms.get(&tape.root(u))?[..] else { return None };
            let node = masks.writer(activation)?;
            let is_the_activations_input = first(activation).is_some_and(|v| tape.root(v) == tape.root(u));
            let dloss = terms.get(&tape.root(tape.nodes[loss].outputs[0]))?;
            let is_scaled_before = dloss.iter().all(|i| time[i] < time[&node]);
            let fits = last == loss && is_the_activations_input && is_scaled_before;
            let is_there =
                [activation, node].iter().all(|i| tape.nodes[*i].segment == tape.nodes[loss].segment);
            (fits && is_there && needs.fusions[node].adds_linear_grad)
                .then(|| Writer { node, time: time[&node] })
        };
        LinearGrads(backward.iter().filter_map(|(_, i)| Some((*i, writer(*i)?))).collect())
    }
    /// The node that can add the gradient of this loss.
    pub(crate) fn writer_for(&self, loss: usize) -> Option<Writer> {
        self.0.get(&loss).copied()
    }
}
