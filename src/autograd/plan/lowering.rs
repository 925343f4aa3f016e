//! The list of instructions of a step, with the memory of every operand.

use super::groups::Pass;
use super::instruction::{Instruction, LossGrad, Phase};
use super::lifetimes::{AddedGrad, Buffers};
use super::optimiser::Optimiser;
use super::placement::Placement;
use super::step::Step;
use crate::autograd::Store;
use crate::autograd::tape::Value;
use crate::device::{Slot, Space};
use crate::ops::fusion::{FusedActivation, LinearGrad};
use crate::ops::operands::Operands;
use crate::tensor::{Elem, Real};

/// The results of the passes before, which instructions are built from.
pub(crate) struct Lowering<'a, R> {
    pub step: &'a Step<'a>,
    pub buffers: &'a Buffers,
    pub placement: &'a Placement,
    pub store: &'a Store<R>,
}

impl<R: Real> Lowering<'_, R> {
    /// Forward and backward in the order of the groups, then the optimisers.
    pub(crate) fn instructions(&self, optimisers: &[Optimiser]) -> Vec<Instruction> {
        let lower = |(time, pass, i)| match pass {
            Pass::Forward | Pass::Again => self.forward(time, pass, i),
            Pass::Backward => self.backward(time, i),
        };
        let mut all: Vec<Instruction> = self.step.groups.in_order().map(lower).collect();
        for o in optimisers {
            let operands = self.update_operands(o);
            if !operands.inputs.is_empty() {
                let time = all.last().map_or(0, |i| i.time) + 1;
                all.push(Instruction { op: o.op.clone(), phase: Phase::Update, scope: "", time, operands });
            }
        }
        all
    }
    /// The gradient of the loss with respect to itself, if a gradient flows from the loss.
    pub(crate) fn loss_grad(&self) -> Option<LossGrad> {
        let before = self.step.groups.forward_nodes().count();
        self.buffers.loss_grad.map(|b| LossGrad { before, slot: self.slot(b) })
    }
    /// Where a value is that is read after the step: a leaf in the store, every other value in the arena.
    pub(crate) fn value_slot(&self, v: Value) -> Slot {
        let root = self.step.tape.root(v);
        self.place(root, self.buffers.values[root])
    }
    /// Where node `i` finds a value in this pass.
    fn value_of(&self, i: usize, pass: Pass, v: Value) -> Slot {
        self.place(self.step.tape.root(v), self.buffers.value_of(self.step, i, pass, v))
    }
    fn place(&self, root: usize, buffer: Option<usize>) -> Slot {
        match self.step.tape.values[root].leaf {
            Some(id) => self.store.slot(id),
            None => self.slot(buffer.expect("a live node reads a value that no live node writes")),
        }
    }

    /// Where a buffer is.
    pub(crate) fn slot(&self, buffer: usize) -> Slot {
        let bytes = self.buffers.lives.0[buffer].bytes;
        Slot { space: Space::Arena, offset: self.placement.offsets[buffer], bytes }
    }

    fn forward(&self, time: usize, pass: Pass, i: usize) -> Instruction {
        let (node, buffers) = (&self.step.tape.nodes[i], self.buffers);
        let (scratch, channel_stats) = match pass {
            Pass::Again => (&buffers.again_scratch, &buffers.again_channel_stats),
            Pass::Forward | Pass::Backward => (&buffers.forward_scratch, &buffers.channel_stats),
        };
        let fused = self.step.epilogues.activation_of(i).map(|a| {
            let activation = &self.step.tape.nodes[a];
            FusedActivation {
                y: self.value_of(a, pass, activation.outputs[0]),
                mask: self.saved(pass, a).first().map(|b| self.slot(*b)),
                residual: activation.inputs.get(1).map(|v| self.value_of(a, pass, *v)),
                slope: self.step.needs.fusions[a].act_mask.map_or(1.0, |m| m.slope),
                keeps_sum: !self.step.epilogues.drops_sum(i),
            }
        });
        let operands = Operands {
            fused_activation: fused,
            is_fused_into_producer: self.step.epilogues.is_fused_into_producer(i),
            channel_stats: channel_stats[i].map(|(b, pixels)| (self.slot(b), pixels)),
            ..self.operands(i, pass, &scratch[i])
        };
        Instruction { op: node.op.clone(), phase: Phase::Forward, scope: node.scope, time, operands }
    }

    fn backward(&self, time: usize, i: usize) -> Instruction {
        let (node, buffers) = (&self.step.tape.nodes[i], self.buffers);
        let mut input_masks = vec![None; node.inputs.len()];
        if let Some(mask) = self.step.masks.by(i) {
            input_masks[0] = Some((self.slot(buffers.saved[mask.producer][0]), mask.slope));
        }
        let grad = |v: &Value| buffers.grads[self.step.tape.root(*v)].map(|b| self.slot(b));
        let operands = Operands {
            input_masks,
            dy_is_masked: self.step.masks.dy_is_masked(i),
            first_term: buffers.first_terms[i].map(|b| self.slot(b)),
            linear_grad: buffers.linear_grads[i].map(|g| self.linear_grad(g)),
            is_grad_added: buffers.is_grad_added[i],
            late_inputs: self.step.late_inputs(i).map(|(input, _)| input).collect(),
            output_grads: node.outputs.iter().map(grad).collect(),
            input_grad_elems: node.inputs.iter().map(|v| self.step.storage.gradient_elem(*v)).collect(),
            output_grad_elems: node.outputs.iter().map(|v| self.step.storage.gradient_elem(*v)).collect(),
            input_grads: buffers.input_grads[i].iter().map(|w| w.map(|(b, w)| (self.slot(b), w))).collect(),
            ..self.operands(i, Pass::Backward, &buffers.backward_scratch[i])
        };
        Instruction { op: node.op.clone(), phase: Phase::Backward, scope: node.scope, time, operands }
    }

    fn linear_grad(&self, grad: AddedGrad) -> LinearGrad {
        let node = &self.step.tape.nodes[grad.loss];
        let dloss = self.buffers.grads[self.step.tape.root(node.outputs[0])];
        LinearGrad {
            u: self.value_of(grad.loss, Pass::Backward, node.inputs[0]),
            coefficients: self.slot(self.buffers.saved[grad.loss][0]),
            dloss: self.slot(dloss.expect("a loss that runs backward has a gradient")),
            du: grad.du.map(|b| self.slot(b)),
        }
    }

    /// What node `i` saves, or has saved, in this pass.
    fn saved(&self, pass: Pass, i: usize) -> &[usize] {
        let is_first = pass == Pass::Forward && self.step.groups.runs_again(i);
        &(if is_first { &self.buffers.first_saved } else { &self.buffers.saved })[i]
    }

    /// The operands that all passes have in common.
    fn operands(&self, i: usize, pass: Pass, scratch: &[usize]) -> Operands {
        let (tape, node) = (self.step.tape, &self.step.tape.nodes[i]);
        let slots = |values: &[Value]| values.iter().map(|v| self.value_of(i, pass, *v)).collect();
        let shapes = |values: &[Value]| values.iter().map(|v| tape.shape(*v)).collect();
        let elems = |values: &[Value]| values.iter().map(|v| self.step.storage.elem(*v)).collect();
        let buffers = |list: &[usize]| list.iter().map(|b| self.slot(*b)).collect();
        Operands {
            inputs: slots(&node.inputs),
            input_shapes: shapes(&node.inputs),
            outputs: slots(&node.outputs),
            output_shapes: shapes(&node.outputs),
            input_elems: elems(&node.inputs),
            output_elems: elems(&node.outputs),
            saved: buffers(self.saved(pass, i)),
            scratch: buffers(scratch),
            keeps_packed: self.buffers.packed.keeps(i, pass),
            ..Default::default()
        }
    }

    /// Of each tensor the parameter, its gradient and its moments. A tensor that the loss does not reach has
    /// no gradient and is left out, so that it keeps its value.
    fn update_operands(&self, optimiser: &Optimiser) -> Operands {
        let mut operands = Operands::default();
        for (id, moments) in &optimiser.tensors {
            let Some(grad) = self.buffers.leaf_grads.get(id) else { continue };
            let moments = moments.iter().map(|m| self.store.slot(*m));
            // In a divided batch, the gradient of the first share becomes the sum of all.
            let grad = Slot { bytes: self.slot(*grad).bytes / self.step.division.own(), ..self.slot(*grad) };
            for slot in [self.store.slot(*id), grad].into_iter().chain(moments) {
                operands.inputs.push(slot);
                operands.input_shapes.push(self.store.shape(*id));
                operands.input_elems.push(Elem::F32);
            }
        }
        operands
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::tape::{Learn, Tape};
    use crate::device::gpu::target::Target;
    use crate::ops::layers::activation::{Act, Activation};
    use crate::ops::layers::conv2d::Conv2d;
    use crate::ops::layers::global_avg_pool::GlobalAvgPool;
    use crate::ops::losses::activation_loss::ActivationLoss;
    use crate::ops::optim::sgd::Sgd;
    use crate::tensor::Shape;

    /// A convolution with a frozen filter, a ReLU as an op, a convolution with a trainable filter, the mean
    /// and a loss. SGD updates the trainable filter and a tensor that the tape does not use.
    fn lowered(target: Option<Target>) -> (Vec<Instruction>, Option<LossGrad>) {
        let mut store = Store::<f32>::planned(target);
        let x = store.add("x", Shape::new(2, 4, 4, 8));
        let [frozen, w, unused] = ["frozen", "w", "unused"].map(|n| store.add(n, Shape::new(8, 1, 1, 8)));
        let moments = ["mw", "mu"].map(|n| vec![store.add(n, Shape::new(8, 1, 1, 8))]);
        let mut t = Tape::default();
        let (x, frozen) = (t.leaf(&store, x, Learn::Frozen), t.leaf(&store, frozen, Learn::Frozen));
        let wv = t.leaf(&store, w, Learn::Trainable);
        let y = t.apply(Conv2d::new(1, 0), &[x, frozen]).unwrap();
        t.scope("head");
        let y = t.apply(Activation(Act::Relu), &[y]).unwrap();
        let y = t.apply(Conv2d::new(1, 0), &[y, wv]).unwrap();
        let y = t.apply(GlobalAvgPool, &[y]).unwrap();
        let loss = t.apply(ActivationLoss { mean_over_features: true }, &[y]).unwrap();
        let [mw, mu] = moments;
        let op = Sgd { lr_slot: 0, momentum: 0.9, weight_decay: 0.0 }.into();
        let sgd = Optimiser { op, tensors: vec![(w, mw), (unused, mu)] };
        let step = Step::of::<f32>(&t, Some(loss), target.as_ref()).unwrap();
        let buffers = Buffers::of(&step, 1);
        let placement = Placement::of(&buffers.lives);
        let l = Lowering { step: &step, buffers: &buffers, placement: &placement, store: &store };
        (l.instructions(&[sgd]), l.loss_grad())
    }

    #[test]
    fn instructions_run_forward_then_backward_then_the_optimiser() {
        let (list, loss_grad) = lowered(None);
        let found: Vec<_> = list.iter().map(|i| (i.phase, i.op.name(), i.scope)).collect();
        use Phase::{Backward as B, Forward as F, Update as U};
        let expected = [
            (F, "conv2d", ""),
            (F, "activation", "head"),
            (F, "conv2d", "head"),
            (F, "global_avg_pool", "head"),
            (F, "activation_loss", "head"),
            (B, "activation_loss", "head"),
            (B, "global_avg_pool", "head"),
            (B, "conv2d", "head"),
            (U, "sgd", ""),
        ];
        assert_eq!(found, expected);
        assert_eq!(list.iter().map(|i| i.time).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        // Backward starts with the gradient of the loss.
        let LossGrad { before, slot } = loss_grad.unwrap();
        assert_eq!((before, list[5].operands.output_grads[0]), (5, Some(slot)));
    }

    #[test]
    fn an_optimiser_updates_only_tensors_that_the_loss_reaches() {
        let (list, _) = lowered(None);
        let (update, conv) = (&list[8].operands, &list[7].operands);
        assert_eq!(update.inputs.len(), 3, "p, g and m of one tensor");
        assert_eq!(update.inputs[1], conv.input_grads[1].unwrap().0);
        assert!(update.inputs.iter().enumerate().all(|(i, s)| (s.space == Space::Arena) == (i == 1)));
        assert_eq!(conv.input_grads[0], None, "everything before is frozen");
    }

    #[test]
    fn a_fused_activation_has_the_memory_of_the_activations_own_instruction() {
        let (list, _) = lowered(Some(Target::h200(Elem::F32)));
        let (conv, activation) = (&list[0].operands, &list[1].operands);
        let fused = conv.fused_activation.unwrap();
        assert!(activation.is_fused_into_producer && !conv.is_fused_into_producer);
        assert_eq!((fused.y, fused.slope), (activation.outputs[0], 0.0));
        assert_eq!(
            (fused.residual, fused.mask),
            (None, None),
            "the filter in front is frozen, so no mask is saved"
        );
        assert!(lowered(None).0.iter().all(|i| i.operands.fused_activation.is_none()));
    }
}
