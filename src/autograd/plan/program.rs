//! The part of a plan that runs on a GPU: every instruction as launches of kernels.

use super::{Instruction, Phase};
use crate::autograd::tape::Tape;
use crate::device::gpu::launch::{KernelArg, Launch};
use crate::device::gpu::machine::{Machine, Ready, ring_rows};
use crate::device::gpu::target::Target;
use crate::device::{Slot, Space};
use crate::error::Result;
use crate::ops::fusion::Fusion;
use crate::ops::launch::launches::Launches;
use crate::ops::operands::Operands;
use crate::ops::operator::Operator;
use crate::tensor::Elem;

/// The part of a plan that runs on a GPU.
pub(super) struct Program {
    pub(super) launches: Vec<Launch>,
    /// What launch `i` is for.
    pub(super) labels: Vec<String>,
    /// The instructions that launch `i` belongs to, a member each; none of those that the plan adds itself.
    pub(super) owners: Vec<Vec<usize>>,
    pub(super) ready: Option<Ready>,
    /// Buffers of the store that a step changes.
    pub(super) updates: Vec<u32>,
}

/// How a GPU stores each value; leaves are f32.
pub(super) fn element_types(tape: &Tape, fusions: &[Fusion], map_dtype: Elem) -> Vec<Elem> {
    let mut elems = vec![Elem::F32; tape.values.len()];
    for (node, fusion) in tape.nodes.iter().zip(fusions) {
        let inputs: Vec<Elem> = node.inputs.iter().map(|v| elems[tape.root(*v)]).collect();
        for v in &node.outputs {
            elems[tape.root(*v)] = fusion.output_elem(tape.shape(*v), &inputs, map_dtype);
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

    /// The launches of all instructions in order, those of one time merged where they can be, then one that stores the
    /// metrics.
    pub(super) fn new(
        instructions: &[Instruction],
        seed: Option<(usize, Slot)>,
        metrics: &[Slot],
        target: &Target,
    ) -> Result<Program> {
        let mut p =
            Program { launches: vec![], labels: vec![], owners: vec![], ready: None, updates: vec![] };
        let mut first = 0;
        for group in instructions.chunk_by(|a, b| a.time == b.time) {
            if let Some((_, slot)) = seed.filter(|(at, _)| *at == first) {
                let args = vec![KernelArg::Slot(slot), 1.0f32.into(), (slot.bytes as i64 / 4).into()];
                p.add(Launch::new("fill", [1, 1, 1], 32, 0, args)?, "the loss's gradient".into(), vec![]);
            }
            let mut lists = Vec::new();
            for Instruction { op, phase, scope, operands, .. } in group {
                let mut l = Launches::new(op.name(), operands, target);
                match phase {
                    Phase::Forward | Phase::Update => op.launch_forward(&mut l)?,
                    Phase::Backward => op.launch_backward(&mut l)?,
                }
                let Operands { input_shapes: x, output_shapes: y, .. } = operands;
                let part = if scope.is_empty() { String::new() } else { format!(" ({scope})") };
                lists.push((l.list, format!("{} {phase:?}{part} of {x:?} -> {y:?}", op.name())));
            }
            if may_interleave(group, &lists) {
                let steps = lists[0].0.len();
                for k in 0..steps {
                    let start = p.launches.len();
                    for (i, (list, label)) in lists.iter().enumerate() {
                        p.join_or_add(start, &list[k], label, first + i);
                    }
                }
            } else {
                for (i, (list, label)) in lists.into_iter().enumerate() {
                    list.into_iter().for_each(|l| p.add(l, label.clone(), vec![first + i]));
                }
            }
            first += group.len();
        }
        if !metrics.is_empty() {
            let table = KernelArg::Table(metrics.iter().map(|s| KernelArg::Slot(*s)).collect());
            let (count, rows) = (metrics.len() as i32, ring_rows(metrics.len()) as i32);
            let args = vec![KernelArg::Ring, table, count.into(), rows.into(), KernelArg::Step];
            p.add(Launch::new("push_metrics", [1, 1, 1], 64, 0, args)?, "the metrics".into(), vec![]);
        }
        let in_store = |s: Slot| match s.space {
            Space::Store(i) => Some(i),
            Space::Arena => None,
        };
        let forward = instructions.iter().filter(|i| i.phase != Phase::Backward);
        p.updates = forward.flat_map(Instruction::updates).filter_map(in_store).collect();
        p.updates.sort_unstable();
        p.updates.dedup();
        Ok(p)
    }

    fn add(&mut self, launch: Launch, label: String, owners: Vec<usize>) {
        self.launches.push(launch);
        self.labels.push(label);
        self.owners.push(owners);
    }

    /// Makes a launch a member of one from `start` on, or adds it; in either case behind whoever touches what it writes.
    fn join_or_add(&mut self, start: usize, launch: &Launch, label: &str, owner: usize) {
        let written: Vec<Slot> = launch.writes().collect();
        let touches = |l: &Launch| l.operands().iter().any(|(slot, _)| written.contains(slot));
        let end = self.launches.len();
        let first = (start..end).rev().find(|i| touches(&self.launches[*i])).map_or(start, |i| i + 1);
        match (first..end).find(|i| self.launches[*i].join(launch)) {
            Some(i) => self.owners[i].push(owner),
            None => self.add(launch.clone(), label.into(), vec![owner]),
        }
    }
}

/// Whether the launches of these instructions may run in turns, the first of each, then the second of each: not if one
/// writes a gradient that another reads, or writes elsewhere among its operands. A gradient that all add to with the same
/// kernels gets its additions in the order of the instructions (`join_or_add`).
fn may_interleave(group: &[Instruction], lists: &[(Vec<Launch>, String)]) -> bool {
    let touched = |i: &Instruction| -> Vec<(usize, Slot)> {
        let o = &i.operands;
        let outputs = o.output_grads.iter().copied();
        let all = outputs.chain(o.input_grads.iter().map(|g| g.map(|(s, _)| s))).enumerate();
        all.filter_map(|(place, slot)| Some((place, slot?))).collect()
    };
    let kernels = |list: &[Launch]| list.iter().map(|l| l.kernel.name).collect::<Vec<_>>();
    let conflict = |a: &Instruction, b: &Instruction| {
        let (a, b) = (touched(a), touched(b));
        a.iter().any(|(place, slot)| b.iter().any(|(other, s)| s == slot && other != place))
    };
    let conflicts = (0..group.len()).any(|i| group[..i].iter().any(|earlier| conflict(earlier, &group[i])));
    group.len() > 1 && !conflicts && lists.iter().all(|(l, _)| kernels(l) == kernels(&lists[0].0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A convolution that writes to arena slot `y`, with that slope.
    fn launch(y: usize, slope: f32) -> Launch {
        let slot = |i: usize| KernelArg::Slot(Slot { space: Space::Arena, offset: i << 10, bytes: 1 << 10 });
        let null = || KernelArg::Null;
        let io = [slot(y), null(), null(), slot(100 + y), slot(200), null(), null(), null()];
        let dims = KernelArg::Structure("Conv2dDims", vec![0; 44]);
        let args = vec![KernelArg::group_of_one("Conv2dForward", io), dims, slope.into()];
        Launch::new("conv2d_fwd<float, 64, 64>", [1, 1, 1], 256, 0, args).unwrap()
    }

    #[test]
    fn a_launch_joins_no_other_in_front_of_whoever_writes_to_the_same_place() {
        let mut p =
            Program { launches: vec![], labels: vec![], owners: vec![], ready: None, updates: vec![] };
        // The third fits the first, but what it adds to is written by the second.
        for (owner, (y, slope)) in [(1, 0.0), (2, 1.0), (2, 0.0), (3, 1.0), (4, 0.0)].into_iter().enumerate()
        {
            p.join_or_add(0, &launch(y, slope), "", owner);
        }
        assert_eq!(p.owners, [vec![0, 4], vec![1, 3], vec![2]]);
        assert_eq!(p.launches.iter().map(Launch::group_size).collect::<Vec<_>>(), [2, 2, 1]);
    }
}
