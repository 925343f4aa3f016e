//! One reusable buffer per worker thread, for data that lives inside a single leaf of a parallel loop.
//!
//! Reuse keeps it in the core's own cache. It grows while a step warms up and is never touched by the allocator again.

use std::cell::RefCell;

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
        }
        f(&mut bytemuck::cast_slice_mut(&mut s[..])[..len])
    })
}
