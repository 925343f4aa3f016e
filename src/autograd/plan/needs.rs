//! Which nodes of a tape run, which of them run backward, and what each states about itself.

use crate::autograd::tape::{Node, Tape, Value};
use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::ops::fusion::Fusion;
use crate::ops::operator::{OperandInfo, Operator, Signature};
use crate::tensor::Shape;

/// What a step needs of its tape.
pub(crate) struct Needs {
    /// By node: whether an output, a metric or the loss depends on it, or it updates an input in place.
    pub live: Vec<bool>,
    /// By node.
    pub signatures: Vec<Signature>,
    /// By node: the fusions that it can take part in. The CPU fuses nothing.
    pub fusions: Vec<Fusion>,
    /// By node: whether its backward runs after all others (`Fusion::gathers_backward`). The gradients that it writes are
    /// those of leaves, which no other backward reads.
    pub runs_last: Vec<bool>,
    /// By the value that owns the memory: whether only such a backward reads its gradient.
    pub is_read_late: Vec<bool>,
    /// By the value that owns the memory: whether a gradient flows back to it.
    has_gradient: Vec<bool>,
}

impl Needs {
    /// `target`: the GPU that the plan is for; none for the CPU.
    ///
    /// Errors: operands that an op refuses.
    pub(crate) fn of(tape: &Tape, loss: Option<Value>, target: Option<&Target>) -> Result<Needs> {
        let root = |v: &Value| tape.root(*v);
        let mut used = vec![false; tape.values.len()];
        let mut has_gradient = vec![false; tape.values.len()];
        for v in tape.results(loss) {
            used[tape.root(v)] = true;
        }
        if let Some(loss) = loss {
            has_gradient[tape.root(loss)] = tape.needs_grad(loss);
        }
        let mut live = vec![false; tape.nodes.len()];
        let mut signatures: Vec<Signature> = Vec::with_capacity(tape.nodes.len());
        for (i, node) in tape.nodes.iter().enumerate().rev() {
            let runs_backward = node.outputs.iter().any(|v| has_gradient[root(v)]);
            let needs_grad = |v: &Value| runs_backward && tape.needs_grad(*v);
            let info = |v: &Value| OperandInfo { shape: tape.shape(*v), needs_grad: needs_grad(v) };
            let infos: Vec<OperandInfo> = node.inputs.iter().map(info).collect();
            let mut signature = node.op.signature(&infos)?;
            if let Some(target) = target {
                node.op.device_extents(&infos, target, &mut signature);
                signature.packed_from = None;
            }
            live[i] = node.outputs.iter().any(|v| used[root(v)]) || !signature.updates.is_empty();
            if live[i] {
                for (v, info) in node.inputs.iter().zip(&infos) {
                    used[root(v)] = true;
                    has_gradient[root(v)] |= info.needs_grad;
                }
            }
            signatures.push(signature);
        }
        signatures.reverse();
        let fusions = tape.nodes.iter().map(|n| target.map_or_else(Fusion::default, |t| fusion(tape, n, t)));
        let fusions: Vec<Fusion> = fusions.collect();
        let writes_to_leaves = |n: &Node| {
            n.inputs.iter().all(|v| !tape.needs_grad(*v) || tape.values[tape.root(*v)].leaf.is_some())
        };
        let nodes = tape.nodes.iter().zip(&fusions);
        let runs_last: Vec<bool> = nodes.map(|(n, f)| f.gathers_backward && writes_to_leaves(n)).collect();
        let mut is_read_late = vec![false; tape.values.len()];
        for (node, _) in tape.nodes.iter().zip(&runs_last).filter(|(_, last)| **last) {
            node.outputs.iter().for_each(|v| is_read_late[root(v)] = true);
        }
        Ok(Needs { live, signatures, fusions, runs_last, is_read_late, has_gradient })
    }
    /// The nodes that run, in the order of the tape.
    pub(crate) fn live_nodes(&self) -> Vec<usize> {
        (0..self.live.len()).filter(|i| self.live[*i]).collect()
    }
    /// Whether a gradient flows back to this value.
    pub(crate) fn has_gradient(&self, tape: &Tape, v: Value) -> bool {
        self.has_gradient[tape.root(v)]
    }
    /// Whether node `i` runs backward, if it runs at all.
    pub(crate) fn runs_backward(&self, tape: &Tape, i: usize) -> bool {
        let node = &tape.nodes[i];
        node.outputs.iter().any(|v| self.has_gradient(tape, *v))
            && node.inputs.iter().any(|v| tape.needs_grad(*v))
    }
}

fn fusion(tape: &Tape, node: &Node, target: &Target) -> Fusion {
    let inputs: Vec<_> = node.inputs.iter().map(|v| tape.shape(*v)).collect();
    let output = node.outputs.first().map_or(Shape::SCALAR, |v| tape.shape(*v));
    node.op.fusion(&inputs, output, target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Store;
    use crate::autograd::tape::Learn;
    use crate::ops::layers::activation::{Act, Activation};
    use crate::ops::layers::batch_norm::{BatchNorm, Stats};
    use crate::ops::layers::conv2d::Conv2d;
    use crate::ops::losses::activation_loss::ActivationLoss;
    use crate::ops::movement::columns::Columns;
    use crate::tensor::Elem;

    /// Two linear layers on rows, and a loss: node 0 has a filter that is `first`, node 1 a filter that is
    /// `second`, node 2 is the loss.
    fn two_layers(first: Learn, second: Learn) -> (Tape, Vec<Value>) {
        let mut store = Store::<f32>::default();
        let x = store.add("x", Shape::rows(2, 8));
        let [a, b] = ["a", "b"].map(|n| store.add(n, Shape::new(8, 1, 1, 8)));
        let mut t = Tape::default();
        let (x, a, b) =
            (t.leaf(&store, x, Learn::Frozen), t.leaf(&store, a, first), t.leaf(&store, b, second));
        let y = t.apply(Conv2d::new(1, 0), &[x, a]).unwrap();
        let z = t.apply(Conv2d::new(1, 0), &[y, b]).unwrap();
        let loss = t.apply(ActivationLoss { mean_over_features: true }, &[z]).unwrap();
        (t, vec![x, a, y, b, z, loss])
    }

    #[test]
    fn no_gradient_flows_to_a_frozen_leaf_or_through_a_node_with_only_frozen_leaves() {
        let (t, v) = two_layers(Learn::Frozen, Learn::Trainable);
        let needs = Needs::of(&t, v.last().copied(), None).unwrap();
        assert_eq!(needs.live, [true; 3]);
        let gradients: Vec<bool> = v.iter().map(|v| needs.has_gradient(&t, *v)).collect();
        assert_eq!(gradients, [false, false, false, true, true, true]);
        assert_eq!([0, 1, 2].map(|i| needs.runs_backward(&t, i)), [false, true, true]);
        // The second layer needs its input for the filter's gradient, and its filter for nothing.
        assert_eq!(needs.signatures[1].keeps_inputs, [0]);
        assert!(needs.signatures[0].keeps_inputs.is_empty());
    }

    #[test]
    fn a_gradient_flows_through_a_frozen_layer_to_a_trainable_one() {
        let (t, v) = two_layers(Learn::Trainable, Learn::Frozen);
        let needs = Needs::of(&t, v.last().copied(), None).unwrap();
        let gradients: Vec<bool> = v.iter().map(|v| needs.has_gradient(&t, *v)).collect();
        assert_eq!(gradients, [false, true, true, false, true, true]);
        assert_eq!(needs.signatures[1].keeps_inputs, [1]);
    }

    #[test]
    fn without_a_loss_nothing_runs_backward() {
        let (mut t, v) = two_layers(Learn::Trainable, Learn::Trainable);
        t.output(v[4]);
        let needs = Needs::of(&t, None, None).unwrap();
        assert_eq!(needs.live_nodes(), [0, 1], "the loss is neither an output nor a metric");
        assert!((0..3).all(|i| !needs.runs_backward(&t, i)));
    }

    #[test]
    fn a_node_whose_output_is_unused_does_not_run_unless_it_updates_an_input() {
        let mut store = Store::<f32>::default();
        let x = store.add("x", Shape::new(2, 4, 4, 8));
        let norm = ["gamma", "beta", "mean", "var"].map(|n| store.add(n, Shape::vector(8)));
        let mut t = Tape::default();
        let x = t.leaf(&store, x, Learn::Frozen);
        let [a, b, c, d] = norm.map(|n| t.leaf(&store, n, Learn::Frozen));
        for stats in [Stats::Batch, Stats::Running] {
            t.apply(BatchNorm { stats, act: Act::None, momentum: 0.1, eps: 1e-5 }, &[x, a, b, c, d]).unwrap();
        }
        t.apply(Activation(Act::Tanh), &[x]).unwrap();
        assert_eq!(Needs::of(&t, None, None).unwrap().live_nodes(), [0]);
    }

    #[test]
    fn a_view_counts_as_the_value_that_owns_the_memory() {
        let (mut t, v) = two_layers(Learn::Trainable, Learn::Frozen);
        let view = t.reshape(v[4], Shape::rows(1, 16)).unwrap();
        let part = t.apply(Columns { index: vec![0, 3] }, &[view]).unwrap();
        t.output(part);
        let needs = Needs::of(&t, None, None).unwrap();
        assert_eq!(needs.live, [true, true, false, true]);
    }

    #[test]
    fn ops_can_fuse_on_a_gpu_and_not_on_the_cpu() {
        let (t, v) = two_layers(Learn::Frozen, Learn::Frozen);
        let target = Target::h200(Elem::Bf16);
        let key = |target| {
            Needs::of(&t, v.last().copied(), target).unwrap().fusions.swap_remove(0).group_key.is_some()
        };
        assert_eq!((key(Some(&target)), key(None)), (true, false));
    }
}
