//! Buffers, and the views of them that ops work on.
//!
//! A step uses the *store* and the *arena*. The store has what outlives a step (weights, optimiser moments,
//! data sets), in buffers that never move; the arena has everything else. A [`Slot`] names a range of one
//! buffer. [`Views`] hands out typed slices of slots while one instruction runs. It refuses two that overlap
//! if either is writable, so that a mistake of the planner panics in a test and is never undefined
//! behaviour.

use crate::error::{Error, Result};
use crate::machine::available_memory;
use std::cell::RefCell;

/// Least alignment of a slot in bytes: a cache line, which is also the width of an AVX-512 register.
pub const ALIGN: usize = 64;
/// Alignment of the slots that a plan places in the arena: what the L2 of a GPU fetches at a time when a tensor map
/// asks for it, and what the CUDA driver aligns its own allocations to.
pub const ARENA_ALIGN: usize = 256;
/// Alignment of a tensor in the store. It is twice [`ARENA_ALIGN`], because a bf16 copy of the store has each tensor
/// at half its offset.
pub const STORE_ALIGN: usize = 512;

#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; ALIGN]);

/// A zero-initialised buffer, aligned to [`ALIGN`] bytes.
#[derive(Default)]
pub struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    /// A buffer of zeros with at least so many bytes.
    pub fn with_bytes(bytes: usize) -> Self {
        Buffer { lines: vec![Line([0; ALIGN]); bytes.div_ceil(ALIGN)] }
    }
    /// Its size: a multiple of [`ALIGN`].
    pub fn bytes(&self) -> usize {
        self.lines.len() * ALIGN
    }
    /// Sets every byte to `byte`.
    pub fn fill(&mut self, byte: u8) {
        self.lines.fill(Line([byte; ALIGN]));
    }
    /// `bytes` bytes from `offset` on. Panics if they lie outside the buffer or do not divide into `T`s.
    pub fn get<T: bytemuck::Pod>(&self, offset: usize, bytes: usize) -> &[T] {
        bytemuck::cast_slice(&bytemuck::cast_slice::<_, u8>(&self.lines)[offset..offset + bytes])
    }
    /// As [`Buffer::get`], writable.
    pub fn get_mut<T: bytemuck::Pod>(&mut self, offset: usize, bytes: usize) -> &mut [T] {
        bytemuck::cast_slice_mut(
            &mut bytemuck::cast_slice_mut::<_, u8>(&mut self.lines)[offset..offset + bytes],
        )
    }
    fn base(&mut self) -> *mut u8 {
        self.lines.as_mut_ptr().cast()
    }
}

/// A buffer of the store that the host and a GPU both hold: its size, and which of the two has its values.
#[derive(Clone, Copy, Debug)]
pub struct Mirrored {
    /// Bytes of the values.
    pub bytes: usize,
    /// Whether the host's buffer holds pixels, one byte for each f32 that the GPU has.
    pub holds_pixels: bool,
    /// Whether the host changed it since it was last uploaded.
    pub is_changed: bool,
    /// Whether steps on the GPU changed it since it was last downloaded.
    pub is_stale: bool,
}

/// Blocks on the GPU into which pixels are copied in turn, so that the next can arrive while one is read.
pub const PIXEL_BLOCKS: usize = 2;

impl Mirrored {
    /// A buffer of so many bytes whose values only the host has.
    pub fn new(bytes: usize) -> Mirrored {
        Mirrored { bytes, holds_pixels: false, is_changed: true, is_stale: false }
    }
    /// Bytes on the GPU: the values, and where they come from pixels, the blocks for those.
    pub fn gpu_bytes(&self) -> usize {
        let pixels = if self.holds_pixels { self.bytes / size_of::<f32>() } else { 0 };
        self.bytes + PIXEL_BLOCKS * pixels
    }
}

/// Checks that `bytes` are [available](available_memory). Allocating more would end the process: at once, or when the system
/// kills it after it has written to them.
///
/// Errors: out of memory, with the bytes needed and available; `what` says in the message what they are for.
pub fn expect_room(what: &str, bytes: usize) -> Result<()> {
    match available_memory() {
        Some(free) if bytes > free => {
            let gb = |bytes: usize| bytes as f64 / 1e9;
            let message =
                format!("{what}: needs {:.1} GB of memory, {:.1} GB are available", gb(bytes), gb(free));
            Err(Error::OutOfMemory(message))
        }
        Some(_) | None => Ok(()),
    }
}

/// The memory that a slot lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// This buffer of the store, which outlives a step.
    Store(u32),
    /// The memory that is used only during a step.
    Arena,
}

/// A range of bytes of one space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The memory that it lies in.
    pub space: Space,
    /// Where it begins, in bytes.
    pub offset: usize,
    /// Its size.
    pub bytes: usize,
}

impl Slot {
    /// Whether the two have a byte in common.
    pub fn overlaps(&self, o: &Slot) -> bool {
        self.space == o.space && self.offset < o.offset + o.bytes && o.offset < self.offset + self.bytes
    }
}

/// The two spaces, borrowed for the length of a replay.
pub struct Memory<'m> {
    /// The store's buffers.
    pub store: &'m mut [Buffer],
    /// The arena.
    pub arena: &'m mut Buffer,
    /// The views handed out during one instruction. Its capacity is reserved once, so that replays allocate
    /// nothing.
    pub borrows: &'m mut Borrows,
}

/// The slots of which one instruction has views, and whether each view is writable.
#[derive(Default)]
pub struct Borrows(RefCell<Vec<(Slot, bool)>>);

impl Borrows {
    /// Reserves capacity for an instruction with so many operands.
    pub fn reserve(&mut self, operands: usize) {
        let v = self.0.get_mut();
        v.reserve(operands.saturating_sub(v.len()));
    }
}

impl Memory<'_> {
    /// Views for one instruction. No slice of them outlives the returned value.
    pub fn views(&mut self) -> Views<'_> {
        self.borrows.0.get_mut().clear();
        Views {
            store: self.store.as_mut_ptr(),
            buffers: self.store.len(),
            arena: (self.arena.base(), self.arena.bytes()),
            borrows: &self.borrows.0,
        }
    }
}

/// Typed slices of slots, which are checked not to overlap if one is writable. Each instruction has its own
/// `Views`.
pub struct Views<'v> {
    store: *mut Buffer,
    buffers: usize,
    arena: (*mut u8, usize),
    borrows: &'v RefCell<Vec<(Slot, bool)>>,
}

impl<'v> Views<'v> {
    fn claim<T: bytemuck::Pod>(&self, slot: Slot, writes: bool) -> (*mut T, usize) {
        let (base, bytes) = match slot.space {
            Space::Store(i) => {
                assert!(
                    (i as usize) < self.buffers,
                    "slot {slot:?} names a buffer that the store does not have"
                );
                // SAFETY: `i` is in range, and `Memory` is mutably borrowed for 'v; the reference ends with
                // this arm.
                let buffer = unsafe { &mut *self.store.add(i as usize) };
                (buffer.base(), buffer.bytes())
            }
            Space::Arena => self.arena,
        };
        assert!(
            slot.offset.checked_add(slot.bytes).is_some_and(|end| end <= bytes),
            "slot {slot:?} ends outside its space of {bytes} bytes"
        );
        assert!(
            slot.offset.is_multiple_of(ALIGN) && slot.bytes.is_multiple_of(size_of::<T>()),
            "slot {slot:?} is misaligned"
        );
        let mut borrows = self.borrows.borrow_mut();
        for (other, wrote) in borrows.iter() {
            assert!(!((writes || *wrote) && slot.overlaps(other)), "views overlap: {slot:?} and {other:?}");
        }
        borrows.push((slot, writes));
        // SAFETY: `offset + bytes` is within the allocation, asserted above.
        (unsafe { base.add(slot.offset) }.cast(), slot.bytes / size_of::<T>())
    }

    /// The elements of a slot. Panics if the slot lies outside its space, is misaligned, or overlaps a
    /// writable view of this instruction.
    pub fn read<T: bytemuck::Pod>(&self, slot: Slot) -> &'v [T] {
        let (p, len) = self.claim::<T>(slot, false);
        // SAFETY: in range and aligned (`claim`); initialised, because buffers are zeroed when they are
        // created; any bit pattern is a valid `Pod`; no writable view of this instruction overlaps it
        // (`claim`), and nothing outside the instruction accesses the bytes, because `Memory` is mutably
        // borrowed for 'v.
        unsafe { std::slice::from_raw_parts(p, len) }
    }

    /// The elements of a slot, writable. Panics if the slot lies outside its space, is misaligned, or
    /// overlaps another view of this instruction.
    #[allow(clippy::mut_from_ref)] // `claim` checks at run time that the reference is exclusive
    pub fn write<T: bytemuck::Pod>(&self, slot: Slot) -> &'v mut [T] {
        let (p, len) = self.claim::<T>(slot, true);
        // SAFETY: as in `read`; `claim` has checked that no other view of this instruction overlaps it.
        unsafe { std::slice::from_raw_parts_mut(p, len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(offset: usize, bytes: usize) -> Slot {
        Slot { space: Space::Arena, offset, bytes }
    }

    #[test]
    fn reads_may_share_a_slot_and_see_what_was_written() {
        let (mut store, mut arena, mut borrows) = ([], Buffer::with_bytes(256), Borrows::default());
        let mut m = Memory { store: &mut store, arena: &mut arena, borrows: &mut borrows };
        let v = m.views();
        v.write::<f32>(slot(0, 64)).fill(2.0);
        assert_eq!(v.read::<f32>(slot(64, 128)), v.read::<f32>(slot(64, 128)));
        let v = m.views();
        assert_eq!(v.read::<f32>(slot(0, 64)), [2.0; 16]);
    }

    #[test]
    #[should_panic(expected = "views overlap")]
    fn a_write_that_overlaps_a_read_is_refused() {
        let (mut store, mut arena, mut borrows) = ([], Buffer::with_bytes(256), Borrows::default());
        let mut m = Memory { store: &mut store, arena: &mut arena, borrows: &mut borrows };
        let v = m.views();
        let _x = v.read::<f32>(slot(0, 128));
        let _y = v.write::<f32>(slot(64, 64));
    }

    #[test]
    #[should_panic(expected = "outside its space")]
    fn a_slot_past_the_end_is_refused() {
        let (mut store, mut arena, mut borrows) = ([], Buffer::with_bytes(256), Borrows::default());
        Memory { store: &mut store, arena: &mut arena, borrows: &mut borrows }
            .views()
            .read::<f32>(slot(192, 128));
    }
}
