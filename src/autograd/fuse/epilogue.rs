//! Which activations the kernel of their input computes in its epilogue.
//!
//! When a statistics loss needs the pre-activation output, the activation cannot be fused while recording:
//! the tape then has a convolution and an activation. The convolution's kernel can store both outputs, which
//! saves reading the map again. The batch norm at the end of a residual unit computes the unit's activation, and
//! its own output is not stored at all.

use crate::autograd::plan::needs::Needs;
use crate::autograd::plan::storage::Storage;
use crate::autograd::tape::{Tape, Value};
use std::collections::{HashMap, HashSet};

/// The pairs of a producer and the activation that its kernel computes.
#[derive(Default)]
pub(crate) struct Epilogues {
    activation_of: HashMap<usize, usize>,
    producer_of: HashMap<usize, usize>,
    /// Producers whose own output nothing but the activation reads.
    dropping: HashSet<usize>,
}

impl Epilogues {
    /// `loss`: the value that gradients flow from.
    pub(crate) fn of(tape: &Tape, loss: Option<Value>, needs: &Needs, storage: &Storage) -> Epilogues {
        let (fusions, nodes) = (&needs.fusions, needs.live_nodes());
        let mut readers: HashMap<usize, usize> = HashMap::new();
        let read = nodes.iter().flat_map(|i| tape.nodes[*i].inputs.iter().copied());
        read.chain(tape.results(loss)).for_each(|v| *readers.entry(tape.root(v)).or_default() += 1);
        let writer: HashMap<usize, usize> = nodes
            .iter()
            .flat_map(|i| tape.nodes[*i].outputs.iter().map(move |v| (tape.root(*v), *i)))
            .collect();
        let mut found = Epilogues::default();
        for &i in &nodes {
            let [x, others @ ..] = &tape.nodes[i].inputs[..] else { continue };
            let Some(&producer) = writer.get(&tape.root(*x)) else { continue };
            // A residual that is computed after the producer may depend on it.
            let is_earlier = |v| writer.get(&tape.root(v)).is_none_or(|w| *w < producer);
            let ready = others.iter().all(|v| is_earlier(*v)) && tape.nodes[producer].outputs[..] == [*x];
            let run_together = tape.nodes[i].segment == tape.nodes[producer].segment;
            // A view of f32 rows may be the input of an op whose output is bf16.
            let from = tape.nodes[producer].inputs.first();
            let are_alike = from.is_some_and(|v| storage.elem(*v) == storage.elem(*x));
            let fits = run_together
                && are_alike
                && fusions[i].is_fusable_activation
                && fusions[producer].fuses_activation;
            if ready && fits && !found.activation_of.contains_key(&producer) {
                found.activation_of.insert(producer, i);
                found.producer_of.insert(i, producer);
                if readers[&tape.root(*x)] == 1 && !needs.signatures[producer].keeps_outputs {
                    found.dropping.insert(producer);
                }
            }
        }
        found
    }
    /// The activation that the kernel of node `producer` computes.
    pub(crate) fn activation_of(&self, producer: usize) -> Option<usize> {
        self.activation_of.get(&producer).copied()
    }
    /// Whether the kernel of node `producer` stores the activation alone.
    pub(crate) fn drops_sum(&self, producer: usize) -> bool {
        self.dropping.contains(&producer)
    }
    /// Whether the kernel of its input's producer computes node `i`.
    pub(crate) fn is_fused_into_producer(&self, i: usize) -> bool {
        self.producer_of.contains_key(&i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Store;
    use crate::autograd::tape::Learn;
    use crate::device::gpu::target::Target;
    use crate::ops::layers::activation::{Act, Activation};
    use crate::ops::layers::conv2d::Conv2d;
    use crate::tensor::{Elem, Shape};

    /// Records `layers` on a map and a filter, and returns the pairs of all nodes.
    fn pairs(
        target: Option<Target>,
        layers: impl FnOnce(&mut Tape, Value, Value) -> Value,
    ) -> Vec<(usize, usize)> {
        let mut store = Store::<f32>::planned(target);
        let x = store.add("x", Shape::new(2, 4, 4, 8));
        let w = store.add("w", Shape::new(8, 1, 1, 8));
        let mut tape = Tape::default();
        let (x, w) = (tape.leaf(&store, x, Learn::Frozen), tape.leaf(&store, w, Learn::Frozen));
        let y = layers(&mut tape, x, w);
        tape.output(y);
        let needs = Needs::of(&tape, None, target.as_ref()).unwrap();
        let storage = Storage::of::<f32>(&tape, &needs.fusions, target.as_ref());
        let found = Epilogues::of(&tape, None, &needs, &storage);
        (0..tape.nodes.len()).filter_map(|i| Some((i, found.activation_of(i)?))).collect()
    }

    fn h200() -> Option<Target> {
        Some(Target::h200(Elem::F32))
    }

    fn conv_then_relu(t: &mut Tape, x: Value, w: Value) -> Value {
        let y = t.apply(Conv2d::new(1, 0), &[x, w]).unwrap();
        t.apply(Activation(Act::Relu), &[y, x]).unwrap()
    }

    #[test]
    fn a_relu_behind_a_linear_convolution_is_fused() {
        assert_eq!(pairs(h200(), conv_then_relu), [(0, 1)]);
    }

    #[test]
    fn the_cpu_fuses_no_activation() {
        assert_eq!(pairs(None, conv_then_relu), []);
    }

    #[test]
    fn a_sigmoid_is_not_fused_because_its_derivative_is_no_mask() {
        let found = pairs(h200(), |t, x, w| {
            let y = t.apply(Conv2d::new(1, 0), &[x, w]).unwrap();
            t.apply(Activation(Act::Sigmoid), &[y]).unwrap()
        });
        assert_eq!(found, []);
    }

    #[test]
    fn an_activation_is_not_fused_if_its_residual_is_computed_after_the_producer() {
        let found = pairs(h200(), |t, x, w| {
            let y = t.apply(Conv2d::new(1, 0), &[x, w]).unwrap();
            let relu = Conv2d { act: Act::Relu, ..Conv2d::new(1, 0) };
            let residual = t.apply(relu, &[y, w]).unwrap();
            t.apply(Activation(Act::Relu), &[y, residual]).unwrap()
        });
        assert_eq!(found, []);
    }

    #[test]
    fn of_two_activations_of_one_output_only_the_first_is_fused() {
        let found = pairs(h200(), |t, x, w| {
            let y = t.apply(Conv2d::new(1, 0), &[x, w]).unwrap();
            let a = t.apply(Activation(Act::Relu), &[y]).unwrap();
            let b = t.apply(Activation(Act::LeakyRelu(0.2)), &[y]).unwrap();
            t.apply(Activation(Act::Tanh), &[a, b]).unwrap()
        });
        assert_eq!(found, [(0, 1)]);
    }
}
