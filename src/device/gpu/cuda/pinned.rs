//! Pinned host memory for the state of steps that are on their way to the device.

use super::driver::{check, enter};
use crate::device::step_state::StepState;
use crate::error::Result;
use cudarc::driver::sys::*;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Steps whose states may be on their way at once. The host collects metrics, and so waits, long before that
/// many.
const STATES: usize = 1024;

/// Pinned host memory, a ring of slots for a [`StepState`] each. The driver may delay an asynchronous copy,
/// and a slot keeps its bytes until then.
pub(super) struct Pinned {
    memory: *mut u8,
    next: AtomicUsize,
}

impl Pinned {
    /// Allocates the slots; a context must be current.
    pub(super) fn new() -> Result<Pinned> {
        let mut memory = std::ptr::null_mut();
        // SAFETY: a context is current (`open`); freed once, by `drop`.
        check(unsafe { cuMemHostAlloc(&mut memory, STATES * size_of::<StepState>(), 0) }, "pinned memory")?;
        Ok(Pinned { memory: memory.cast(), next: AtomicUsize::new(0) })
    }
    /// Writes the next slot and returns it.
    pub(super) fn put(&self, state: &StepState) -> *const c_void {
        let slot = self.next.fetch_add(1, Relaxed) % STATES;
        // SAFETY: within the allocation, and no copy still reads the slot: its last use is `STATES` steps
        // ago.
        unsafe {
            let to = self.memory.add(slot * size_of::<StepState>());
            std::ptr::copy_nonoverlapping(std::ptr::from_ref(state).cast(), to, size_of::<StepState>());
            to.cast_const().cast()
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if enter().is_ok() {
            // SAFETY: allocated by `new`, freed once; the driver waits for copies from it.
            unsafe { cuMemFreeHost(self.memory.cast()) };
        }
    }
}
