//! One instruction of a plan: what runs, and the memory of its operands.

use crate::device::Slot;
use crate::ops::Op;
use crate::ops::operands::Operands;
use crate::ops::operator::{OperandInfo, Operator};

/// The part of a step that an instruction belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// An op computes its outputs.
    Forward,
    /// An op computes the gradients of its inputs.
    Backward,
    /// An optimiser updates parameters.
    Update,
}

pub(crate) struct Instruction {
    pub op: Op,
    pub phase: Phase,
    /// The scope of the tape that the op was recorded in.
    pub scope: &'static str,
    /// Instructions of equal time do not depend on each other; their launches may be merged.
    pub time: usize,
    pub operands: Operands,
}

impl Instruction {
    fn infos(&self) -> Vec<OperandInfo> {
        let Operands { input_shapes, input_grads, .. } = &self.operands;
        let needs_grad = |i: usize| input_grads.get(i).is_some_and(Option::is_some);
        let info = |(i, shape): (usize, &_)| OperandInfo { shape: *shape, needs_grad: needs_grad(i) };
        input_shapes.iter().enumerate().map(info).collect()
    }
    /// Whether another instruction computes the gradients of the same inputs.
    pub(crate) fn needs_alike(&self, other: &Instruction) -> bool {
        let [mine, theirs] = [self, other].map(|i| i.operands.input_grads.iter().map(Option::is_some));
        mine.eq(theirs)
    }
    /// The inputs that forward or an update changes in place.
    pub(crate) fn updates(&self) -> Vec<Slot> {
        let updates = self.op.signature(&self.infos()).map(|s| s.updates).unwrap_or_default();
        updates.into_iter().map(|u| self.operands.inputs[u]).collect()
    }
    /// Additions and multiplications: two for each multiply-add.
    pub(crate) fn flops(&self) -> u64 {
        let macs = self.op.signature(&self.infos()).map(|s| match self.phase {
            Phase::Forward => s.macs_forward,
            Phase::Backward => s.macs_backward,
            Phase::Update => 0,
        });
        2 * macs.unwrap_or(0)
    }
}

/// The gradient of the loss with respect to itself, which is 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LossGrad {
    /// It is stored before this instruction, the first of backward.
    pub before: usize,
    pub slot: Slot,
}
