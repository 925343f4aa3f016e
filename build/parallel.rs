//! Runs several compilations at a time.

use std::env;
use std::sync::Mutex;

/// The results of `f` for all items, in the items' order, on as many threads as cargo has jobs (at most 8).
pub fn map<T: Sync, R: Send>(items: &[T], f: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads: usize = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let next = Mutex::new(items.iter().enumerate());
    let done = Mutex::new(Vec::new());
    let work = || {
        loop {
            // A statement of its own, so that the lock is not held while `f` runs.
            let item = next.lock().expect("no thread panics while it holds the lock").next();
            let Some((i, item)) = item else { return };
            let result = f(item);
            done.lock().expect("no thread panics while it holds the lock").push((i, result));
        }
    };
    std::thread::scope(|s| (0..threads.clamp(1, 8)).for_each(|_| drop(s.spawn(work))));
    let mut done = done.into_inner().expect("no thread panics while it holds the lock");
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}
