//! Which op applies an activation's mask to the gradient that flows back through the activation.
//!
//! An op with an activation at its end would begin backward with a pass of its own: `dz = dy * act'`. The op
//! that writes dy last has the sum in registers and can multiply it there, at the price of reading one bit
//! per element; the first op then reads dz in place of dy. In a residual unit this leaves one read and one
//! write of each gradient, and the gradient of the skip connection is the unit's own dz, in the same buffer
//! (`Fusion::grad_alias`).

use crate::autograd::tape::Tape;
use crate::ops::fusion::Fusion;
use std::collections::HashMap;

/// The mask that a node applies to the gradient of its input 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MaskFusion {
    /// The node whose activation it is; its first saved buffer is the mask.
    pub producer: usize,
    /// The derivative where the mask's bit is not set.
    pub slope: f32,
}

/// All mask fusions of a step.
#[derive(Default)]
pub(crate) struct MaskFusions {
    by_writer: HashMap<usize, MaskFusion>,
    /// By the node whose activation it is: the node that applies the mask.
    writers: HashMap<usize, usize>,
}

impl MaskFusions {
    /// `backward`: the nodes that run backward, in their order. A segment's masks are there only while the
    /// segment runs backward, so a node outside of it applies none.
    pub(crate) fn of(tape: &Tape, fusions: &[Fusion], backward: &[usize]) -> MaskFusions {
        // By value: the node that writes its gradient last, and which input of that node it is.
        let mut last: HashMap<usize, (usize, usize)> = HashMap::new();
        for i in backward {
            let inputs = tape.nodes[*i].inputs.iter().enumerate().filter(|(_, v)| tape.needs_grad(**v));
            last.extend(inputs.map(|(j, v)| (tape.root(*v), (*i, j))));
        }
        let mut found = MaskFusions::default();
        for &producer in backward {
            let node = &tape.nodes[producer];
            let (Some(mask), [y]) = (fusions[producer].act_mask, &node.outputs[..]) else { continue };
            let Some(&(writer, j)) = last.get(&tape.root(*y)) else { continue };
            // A pixel's bits fill whole bytes, so that a reshaped view would find them elsewhere.
            let same_shape = tape.shape(tape.nodes[writer].inputs[j]) == tape.shape(*y);
            let of_producer = tape.nodes[producer].segment;
            let is_there = of_producer.is_none() || of_producer == tape.nodes[writer].segment;
            let fits = j == 0 && fusions[writer].masks_input_grad && same_shape && is_there;
            if fits && !found.by_writer.contains_key(&writer) {
                found.by_writer.insert(writer, MaskFusion { producer, slope: mask.slope });
                found.writers.insert(producer, writer);
            }
        }
        found
    }
    /// The mask that node `writer` applies to the gradient of its input 0.
    pub(crate) fn by(&self, writer: usize) -> Option<MaskFusion> {
        self.by_writer.get(&writer).copied()
    }
    /// The node that applies the mask of `producer`'s activation.
    pub(crate) fn writer(&self, producer: usize) -> Option<usize> {
        self.writers.get(&producer).copied()
    }
    /// Whether node `i` finds the gradient of its output already masked.
    pub(crate) fn dy_is_masked(&self, i: usize) -> bool {
        self.writers.contains_key(&i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Store;
    use crate::autograd::plan::step::Step;
    use crate::autograd::tape::{Learn, Value};
    use crate::device::gpu::target::Target;
    use crate::ops::layers::activation::{Act, Activation};
    use crate::ops::layers::conv2d::Conv2d;
    use crate::ops::layers::global_avg_pool::GlobalAvgPool;
    use crate::ops::losses::activation_loss::ActivationLoss;
    use crate::tensor::{Elem, Shape};

    /// A ReLU convolution of a map, `layers` on its output, the mean over pixels and a loss. Returns writer
    /// and producer of each mask fusion.
    fn found(
        target: Option<Target>,
        layers: impl FnOnce(&mut Tape, Value, Value) -> Value,
    ) -> Vec<(usize, usize)> {
        let mut store = Store::<f32>::planned(target);
        let x = store.add("x", Shape::new(2, 4, 4, 8));
        let w = store.add("w", Shape::new(8, 1, 1, 8));
        let mut t = Tape::default();
        let (x, w) = (t.leaf(&store, x, Learn::Trainable), t.leaf(&store, w, Learn::Frozen));
        let relu = Conv2d { act: Act::Relu, ..Conv2d::new(1, 0) };
        let y = t.apply(relu, &[x, w]).unwrap();
        let y = layers(&mut t, y, w);
        let y = t.apply(GlobalAvgPool, &[y]).unwrap();
        let loss = t.apply(ActivationLoss { mean_over_features: true }, &[y]).unwrap();
        let step = Step::of::<f32>(&t, Some(loss), target.as_ref()).unwrap();
        (0..t.nodes.len()).filter_map(|i| Some((i, step.masks.by(i)?.producer))).collect()
    }

    fn h200() -> Option<Target> {
        Some(Target::h200(Elem::Bf16))
    }

    #[test]
    fn the_next_convolution_and_the_mean_apply_the_masks_of_their_inputs() {
        let conv =
            |t: &mut Tape, y, w| t.apply(Conv2d { act: Act::Relu, ..Conv2d::new(1, 0) }, &[y, w]).unwrap();
        assert_eq!(found(h200(), conv), [(1, 0), (2, 1)]);
        assert_eq!(found(None, conv), [], "the CPU fuses nothing");
    }

    #[test]
    fn the_mask_is_not_fused_if_the_last_writer_of_the_gradient_cannot_apply_it() {
        let found = found(h200(), |t, y, w| {
            let z = t.apply(Activation(Act::Tanh), &[y]).unwrap();
            t.apply(Conv2d::new(1, 0), &[z, w]).unwrap()
        });
        assert_eq!(found, []);
    }

    #[test]
    fn the_mask_is_not_fused_if_the_last_writer_writes_a_residuals_gradient() {
        // Backward runs from the end: the unit's first convolution writes to dy last, the one with the
        // residual before.
        let relu = Conv2d { act: Act::Relu, ..Conv2d::new(1, 0) };
        let unit = |t: &mut Tape, y, w| {
            let z = t.apply(relu, &[y, w]).unwrap();
            t.apply(Conv2d { residual: true, ..relu }, &[z, w, y]).unwrap()
        };
        assert_eq!(found(h200(), unit), [(1, 0), (2, 1), (3, 2)]);
        let residual_alone = |t: &mut Tape, y: Value, w| {
            let z = t.detach(y);
            t.apply(Conv2d { residual: true, ..relu }, &[z, w, y]).unwrap()
        };
        assert_eq!(found(h200(), residual_alone), [(2, 1)]);
    }

    #[test]
    fn the_mask_is_not_fused_through_a_reshaped_view() {
        let found = found(h200(), |t, y, w| {
            let y = t.reshape(y, Shape::new(2, 2, 8, 8)).unwrap();
            t.apply(Conv2d::new(1, 0), &[y, w]).unwrap()
        });
        assert_eq!(found, []);
    }
}
