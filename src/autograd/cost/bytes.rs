//! Bytes that a plan moves, and what a plan costs as a whole.

use crate::autograd::plan::instruction::{Instruction, Phase};
use crate::autograd::plan::program::Program;
use crate::device::Slot;
use crate::device::gpu::pointer::Pointer;
use crate::ops::operands::Write;
use crate::ops::operator::Operator;

/// What one replay of a plan costs, known before anything has run.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Cost {
    /// Forward, backward and update instructions.
    pub instructions: usize,
    /// Memory that a step needs beside the store.
    pub arena_bytes: usize,
    /// Multiply-adds of all ops that count them in their signature: convolutions, linear layers, and the
    /// products of `se_filter`, `feature_loss` and `diversity`.
    pub macs: u64,
    /// Bytes read and written: on a GPU by all launches, on the CPU by all instructions. Each operand counts
    /// once, and twice if a GPU reads it before it overwrites it.
    pub bytes_moved: u64,
    /// Kernel launches of a GPU; 0 for a plan of the CPU.
    pub launches: usize,
    /// Elements of the tensors that the optimisers change.
    pub trained_elements: usize,
}

/// See [`Cost::bytes_moved`].
pub(crate) fn bytes_moved(instructions: &[Instruction], program: Option<&Program>) -> u64 {
    let Some(program) = program else {
        return instructions.iter().map(|i| i.operands.bytes()).sum();
    };
    (0..program.launches.len()).map(|i| launch_bytes(instructions, program, i)).sum()
}

/// The instructions that launch `i` runs; none for a launch that the plan itself adds.
pub(crate) fn owners<'a>(
    instructions: &'a [Instruction],
    program: &Program,
    i: usize,
) -> Vec<&'a Instruction> {
    program.owners[i].iter().map(|o| &instructions[*o]).collect()
}

/// Bytes that launch `i` moves, a lower bound of its traffic. Each operand counts once, and twice if it is read before it is
/// overwritten (an optimiser's state, a gradient that is added to).
pub(crate) fn launch_bytes(instructions: &[Instruction], program: &Program, i: usize) -> u64 {
    let mut twice: Vec<Slot> = Vec::new();
    // Operands of which forward touches only some bytes: the rows that it takes from a bank of images.
    let mut parts: Vec<(Slot, usize)> = Vec::new();
    for o in owners(instructions, program, i) {
        let added = o.operands.input_grads.iter().flatten().filter(|(_, w)| *w == Write::Add);
        twice.extend(added.map(|(slot, _)| *slot));
        if o.phase != Phase::Backward {
            let inputs = o.operands.inputs.iter().enumerate();
            let touched = inputs.map(|(i, slot)| (*slot, o.op.touched_bytes(&o.operands, i) as usize));
            parts.extend(touched.filter(|(slot, touched)| *touched < slot.bytes));
            // Rows of a bank are overwritten without being read.
            twice.extend(o.updates().into_iter().filter(|slot| parts.iter().all(|(s, _)| s != slot)));
        }
    }
    let moved = |pointer: Pointer| {
        let (slot, bytes) = (pointer.slot(), pointer.bytes());
        if matches!(pointer, Pointer::Bf16Copy(_)) {
            // An optimiser writes only the copies that are read. Here that is by a convolution of this plan.
            return if program.copies.contains(&slot) { bytes as u64 } else { 0 };
        }
        let touched = parts.iter().find(|(s, _)| *s == slot).map_or(bytes, |(_, touched)| *touched);
        (touched.min(bytes) * if twice.contains(&slot) { 2 } else { 1 }) as u64
    };
    program.launches[i].operands().into_iter().map(moved).sum()
}

#[cfg(test)]
mod tests {
    use crate::autograd::tape::{Learn, Tape};
    use crate::autograd::{Engine, Optimiser, Plan};
    use crate::device::gpu::card::Card;
    use crate::device::gpu::target::Target;
    use crate::ops::layers::activation::{Act, Activation};
    use crate::ops::layers::batch_norm::{BatchNorm, Stats};
    use crate::ops::layers::conv2d::Conv2d;
    use crate::ops::layers::global_avg_pool::GlobalAvgPool;
    use crate::ops::losses::activation_loss::ActivationLoss;
    use crate::ops::optim::sgd::Sgd;
    use crate::ops::random::noise::Noise;
    use crate::tensor::{Elem, Shape};

    /// Bytes of the optimiser's launch for a filter of 64 elements, whose convolution a batch norm may follow.
    fn bytes_of_update(is_normalised: bool) -> u64 {
        let mut e = Engine::<f32>::planning(Target::h200(Elem::Bf16));
        let shape = Shape::new(8, 1, 1, 8);
        let [w, moment] = ["w", "moment"].map(|n| e.store.add(n, shape));
        let vectors = ["gamma", "beta", "mean", "var"].map(|n| e.store.add(n, Shape::vector(8)));
        let mut t = Tape::default();
        let x = t.apply(Noise { shape: Shape::new(2, 4, 4, 8), stream: 1 }, &[]).unwrap();
        let x = t.apply(Activation(Act::Tanh), &[x]).unwrap();
        let wv = t.leaf(&e.store, w, Learn::Trainable);
        let mut y = t.apply(Conv2d::new(1, 0), &[x, wv]).unwrap();
        if is_normalised {
            let [a, b, c, d] = vectors.map(|v| t.leaf(&e.store, v, Learn::Frozen));
            let bn = BatchNorm { stats: Stats::Running, act: Act::None, momentum: 0.1, eps: 1e-5 };
            y = t.apply(bn, &[y, a, b, c, d]).unwrap();
        }
        let y = t.apply(GlobalAvgPool, &[y]).unwrap();
        let loss = t.apply(ActivationLoss { mean_over_features: true }, &[y]).unwrap();
        let op = Sgd { lr_slot: 0, momentum: 0.9, weight_decay: 0.0 }.into();
        let sgd = Optimiser { op, tensors: vec![(w, vec![moment])] };
        let plan = Plan::compile(&t, &e.store, Some(loss), &[sgd]).unwrap();
        let rows = plan.traffic(<&Card>::default());
        rows.into_iter().find(|r| r.op == "sgd").unwrap().sum.bytes_moved
    }

    /// The gradient is read, the filter and its moment are read and written: 5 x 256 bytes. The bf16 copy is written, 128
    /// bytes, where the convolution reads it; with a folded batch norm it reads another filter.
    #[test]
    fn a_bf16_copy_counts_once_and_only_where_it_is_read() {
        assert_eq!([false, true].map(bytes_of_update), [5 * 256 + 128, 5 * 256]);
    }
}
