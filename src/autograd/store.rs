//! The tensors that outlive a step: weights, moments, running estimates and image banks, each with a name.
//!
//! [`Store::get`] and [`Store::set`] read and write the host's copy. A GPU has a second copy: buffers that
//! the host changed are uploaded before a step, and buffers that steps changed are downloaded by
//! [`Engine::pull`](crate::autograd::Engine::pull).

use crate::device::gpu::target::Target;
use crate::device::memory::{ALIGN, Buffer, Mirrored, STORE_ALIGN};
use crate::device::{Slot, Space};
use crate::tensor::{ImagesMut, Real, Shape};
use std::collections::HashMap;

/// A tensor of a store, by its number. It is valid for the store that gave it, and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(u32);

struct Entry {
    name: String,
    shape: Shape,
    slot: Slot,
}

/// Bytes of the buffers that small tensors share; a larger tensor has a buffer of its own.
const CHUNK: usize = 1 << 20;

/// Named tensors, in buffers that never move or grow: adding a tensor copies nothing, and no memory is left
/// unused by growth. `R` is the scalar that the host stores; a default store is one for steps on the CPU.
pub struct Store<R> {
    pub(super) buffers: Vec<Buffer>,
    /// By buffer: its size, and where its values are.
    pub(super) mirrored: Vec<Mirrored>,
    /// How often the host has changed a tensor.
    pub(super) changes: u64,
    /// The GPU that steps are planned for; none for steps on the CPU.
    pub(super) target: Option<Target>,
    /// Whether tensors have shapes only: a buffer has no memory until [`Store::get_mut`] is called for it.
    is_planned: bool,
    entries: Vec<Entry>,
    by_name: HashMap<String, TensorId>,
    /// The shared buffer that is being filled, and the offset of its free bytes.
    filling: Option<(usize, usize)>,
    scalar: std::marker::PhantomData<R>,
}

impl<R> Default for Store<R> {
    fn default() -> Self {
        Store {
            buffers: Vec::new(),
            mirrored: Vec::new(),
            changes: 0,
            target: None,
            is_planned: false,
            entries: Vec::new(),
            by_name: HashMap::new(),
            filling: None,
            scalar: std::marker::PhantomData,
        }
    }
}

impl<R: Real> Store<R> {
    /// A store for steps on this GPU.
    pub(super) fn on(target: Target) -> Self {
        Store { target: Some(target), ..Store::default() }
    }
    /// A store for plans that are not replayed. Its tensors have shapes but no values, so that they take no
    /// memory. Plans are for the GPU `target`, or without one for the CPU.
    pub fn planned(target: Option<Target>) -> Self {
        Store { target, is_planned: true, ..Store::default() }
    }
    /// Initial values for [`Store::add_with`]. A planned store does not call `values`, and the result is
    /// empty.
    pub fn drawn(&self, values: impl FnOnce() -> Vec<f32>) -> Vec<f32> {
        if self.is_planned { Vec::new() } else { values() }
    }
    /// Whether tensors have values: not in a planned store.
    pub fn holds_values(&self) -> bool {
        !self.is_planned
    }
    /// Adds a tensor of zeros.
    ///
    /// Panics: a second tensor of the same name.
    pub fn add(&mut self, name: &str, shape: Shape) -> TensorId {
        let slot = self.room(shape.elems() * size_of::<R>());
        self.enter(name, shape, slot)
    }
    /// Adds a tensor of zeros in a buffer of its own. Needed for tensors that the host writes between steps:
    /// an upload copies a whole buffer and would overwrite what steps on a GPU made of the other tensors in
    /// it.
    ///
    /// Panics: a second tensor of the same name.
    pub fn add_alone(&mut self, name: &str, shape: Shape) -> TensorId {
        self.enter_alone(name, shape, false)
    }
    /// Adds images that the host overwrites between steps ([`Store::images_mut`]), undefined until then, in a buffer of
    /// their own. For steps on a GPU the host holds one byte for each of their elements.
    ///
    /// Panics: a second tensor of the same name.
    pub fn add_images(&mut self, name: &str, shape: Shape) -> TensorId {
        self.enter_alone(name, shape, self.target.is_some())
    }
    fn enter_alone(&mut self, name: &str, shape: Shape, holds_pixels: bool) -> TensorId {
        let bytes = shape.elems() * size_of::<R>();
        let slot = Slot { space: Space::Store(self.push(bytes, holds_pixels) as u32), offset: 0, bytes };
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
            _ if bytes > CHUNK => (self.push(bytes, false), 0),
            Some((buffer, end)) if end + bytes <= CHUNK => (buffer, end),
            _ => (self.push(CHUNK, false), 0),
        };
        if bytes <= CHUNK {
            self.filling = Some((buffer, (offset + bytes).next_multiple_of(STORE_ALIGN)));
        }
        Slot { space: Space::Store(buffer as u32), offset, bytes }
    }
    fn push(&mut self, bytes: usize, holds_pixels: bool) -> usize {
        let bytes = bytes.next_multiple_of(ALIGN);
        self.mirrored.push(Mirrored { holds_pixels, ..Mirrored::new(bytes) });
        self.buffers.push(if self.is_planned {
            Buffer::default()
        } else {
            self.host_buffer(self.buffers.len())
        });
        self.buffers.len() - 1
    }
    /// The host's memory for a buffer, all zeros.
    fn host_buffer(&self, buffer: usize) -> Buffer {
        let Mirrored { bytes, holds_pixels, .. } = self.mirrored[buffer];
        Buffer::with_bytes(if holds_pixels { bytes / size_of::<R>() } else { bytes })
    }
    fn buffer(&self, slot: Slot) -> usize {
        match slot.space {
            Space::Store(i) => i as usize,
            Space::Arena => unreachable!("a tensor of the store has no slot in the arena"),
        }
    }
    /// Adds a tensor with these values, in memory order; a planned store keeps none.
    ///
    /// Panics: a second tensor of the same name, or another number of values than elements.
    pub fn add_with<V: Copy + Into<f64>>(&mut self, name: &str, shape: Shape, values: &[V]) -> TensorId {
        let id = self.add(name, shape);
        self.set(id, values);
        id
    }
    /// The tensor of this name.
    pub fn id(&self, name: &str) -> Option<TensorId> {
        self.by_name.get(name).copied()
    }
    /// The name of a tensor.
    pub fn name(&self, id: TensorId) -> &str {
        &self.entries[id.0 as usize].name
    }
    /// The shape of a tensor.
    pub fn shape(&self, id: TensorId) -> Shape {
        self.entries[id.0 as usize].shape
    }
    /// The memory of a tensor.
    pub fn slot(&self, id: TensorId) -> Slot {
        self.entries[id.0 as usize].slot
    }
    /// All tensors, in the order they were added.
    pub fn ids(&self) -> impl Iterator<Item = TensorId> + use<R> {
        (0..self.entries.len() as u32).map(TensorId)
    }
    /// Bytes that all buffers take on the device that runs the steps. A planned store counts as if it had memory.
    pub fn bytes(&self) -> usize {
        self.mirrored.iter().map(Mirrored::gpu_bytes).sum()
    }
    /// The elements of a tensor, in memory order.
    ///
    /// Panics: a tensor that steps on a GPU changed since the last
    /// [`Engine::pull`](crate::autograd::Engine::pull); a tensor of a planned store that was never written; images of
    /// which the host has pixels ([`Store::add_images`]).
    pub fn get(&self, id: TensorId) -> &[R] {
        let s = self.slot(id);
        let buffer = self.buffer(s);
        let Mirrored { holds_pixels, is_stale, .. } = self.mirrored[buffer];
        assert!(!holds_pixels, "{}: the host has only the pixels of these images", self.name(id));
        assert!(!is_stale, "{}: read before Engine::pull", self.name(id));
        assert!(
            self.buffers[buffer].bytes() > 0,
            "{}: read from a planned store, which has no values",
            self.name(id)
        );
        self.buffers[buffer].get(s.offset, s.bytes)
    }
    /// The same, to be changed.
    ///
    /// Panics: a tensor that steps on a GPU changed since the last
    /// [`Engine::pull`](crate::autograd::Engine::pull); images of which the host has pixels.
    pub fn get_mut(&mut self, id: TensorId) -> &mut [R] {
        let s = self.slot(id);
        let buffer = self.buffer(s);
        assert!(!self.mirrored[buffer].holds_pixels, "{}: written by Store::images_mut only", self.name(id));
        self.changed(id, buffer).get_mut(s.offset, s.bytes)
    }
    /// The host's memory of a buffer that it is about to change for this tensor.
    fn changed(&mut self, id: TensorId, buffer: usize) -> &mut Buffer {
        assert!(!self.mirrored[buffer].is_stale, "{}: written before Engine::pull", self.name(id));
        self.mirrored[buffer].is_changed = true;
        self.changes += 1;
        if self.buffers[buffer].bytes() == 0 {
            self.buffers[buffer] = self.host_buffer(buffer);
        }
        &mut self.buffers[buffer]
    }
    /// Overwrites a tensor with `f32` or `f64` values, in memory order; a planned store ignores them.
    ///
    /// Panics: another number of values than elements; otherwise as [`Store::get_mut`].
    pub fn set<V: Copy + Into<f64>>(&mut self, id: TensorId, values: &[V]) {
        if self.is_planned {
            return;
        }
        let to = self.get_mut(id);
        assert_eq!(to.len(), values.len(), "store: expected as many values as elements");
        to.iter_mut().zip(values).for_each(|(t, v)| *t = R::of((*v).into()));
    }
    /// The elements of a tensor as `f32`, in memory order.
    ///
    /// Panics: as [`Store::get`].
    pub fn to_f32(&self, id: TensorId) -> Vec<f32> {
        self.get(id).iter().map(|v| v.f64() as f32).collect()
    }
}

impl Store<f32> {
    /// The images of [`Store::add_images`], to be overwritten: pixels for steps on a GPU, else inputs.
    pub fn images_mut(&mut self, id: TensorId) -> ImagesMut<'_> {
        let s = self.slot(id);
        let buffer = self.buffer(s);
        let holds_pixels = self.mirrored[buffer].holds_pixels;
        let to = self.changed(id, buffer);
        if holds_pixels {
            ImagesMut::Pixels(to.get_mut(0, s.bytes / size_of::<f32>()))
        } else {
            ImagesMut::Inputs(to.get_mut(s.offset, s.bytes))
        }
    }
}
