//! Pinned host memory, through which everything is copied. The device owns it: a copy that is still on its way
//! when the host gives up reads or writes memory that is there.

use super::driver::{check, enter};
use super::handles::{Event, Stream};
use super::library::{cuMemFreeHost, cuMemHostAlloc};
use crate::device::step_state::StepState;
use crate::error::Result;
use std::ffi::c_void;

/// An allocation of pinned memory.
pub(super) struct Pinned {
    memory: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory, which the owner of the value alone uses.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Errors: out of memory; no context.
    pub(super) fn new(bytes: usize) -> Result<Pinned> {
        enter()?;
        let mut memory: *mut c_void = std::ptr::null_mut();
        // SAFETY: a pointer to a live local; freed once, by `drop`.
        check(unsafe { cuMemHostAlloc(&mut memory, bytes, 0) }, "pinned memory")?;
        Ok(Pinned { memory: memory.cast(), bytes })
    }

    /// Makes an allocation, if it is not large enough, one that is. No copy may use the old one.
    ///
    /// Errors: out of memory.
    pub(super) fn enlarge(place: &mut Option<Pinned>, bytes: usize) -> Result<&mut Pinned> {
        const LEAST: usize = 64 << 10;
        if place.as_ref().is_none_or(|p| p.bytes < bytes) {
            *place = None;
            *place = Some(Pinned::new(bytes.next_power_of_two().max(LEAST))?);
        }
        Ok(place.as_mut().expect("allocated above"))
    }

    /// The address of byte `at`.
    fn address(&mut self, at: usize, bytes: usize) -> *mut u8 {
        assert!(at + bytes <= self.bytes, "past the end of pinned memory");
        // SAFETY: inside the allocation, or one past its end.
        unsafe { self.memory.add(at) }
    }

    /// Writes bytes at an offset and returns their address. No copy may be reading there.
    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) -> *const c_void {
        let to = self.address(at, bytes.len());
        // SAFETY: both ranges are live, and Rust code owns only one of them.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        to.cast_const().cast()
    }

    /// Where the device may write `bytes` bytes, from an offset on.
    pub(super) fn room(&mut self, at: usize, bytes: usize) -> *mut c_void {
        self.address(at, bytes).cast()
    }

    /// Reads bytes that the device has written at an offset. The copy must have ended.
    pub(super) fn get(&mut self, at: usize, bytes: &mut [u8]) {
        let from = self.address(at, bytes.len());
        // SAFETY: as in `put`; `new` allocated the range, and the device has filled it.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if enter().is_ok() {
            // SAFETY: allocated by `new`, freed once. No copy uses it: `Cuda::drop` has waited, and `enlarge` asks its
            // caller for that.
            unsafe { cuMemFreeHost(self.memory.cast()) };
        }
    }
}

/// A ring of pinned slots for the states of steps, which are copied again and again without waiting. It has two
/// halves. An event marks the end of the copies of a half, which is written again only when the device has reached
/// the event.
pub(super) struct States {
    memory: Pinned,
    next: usize,
    ends: [Event; 2],
}

/// Slots of a half. 32 steps are far more than a device is behind.
const HALF: usize = 32;

impl States {
    /// Errors: out of memory.
    pub(super) fn new() -> Result<States> {
        let memory = Pinned::new(2 * HALF * size_of::<StepState>())?;
        Ok(States { memory, next: 0, ends: [Event::untimed()?, Event::untimed()?] })
    }

    /// Copies a state to pinned memory and lets `copy` enqueue its copy to the device on `stream`. Waits only if the
    /// device is a half of the ring behind.
    ///
    /// Errors: those of `copy`; a kernel that failed.
    pub(super) fn send(
        &mut self,
        stream: &Stream,
        state: &StepState,
        copy: impl FnOnce(*const c_void) -> Result<()>,
    ) -> Result<()> {
        let (at, end) = (self.next, &self.ends[self.next / HALF]);
        if at.is_multiple_of(HALF) {
            end.wait()?;
        }
        copy(self.memory.put(at * size_of::<StepState>(), bytemuck::bytes_of(state)))?;
        self.next = (at + 1) % (2 * HALF);
        if self.next.is_multiple_of(HALF) { mark(end, stream) } else { Ok(()) }
    }
}

/// Marks the end of the copies in a stream. If that fails, waits for them, because the memory that they read is
/// written again without a mark to wait for.
fn mark(end: &Event, stream: &Stream) -> Result<()> {
    end.record(stream).inspect_err(|_| {
        let _ = stream.synchronize();
    })
}

/// Two pinned buffers, used in turn, for copies to the device that the host does not wait for: it fills one while
/// the device reads the other. They grow to the largest copy.
pub(super) struct Staging {
    buffers: [Buffer; 2],
    next: usize,
}

struct Buffer {
    memory: Option<Pinned>,
    /// The end of the last copy from it.
    end: Event,
}

impl Staging {
    /// Errors: the driver's.
    pub(super) fn new() -> Result<Staging> {
        let buffer = || Ok(Buffer { memory: None, end: Event::untimed()? });
        Ok(Staging { buffers: [buffer()?, buffer()?], next: 0 })
    }

    /// Copies `bytes` to pinned memory and lets `copy` enqueue their copy to the device on `stream`. Waits only for
    /// the copy before the last.
    ///
    /// Errors: out of memory; those of `copy`; a kernel that failed.
    pub(super) fn send(
        &mut self,
        stream: &Stream,
        bytes: &[u8],
        copy: impl FnOnce(*const c_void) -> Result<()>,
    ) -> Result<()> {
        let Buffer { memory, end } = &mut self.buffers[self.next];
        end.wait()?;
        copy(Pinned::enlarge(memory, bytes.len())?.put(0, bytes))?;
        self.next ^= 1;
        mark(end, stream)
    }
}
