//! What planning has decided about a step before it is given memory.

use super::groups::Groups;
use super::needs::Needs;
use super::storage::Storage;
use crate::autograd::fuse::act_mask::MaskFusions;
use crate::autograd::fuse::channel_stats::{StatsFusion, stats_fusions};
use crate::autograd::fuse::epilogue::Epilogues;
use crate::autograd::fuse::linear_grad::LinearGrads;
use crate::autograd::tape::{Tape, Value};
use crate::device::division::Division;
use crate::device::gpu::target::Target;
use crate::error::{Error, Result};
use crate::tensor::Real;
use std::collections::HashSet;

/// A recorded step, with the results of the passes that need no addresses.
pub(crate) struct Step<'a> {
    pub tape: &'a Tape,
    pub loss: Option<Value>,
    pub needs: Needs,
    pub storage: Storage<'a>,
    pub epilogues: Epilogues,
    pub groups: Groups,
    pub masks: MaskFusions,
    pub stats: Vec<StatsFusion>,
    pub linear_grads: LinearGrads,
    pub division: Division,
}

/// Checks that the second run of a segment reads what the first one has read.
///
/// Errors: an op that changes an operand in place which an op of a segment reads.
fn expect_repeatable(tape: &Tape, needs: &Needs) -> Result<()> {
    let nodes = needs.live_nodes();
    let in_segments = nodes.iter().filter(|i| tape.nodes[**i].segment.is_some());
    let read: HashSet<usize> =
        in_segments.flat_map(|i| tape.nodes[*i].inputs.iter().map(|v| tape.root(*v))).collect();
    for i in nodes {
        let node = &tape.nodes[i];
        if needs.signatures[i].updates.iter().any(|u| read.contains(&tape.root(node.inputs[*u]))) {
            let message = "changes an operand in place, which a segment of the tape reads twice a step";
            return Err(Error::Run(format!("{}: {message}", node.op.name())));
        }
    }
    Ok(())
}

/// The division of the tape's batch. A GPU has the whole batch, which it adds in an order of its own.
///
/// Errors: several ranks with GPUs.
fn division(tape: &Tape, target: Option<&Target>) -> Result<Division> {
    match target {
        None => Ok(tape.division),
        Some(_) if tape.division.ranks().is_none() => Ok(Division::default()),
        Some(_) => {
            Err(Error::NoDevice("several ranks divide a batch on the CPU only; add --device cpu".into()))
        }
    }
}

impl<'a> Step<'a> {
    /// `R`: the CPU's scalar. `target`: the GPU that the plan is for; none for the CPU.
    ///
    /// Errors: operands that an op refuses; ranks with GPUs that divide a batch; those of [`expect_repeatable`].
    pub(crate) fn of<R: Real>(
        tape: &'a Tape,
        loss: Option<Value>,
        target: Option<&Target>,
    ) -> Result<Step<'a>> {
        let division = division(tape, target)?;
        let needs = Needs::of(tape, loss, target)?;
        expect_repeatable(tape, &needs)?;
        let storage = Storage::of::<R>(tape, &needs.fusions, target);
        // Before the groups: a producer with an activation in its epilogue also waits for the activation's
        // residual.
        let epilogues = Epilogues::of(tape, loss, &needs, &storage);
        let groups = Groups::of(tape, &needs, &epilogues);
        // After the groups: which op writes a gradient last depends on the order.
        let nodes = |pass: &mut dyn Iterator<Item = (usize, usize)>| pass.map(|(_, i)| i).collect::<Vec<_>>();
        let masks = MaskFusions::of(tape, &needs.fusions, &nodes(&mut groups.backward_nodes()));
        let stats = stats_fusions(tape, &needs.fusions, &nodes(&mut groups.forward_nodes()));
        let linear_grads = LinearGrads::of(tape, &needs, &groups, &masks);
        Ok(Step { tape, loss, needs, storage, epilogues, groups, masks, stats, linear_grads, division })
    }
    /// The inputs of node `i` whose gradients are added after backward, each with the backward scratch buffer of its parts:
    /// trained tensors, whose gradients only an optimiser reads, and what is computed from them alone, whose gradients are
    /// read after backward.
    pub(crate) fn late_inputs(&self, i: usize) -> impl Iterator<Item = (usize, usize)> {
        let is_late = move |input: usize| {
            let root = self.tape.root(self.tape.nodes[i].inputs[input]);
            let info = &self.tape.values[root];
            info.needs_grad && (info.leaf.is_some() || self.needs.is_read_late[root])
        };
        self.needs.signatures[i].late_sums.iter().copied().filter(move |(input, _)| is_late(*input))
    }
    /// Multiply-adds of all ops that count them in their signature, forward and backward.
    pub(crate) fn macs(&self) -> u64 {
        let signature = |i: usize| &self.needs.signatures[i];
        let forward = self.groups.forward_nodes().chain(self.groups.again_nodes());
        let forward = forward.map(|(_, i)| signature(i).macs_forward);
        let backward = self.groups.backward_nodes().map(|(_, i)| signature(i).macs_backward);
        forward.chain(backward).sum()
    }
}
