//! The part of a plan that runs on a GPU: every instruction as launches of kernels.

use super::{Instruction, Phase};
use crate::autograd::tape::Tape;
use crate::device::gpu::launch::{Arg as LaunchArg, Launch};
use crate::device::gpu::machine::{Machine, Ready, ring_rows};
use crate::device::{Slot, Space};
use crate::error::Result;
use crate::ops::Operator;
use crate::ops::launches::Launches;
use crate::tensor::Elem;

/// The part of a plan that runs on a GPU.
pub(super) struct Program {
    pub(super) launches: Vec<Launch>,
    /// What launch `i` is for.
    pub(super) labels: Vec<String>,
    /// The instruction that launch `i` belongs to; none of those that the plan adds itself.
    pub(super) owners: Vec<Option<usize>>,
    pub(super) ready: Option<Ready>,
    /// Buffers of the store that a step changes.
    pub(super) updates: Vec<u32>,
}

/// How a GPU stores each value; leaves are f32.
pub(super) fn element_types(tape: &Tape, maps: Elem) -> Vec<Elem> {
    let mut elems = vec![Elem::F32; tape.values.len()];
    for node in &tape.nodes {
        let inputs: Vec<Elem> = node.inputs.iter().map(|v| elems[tape.root(*v)]).collect();
        for v in &node.outputs {
            elems[tape.root(*v)] = node.op.output_elem(tape.shape(*v), &inputs, maps);
        }
    }
    elems
}

impl Program {
    /// The launches with addresses that hold.
    pub(super) fn ready(&mut self, machine: &mut Machine) -> Result<&mut Ready> {
        let ready = match self.ready.take().filter(|r| machine.holds(r)) {
            Some(ready) => ready,
            None => machine.prepare(&self.launches, |i| self.labels[i].clone())?,
        };
        Ok(self.ready.insert(ready))
    }

    /// The launches of all instructions in order, then one that stores the metrics.
    pub(super) fn new(
        instructions: &[Instruction],
        seed: Option<(usize, Slot)>,
        metrics: &[Slot],
        maps: Elem,
    ) -> Result<Program> {
        let (mut launches, mut labels, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        for (i, instruction) in instructions.iter().enumerate() {
            if let Some((_, slot)) = seed.filter(|(at, _)| *at == i) {
                let args = vec![LaunchArg::Slot(slot), 1.0f32.into(), (slot.bytes as i64 / 4).into()];
                launches.push(Launch::new("fill", [1, 1, 1], 32, 0, args)?);
                labels.push("the loss's gradient".into());
                owners.push(None);
            }
            let Instruction { op, phase, scope, operands } = instruction;
            let mut l = Launches::new(op.name(), operands, maps);
            match phase {
                Phase::Forward | Phase::Update => op.launch_forward(&mut l)?,
                Phase::Backward => op.launch_backward(&mut l)?,
            }
            let part = if scope.is_empty() { String::new() } else { format!(" ({scope})") };
            let label = format!(
                "{} {phase:?}{part} of {:?} -> {:?}",
                op.name(),
                operands.input_shapes,
                operands.output_shapes
            );
            labels.extend(std::iter::repeat_n(label, l.list.len()));
            owners.extend(std::iter::repeat_n(Some(i), l.list.len()));
            launches.append(&mut l.list);
        }
        if !metrics.is_empty() {
            let table = LaunchArg::Table(metrics.iter().map(|s| LaunchArg::Slot(*s)).collect());
            let (count, rows) = (metrics.len() as i32, ring_rows(metrics.len()) as i32);
            let args = vec![LaunchArg::Ring, table, count.into(), rows.into(), LaunchArg::Step];
            launches.push(Launch::new("push_metrics", [1, 1, 1], 64, 0, args)?);
            labels.push("the metrics".into());
            owners.push(None);
        }
        let in_store = |s: Slot| match s.space {
            Space::Store(i) => Some(i),
            Space::Arena => None,
        };
        let forward = instructions.iter().filter(|i| i.phase != Phase::Backward);
        let mut updates: Vec<u32> = forward.flat_map(Instruction::updates).filter_map(in_store).collect();
        updates.sort_unstable();
        updates.dedup();
        Ok(Program { launches, labels, owners, ready: None, updates })
    }
}
