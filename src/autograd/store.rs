//! What outlives a step: named weights, moments, estimates and image banks; and the engine that steps run on.
//!
//! The host's copy is the one that is read and written. On a GPU the machine mirrors it: what the host changed goes there
//! before a step, and what steps changed comes back when the host asks ([`Engine::pull`]).

use crate::device::gpu::machine::Machine;
use crate::device::gpu::target::Target;
use crate::device::memory::{ALIGN, Borrows, Buffer};
use crate::device::{Slot, Space};
use crate::error::Result;
use crate::tensor::{Real, Shape};
use std::collections::HashMap;

/// A tensor of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(u32);

struct Entry {
    name: String,
    shape: Shape,
    slot: Slot,
}

/// Bytes of the buffers that small tensors share; a larger tensor has one of its own.
const CHUNK: usize = 1 << 20;

/// Named tensors in buffers that never move or grow: adding a tensor copies nothing, and memory is what was asked for.
pub struct Store<R> {
    pub(super) buffers: Vec<Buffer>,
    /// Buffers that the host changed since the machine saw them.
    pub(super) changed: Vec<bool>,
    /// Buffers that steps on the machine changed since the host saw them.
    pub(super) stale: Vec<bool>,
    /// The GPU that steps are planned for; none for steps on the CPU.
    pub(super) target: Option<Target>,
    /// Bytes of each buffer.
    sizes: Vec<usize>,
    /// Whether tensors have shapes alone: a buffer has no memory until somebody writes to it.
    is_planned: bool,
    entries: Vec<Entry>,
    by_name: HashMap<String, TensorId>,
    /// The shared buffer that is being filled, and how far.
    filling: Option<(usize, usize)>,
    scalar: std::marker::PhantomData<R>,
}

impl<R> Default for Store<R> {
    fn default() -> Self {
        Store {
            buffers: Vec::new(),
            changed: Vec::new(),
            stale: Vec::new(),
            target: None,
            sizes: Vec::new(),
            is_planned: false,
            entries: Vec::new(),
            by_name: HashMap::new(),
            filling: None,
            scalar: std::marker::PhantomData,
        }
    }
}

impl<R: Real> Store<R> {
    /// A store for plans alone, which need no tensor's values: two ResNet-101 and their moments take no memory here.
    pub fn planned(target: Option<Target>) -> Self {
        Store { target, is_planned: true, ..Store::default() }
    }
    /// Initial values for [`Store::add_with`]: none where they would not be kept.
    pub fn drawn(&self, values: impl FnOnce() -> Vec<f32>) -> Vec<f32> {
        if self.is_planned { Vec::new() } else { values() }
    }
    /// Whether tensors have values.
    pub fn holds_values(&self) -> bool {
        !self.is_planned
    }
    /// Adds a zero-filled tensor. Names are unique; a second `name` is a mistake of the caller's.
    pub fn add(&mut self, name: &str, shape: Shape) -> TensorId {
        let slot = self.room(shape.elems() * size_of::<R>());
        self.enter(name, shape, slot)
    }
    /// The same in a buffer of its own, for what the host writes before every step: what shared its buffer would go to the
    /// machine along with it, over what steps there have made of it.
    pub fn add_alone(&mut self, name: &str, shape: Shape) -> TensorId {
        let bytes = shape.elems() * size_of::<R>();
        let slot = Slot { space: Space::Store(self.push(bytes) as u32), offset: 0, bytes };
        self.enter(name, shape, slot)
    }
    fn enter(&mut self, name: &str, shape: Shape, slot: Slot) -> TensorId {
        let id = TensorId(self.entries.len() as u32);
        assert!(self.by_name.insert(name.into(), id).is_none(), "store: tensor {name} added twice");
        self.entries.push(Entry { name: name.into(), shape, slot });
        id
    }
    fn room(&mut self, bytes: usize) -> Slot {
        let (buffer, offset) = match self.filling {
            _ if bytes > CHUNK => (self.push(bytes), 0),
            Some((buffer, end)) if end + bytes <= CHUNK => (buffer, end),
            _ => (self.push(CHUNK), 0),
        };
        if bytes <= CHUNK {
            self.filling = Some((buffer, (offset + bytes).next_multiple_of(ALIGN)));
        }
        Slot { space: Space::Store(buffer as u32), offset, bytes }
    }
    fn push(&mut self, bytes: usize) -> usize {
        let buffer = if self.is_planned { Buffer::default() } else { Buffer::with_bytes(bytes) };
        self.buffers.push(buffer);
        self.sizes.push(bytes.next_multiple_of(ALIGN));
        self.changed.push(true);
        self.stale.push(false);
        self.buffers.len() - 1
    }
    fn buffer(&self, slot: Slot) -> usize {
        match slot.space {
            Space::Store(i) => i as usize,
            Space::Arena => unreachable!("the store hands out no slots of the arena"),
        }
    }
    pub fn add_with<V: Copy + Into<f64>>(&mut self, name: &str, shape: Shape, values: &[V]) -> TensorId {
        let id = self.add(name, shape);
        self.set(id, values);
        id
    }
    pub fn id(&self, name: &str) -> Option<TensorId> {
        self.by_name.get(name).copied()
    }
    pub fn name(&self, id: TensorId) -> &str {
        &self.entries[id.0 as usize].name
    }
    pub fn shape(&self, id: TensorId) -> Shape {
        self.entries[id.0 as usize].shape
    }
    pub fn slot(&self, id: TensorId) -> Slot {
        self.entries[id.0 as usize].slot
    }
    pub fn ids(&self) -> impl Iterator<Item = TensorId> + use<R> {
        (0..self.entries.len() as u32).map(TensorId)
    }
    pub fn bytes(&self) -> usize {
        self.sizes.iter().sum()
    }
    /// Bytes of each buffer.
    pub fn buffer_sizes(&self) -> &[usize] {
        &self.sizes
    }
    pub fn get(&self, id: TensorId) -> &[R] {
        let s = self.slot(id);
        let buffer = self.buffer(s);
        assert!(!self.stale[buffer], "{}: read before Engine::pull", self.name(id));
        assert!(self.buffers[buffer].bytes() > 0, "{}: read from a store of plans", self.name(id));
        self.buffers[buffer].get(s.offset, s.bytes)
    }
    pub fn get_mut(&mut self, id: TensorId) -> &mut [R] {
        let s = self.slot(id);
        let buffer = self.buffer(s);
        assert!(!self.stale[buffer], "{}: written before Engine::pull", self.name(id));
        self.changed[buffer] = true;
        if self.buffers[buffer].bytes() == 0 {
            self.buffers[buffer] = Buffer::with_bytes(self.sizes[buffer]);
        }
        self.buffers[buffer].get_mut(s.offset, s.bytes)
    }
    /// Overwrites a tensor with `f32` or `f64` values; a planned store lets them go.
    pub fn set<V: Copy + Into<f64>>(&mut self, id: TensorId, values: &[V]) {
        if self.is_planned {
            return;
        }
        let to = self.get_mut(id);
        assert_eq!(to.len(), values.len(), "store: wrong number of values");
        to.iter_mut().zip(values).for_each(|(t, v)| *t = R::of((*v).into()));
    }
    pub fn to_f32(&self, id: TensorId) -> Vec<f32> {
        self.get(id).iter().map(|v| v.f64() as f32).collect()
    }
}

/// A store, and what all plans over it share: only one step runs at a time.
pub struct Engine<R> {
    pub store: Store<R>,
    /// Steps on the CPU: their memory.
    pub(super) arena: Buffer,
    pub(super) borrows: Borrows,
    /// Steps on a GPU: everything of theirs.
    pub(super) machine: Option<Machine>,
}

impl<R> Default for Engine<R> {
    fn default() -> Self {
        Engine {
            store: Store::default(),
            arena: Buffer::default(),
            borrows: Borrows::default(),
            machine: None,
        }
    }
}

impl<R: Real> Engine<R> {
    /// An engine whose steps run on a GPU.
    pub fn on(machine: Machine) -> Self {
        let store = Store { target: Some(machine.target), ..Store::default() };
        Engine { store, machine: Some(machine), ..Engine::default() }
    }
    /// An engine whose plans are a GPU's, for their cost alone: nothing runs on it, and tensors have no values.
    /// Without a target, the CPU's.
    pub fn planning(target: impl Into<Option<Target>>) -> Self {
        Engine { store: Store::planned(target.into()), ..Engine::default() }
    }
    pub fn arena_bytes(&self) -> usize {
        self.machine.as_ref().map_or(self.arena.bytes(), Machine::arena_bytes)
    }
    /// Fetches what steps on a GPU changed, and ends a profiler's recording; on the CPU there is nothing to do.
    pub fn pull(&mut self) -> Result<()> {
        let Some(machine) = &mut self.machine else { return Ok(()) };
        machine.record(false)?;
        for (i, stale) in self.store.stale.iter_mut().enumerate() {
            if *stale {
                machine.pull(i, &mut self.store.buffers[i])?;
                *stale = false;
            }
        }
        Ok(())
    }
    /// The machine that steps run on, if it is not the CPU.
    pub fn machine(&self) -> Option<&Machine> {
        self.machine.as_ref()
    }
}
