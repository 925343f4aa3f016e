//! Fork-join over the leading dimension of several slices at once, without allocation and without `unsafe`.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Data that can be cut in two along its items, so that different workers can have the halves.
pub trait Split: Sized + Send {
    /// The number of items.
    fn items(&self) -> usize;
    /// The first `at` items, and the rest.
    fn split(self, at: usize) -> (Self, Self);
}

/// A writable slice whose items are runs of equally many elements. For an absent operand the runs are empty.
pub struct Rows<'a, T> {
    /// The elements of all items.
    pub data: &'a mut [T],
    per: usize,
    items: usize,
}

impl<'a, T> Rows<'a, T> {
    /// A slice of so many items. Panics if its elements do not divide among them.
    pub fn new(data: &'a mut [T], items: usize) -> Self {
        let per = data.len() / items.max(1);
        assert_eq!(per * items, data.len(), "{} elements do not divide into {items} items", data.len());
        Rows { data, per, items }
    }
}

impl<T: Send> Split for Rows<'_, T> {
    fn items(&self) -> usize {
        self.items
    }
    fn split(self, at: usize) -> (Self, Self) {
        let (a, b) = self.data.split_at_mut(at * self.per);
        (Rows { data: a, per: self.per, items: at }, Rows { data: b, per: self.per, items: self.items - at })
    }
}

/// So many items without data: loops use their indices alone.
pub struct Indices(pub usize);

impl Split for Indices {
    fn items(&self) -> usize {
        self.0
    }
    fn split(self, at: usize) -> (Self, Self) {
        (Indices(at), Indices(self.0 - at))
    }
}

impl<A: Split, B: Split> Split for (A, B) {
    fn items(&self) -> usize {
        assert_eq!(self.0.items(), self.1.items(), "operands of one loop disagree about its length");
        self.0.items()
    }
    fn split(self, at: usize) -> (Self, Self) {
        let ((a, c), (b, d)) = (self.0.split(at), self.1.split(at));
        ((a, b), (c, d))
    }
}

impl<A: Split, B: Split, C: Split> Split for (A, B, C) {
    fn items(&self) -> usize {
        let n = self.0.items();
        assert!(n == self.1.items() && n == self.2.items(), "operands of one loop disagree about its length");
        n
    }
    fn split(self, at: usize) -> (Self, Self) {
        let ((a, d), (b, e), (c, f)) = (self.0.split(at), self.1.split(at), self.2.split(at));
        ((a, b, c), (d, e, f))
    }
}

/// Calls `f(first_item, part)` on parts of at most `grain` items, in parallel. The cuts depend only on
/// `grain` and the number of items, so that a reduction over parts is the same on any number of threads.
pub fn for_parts<S: Split>(s: S, grain: usize, f: &(impl Fn(usize, S) + Sync)) {
    fn go<S: Split>(first: usize, s: S, grain: usize, f: &(impl Fn(usize, S) + Sync)) {
        let n = s.items();
        if n <= grain {
            return f(first, s);
        }
        let at = (n.div_ceil(grain) / 2) * grain;
        let (a, b) = s.split(at);
        rayon::join(|| go(first, a, grain, f), || go(first + at, b, grain, f));
    }
    if s.items() > 0 {
        go(0, s, grain.max(1), f);
    }
}

/// Runs `f` on a worker of the pool. A fork from any other thread goes through the pool's queue: it wakes a
/// worker, waits for it, and sometimes allocates. A fork from a worker does none of that.
pub fn on_a_worker<O: Send>(f: impl FnOnce() -> O + Send) -> O {
    rayon::scope(|_| f())
}

/// Runs `f` on a worker of the pool, while the other workers look for its forks without pause. By itself, a worker sleeps soon
/// after it has found none, and needs 20 to 50 microseconds to wake up: longer than many loops take. With two threads, the
/// demo's steps took 1.1 to 1.3 times as long.
pub fn with_workers_awake<O: Send>(f: impl FnOnce() -> O + Send) -> O {
    let others = rayon::current_num_threads() - 1;
    let is_done = AtomicBool::new(false);
    let run = || {
        let out = f();
        is_done.store(true, Relaxed);
        out
    };
    on_a_worker(|| if others == 0 { run() } else { rayon::join(run, || look_for_work(others, &is_done)).0 })
}

/// How long a worker looks for work before it may sleep. The limit avoids a deadlock: a worker that waits for a part of its own
/// fork may start to look for work here, and then it does not notice that the part has ended.
const PATIENCE: Duration = Duration::from_micros(200);

/// Lets so many workers look for work until `is_done`.
fn look_for_work(workers: usize, is_done: &AtomicBool) {
    let look = || {
        let mut since = Instant::now();
        while !is_done.load(Relaxed) && since.elapsed() < PATIENCE {
            match rayon::yield_now() {
                Some(rayon::Yield::Executed) => since = Instant::now(),
                _ => std::hint::spin_loop(),
            }
        }
    };
    if workers == 1 {
        look();
    } else {
        rayon::join(look, || look_for_work(workers - 1, is_done));
    }
}

/// Items of a part if each worker is to get about four parts. For loops whose result does not depend on the
/// cuts.
pub fn even_grain(items: usize) -> usize {
    items.div_ceil(4 * rayon::current_num_threads()).max(1)
}

/// Elements below which a memory-bound loop is not worth a fork: a join costs a few microseconds.
pub const SERIAL_ELEMS: usize = 1 << 14;

/// Calls `f(first_item, part)` in parallel on parts that are large enough to be worth a fork. Items have
/// `per` elements each; the result must not depend on the cuts.
pub fn for_rows<S: Split>(s: S, per: usize, f: &(impl Fn(usize, S) + Sync)) {
    let grain = even_grain(s.items()).max(SERIAL_ELEMS.div_ceil(per.max(1)));
    for_parts(s, grain, f);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forks_end_on_any_number_of_awake_workers() {
        for threads in 1..6 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for forks in 0..40 {
                let mut data = vec![0usize; 64];
                let count = pool.install(|| {
                    with_workers_awake(|| {
                        for _ in 0..forks {
                            for_parts(Rows::new(&mut data, 64), 3, &|_, part: Rows<usize>| {
                                part.data.iter_mut().for_each(|v| *v += 1);
                            });
                        }
                        data.iter().sum::<usize>()
                    })
                });
                assert_eq!(count, 64 * forks, "{threads} threads");
            }
        }
    }

    #[test]
    fn every_item_is_visited_once_with_its_index() {
        for (items, grain) in [(1, 1), (7, 2), (64, 5), (64, 64), (3, 100)] {
            let mut data = vec![0usize; items * 3];
            for_parts(Rows::new(&mut data, items), grain, &|first, part: Rows<usize>| {
                assert!(part.items() <= grain);
                for (i, row) in part.data.chunks_mut(3).enumerate() {
                    row.iter_mut().for_each(|v| *v += first + i + 1);
                }
            });
            assert!(
                data.chunks(3).enumerate().all(|(i, row)| row == [i + 1; 3]),
                "{items} items, grain {grain}"
            );
        }
    }
}
