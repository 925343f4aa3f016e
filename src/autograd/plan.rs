//! From a tape to a list of instructions with addresses.
//!
//! Compilation decides, in this order: which nodes matter; which of them run backward; who stores and who adds each
//! gradient; how long every buffer lives; and where it lies in the arena. A replay then only walks the list.

use super::store::{Engine, Store, TensorId};
use super::tape::{Tape, Value};
use crate::device::cpu::par::on_a_worker;
use crate::device::cpu::scratch;
use crate::device::gpu::launch::Launch;
use crate::device::gpu::machine::ring_rows;
use crate::device::memory::{self, Buffer, Memory};
use crate::device::{Slot, Space, StepState};
use crate::error::{Error, Result};
use crate::ops::Op;
use crate::ops::fusion::FusedActivation;
use crate::ops::operands::{Io, Operands, Write};
use crate::ops::operator::{Extent, OperandInfo, Operator};
use crate::tensor::{Elem, Real};
use std::marker::PhantomData;

mod absorb;
mod gates;
mod moments;
mod needs;
mod placer;
mod program;
mod schedule;
mod timing;
mod traffic;

use absorb::Absorbed;
use gates::Gates;
use needs::Needs;
use placer::Placer;
use program::{Program, element_types};
pub use timing::Timing;
pub use traffic::{Sum, Traffic};

/// An update rule and the tensors it owns; every tensor brings its own moments.
pub struct Optimiser {
    pub op: Op,
    /// `(parameter, moments)`, moments in the order that `op` expects.
    pub tensors: Vec<(TensorId, Vec<TensorId>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Forward,
    Backward,
    Update,
}

struct Instruction {
    op: Op,
    phase: Phase,
    /// The part of the step that it belongs to, as the tape names it.
    scope: &'static str,
    /// Instructions of one time do not depend on each other; their launches may be merged.
    time: usize,
    operands: Operands,
}

/// The nodes of each group, with the group's number.
fn each(groups: &[Vec<usize>]) -> impl Iterator<Item = (usize, usize)> {
    groups.iter().enumerate().flat_map(|(t, group)| group.iter().map(move |i| (t, *i)))
}

impl Instruction {
    /// What it changes in place.
    fn updates(&self) -> Vec<Slot> {
        let Operands { inputs, input_shapes, .. } = &self.operands;
        let args: Vec<OperandInfo> =
            input_shapes.iter().map(|s| OperandInfo { shape: *s, needs_grad: false }).collect();
        let updates = self.op.signature(&args).map(|s| s.updates).unwrap_or_default();
        updates.into_iter().map(|u| inputs[u]).collect()
    }
}

/// What a plan costs, before anything has run.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Cost {
    pub instructions: usize,
    pub arena_bytes: usize,
    /// Multiply-adds of convolutions and linear layers.
    pub macs: u64,
    /// Bytes read and written: on a GPU by all launches, on the CPU by all instructions, each operand of theirs counted
    /// once, and twice what is read before it is overwritten.
    pub bytes_moved: u64,
    /// Kernels that a GPU runs; 0 for a plan of the CPU's.
    pub launches: usize,
}

/// The metrics of the replays that were read last.
#[derive(Default)]
struct Readings {
    names: Vec<String>,
    slots: Vec<Slot>,
    /// Steps replayed since; on a GPU their numbers are still in its ring.
    pending: Vec<u64>,
    /// Steps whose numbers are in `values`, a row each.
    steps: Vec<u64>,
    values: Vec<f32>,
}

/// A compiled step.
pub struct Plan<R> {
    instructions: Vec<Instruction>,
    /// Filled with one before backward starts.
    seed: Option<(usize, Slot)>,
    readings: Readings,
    outputs: Vec<(Value, Slot, Elem)>,
    cost: Cost,
    program: Option<Program>,
    /// Whether it ran before, so that the workers' scratch is as large as it will be.
    is_warm: bool,
    scalar: PhantomData<R>,
}

impl<R: Real> Plan<R> {
    /// Compiles a tape. With a `loss`, gradients flow from it to every trainable leaf; `optimisers` then use them.
    pub fn compile(
        tape: &Tape,
        store: &Store<R>,
        loss: Option<Value>,
        optimisers: &[Optimiser],
    ) -> Result<Plan<R>> {
        let n = tape.nodes.len();
        let target = store.target.as_ref();
        // Views (reshaped, detached) share the buffer and the gradient of the value they look at.
        let at = |v: &Value| tape.root(*v);
        let needs = Needs::of(tape, loss, target)?;
        let elems = target.map(|t| element_types(tape, &needs.fusions, t.map_dtype));
        let elem = |v: &Value| elems.as_ref().map_or(Elem::F32, |e| e[at(v)]);
        let reals = |v: &Value| {
            let size = elems.as_ref().map_or(size_of::<R>(), |e| e[at(v)].bytes());
            tape.shape(*v).elems() * size
        };
        let scalar_bytes = if target.is_some() { Elem::F32.bytes() } else { size_of::<R>() };
        let extent = |e: &Extent| match e {
            Extent::Reals(n) => n * scalar_bytes,
            Extent::Bytes(b) => *b,
        };

        let (signatures, fusions) = (&needs.signatures, &needs.fusions);
        let has_back = |i: usize| needs.has_back(tape, i);
        let recorded: Vec<usize> = (0..n).filter(|i| needs.live[*i]).collect();
        // The CPU runs nodes as they were recorded, one by one.
        let is_gpu = target.is_some();
        let absorbed = if is_gpu { Absorbed::of(tape, fusions, &recorded) } else { Absorbed::default() };
        let forward: Vec<Vec<usize>> = if is_gpu {
            schedule::groups(tape, &recorded, &needs, &absorbed)
        } else {
            recorded.into_iter().map(|i| vec![i]).collect()
        };
        let back = |group: &Vec<usize>| group.iter().copied().filter(|i| has_back(*i)).collect::<Vec<_>>();
        let backward: Vec<Vec<usize>> = forward.iter().rev().map(back).filter(|g| !g.is_empty()).collect();
        let update_at = forward.len() + backward.len();
        let end = update_at + optimisers.len();
        let gates = if is_gpu { Gates::of(tape, fusions, &backward) } else { Gates::default() };

        // Lifetimes. Values and gradients of leaves live in the store, except that a leaf's gradient is arena's.
        let mut placer = Placer { lives: Vec::new() };
        let mut value_buffer: Vec<Option<usize>> = vec![None; tape.values.len()];
        let mut grad_buffer: Vec<Option<usize>> = vec![None; tape.values.len()];
        let mut saved: Vec<Vec<usize>> = vec![Vec::new(); n];
        // Time passes from group to group: what the nodes of one touch is alive at once.
        for (t, i) in each(&forward).filter(|(_, i)| !absorbed.is_fused_into_producer(*i)) {
            for i in std::iter::once(i).chain(absorbed.by(i)) {
                let node = &tape.nodes[i];
                for v in &node.outputs {
                    value_buffer[at(v)] = Some(placer.add(reals(v), t));
                }
                for v in &node.inputs {
                    if let Some(b) = value_buffer[at(v)] {
                        placer.extend(b, t);
                    }
                }
                if has_back(i) {
                    saved[i] = signatures[i].saved.iter().map(|e| placer.add(extent(e), t)).collect();
                }
            }
        }
        for v in tape.outputs.iter().chain(tape.metrics.iter().map(|(_, v)| v)).chain(&loss) {
            if let Some(b) = value_buffer[at(v)] {
                placer.extend(b, end);
            }
        }
        let moments = match target {
            Some(_) => moments::place(tape, &needs, &forward, &mut placer),
            None => vec![None; n],
        };
        let loss_grad = loss.filter(|v| needs.has_gradient(tape, *v)).map(|v| {
            let b = placer.add(reals(&v), forward.len());
            grad_buffer[at(&v)] = Some(b);
            b
        });
        let mut writes: Vec<Vec<Option<(usize, Write)>>> = vec![Vec::new(); n];
        // First parts of gradients that nobody has copied from where they lie, and who adds to them there.
        let mut first_parts: Vec<Option<usize>> = vec![None; tape.values.len()];
        let mut first_term: Vec<Option<usize>> = vec![None; n];
        for (k, i) in each(&backward) {
            let (t, node, signature) = (forward.len() + k, &tape.nodes[i], &signatures[i]);
            let gating = gates.by(i).map(|(_, gate)| saved[gate.producer][0]);
            for b in saved[i].iter().copied().chain(gating) {
                placer.extend(b, t);
            }
            let kept = signature.keeps_inputs.iter().map(|j| node.inputs[*j]);
            for v in kept.chain(node.outputs.iter().copied().filter(|_| signature.keeps_outputs)) {
                if let Some(b) = value_buffer[at(&v)] {
                    placer.extend(b, t);
                }
            }
            for v in &node.outputs {
                if let Some(b) = grad_buffer[at(v)] {
                    placer.extend(b, t);
                }
            }
            // Behind its gate, the output's gradient is the first part of this input's, where it lies.
            let passed = fusions[i]
                .grad_alias
                .filter(|_| is_gpu && (gates.dy_is_masked(i) || fusions[i].act_mask.is_none()));
            let copies = passed.is_some_and(|j| j > 0) && fusions[i].copies_grad;
            let mut write = |j: usize, v: &Value| match grad_buffer[at(v)] {
                Some(b) => {
                    placer.extend(b, t);
                    Some((b, Write::Add))
                }
                None if passed == Some(j) && elem(v) == elem(&node.outputs[0]) => {
                    grad_buffer[at(v)] = grad_buffer[at(&node.outputs[0])];
                    None
                }
                None if copies && j == 0 && gates::is_next_added(tape, fusions, &backward, k, i) => {
                    first_parts[at(v)] = grad_buffer[at(&node.outputs[0])];
                    None
                }
                None => {
                    let b = placer.add(reals(v), t);
                    grad_buffer[at(v)] = Some(b);
                    first_term[i] = first_parts[at(v)].take().filter(|_| j == 0);
                    first_term[i].into_iter().for_each(|first| placer.extend(first, t));
                    Some((b, Write::Set))
                }
            };
            writes[i] = node
                .inputs
                .iter()
                .enumerate()
                .map(|(j, v)| if tape.needs_grad(*v) { write(j, v) } else { None })
                .collect();
        }
        let mut leaf_grads = std::collections::HashMap::new();
        for (v, info) in tape.values.iter().enumerate() {
            if let (Some(id), Some(b)) = (info.leaf, grad_buffer[v]) {
                placer.extend(b, end);
                leaf_grads.insert(id, b);
            }
        }
        let scratch = |placer: &mut Placer, extents: &[Extent], t: usize| -> Vec<usize> {
            extents.iter().map(|e| placer.add(extent(e), t)).collect()
        };
        let forward_scratch: Vec<Vec<usize>> =
            each(&forward).map(|(t, i)| scratch(&mut placer, &signatures[i].scratch_forward, t)).collect();
        let backward_scratch: Vec<Vec<usize>> = each(&backward)
            .map(|(k, i)| {
                let mut extents = signatures[i].scratch_backward.clone();
                let unneeded = fusions[i].act_mask.filter(|_| gates.dy_is_masked(i)).and_then(|g| g.scratch);
                if let Some(s) = unneeded {
                    extents[s] = Extent::Bytes(0);
                }
                scratch(&mut placer, &extents, forward.len() + k)
            })
            .collect();

        // Addresses.
        let (offsets, arena_bytes) = placer.place();
        let slot = |b: usize| Slot { space: Space::Arena, offset: offsets[b], bytes: placer.lives[b].bytes };
        let value_slot = |v: &Value| match tape.values[at(v)].leaf {
            Some(id) => store.slot(id),
            None => slot(value_buffer[at(v)].expect("a live node reads a value that no live node writes")),
        };
        let operands = |i: usize, scratch: &[usize]| {
            let node = &tape.nodes[i];
            Operands {
                inputs: node.inputs.iter().map(value_slot).collect(),
                input_shapes: node.inputs.iter().map(|v| tape.shape(*v)).collect(),
                outputs: node.outputs.iter().map(value_slot).collect(),
                output_shapes: node.outputs.iter().map(|v| tape.shape(*v)).collect(),
                input_elems: node.inputs.iter().map(elem).collect(),
                output_elems: node.outputs.iter().map(elem).collect(),
                saved: saved[i].iter().map(|b| slot(*b)).collect(),
                scratch: scratch.iter().map(|b| slot(*b)).collect(),
                ..Default::default()
            }
        };
        let mut instructions = Vec::with_capacity(end);
        for ((t, i), scratch) in each(&forward).zip(&forward_scratch) {
            instructions.push(Instruction {
                op: tape.nodes[i].op.clone(),
                phase: Phase::Forward,
                scope: tape.nodes[i].scope,
                time: t,
                operands: Operands {
                    fused_activation: absorbed.by(i).map(|a| FusedActivation {
                        y: value_slot(&tape.nodes[a].outputs[0]),
                        mask: saved[a].first().map(|b| slot(*b)),
                        residual: tape.nodes[a].inputs.get(1).map(value_slot),
                        slope: fusions[a].act_mask.map_or(1.0, |g| g.slope),
                    }),
                    is_fused_into_producer: absorbed.is_fused_into_producer(i),
                    channel_stats: moments[i].map(|(b, rows)| (slot(b), rows)),
                    ..operands(i, scratch)
                },
            });
        }
        let starts_backward = instructions.len();
        for ((k, i), scratch) in each(&backward).zip(&backward_scratch) {
            let node = &tape.nodes[i];
            let mut applied = vec![None; node.inputs.len()];
            if let Some((j, gate)) = gates.by(i) {
                applied[j] = Some((slot(saved[gate.producer][0]), gate.slope));
            }
            instructions.push(Instruction {
                op: node.op.clone(),
                phase: Phase::Backward,
                scope: node.scope,
                time: forward.len() + k,
                operands: Operands {
                    input_masks: applied,
                    dy_is_masked: gates.dy_is_masked(i),
                    first_term: first_term[i].map(slot),
                    output_grads: node.outputs.iter().map(|v| grad_buffer[at(v)].map(slot)).collect(),
                    input_grads: writes[i].iter().map(|w| w.map(|(b, write)| (slot(b), write))).collect(),
                    ..operands(i, scratch)
                },
            });
        }
        for o in optimisers {
            let mut operands = Operands::default();
            for (id, moments) in &o.tensors {
                // A tensor that the loss does not reach keeps its value: no gradient, no update.
                let Some(grad) = leaf_grads.get(id) else { continue };
                let tensors =
                    [store.slot(*id), slot(*grad)].into_iter().chain(moments.iter().map(|m| store.slot(*m)));
                for s in tensors {
                    operands.inputs.push(s);
                    operands.input_shapes.push(store.shape(*id));
                    operands.input_elems.push(Elem::F32);
                }
            }
            if !operands.inputs.is_empty() {
                let time = instructions.last().map_or(0, |i: &Instruction| i.time) + 1;
                let (op, phase, scope) = (o.op.clone(), Phase::Update, "");
                instructions.push(Instruction { op, phase, scope, time, operands });
            }
        }
        let macs = each(&forward).map(|(_, i)| signatures[i].macs_forward).sum::<u64>()
            + each(&backward).map(|(_, i)| signatures[i].macs_backward).sum::<u64>();
        let seed = loss_grad.map(|b| (starts_backward, slot(b)));
        let readings = Readings {
            names: tape.metrics.iter().map(|(name, _)| name.clone()).collect(),
            slots: tape.metrics.iter().map(|(_, v)| value_slot(v)).collect(),
            ..Readings::default()
        };
        let program = target.map(|t| Program::new(&instructions, seed, &readings.slots, t)).transpose()?;
        let launches = program.as_ref().map_or(0, |p| p.launches.len());
        let bytes_moved = traffic::bytes_moved(&instructions, program.as_ref());
        Ok(Plan {
            seed,
            readings,
            outputs: tape.outputs.iter().map(|v| (*v, value_slot(v), elem(v))).collect(),
            cost: Cost { instructions: instructions.len(), arena_bytes, macs, bytes_moved, launches },
            program,
            instructions,
            is_warm: false,
            scalar: PhantomData,
        })
    }

    /// Makes room in the engine's arena, so that replays allocate nothing.
    ///
    /// Errors: a device without that much memory.
    pub fn reserve(&self, engine: &mut Engine<R>) -> Result<()> {
        if let (Some(machine), Some(program)) = (&mut engine.machine, &self.program) {
            let store = &mut engine.store;
            let arena_bytes = self.cost.arena_bytes;
            return machine.make_room(&store.buffers, &mut store.changed, &program.launches, arena_bytes);
        }
        if engine.arena.bytes() < self.cost.arena_bytes {
            memory::expect_room("the step", self.cost.arena_bytes)?;
            // Nothing in the arena outlives a step: drop the old one before the new one is made.
            engine.arena = Buffer::default();
            engine.arena = Buffer::with_bytes(self.cost.arena_bytes);
        }
        engine.borrows.reserve(self.instructions.iter().map(|i| i.operands.slots()).max().unwrap_or(0));
        Ok(())
    }

    /// Runs the step once. From the second time on it allocates nothing, if the caller is a worker. Outputs are readable
    /// until the engine replays another plan. On a GPU the step is only started; [`Plan::collect`] waits for it.
    ///
    /// Errors: a kernel that fails, named if `DFKA_SYNC=1`; more than [`Plan::most_pending`] replays without `collect`.
    pub fn replay(&mut self, engine: &mut Engine<R>, step: &StepState) -> Result<()> {
        if self.program.is_some() {
            return self.start(engine, step);
        }
        on_a_worker(|| {
            self.run(engine, step);
            if !std::mem::replace(&mut self.is_warm, true) {
                scratch::level();
            }
        });
        Ok(())
    }

    /// Replays that may be started before their metrics are collected: rows of a GPU's ring; one on the CPU.
    pub fn most_pending(&self) -> usize {
        if self.program.is_some() { ring_rows(self.readings.names.len()) } else { 1 }
    }

    fn start(&mut self, engine: &mut Engine<R>, step: &StepState) -> Result<()> {
        let Engine { store, machine, .. } = engine;
        let (Some(machine), Some(program)) = (machine, &mut self.program) else {
            return Err(Error::Run("a plan that was compiled for a GPU needs an engine with one".into()));
        };
        if self.readings.pending.len() == ring_rows(self.readings.names.len()) {
            return Err(Error::Run("more steps than the ring of metrics has rows: collect first".into()));
        }
        machine.push(&store.buffers, &mut store.changed)?;
        let ready = program.ready(machine)?;
        machine.run(ready, step)?;
        program.updates.iter().for_each(|b| store.stale[*b as usize] = true);
        if !self.readings.names.is_empty() {
            self.readings.pending.push(step.step);
        }
        Ok(())
    }

    fn run(&mut self, engine: &mut Engine<R>, step: &StepState) {
        let Engine { store, arena, borrows, .. } = engine;
        assert!(arena.bytes() >= self.cost.arena_bytes, "replay before reserve");
        let mut memory = Memory { store: &mut store.buffers, arena, borrows };
        for (i, instruction) in self.instructions.iter().enumerate() {
            if let Some((at, slot)) = self.seed
                && at == i
            {
                memory.views().write::<R>(slot).fill(R::ONE);
            }
            let io = Io { operands: &instruction.operands, views: memory.views(), step, scalar: PhantomData };
            match instruction.phase {
                Phase::Forward | Phase::Update => instruction.op.forward::<R>(&io),
                Phase::Backward => instruction.op.backward::<R>(&io),
            }
        }
        self.readings.steps.clear();
        self.readings.steps.push(step.step);
        self.readings.values.clear();
        for slot in &self.readings.slots {
            self.readings.values.push(memory.views().read::<R>(*slot)[0].f64() as f32);
        }
    }

    /// Waits for the replays since the last call and reads their metrics; on the CPU they are there already.
    ///
    /// Errors: a kernel of theirs that failed.
    pub fn collect(&mut self, engine: &Engine<R>) -> Result<()> {
        let Some(machine) = &engine.machine else { return Ok(()) };
        let r = &mut self.readings;
        let (count, rows) = (r.names.len(), ring_rows(r.names.len()));
        let ring = machine.ring(rows, count)?;
        std::mem::swap(&mut r.steps, &mut r.pending);
        r.pending.clear();
        r.values.clear();
        for step in &r.steps {
            let row = (step % rows as u64) as usize;
            r.values.extend_from_slice(&ring[row * count..][..count]);
        }
        Ok(())
    }

    /// The names of the metrics, in the order they were recorded.
    pub fn metric_names(&self) -> &[String] {
        &self.readings.names
    }

    /// The steps that were collected last, and their metrics in the order of their names.
    pub fn rows(&self) -> impl Iterator<Item = (u64, &[f32])> {
        let count = self.readings.names.len();
        self.readings
            .steps
            .iter()
            .enumerate()
            .map(move |(i, s)| (*s, &self.readings.values[i * count..][..count]))
    }

    /// The metrics of the last replay that was collected.
    pub fn metrics(&self) -> impl Iterator<Item = (&str, f32)> {
        let last = self.readings.values.len().saturating_sub(self.readings.names.len());
        self.readings.names.iter().map(String::as_str).zip(self.readings.values[last..].iter().copied())
    }

    /// A value that the tape marked as output, after a replay.
    ///
    /// Errors: a kernel of the replay that failed.
    pub fn output(&self, engine: &Engine<R>, v: Value) -> Result<Vec<R>> {
        let (_, slot, elem) = self
            .outputs
            .iter()
            .find(|(o, ..)| *o == v)
            .expect("the tape did not mark this value as an output");
        if let Some(machine) = &engine.machine {
            let values = machine.read(*slot, *elem)?;
            return Ok(values.into_iter().map(|v| R::of(f64::from(v))).collect());
        }
        Ok(match slot.space {
            Space::Arena => engine.arena.get(slot.offset, slot.bytes).to_vec(),
            Space::Store(i) => engine.store.buffers[i as usize].get(slot.offset, slot.bytes).to_vec(),
        })
    }

    pub fn cost(&self) -> &Cost {
        &self.cost
    }
    /// Instructions by phase and op, with the bytes of their operands, for tests and the profile table.
    pub fn listing(&self) -> impl Iterator<Item = (Phase, &'static str, u64)> {
        self.instructions.iter().map(|i| (i.phase, i.op.name(), i.operands.bytes()))
    }
    /// What a GPU runs, in order, each with what it is for; nothing of a plan of the CPU's.
    pub fn launches(&self) -> impl Iterator<Item = (&Launch, &str)> {
        self.program.iter().flat_map(|p| p.launches.iter().zip(p.labels.iter().map(String::as_str)))
    }
}

#[cfg(test)]
mod tests;
