//! Which nodes of a tape matter, and what they say of themselves.

use crate::autograd::tape::{Node, Tape, Value};
use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::ops::fusion::Fusion;
use crate::ops::operator::{OperandInfo, Operator, Signature};
use crate::tensor::Shape;

/// What a step needs of its tape.
pub(super) struct Needs {
    /// By node: whether anybody looks at what it does.
    pub(super) live: Vec<bool>,
    pub(super) signatures: Vec<Signature>,
    /// By node: the fusions that it can take part in; the CPU fuses nothing.
    pub(super) fusions: Vec<Fusion>,
    /// By the value that owns the memory: whether the loss depends, through it, on something that learns.
    reaches: Vec<bool>,
}

impl Needs {
    /// `target`: the GPU that the plan is for; none for the CPU.
    pub(super) fn of(tape: &Tape, loss: Option<Value>, target: Option<&Target>) -> Result<Needs> {
        let at = |v: &Value| tape.root(*v);
        let (mut used, mut reaches) = (vec![false; tape.values.len()], vec![false; tape.values.len()]);
        for v in tape.outputs.iter().chain(tape.metrics.iter().map(|(_, v)| v)).chain(&loss) {
            used[at(v)] = true;
        }
        if let Some(loss) = loss {
            reaches[at(&loss)] = tape.needs_grad(loss);
        }
        let mut live = vec![false; tape.nodes.len()];
        let fusions = tape.nodes.iter().map(|n| target.map_or_else(Fusion::default, |t| fusion(tape, n, t)));
        let fusions = fusions.collect();
        let mut signatures: Vec<Signature> = Vec::with_capacity(tape.nodes.len());
        for (i, node) in tape.nodes.iter().enumerate().rev() {
            let back = node.outputs.iter().any(|v| reaches[at(v)]);
            let args: Vec<OperandInfo> = node
                .inputs
                .iter()
                .map(|v| OperandInfo { shape: tape.shape(*v), needs_grad: back && tape.needs_grad(*v) })
                .collect();
            let mut signature = node.op.signature(&args)?;
            if let Some(target) = target {
                node.op.device_extents(&args, target, &mut signature);
            }
            live[i] = node.outputs.iter().any(|v| used[at(v)]) || !signature.updates.is_empty();
            if live[i] {
                for (v, arg) in node.inputs.iter().zip(&args) {
                    used[at(v)] = true;
                    reaches[at(v)] |= arg.needs_grad;
                }
            }
            signatures.push(signature);
        }
        signatures.reverse();
        Ok(Needs { live, signatures, fusions, reaches })
    }
    /// Whether a gradient flows back to this value.
    pub(super) fn has_gradient(&self, tape: &Tape, v: Value) -> bool {
        self.reaches[tape.root(v)]
    }
    /// Whether node `i` runs backward.
    pub(super) fn has_back(&self, tape: &Tape, i: usize) -> bool {
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
