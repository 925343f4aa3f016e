//! One reusable buffer for each worker thread, for data that is used inside a single leaf of a parallel
//! loop.
//!
//! Reuse keeps the buffer in the core's own cache. Buffers grow during a plan's first replay. Then [`level`]
//! makes all of them as large as the largest, and later replays allocate nothing.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Size of the largest buffer, in cache lines of 64 bytes.
static MOST: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SCRATCH: RefCell<Vec<[u64; 8]>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` on `len` elements of this worker's buffer, whose content is left over from earlier uses. `f`
/// must not fork, because a task that this thread steals would use the same buffer.
pub fn with<T: bytemuck::Pod, O>(len: usize, f: impl FnOnce(&mut [T]) -> O) -> O {
    SCRATCH.with(|s| {
        let mut s = s.borrow_mut();
        let lines = (len * size_of::<T>()).div_ceil(64);
        if s.len() < lines {
            s.resize(lines, [0; 8]);
            MOST.fetch_max(lines, Relaxed);
        }
        f(&mut bytemuck::cast_slice_mut(&mut s[..])[..len])
    })
}

/// Makes every worker's buffer as large as the largest, so that any worker can run any leaf without an
/// allocation.
pub fn level() {
    rayon::broadcast(|_| {
        SCRATCH.with(|s| {
            let mut s = s.borrow_mut();
            let lines = s.len().max(MOST.load(Relaxed));
            s.resize(lines, [0; 8]);
        });
    });
}
