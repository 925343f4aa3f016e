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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Store;
    use crate::autograd::plan::lifetimes::{AddedGrad, Buffers};
    use crate::autograd::plan::step::Step;
    use crate::autograd::tape::Learn;
    use crate::device::gpu::target::Target;
    use crate::ops::layers::activation::{Act, Activation};
    use crate::ops::layers::conv2d::Conv2d;
    use crate::ops::layers::global_avg_pool::GlobalAvgPool;
    use crate::ops::losses::activation_loss::ActivationLoss;
    use crate::ops::losses::statistics_loss::StatisticsLoss;
    use crate::ops::losses::weighted_sum::WeightedSum;
    use crate::tensor::{Elem, Shape};

    /// What follows a convolution u with a statistics loss.
    #[derive(Clone, Copy, Default)]
    struct Unit {
        /// The ReLU adds a skip connection to u.
        has_skip: bool,
        /// Another op reads u.
        has_reader: bool,
        /// The second convolution is outside of the segment that the rest is in.
        leaves_segment: bool,
    }

    /// Nodes 0 to 3: the convolution, its loss, the ReLU, and a second convolution, which writes the gradient of the
    /// ReLU's output. Returns what the second convolution adds, and whether the sum has a buffer of its own.
    fn added(unit: Unit, target: Option<Target>) -> Option<(usize, bool)> {
        let mut store = Store::<f32>::planned(target);
        let x = store.add("x", Shape::new(2, 4, 4, 8));
        let [w1, w2] = ["w1", "w2"].map(|n| store.add(n, Shape::new(8, 1, 1, 8)));
        let [mean, std] = ["mean", "std"].map(|n| store.add(n, Shape::vector(8)));
        let mut t = Tape::default();
        let x = t.leaf(&store, x, Learn::Trainable);
        let [w1, w2, mean, std] = [w1, w2, mean, std].map(|id| t.leaf(&store, id, Learn::Frozen));
        if unit.leaves_segment {
            t.begin_segment();
        }
        let u = t.apply(Conv2d::new(1, 0), &[x, w1]).unwrap();
        let mut losses = vec![t.apply(StatisticsLoss { eps: 1e-8 }, &[u, mean, std]).unwrap()];
        let operands = if unit.has_skip { vec![u, x] } else { vec![u] };
        let y = t.apply(Activation(Act::Relu), &operands).unwrap();
        t.end_segment();
        let mut ends = vec![t.apply(Conv2d::new(1, 0), &[y, w2]).unwrap()];
        if unit.has_reader {
            ends.push(t.apply(Activation(Act::Tanh), &[u]).unwrap());
        }
        for end in ends {
            let features = t.apply(GlobalAvgPool, &[end]).unwrap();
            losses.push(t.apply(ActivationLoss { mean_over_features: true }, &[features]).unwrap());
        }
        let loss = t.apply(WeightedSum { weights: vec![1.0; losses.len()] }, &losses).unwrap();
        let step = Step::of::<f32>(&t, Some(loss), target.as_ref()).unwrap();
        let buffers = Buffers::of(&step, 0);
        assert_eq!(buffers.is_grad_added[1], buffers.linear_grads[3].is_some());
        buffers.linear_grads[3].map(|AddedGrad { loss, du }| (loss, du.is_some()))
    }

    #[test]
    fn the_convolution_behind_the_activation_adds_the_losss_gradient() {
        let h200 = Some(Target::h200(Elem::Bf16));
        assert_eq!(added(Unit::default(), h200), Some((1, false)));
        assert_eq!(added(Unit { has_skip: true, ..Unit::default() }, h200), Some((1, true)));
        assert_eq!(added(Unit::default(), None), None, "the CPU fuses nothing");
    }

    #[test]
    fn it_does_not_if_the_gradient_has_a_third_term_or_the_map_is_not_there_yet() {
        let h200 = Some(Target::h200(Elem::Bf16));
        assert_eq!(added(Unit { has_reader: true, ..Unit::default() }, h200), None);
        assert_eq!(added(Unit { leaves_segment: true, ..Unit::default() }, h200), None);
    }
}
