//! Forecasts the memory that a machine will hold for plans, without a machine. It follows the rules of
//! [`Machine::make_room`](super::machine::Machine::make_room).

use super::launch::{KernelArg, Launch};
use super::machine::{RING_BYTES, copies_read};
use crate::device::memory::{Mirrored, Space};
use crate::device::step_state::StepState;
use std::collections::BTreeSet;

/// The memory of a machine on which plans run one after another.
#[derive(Default)]
pub struct Room {
    /// Buffers of the store with a bf16 copy. A copy stays once a plan has read it.
    copied: BTreeSet<usize>,
    /// The largest arena so far.
    arena: usize,
}

/// Bytes that a machine holds while one plan runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Held {
    /// The store's mirror, f32, and the blocks into which pixels are copied.
    pub store_bytes: usize,
    /// bf16 copies of the store's buffers that convolutions read.
    pub copies_bytes: usize,
    /// What lives inside a step.
    pub arena_bytes: usize,
    /// The step's state, the ring of metrics, and the tables that launches point to.
    pub tables_bytes: usize,
}

impl Held {
    /// Of two, the one that holds more in all; `self` if both hold as much.
    pub fn larger(self, other: Held) -> Held {
        if other.total() > self.total() { other } else { self }
    }
    /// All of it.
    pub fn total(&self) -> usize {
        self.store_bytes + self.copies_bytes + self.arena_bytes + self.tables_bytes
    }
}

impl Room {
    /// Adds a plan, and returns what the machine holds while it runs. `store` lists the buffers that the store has by
    /// then.
    pub fn take(&mut self, store: &[Mirrored], launches: &[Launch], arena_bytes: usize) -> Held {
        let in_store = copies_read(launches).filter_map(|slot| match slot.space {
            Space::Store(i) => Some(i as usize),
            Space::Arena => None,
        });
        self.copied.extend(in_store);
        self.arena = self.arena.max(arena_bytes);
        let cells = launches.iter().flat_map(|l| &l.args).filter_map(KernelArg::table_cells).flatten();
        Held {
            store_bytes: store.iter().map(Mirrored::gpu_bytes).sum(),
            copies_bytes: self.copied.iter().map(|i| store[*i].bytes / 2).sum(),
            arena_bytes: self.arena,
            tables_bytes: size_of::<StepState>() + RING_BYTES + 8 * cells.count(),
        }
    }
}
