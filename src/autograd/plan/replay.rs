//! Replays of a plan: memory, the walk along the instructions, and the results.

use super::compile::Plan;
use super::instruction::Phase;
use crate::autograd::Engine;
use crate::autograd::tape::Value;
use crate::device::collective;
use crate::device::cpu::par::with_workers_awake;
use crate::device::cpu::scratch;
use crate::device::division::Division;
use crate::device::memory::{self, Buffer, Memory};
use crate::device::{Space, StepState};
use crate::error::{Error, Result};
use crate::ops::Scalar;
use crate::ops::operands::Io;
use std::marker::PhantomData;

impl<R: Scalar> Plan<R> {
    /// Makes room in the engine's arena, so that replays allocate nothing.
    ///
    /// Errors: not enough memory on the device.
    pub fn reserve(&self, engine: &mut Engine<R>) -> Result<()> {
        if let (Some(machine), Some(program)) = (&mut engine.machine, &self.program) {
            let store = &mut engine.store;
            let arena_bytes = self.cost.arena_bytes;
            return machine.make_room(&store.buffers, &mut store.mirrored, &program.launches, arena_bytes);
        }
        if engine.arena.bytes() < self.cost.arena_bytes {
            memory::expect_room("the step", self.cost.arena_bytes)?;
            // Nothing in the arena outlives a step, so the old arena is dropped before the new one is
            // allocated.
            engine.last_replay = None;
            engine.arena = Buffer::default();
            engine.arena = Buffer::with_bytes(self.cost.arena_bytes);
        }
        engine.borrows.reserve(self.instructions.iter().map(|i| i.operands.slots()).max().unwrap_or(0));
        Ok(())
    }

    /// Runs the step once. From the second replay on it allocates nothing, if the calling thread is a worker
    /// of the pool. Outputs can be read until the engine replays another plan. On a GPU the step is only
    /// started; [`Plan::collect`] waits for it.
    ///
    /// Panics: on the CPU without [`Plan::reserve`].
    /// Errors: a plan for a GPU with an engine on the CPU; a kernel that fails, named if `DFKA_SYNC=1`; more
    /// than [`Plan::most_pending`] replays without `collect`.
    pub fn replay(&mut self, engine: &mut Engine<R>, step: &StepState) -> Result<()> {
        if self.program.is_some() {
            return self.start(engine, step);
        }
        with_workers_awake(|| {
            self.run(engine, step);
            if !std::mem::replace(&mut self.is_warm, true) {
                scratch::level();
            }
        });
        Ok(())
    }

    /// Replays that may be started before their metrics are collected: on a GPU the rows of the ring of
    /// metrics, 1 on the CPU.
    pub fn most_pending(&self) -> usize {
        if self.program.is_some() { self.readings.ring_rows() } else { 1 }
    }

    fn start(&mut self, engine: &mut Engine<R>, step: &StepState) -> Result<()> {
        let Engine { store, machine, .. } = engine;
        let (Some(machine), Some(program)) = (machine, &mut self.program) else {
            return Err(Error::Run("the plan was compiled for a GPU, but the engine runs on the CPU".into()));
        };
        if self.readings.ring_is_full() {
            let rows = self.readings.ring_rows();
            let message = format!("{rows} steps were started without a call of collect, which is the most");
            return Err(Error::Run(message));
        }
        machine.push(&store.buffers, &mut store.mirrored)?;
        let ready = program.ready(machine)?;
        machine.run(ready, step)?;
        program.updates.iter().for_each(|b| store.mirrored[*b as usize].is_stale = true);
        self.readings.add_pending(step.step);
        Ok(())
    }

    fn run(&mut self, engine: &mut Engine<R>, step: &StepState) {
        let this_replay = Some((self.id, engine.store.changes));
        let has_packed = std::mem::replace(&mut engine.last_replay, this_replay) == this_replay;
        let Engine { store, arena, borrows, .. } = engine;
        assert!(arena.bytes() >= self.cost.arena_bytes, "a plan was replayed before Plan::reserve");
        let mut memory = Memory { store: &mut store.buffers, arena, borrows };
        let division = self.joined.as_ref().map_or(Division::default(), |j| j.division);
        let mut joined = self.joined.as_mut();
        for (i, instruction) in self.instructions.iter().enumerate() {
            if let Some(grad) = self.loss_grad.filter(|g| g.before == i) {
                memory.views().write::<R>(grad.slot).fill(R::ONE);
            }
            if instruction.phase == Phase::Update {
                joined.take().into_iter().for_each(|j| j.add(&mut memory));
            }
            let operands = &instruction.operands;
            let io = Io { operands, views: memory.views(), step, division, has_packed, scalar: PhantomData };
            match instruction.phase {
                Phase::Forward | Phase::Update => R::forward(&instruction.op, &io),
                Phase::Backward => R::backward(&instruction.op, &io),
            }
        }
        self.readings.read(step.step, |slot| memory.views().read::<R>(slot)[0].f64() as f32);
    }

    /// Waits for the replays since the last call and reads their metrics. On the CPU they have been read
    /// already.
    ///
    /// Errors: a kernel of these replays that failed.
    pub fn collect(&mut self, engine: &Engine<R>) -> Result<()> {
        let Some(machine) = &engine.machine else { return Ok(()) };
        let rows = self.readings.ring_rows();
        let ring = collective::watched(|| machine.ring(rows, self.readings.names.len()))?;
        self.readings.take_from_ring(&ring);
        Ok(())
    }

    /// The names of the metrics, in the order they were recorded.
    pub fn metric_names(&self) -> &[String] {
        &self.readings.names
    }

    /// The steps that were collected last, each with its metrics in the order of their names.
    pub fn rows(&self) -> impl Iterator<Item = (u64, &[f32])> {
        self.readings.rows()
    }

    /// The names and values of the metrics of the last replay that was collected; nothing before the first
    /// replay.
    pub fn metrics(&self) -> impl Iterator<Item = (&str, f32)> {
        self.readings.last()
    }

    /// The elements of a value that the tape marked as output, after a replay, in memory order.
    ///
    /// Panics: a value that the tape did not mark.
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
}
