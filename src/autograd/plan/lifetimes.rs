//! Which buffers a step has in the arena, and from when to when each is in use.
//!
//! Values of the store (leaves) are not buffers of the arena, but their gradients are. Time passes from
//! group to group: whatever the nodes of one group use is in use at once.

use super::groups::Pass;
use super::packed::Packed;
use super::placement::Lives;
use super::step::Step;
use crate::autograd::TensorId;
use crate::autograd::fuse::first_term;
use crate::autograd::fuse::linear_grad::Writer;
use crate::autograd::tape::Value;
use crate::ops::operands::Write;
use std::collections::HashMap;

/// The gradient of a loss that another node adds: the node of the loss, and where the sum goes if not to the
/// place of the other term.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AddedGrad {
    pub loss: usize,
    pub du: Option<usize>,
}

/// The buffers of a step, each by its index in `lives`. Values are listed by the index of the value that
/// owns the memory.
pub(crate) struct Buffers {
    pub lives: Lives,
    /// By value; none for leaves.
    pub values: Vec<Option<usize>>,
    /// By value that a segment computes: where its second run does. Backward of the segment reads this one,
    /// everything outside the segment the first one.
    pub again: Vec<Option<usize>>,
    /// By value: its gradient.
    pub grads: Vec<Option<usize>>,
    /// By node: what forward saves for backward; the second run, where there are two.
    pub saved: Vec<Vec<usize>>,
    /// By node that runs forward twice: what the first run saves, for nobody.
    pub first_saved: Vec<Vec<usize>>,
    /// By node: temporary buffers of forward, of its second run, and of backward.
    pub forward_scratch: Vec<Vec<usize>>,
    pub again_scratch: Vec<Vec<usize>>,
    pub backward_scratch: Vec<Vec<usize>>,
    /// The scratch of forward and of backward that is kept from step to step.
    pub packed: Packed,
    /// By node, then by input: where backward writes the gradient. None where the input needs no gradient,
    /// or where another gradient's buffer has the same values.
    pub input_grads: Vec<Vec<Option<(usize, Write)>>>,
    /// By node: the first term of the gradient of input 0, where that is in another buffer than the sum.
    pub first_terms: Vec<Option<usize>>,
    /// By the node that adds it to the gradient of its input 0: the gradient of a loss.
    pub linear_grads: Vec<Option<AddedGrad>>,
    /// By node: whether another node adds its gradient.
    pub is_grad_added: Vec<bool>,
    /// By node that writes or reads them: partial channel statistics, and the pixels per partial.
    pub channel_stats: Vec<Option<(usize, usize)>>,
    /// The same for the second run.
    pub again_channel_stats: Vec<Option<(usize, usize)>>,
    pub loss_grad: Option<usize>,
    /// The gradients of the trainable leaves that the loss reaches.
    pub leaf_grads: HashMap<TensorId, usize>,
    /// By value: the buffer with the first term of its gradient, until the next term is added.
    waiting_first_terms: Vec<Option<usize>>,
    /// By value: the segment that computes it.
    segments: Vec<Option<u32>>,
}

impl Buffers {
    /// `updates`: the number of optimisers that run after backward, each a time of its own.
    pub(crate) fn of(step: &Step, updates: usize) -> Buffers {
        let (values, nodes) = (step.tape.values.len(), step.tape.nodes.len());
        let mut buffers = Buffers {
            lives: Lives::default(),
            values: vec![None; values],
            again: vec![None; values],
            grads: vec![None; values],
            saved: vec![Vec::new(); nodes],
            first_saved: vec![Vec::new(); nodes],
            forward_scratch: vec![Vec::new(); nodes],
            again_scratch: vec![Vec::new(); nodes],
            backward_scratch: vec![Vec::new(); nodes],
            packed: Packed::default(),
            input_grads: vec![Vec::new(); nodes],
            first_terms: vec![None; nodes],
            linear_grads: vec![None; nodes],
            is_grad_added: vec![false; nodes],
            channel_stats: vec![None; nodes],
            again_channel_stats: vec![None; nodes],
            loss_grad: None,
            leaf_grads: HashMap::new(),
            waiting_first_terms: vec![None; values],
            segments: vec![None; values],
        };
        for node in &step.tape.nodes {
            node.outputs.iter().for_each(|v| buffers.segments[step.tape.root(*v)] = node.segment);
        }
        let end = step.groups.end() + updates;
        // The order in which buffers are added decides addresses (`Lives`).
        buffers.add_values(step);
        buffers.keep_results(step, end);
        buffers.add_channel_stats(step);
        buffers.add_loss_grad(step);
        buffers.add_gradients(step);
        buffers.keep_leaf_grads(step, end);
        buffers.add_scratch(step, end);
        buffers
    }

    /// The outputs and saved buffers of forward. An activation in the epilogue of another node's kernel runs
    /// with that node.
    fn add_values(&mut self, step: &Step) {
        let (tape, needs) = (step.tape, &step.needs);
        for (t, pass, i) in step.groups.in_order().filter(|(_, pass, _)| *pass != Pass::Backward) {
            if step.epilogues.is_fused_into_producer(i) {
                continue;
            }
            for i in std::iter::once(i).chain(step.epilogues.activation_of(i)) {
                let node = &tape.nodes[i];
                for v in &node.outputs {
                    let bytes = step.storage.value_bytes(*v);
                    let buffer = self.lives.add(if step.epilogues.drops_sum(i) { 0 } else { bytes }, t);
                    let values = if pass == Pass::Again { &mut self.again } else { &mut self.values };
                    values[tape.root(*v)] = Some(buffer);
                }
                for v in &node.inputs {
                    self.extend_value(step, i, pass, *v, t);
                }
                if needs.runs_backward(tape, i) {
                    let saved = needs.signatures[i].saved.iter().map(|e| step.storage.extent_bytes(e));
                    let saved = saved.map(|bytes| self.lives.add(bytes, t)).collect();
                    let is_first = pass == Pass::Forward && step.groups.runs_again(i);
                    (if is_first { &mut self.first_saved } else { &mut self.saved })[i] = saved;
                }
            }
        }
    }

    /// The buffer of a value of the tape as node `i` finds it in this pass; none for a leaf.
    pub(crate) fn value_of(&self, step: &Step, i: usize, pass: Pass, v: Value) -> Option<usize> {
        let (root, segment) = (step.tape.root(v), step.tape.nodes[i].segment);
        let is_inside = segment.is_some() && self.segments[root] == segment;
        self.again[root].filter(|_| is_inside && pass != Pass::Forward).or(self.values[root])
    }

    /// Outputs, metrics and the loss are read after the step.
    fn keep_results(&mut self, step: &Step, end: usize) {
        for v in step.tape.results(step.loss) {
            if let Some(buffer) = self.values[step.tape.root(v)] {
                self.lives.extend(buffer, end);
            }
        }
    }

    fn add_channel_stats(&mut self, step: &Step) {
        let passes = [
            (step.groups.forward_nodes().collect::<Vec<_>>(), &mut self.channel_stats),
            (step.groups.again_nodes().collect(), &mut self.again_channel_stats),
        ];
        for (nodes, channel_stats) in passes {
            let time: HashMap<usize, usize> = nodes.into_iter().map(|(t, i)| (i, t)).collect();
            for f in step.stats.iter().filter(|f| time.contains_key(&f.reader)) {
                let new = || (self.lives.add(f.bytes, time[&f.writer]), f.pixels);
                let (buffer, pixels) = *channel_stats[f.writer].get_or_insert_with(new);
                self.lives.extend(buffer, time[&f.reader]);
                channel_stats[f.reader] = Some((buffer, pixels));
            }
        }
    }

    fn add_loss_grad(&mut self, step: &Step) {
        let Some(loss) = step.loss.filter(|v| step.needs.has_gradient(step.tape, *v)) else { return };
        let buffer = self.lives.add(step.storage.value_bytes(loss), step.groups.forward_end());
        self.grads[step.tape.root(loss)] = Some(buffer);
        self.loss_grad = Some(buffer);
    }

    /// The gradients, and until when backward uses the buffers of forward.
    fn add_gradients(&mut self, step: &Step) {
        for (t, i) in step.groups.backward_nodes() {
            self.extend_read_by_backward(step, t, i);
            let inputs = &step.tape.nodes[i].inputs;
            let grad =
                |j| step.tape.needs_grad(inputs[j]).then(|| self.add_input_grad(step, t, i, j)).flatten();
            self.input_grads[i] = (0..inputs.len()).map(grad).collect();
        }
    }

    fn extend_read_by_backward(&mut self, step: &Step, t: usize, i: usize) {
        let (node, signature) = (&step.tape.nodes[i], &step.needs.signatures[i]);
        let mask = step.masks.by(i).map(|mask| self.saved[mask.producer][0]);
        for b in self.saved[i].iter().copied().chain(mask) {
            self.lives.extend(b, t);
        }
        let kept_inputs = signature.keeps_inputs.iter().map(|j| node.inputs[*j]);
        let kept_outputs = node.outputs.iter().copied().filter(|_| signature.keeps_outputs);
        for v in kept_inputs.chain(kept_outputs) {
            self.extend_value(step, i, Pass::Backward, v, t);
        }
        for v in &node.outputs {
            if let Some(b) = self.grads[step.tape.root(*v)] {
                self.lives.extend(b, t);
            }
        }
    }

    /// Where node `i` writes the gradient of its input `j` at time `t`: the first writer of a gradient
    /// stores it, later writers add to it. None if the gradient of the node's output serves instead.
    fn add_input_grad(&mut self, step: &Step, t: usize, i: usize, j: usize) -> Option<(usize, Write)> {
        let (tape, node, fusion) = (step.tape, &step.tape.nodes[i], &step.needs.fusions[i]);
        let (v, value) = (tape.root(node.inputs[j]), node.inputs[j]);
        let writer = step.linear_grads.writer_for(i).filter(|_| j == 0);
        if let Some(buffer) = self.grads[v] {
            self.lives.extend(buffer, t);
            // The gradient of the activation's input has to be in the place of that of its output, which the
            // other node writes.
            let place = |w: &Writer| self.grads[tape.root(tape.nodes[w.node].inputs[0])];
            let writer = writer.filter(|w| place(w) == Some(buffer));
            self.add_linear_grad(writer, AddedGrad { loss: i, du: None });
            return Some((buffer, Write::Add));
        }
        // The gradient of this input equals the masked gradient of the output, which has to be masked
        // already.
        let is_masked = step.masks.dy_is_masked(i) || fusion.act_mask.is_none();
        if let Some(alias) = fusion.grad_alias.filter(|_| is_masked) {
            let y = node.outputs[0];
            if alias == j && step.storage.elem(value) == step.storage.elem(y) {
                self.grads[v] = self.grads[tape.root(y)];
                return None;
            }
            // Input 0 may have the same gradient, and the same buffer if the op that produced it reads it before
            // anything is added for the other input. Otherwise it needs a buffer of its own, because the two sums
            // differ later, but no copy if the op that adds the next term reads the first term from the output's
            // gradient.
            if j == 0 && alias > 0 && fusion.copies_grad {
                let later = step.groups.backward_after(t);
                if first_term::producer_reads_it_first(tape, &step.needs.fusions, later, i) {
                    self.grads[v] = self.grads[tape.root(y)];
                    return None;
                }
                let later = step.groups.backward_after(t);
                if first_term::next_writer_adds_it(tape, &step.needs.fusions, later, i) {
                    self.waiting_first_terms[v] = self.grads[tape.root(y)];
                    return None;
                }
            }
        }
        let first_term = self.waiting_first_terms[v].take().filter(|_| j == 0);
        let writer = writer.filter(|_| first_term.is_some());
        let since = writer.map_or(t, |w| w.time);
        let bytes = step.storage.gradient_bytes(value);
        // A trained tensor has a gradient for each share of the batch.
        let shares = if tape.values[v].leaf.is_some() { step.division.own() } else { 1 };
        let buffer = self.lives.add(shares * bytes, since);
        self.lives.extend(buffer, t);
        self.grads[v] = Some(buffer);
        if let Some(first) = first_term {
            self.first_terms[i] = Some(first);
            self.lives.extend(first, t);
            self.add_linear_grad(writer, AddedGrad { loss: i, du: Some(buffer) });
        }
        Some((buffer, Write::Set))
    }

    fn add_linear_grad(&mut self, writer: Option<Writer>, grad: AddedGrad) {
        if let Some(writer) = writer {
            self.linear_grads[writer.node] = Some(grad);
            self.is_grad_added[grad.loss] = true;
        }
    }

    /// The gradients of leaves are read by the optimisers.
    fn keep_leaf_grads(&mut self, step: &Step, end: usize) {
        for (v, info) in step.tape.values.iter().enumerate() {
            if let (Some(id), Some(buffer)) = (info.leaf, self.grads[v]) {
                self.lives.extend(buffer, end);
                self.leaf_grads.insert(id, buffer);
            }
        }
    }

    /// The value, if the arena has it, is used by node `i` at time `to`.
    fn extend_value(&mut self, step: &Step, i: usize, pass: Pass, v: Value, to: usize) {
        if let Some(buffer) = self.value_of(step, i, pass, v) {
            self.lives.extend(buffer, to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Store;
    use crate::autograd::plan::placement::Placement;
    use crate::autograd::plan::placement::tests::expect_no_overlap;
    use crate::autograd::tape::{Learn, Tape, Value};
    use crate::device::gpu::target::Target;
    use crate::ops::layers::activation::{Act, Activation};
    use crate::ops::layers::conv2d::Conv2d;
    use crate::ops::layers::global_avg_pool::GlobalAvgPool;
    use crate::ops::losses::activation_loss::ActivationLoss;
    use crate::ops::losses::statistics_loss::StatisticsLoss;
    use crate::ops::losses::weighted_sum::WeightedSum;
    use crate::tensor::{Elem, Shape};

    /// Two residual units on a trainable map, and a loss. `has_statistics_losses`: a statistics loss reads
    /// each unit's last convolution before the residual is added.
    fn residual_units(learn: Learn, has_statistics_losses: bool) -> (Tape, Value) {
        recorded(learn, has_statistics_losses, false)
    }

    /// The same, where the second unit may be a segment.
    fn recorded(learn: Learn, has_statistics_losses: bool, has_segment: bool) -> (Tape, Value) {
        let mut store = Store::<f32>::planned(None);
        let x = store.add("x", Shape::new(2, 4, 4, 8));
        let mut t = Tape::default();
        let mut x = t.leaf(&store, x, Learn::Trainable);
        let mut losses = Vec::new();
        let relu = Conv2d { act: Act::Relu, ..Conv2d::new(1, 0) };
        for unit in ["a", "b"] {
            if has_segment && unit == "b" {
                t.begin_segment();
            }
            let mut leaf = |name: &str, shape, learn| {
                let id = store.add(&format!("{unit}.{name}"), shape);
                t.leaf(&store, id, learn)
            };
            let [w1, w2] = ["w1", "w2"].map(|n| leaf(n, Shape::new(8, 1, 1, 8), learn));
            let [mean, std] = ["mean", "std"].map(|n| leaf(n, Shape::vector(8), Learn::Frozen));
            let y = t.apply(relu, &[x, w1]).unwrap();
            x = if has_statistics_losses {
                let z = t.apply(Conv2d::new(1, 0), &[y, w2]).unwrap();
                losses.push(t.apply(StatisticsLoss { eps: 1e-8 }, &[z, mean, std]).unwrap());
                t.apply(Activation(Act::Relu), &[z, x]).unwrap()
            } else {
                t.apply(Conv2d { residual: true, ..relu }, &[y, w2, x]).unwrap()
            };
        }
        t.end_segment();
        let features = t.apply(GlobalAvgPool, &[x]).unwrap();
        losses.push(t.apply(ActivationLoss { mean_over_features: true }, &[features]).unwrap());
        let loss = t.apply(WeightedSum { weights: vec![1.0; losses.len()] }, &losses).unwrap();
        (t, loss)
    }

    fn life(buffers: &Buffers, buffer: usize) -> (usize, usize) {
        let life = buffers.lives.0[buffer];
        (life.first, life.last)
    }

    #[test]
    fn no_two_buffers_in_use_share_bytes() {
        for target in [None, Some(Target::h200(Elem::F32)), Some(Target::h200(Elem::Bf16))] {
            for learn in [Learn::Frozen, Learn::Trainable] {
                for (has_statistics_losses, has_segment) in
                    [(false, false), (true, false), (false, true), (true, true)]
                {
                    let (t, loss) = recorded(learn, has_statistics_losses, has_segment);
                    let step = Step::of::<f32>(&t, Some(loss), target.as_ref()).unwrap();
                    let buffers = Buffers::of(&step, 1);
                    expect_no_overlap(&buffers.lives, &Placement::of(&buffers.lives));
                }
            }
        }
    }

    #[test]
    fn a_frozen_layer_keeps_its_activations_no_longer_than_forward_needs_them() {
        // Values 0 to 4 are x and the first unit's leaves; 5 is the first layer's output, which the second
        // layer reads.
        for (learn, last) in [(Learn::Frozen, 1), (Learn::Trainable, 12)] {
            let (t, loss) = residual_units(learn, false);
            let step = Step::of::<f32>(&t, Some(loss), None).unwrap();
            assert_eq!((step.groups.forward_end(), step.groups.end()), (7, 14));
            let buffers = Buffers::of(&step, 0);
            assert_eq!(buffers.values[0], None, "a leaf is in the store");
            // Trainable, the second layer needs it again for its filter's gradient: node 1 runs backward at
            // time 12.
            assert_eq!(life(&buffers, buffers.values[5].unwrap()), (0, last));
            // Its mask is needed when node 0 runs backward, the last of 14.
            assert_eq!(life(&buffers, buffers.saved[0][0]), (0, 13));
        }
    }

    #[test]
    fn outputs_and_leaf_gradients_live_to_the_end_of_the_step() {
        let (mut t, loss) = residual_units(Learn::Trainable, false);
        let y = t.nodes[0].outputs[0];
        t.output(y);
        let step = Step::of::<f32>(&t, Some(loss), None).unwrap();
        let buffers = Buffers::of(&step, 2);
        assert_eq!(life(&buffers, buffers.values[t.root(y)].unwrap()), (0, 16));
        assert_eq!(buffers.leaf_grads.len(), 5);
        assert!(buffers.leaf_grads.values().all(|b| life(&buffers, *b).1 == 16));
    }

    #[test]
    fn the_first_writer_of_a_gradient_stores_it_and_the_second_adds() {
        let (t, loss) = residual_units(Learn::Frozen, false);
        let step = Step::of::<f32>(&t, Some(loss), None).unwrap();
        let buffers = Buffers::of(&step, 0);
        // Node 1 is the first unit's second layer; its residual is x. Node 0 reads x too and runs backward
        // later.
        let (first, second) = (buffers.input_grads[1][2].unwrap(), buffers.input_grads[0][0].unwrap());
        assert_eq!((first.0, first.1, second.1), (second.0, Write::Set, Write::Add));
        assert_eq!(buffers.input_grads[1][1], None, "a frozen filter has no gradient");
    }

    #[test]
    fn on_a_gpu_the_gradient_of_the_skip_is_the_units_own_masked_gradient() {
        let (t, loss) = residual_units(Learn::Frozen, false);
        let target = Target::h200(Elem::F32);
        let step = Step::of::<f32>(&t, Some(loss), Some(&target)).unwrap();
        let buffers = Buffers::of(&step, 0);
        let (x, y) = (t.nodes[2].inputs[0], t.nodes[3].outputs[0]);
        assert_eq!(buffers.input_grads[3][2], None);
        assert_eq!(buffers.grads[t.root(x)], buffers.grads[t.root(y)]);
    }

    #[test]
    fn a_statistics_loss_reads_the_first_term_of_its_gradient_from_the_skip() {
        let (t, loss) = residual_units(Learn::Frozen, true);
        let is_loss = |i: &usize| t.nodes[*i].op.name() == "statistics_loss";
        let losses: Vec<usize> = (0..t.nodes.len()).filter(is_loss).collect();
        let first_terms = |target: Option<Target>| {
            let step = Step::of::<f32>(&t, Some(loss), target.as_ref()).unwrap();
            let buffers = Buffers::of(&step, 0);
            losses.iter().map(|i| buffers.first_terms[*i].is_some()).collect::<Vec<_>>()
        };
        assert_eq!(first_terms(Some(Target::h200(Elem::F32))), [true, true]);
        assert_eq!(first_terms(None), [false, false], "the CPU copies");
    }
}
