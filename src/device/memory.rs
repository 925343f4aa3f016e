//! Buffers and the views an op gets of them.
//!
//! A step touches the *store* (weights, optimiser moments, data sets: what outlives a step, in buffers that never
//! move) and the *arena* (everything inside a step). A [`Slot`] names a range of one buffer. [`Views`] hands out typed slices of
//! slots while one instruction runs and refuses two that overlap when either is writable, so that a planning mistake
//! is a clean panic in a test and never undefined behaviour.

use crate::error::{Error, Result};
use std::cell::RefCell;

/// Every slot starts on a cache line, which is also an AVX-512 register.
pub const ALIGN: usize = 64;

#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; ALIGN]);

/// A growable, 64-byte aligned, zero-initialised buffer.
#[derive(Default)]
pub struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    pub fn with_bytes(bytes: usize) -> Self {
        Buffer { lines: vec![Line([0; ALIGN]); bytes.div_ceil(ALIGN)] }
    }
    pub fn bytes(&self) -> usize {
        self.lines.len() * ALIGN
    }
    pub fn fill(&mut self, byte: u8) {
        self.lines.fill(Line([byte; ALIGN]));
    }
    /// `bytes` bytes from `offset`, as the host sees them.
    pub fn get<T: bytemuck::Pod>(&self, offset: usize, bytes: usize) -> &[T] {
        bytemuck::cast_slice(&bytemuck::cast_slice::<_, u8>(&self.lines)[offset..offset + bytes])
    }
    pub fn get_mut<T: bytemuck::Pod>(&mut self, offset: usize, bytes: usize) -> &mut [T] {
        bytemuck::cast_slice_mut(
            &mut bytemuck::cast_slice_mut::<_, u8>(&mut self.lines)[offset..offset + bytes],
        )
    }
    fn base(&mut self) -> *mut u8 {
        self.lines.as_mut_ptr().cast()
    }
}

/// Bytes that this machine could still give, where the system says so (Linux does, for the whole machine).
pub fn available() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// Fails where `bytes` are more than [`available`]: asking for them would end the process, at once or by the system's
/// hand once they are touched.
pub fn expect_room(what: &str, bytes: usize) -> Result<()> {
    match available() {
        Some(free) if bytes > free => {
            let gb = |bytes: usize| bytes as f64 / 1e9;
            let message =
                format!("{what}: needs {:.1} GB of memory, {:.1} GB are available", gb(bytes), gb(free));
            Err(Error::OutOfMemory(message))
        }
        Some(_) | None => Ok(()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// What outlives a step: this buffer of the store.
    Store(u32),
    /// What lives inside a step.
    Arena,
}

/// A range of bytes of one space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub space: Space,
    pub offset: usize,
    pub bytes: usize,
}

impl Slot {
    pub fn overlaps(&self, o: &Slot) -> bool {
        self.space == o.space && self.offset < o.offset + o.bytes && o.offset < self.offset + self.bytes
    }
}

/// The two spaces, borrowed for the length of a replay.
pub struct Memory<'m> {
    pub store: &'m mut [Buffer],
    pub arena: &'m mut Buffer,
    /// Borrows handed out during one instruction; its capacity is reserved once, so replays allocate nothing.
    pub borrows: &'m mut Borrows,
}

#[derive(Default)]
pub struct Borrows(RefCell<Vec<(Slot, bool)>>);

impl Borrows {
    /// Makes room for an instruction of `operands` slots.
    pub fn reserve(&mut self, operands: usize) {
        let v = self.0.get_mut();
        v.reserve(operands.saturating_sub(v.len()));
    }
}

impl Memory<'_> {
    /// Views for one instruction: every slice handed out ends with the returned value.
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

/// Typed, overlap-checked slices of slots. One instruction owns one `Views`.
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
                // SAFETY: `i` is in range, and `Memory` is mutably borrowed for 'v; the reference ends with this arm.
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

    pub fn read<T: bytemuck::Pod>(&self, slot: Slot) -> &'v [T] {
        let (p, len) = self.claim::<T>(slot, false);
        // SAFETY: in range and aligned (`claim`); initialised (buffers are zeroed at birth) and any bit pattern is a
        // valid `Pod`; no writable view of this instruction overlaps it (`claim`), and `Memory` is mutably borrowed
        // for 'v, so nobody else reaches the bytes.
        unsafe { std::slice::from_raw_parts(p, len) }
    }

    #[allow(clippy::mut_from_ref)] // exclusivity is checked at run time, see `claim`
    pub fn write<T: bytemuck::Pod>(&self, slot: Slot) -> &'v mut [T] {
        let (p, len) = self.claim::<T>(slot, true);
        // SAFETY: as in `read`, and `claim` made sure that no other view of this instruction overlaps it.
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
    fn views_share_reads_and_separate_writes() {
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
    fn overlapping_write_is_refused() {
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
