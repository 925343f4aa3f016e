//! The part of a plan that runs on a GPU: every instruction as launches of kernels.

use super::instruction::{Instruction, LossGrad, Phase};
use crate::device::gpu::launch::{KernelArg, Launch, MAX_GROUP};
use crate::device::gpu::machine::{Machine, Ready, copies_read, ring_rows};
use crate::device::gpu::target::Target;
use crate::device::{Slot, Space};
use crate::error::Result;
use crate::ops::launch::late_sums::{self, LateSum};
use crate::ops::launch::launches::Launches;
use crate::ops::operands::Operands;
use crate::ops::operator::Operator;
use std::collections::HashSet;

/// The launches of a step, in order.
#[derive(Default)]
pub(crate) struct Program {
    pub launches: Vec<Launch>,
    /// By launch: op, phase, scope and shapes.
    pub labels: Vec<String>,
    /// By launch: the instructions that it runs, one for each member of a grouped launch; none for a launch
    /// that the plan itself adds (the gradient of the loss, the metrics).
    pub owners: Vec<Vec<usize>>,
    /// The launches with addresses, if they have been prepared.
    pub ready: Option<Ready>,
    /// The buffers of the store that a step changes, sorted.
    pub updates: Vec<u32>,
    /// The tensors whose bf16 copies a launch reads: optimisers write no others.
    pub copies: HashSet<Slot>,
}

impl Program {
    /// The launches of all instructions in order, those of equal time merged where they can be, and a last
    /// launch that stores the metrics in the machine's ring.
    ///
    /// Errors: operands that no kernel of an op takes.
    pub(crate) fn new(
        instructions: &[Instruction],
        loss_grad: Option<LossGrad>,
        metrics: &[Slot],
        target: &Target,
    ) -> Result<Program> {
        let mut program = Program::default();
        let mut late = Late::default();
        let mut first = 0;
        for group in instructions.chunk_by(|a, b| a.time == b.time) {
            if let Some(grad) = loss_grad.filter(|g| g.before == first) {
                program.add_loss_grad(grad.slot)?;
            }
            // More than a launch holds need not be counted: 32 teachers have 3,000 statistics losses.
            let alike = |i: &Instruction| group.iter().filter(|j| i.needs_alike(j)).take(MAX_GROUP).count();
            let lists: Vec<_> = group.iter().map(|i| launches(i, alike(i), target)).collect::<Result<_>>()?;
            if group[0].phase == Phase::Update || lists.iter().any(|(l, _)| late.is_used(&l.list)) {
                program.add_late_sums(std::mem::take(&mut late), target)?;
            }
            let mut launches = Vec::new();
            for (i, (list, label)) in lists.into_iter().enumerate() {
                late.sums.extend(list.late.into_iter().map(|sum| (sum, first + i)));
                launches.push((list.list, label));
            }
            program.add_group(group, launches, first);
            first += group.len();
        }
        program.add_late_sums(late, target)?;
        if !metrics.is_empty() {
            program.add_metrics(metrics)?;
        }
        let in_store = |s: Slot| match s.space {
            Space::Store(i) => Some(i),
            Space::Arena => None,
        };
        let forward = instructions.iter().filter(|i| i.phase != Phase::Backward);
        program.updates = forward.flat_map(Instruction::updates).filter_map(in_store).collect();
        program.updates.sort_unstable();
        program.updates.dedup();
        program.copies = copies_read(&program.launches).collect();
        Ok(program)
    }

    /// The launches with addresses that are still valid on this machine.
    ///
    /// Errors: no memory for their tables.
    pub(crate) fn ready(&mut self, machine: &mut Machine) -> Result<&mut Ready> {
        let ready = match self.ready.take().filter(|r| machine.holds(r)) {
            Some(ready) => ready,
            None => machine.prepare(&self.launches, |i| self.labels[i].clone())?,
        };
        Ok(self.ready.insert(ready))
    }

    fn add_loss_grad(&mut self, slot: Slot) -> Result<()> {
        let elements = slot.bytes as i64 / 4;
        let args = vec![KernelArg::Slot(slot), 1.0f32.into(), elements.into()];
        self.add(Launch::new("fill", [1, 1, 1], 32, 0, args)?, "the loss's gradient".into(), vec![]);
        Ok(())
    }

    /// Adds what instructions have left to be added.
    fn add_late_sums(&mut self, late: Late, target: &Target) -> Result<()> {
        let (sums, owners): (Vec<LateSum>, Vec<usize>) = late.sums.into_iter().unzip();
        for (launch, positions) in late_sums::launches(&sums, target)? {
            let label = format!("parts of {} gradients", positions.len());
            let mut owners: Vec<usize> = positions.into_iter().map(|i| owners[i]).collect();
            owners.dedup();
            self.add(launch, label, owners);
        }
        Ok(())
    }

    fn add_metrics(&mut self, metrics: &[Slot]) -> Result<()> {
        let table = KernelArg::Table(metrics.iter().map(|s| KernelArg::Slot(*s)).collect());
        let (count, rows) = (metrics.len() as i32, ring_rows(metrics.len()) as i32);
        let args = vec![KernelArg::Ring, table, count.into(), rows.into(), KernelArg::Step];
        self.add(Launch::new("push_metrics", [1, 1, 1], 64, 0, args)?, "the metrics".into(), vec![]);
        Ok(())
    }

    /// Adds the launches of instructions of equal time; `first` is the index of the first instruction. Of
    /// those with the same kernels, the first launch of each runs before the second of each.
    fn add_group(&mut self, group: &[Instruction], lists: Vec<(Vec<Launch>, String)>, first: usize) {
        if group.len() == 1 || have_conflicts(group, &lists) {
            for (i, (list, label)) in lists.into_iter().enumerate() {
                list.into_iter().for_each(|l| self.add(l, label.clone(), vec![first + i]));
            }
            return;
        }
        let mut rest: Vec<usize> = (0..lists.len()).collect();
        while let Some(&leader) = rest.first() {
            let is_alike = |i: &usize| families(&lists[*i].0) == families(&lists[leader].0);
            let (alike, others): (Vec<usize>, Vec<usize>) = rest.into_iter().partition(is_alike);
            for k in 0..lists[leader].0.len() {
                let start = self.launches.len();
                for i in &alike {
                    let (list, label) = &lists[*i];
                    self.join_or_add(start, &list[k], label, first + i);
                }
            }
            rest = others;
        }
    }

    fn add(&mut self, launch: Launch, label: String, owners: Vec<usize>) {
        self.launches.push(launch);
        self.labels.push(label);
        self.owners.push(owners);
    }

    /// Joins a launch to one of those from `start` on, or adds it; either way after the last of them that
    /// uses memory which this launch writes.
    fn join_or_add(&mut self, start: usize, launch: &Launch, label: &str, owner: usize) {
        let written: Vec<Slot> = launch.writes().collect();
        let end = self.launches.len();
        let first = (start..end).rev().find(|i| self.launches[*i].uses(&written)).map_or(start, |i| i + 1);
        match (first..end).find(|i| self.launches[*i].join(launch)) {
            Some(i) => self.owners[i].push(owner),
            None => self.add(launch.clone(), label.into(), vec![owner]),
        }
    }
}

/// What instructions leave to be added, each with the instruction's index.
#[derive(Default)]
struct Late {
    sums: Vec<(LateSum, usize)>,
}

impl Late {
    /// Whether one of these launches uses a gradient that is not complete yet.
    fn is_used(&self, launches: &[Launch]) -> bool {
        if self.sums.is_empty() {
            return false;
        }
        let incomplete: HashSet<Slot> = self.sums.iter().map(|(sum, _)| sum.to).collect();
        launches.iter().any(|l| l.operands().iter().any(|p| incomplete.contains(&p.slot())))
    }
}

/// The launches of one instruction of so many alike that run together, and their label.
fn launches<'a>(
    instruction: &'a Instruction,
    members: usize,
    target: &Target,
) -> Result<(Launches<'a>, String)> {
    let Instruction { op, phase, scope, operands, .. } = instruction;
    let mut l = Launches::new(op.name(), operands, target).among(members);
    match phase {
        Phase::Forward | Phase::Update => op.launch_forward(&mut l)?,
        Phase::Backward => op.launch_backward(&mut l)?,
    }
    let Operands { input_shapes: x, output_shapes: y, .. } = operands;
    let scope = if scope.is_empty() { String::new() } else { format!(" ({scope})") };
    Ok((l, format!("{} {phase:?}{scope} of {x:?} -> {y:?}", op.name())))
}

fn families(list: &[Launch]) -> Vec<&'static str> {
    list.iter().map(Launch::family).collect()
}

/// Whether the order of these instructions' launches must not change: a gradient that one instruction uses is
/// another operand of a second one, or the same operand of one with other kernels. Instructions with the same
/// kernels may add to the same gradient: `join_or_add` keeps these additions in the order of the
/// instructions.
fn have_conflicts(group: &[Instruction], lists: &[(Vec<Launch>, String)]) -> bool {
    let gradients = |i: &Instruction| -> Vec<(usize, Slot)> {
        let Operands { output_grads, input_grads, .. } = &i.operands;
        let all = output_grads.iter().copied().chain(input_grads.iter().map(|g| g.map(|(s, _)| s)));
        all.enumerate().filter_map(|(place, slot)| Some((place, slot?))).collect()
    };
    let gradients: Vec<Vec<(usize, Slot)>> = group.iter().map(gradients).collect();
    // In forward there are none. 32 teachers have 3,000 statistics losses.
    if gradients.iter().all(Vec::is_empty) {
        return false;
    }
    let conflict = |i: usize, j: usize| {
        let (a, b) = (&gradients[i], &gradients[j]);
        let are_alike = families(&lists[i].0) == families(&lists[j].0);
        a.iter().any(|(place, slot)| b.iter().any(|(other, s)| s == slot && !(other == place && are_alike)))
    };
    (0..group.len()).any(|i| (0..i).any(|earlier| conflict(earlier, i)))
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
    fn members_of_a_table_may_differ_in_size_and_number() {
        let slot = |i: usize| KernelArg::Slot(Slot { space: Space::Arena, offset: i << 10, bytes: 4 });
        let launch = |y: usize, blocks: u32| {
            let map = KernelArg::member([slot(y), slot(100), slot(200 + y)]);
            Launch::new("statistics_loss_fwd_merge", [blocks, 1, 1], 1024, 0, vec![map]).unwrap()
        };
        let mut p = Program::default();
        for y in 0..20 {
            p.join_or_add(0, &launch(y, [3, 9, 1][y % 3]), "", y);
        }
        assert_eq!((p.launches.len(), p.launches[0].grid), (1, [9, 20, 1]));
        assert_eq!(p.launches[0].group_size(), 20);
        // The loss's place and the statistics of each, and the vector that all share.
        assert_eq!(p.launches[0].operands().len(), 41);
    }

    #[test]
    fn a_launch_joins_no_launch_before_another_that_writes_to_the_same_memory() {
        let mut p = Program::default();
        // The third has the kernel and sizes of the first, but it adds to memory that the second writes.
        for (owner, (y, slope)) in [(1, 0.0), (2, 1.0), (2, 0.0), (3, 1.0), (4, 0.0)].into_iter().enumerate()
        {
            p.join_or_add(0, &launch(y, slope), "", owner);
        }
        assert_eq!(p.owners, [vec![0, 4], vec![1, 3], vec![2]]);
        assert_eq!(p.launches.iter().map(Launch::group_size).collect::<Vec<_>>(), [2, 2, 1]);
    }
}
