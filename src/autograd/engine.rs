//! The engine that steps run on: a store, and the memory that all plans over it share.

use super::store::Store;
use crate::device::gpu::machine::Machine;
use crate::device::gpu::target::Target;
use crate::device::memory::{Borrows, Buffer};
use crate::error::Result;
use crate::tensor::Real;

/// A store, and the memory that all plans over it share, because only one step runs at a time. The default
/// runs steps on the CPU.
pub struct Engine<R> {
    /// The tensors that outlive a step, as the host sees them ([`Engine::pull`]).
    pub store: Store<R>,
    /// The memory of steps on the CPU.
    pub(super) arena: Buffer,
    pub(super) borrows: Borrows,
    /// The plan that the CPU replayed last, and how often the host had changed the store by then: what the plan keeps in
    /// the arena from step to step is still there if both are the same.
    pub(super) last_replay: Option<(u64, u64)>,
    /// The GPU that steps run on; none for the CPU.
    pub(super) machine: Option<Machine>,
}

impl<R> Default for Engine<R> {
    fn default() -> Self {
        Engine {
            store: Store::default(),
            arena: Buffer::default(),
            borrows: Borrows::default(),
            last_replay: None,
            machine: None,
        }
    }
}

impl<R: Real> Engine<R> {
    /// An engine whose steps run on a GPU, or on the emulator of one.
    pub fn on(machine: Machine) -> Self {
        Engine { store: Store::on(machine.target), machine: Some(machine), ..Engine::default() }
    }
    /// An engine whose plans are compiled for their cost alone: nothing can be replayed, and tensors have no
    /// values. Plans are for the GPU `target`, or without one for the CPU.
    pub fn planning(target: impl Into<Option<Target>>) -> Self {
        Engine { store: Store::planned(target.into()), ..Engine::default() }
    }
    /// Bytes of the arena, which [`Plan::reserve`](super::Plan::reserve) enlarges to those of the largest
    /// plan.
    pub fn arena_bytes(&self) -> usize {
        self.machine.as_ref().map_or(self.arena.bytes(), Machine::arena_bytes)
    }
    /// Copies the tensors that steps on a GPU changed to the host, and ends a profiler's recording. Nothing
    /// to do on the CPU.
    ///
    /// Errors: a kernel of an earlier replay that failed.
    pub fn pull(&mut self) -> Result<()> {
        let Some(machine) = &mut self.machine else { return Ok(()) };
        machine.record(false)?;
        for (i, buffer) in self.store.mirrored.iter_mut().enumerate() {
            if buffer.is_stale {
                machine.pull(i, &mut self.store.buffers[i])?;
                buffer.is_stale = false;
            }
        }
        Ok(())
    }
    /// Starts to copy what the host has changed to the GPU, while earlier steps run there. [`Plan::replay`] does that
    /// too; this is for a host that waits for a result before the next replay. Nothing to do on the CPU.
    ///
    /// Errors: out of memory; a kernel of an earlier replay that failed.
    ///
    /// [`Plan::replay`]: super::Plan::replay
    pub fn push(&mut self) -> Result<()> {
        let Some(machine) = &mut self.machine else { return Ok(()) };
        machine.push(&self.store.buffers, &mut self.store.mirrored)
    }
    /// What the user should know about the machine, once.
    pub fn note(&mut self) -> Option<String> {
        self.machine.as_mut()?.note()
    }
    /// The machine that steps run on; none for the CPU.
    pub fn machine(&self) -> Option<&Machine> {
        self.machine.as_ref()
    }
}
