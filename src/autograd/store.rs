//! What outlives a step: named weights, moments, estimates and image banks.

use crate::device::memory::{ALIGN, Borrows, Buffer};
use crate::device::{Slot, Space};
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
#[derive(Default)]
pub struct Store<R> {
    pub(super) buffers: Vec<Buffer>,
    entries: Vec<Entry>,
    by_name: HashMap<String, TensorId>,
    /// The shared buffer that is being filled, and how far.
    filling: Option<(usize, usize)>,
    scalar: std::marker::PhantomData<R>,
}

impl<R: Real> Store<R> {
    /// Adds a zero-filled tensor. Names are unique; a second `name` is a mistake of the caller's.
    pub fn add(&mut self, name: &str, shape: Shape) -> TensorId {
        let id = TensorId(self.entries.len() as u32);
        let bytes = shape.elems() * size_of::<R>();
        let slot = self.room(bytes);
        assert!(self.by_name.insert(name.into(), id).is_none(), "store: tensor {name} added twice");
        self.entries.push(Entry { name: name.into(), shape, slot });
        id
    }
    fn room(&mut self, bytes: usize) -> Slot {
        let (buffer, offset) = match self.filling {
            _ if bytes > CHUNK => {
                self.buffers.push(Buffer::with_bytes(bytes));
                (self.buffers.len() - 1, 0)
            }
            Some((buffer, end)) if end + bytes <= CHUNK => (buffer, end),
            _ => {
                self.buffers.push(Buffer::with_bytes(CHUNK));
                (self.buffers.len() - 1, 0)
            }
        };
        if bytes <= CHUNK {
            self.filling = Some((buffer, (offset + bytes).next_multiple_of(ALIGN)));
        }
        Slot { space: Space::Store(buffer as u32), offset, bytes }
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
        self.buffers.iter().map(Buffer::bytes).sum()
    }
    pub fn get(&self, id: TensorId) -> &[R] {
        let s = self.slot(id);
        self.buffers[self.buffer(s)].get(s.offset, s.bytes)
    }
    pub fn get_mut(&mut self, id: TensorId) -> &mut [R] {
        let s = self.slot(id);
        let buffer = self.buffer(s);
        self.buffers[buffer].get_mut(s.offset, s.bytes)
    }
    /// Overwrites a tensor with `f32` or `f64` values.
    pub fn set<V: Copy + Into<f64>>(&mut self, id: TensorId, values: &[V]) {
        let to = self.get_mut(id);
        assert_eq!(to.len(), values.len(), "store: wrong number of values");
        to.iter_mut().zip(values).for_each(|(t, v)| *t = R::of((*v).into()));
    }
    pub fn to_f32(&self, id: TensorId) -> Vec<f32> {
        self.get(id).iter().map(|v| v.f64() as f32).collect()
    }
}

/// A store and the arena that all plans over it share: only one step runs at a time.
#[derive(Default)]
pub struct Engine<R> {
    pub store: Store<R>,
    pub(super) arena: Buffer,
    pub(super) borrows: Borrows,
}

impl<R: Real> Engine<R> {
    pub fn arena_bytes(&self) -> usize {
        self.arena.bytes()
    }
}
