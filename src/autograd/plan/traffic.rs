//! What a plan's launches move and multiply, and what they would have to at the least.

use super::program::Program;
use super::{Instruction, Phase, Plan};
use crate::autograd::Store;
use crate::device::Slot;
use crate::device::gpu::card::Card;
use crate::device::gpu::launch::Launch;
use crate::device::gpu::room::{Held, Room};
use crate::ops::{Arg, Operator, Write};
use crate::tensor::{Elem, Real};

/// What the instructions of one op in one part of a step cost on a GPU.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Traffic {
    /// As the tape names it; empty for the rest of the step.
    #[serde(skip)]
    pub part: &'static str,
    /// `plan` for what a plan adds itself: the loss's gradient, the metrics.
    pub op: &'static str,
    pub phase: Phase,
    #[serde(flatten)]
    pub sum: Sum,
}

/// What some instructions cost together.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Sum {
    pub launches: usize,
    /// Additions and multiplications of convolutions and linear layers.
    pub flops: u64,
    /// By the launches that the plan makes.
    pub bytes_moved: u64,
    /// By the ops' [`Operator::minimal_bytes`].
    pub minimal_bytes: u64,
    /// Of the two; none where nothing has to move.
    pub ratio: Option<f64>,
    /// The card's least time for the minimal bytes: of each instruction the longer of moving and multiplying, added up.
    pub roofline_ms: f64,
    /// The same for the bytes moved: these launches cannot be faster.
    pub planned_ms: f64,
}

impl Sum {
    pub fn add(&mut self, o: &Sum) {
        self.launches += o.launches;
        self.flops += o.flops;
        self.bytes_moved += o.bytes_moved;
        self.minimal_bytes += o.minimal_bytes;
        self.ratio = (self.minimal_bytes > 0).then(|| self.bytes_moved as f64 / self.minimal_bytes as f64);
        self.roofline_ms += o.roofline_ms;
        self.planned_ms += o.planned_ms;
    }
}

/// Bytes that a launch moves for these instructions: each of its operands once, and twice what is read before it is
/// overwritten (an optimiser's state, a gradient that is added to). A lower bound of its traffic.
pub(super) fn launch_bytes<'a>(launch: &Launch, owners: impl IntoIterator<Item = &'a Instruction>) -> u64 {
    let (mut twice, mut parts): (Vec<Slot>, Vec<(Slot, usize)>) = Default::default();
    for o in owners {
        let added = o.operands.input_grads.iter().flatten().filter(|(_, w)| *w == Write::Add);
        twice.extend(added.map(|(slot, _)| *slot));
        if o.phase != Phase::Backward {
            let touched = o.operands.inputs.iter().enumerate();
            let rows = touched.map(|(i, slot)| (*slot, o.op.touched_bytes(&o.operands, i) as usize));
            parts.extend(rows.filter(|(slot, touched)| *touched < slot.bytes));
            // A bank's rows are written without a look at what they held.
            twice.extend(o.updates().into_iter().filter(|slot| parts.iter().all(|(s, _)| s != slot)));
        }
    }
    let of = |(slot, bytes): &(Slot, usize)| {
        let touched = parts.iter().find(|(s, _)| s == slot).map_or(*bytes, |(_, touched)| *touched);
        (touched.min(*bytes) * if twice.contains(slot) { 2 } else { 1 }) as u64
    };
    launch.operands().iter().map(of).sum()
}

/// The instructions that launch `i` belongs to; none for what the plan adds itself.
fn owners<'a>(instructions: &'a [Instruction], program: &Program, i: usize) -> Vec<&'a Instruction> {
    program.owners[i].iter().map(|o| &instructions[*o]).collect()
}

/// See [`Cost::bytes_moved`](super::Cost::bytes_moved).
pub(super) fn bytes_moved(instructions: &[Instruction], program: Option<&Program>) -> u64 {
    let Some(program) = program else {
        return instructions.iter().map(|i| i.operands.bytes()).sum();
    };
    let launches = program.launches.iter().enumerate();
    launches.map(|(i, launch)| launch_bytes(launch, owners(instructions, program, i))).sum()
}

impl Instruction {
    /// Multiply-adds, counted twice.
    fn flops(&self) -> u64 {
        let o = &self.operands;
        let wants = |i: usize| o.input_grads.get(i).is_some_and(Option::is_some);
        let arg = |(i, shape): (usize, &_)| Arg { shape: *shape, wants: wants(i) };
        let args: Vec<Arg> = o.input_shapes.iter().enumerate().map(arg).collect();
        let macs = self.op.signature(&args).map(|s| match self.phase {
            Phase::Forward => s.macs_forward,
            Phase::Backward => s.macs_backward,
            Phase::Update => 0,
        });
        2 * macs.unwrap_or(0)
    }
}

impl<R: Real> Plan<R> {
    /// What a GPU holds while this plan runs, after those that found room before.
    pub fn held(&self, store: &Store<R>, room: &mut Room) -> Held {
        let launches = self.program.as_ref().map_or(&[][..], |p| &p.launches);
        room.take(store.buffer_sizes(), launches, self.cost.arena_bytes)
    }

    /// What every op of every part costs on `card`, in the order they first run; nothing for a plan of the CPU's.
    pub fn traffic(&self, card: &Card) -> Vec<Traffic> {
        let Some(program) = &self.program else { return Vec::new() };
        // Of each instruction, then of what is nobody's.
        let mut moved = vec![(0, 0); self.instructions.len() + 1];
        for (i, launch) in program.launches.iter().enumerate() {
            let owners = owners(&self.instructions, program, i);
            let bytes = launch_bytes(launch, owners.iter().copied());
            let places: Vec<usize> = program.owners[i].iter().copied().collect();
            let first = places.first().copied().unwrap_or(self.instructions.len());
            moved[first].0 += 1;
            // A launch that several share is as much each one's; the first takes what does not divide.
            let share = bytes / places.len().max(1) as u64;
            moved[first].1 += bytes - share * places.len() as u64;
            places.iter().for_each(|p| moved[*p].1 += share);
        }
        let mut rows: Vec<Traffic> = Vec::new();
        for (at, (launches, bytes_moved)) in moved.into_iter().enumerate() {
            let owner = self.instructions.get(at);
            let (part, op, phase) = match owner {
                Some(i) => (i.scope, i.op.name(), i.phase),
                None => ("", "plan", Phase::Update),
            };
            let minimal_bytes = owner.map_or(bytes_moved, |i| i.op.minimal_bytes(&i.operands));
            let flops = owner.map_or(0, Instruction::flops);
            let is_bf16 = owner.is_some_and(|i| i.operands.input_elems.first() == Some(&Elem::Bf16));
            let sum = Sum {
                launches,
                flops,
                bytes_moved,
                minimal_bytes,
                ratio: None,
                roofline_ms: 1e3 * card.least_seconds(minimal_bytes, flops, is_bf16),
                planned_ms: 1e3 * card.least_seconds(bytes_moved, flops, is_bf16),
            };
            let found = rows.iter().position(|r| (r.part, r.op, r.phase) == (part, op, phase));
            let place = found.unwrap_or_else(|| {
                rows.push(Traffic { part, op, phase, sum: Sum::default() });
                rows.len() - 1
            });
            rows[place].sum.add(&sum);
        }
        rows
    }
}
