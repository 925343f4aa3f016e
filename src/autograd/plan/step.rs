//! What planning has decided about a step before it is given memory.

use super::groups::Groups;
use super::needs::Needs;
use super::storage::Storage;
use crate::autograd::fuse::act_mask::MaskFusions;
use crate::autograd::fuse::channel_stats::{StatsFusion, stats_fusions};
use crate::autograd::fuse::epilogue::Epilogues;
use crate::autograd::fuse::linear_grad::LinearGrads;
use crate::autograd::tape::{Tape, Value};
use crate::device::gpu::target::Target;
use crate::error::{Error, Result};
use crate::tensor::Real;

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
}

impl<'a> Step<'a> {
    /// `R`: the CPU's scalar. `target`: the GPU that the plan is for; none for the CPU.
    ///
    /// Errors: operands that an op refuses.
    pub(crate) fn of<R: Real>(
        tape: &'a Tape,
        loss: Option<Value>,
        target: Option<&Target>,
    ) -> Result<Step<'a>> {
        let needs = Needs::of(tape, loss, target)?;
        let updates = |i: &&usize| !needs.signatures[**i].updates.is_empty();
        let in_segment = |i: &usize| tape.nodes[*i].segment.is_some();
        if let Some(i) = needs.live_nodes().iter().filter(|i| in_segment(i)).find(updates) {
            let op = tape.nodes[*i].op.name();
            return Err(Error::Run(format!(
                "{op} changes an operand in place, so it cannot run twice a step"
            )));
        }
        let storage = Storage::of::<R>(tape, &needs.fusions, target);
        // Before the groups: a producer with an activation in its epilogue also waits for the activation's
        // residual.
        let epilogues = Epilogues::of(tape, &needs.fusions, &needs.live_nodes());
        let groups = Groups::of(tape, &needs, &epilogues);
        // After the groups: which op writes a gradient last depends on the order.
        let nodes = |pass: &mut dyn Iterator<Item = (usize, usize)>| pass.map(|(_, i)| i).collect::<Vec<_>>();
        let masks = MaskFusions::of(tape, &needs.fusions, &nodes(&mut groups.backward_nodes()));
        let stats = stats_fusions(tape, &needs.fusions, &nodes(&mut groups.forward_nodes()));
        let linear_grads = LinearGrads::of(tape, &needs, &groups, &masks);
        Ok(Step { tape, loss, needs, storage, epilogues, groups, masks, stats, linear_grads })
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
