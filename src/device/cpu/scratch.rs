//! One reusable buffer per worker thread, for data that lives inside a single leaf of a parallel loop.
//!
//! Reuse keeps it in the core's own cache. It grows during a plan's first replay, after which [`level`] gives every worker
//! what the hungriest asked for; the allocator is never called again.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Cache lines of the largest buffer.
static MOST: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SCRATCH: RefCell<Vec<[u64; 8]>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` on `len` elements of this worker's scratch (contents are left over from earlier uses). `f` must not fork:
/// a stolen task on this thread would ask for the same buffer.
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

/// Makes every worker's buffer as large as the largest, whichever leaves each of them will steal.
pub fn level() {
    rayon::broadcast(|_| {
        SCRATCH.with(|s| {
            let mut s = s.borrow_mut();
            let lines = s.len().max(MOST.load(Relaxed));
            s.resize(lines, [0; 8]);
        });
    });
}
