//! Batches of transformed images, made ahead of time by threads of their own.
//!
//! A batch is a function of (set, transform, batch size, seed, step): which images it holds and every random choice come
//! from the step alone, so any number of threads, and a run that begins at a later step, see the same bits. An epoch
//! shows every image once in an order drawn by (seed, epoch); batches go over its end into the next one.
//!
//! Threads take single images, not batches: with as many of them as cores the first batch is ready soonest, and what
//! waits is two batches of 8-bit images (19 MB for 64 of 224 x 224). They become f32 when a batch is taken, straight into
//! its place.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rayon::prelude::*;

use super::dataset::Dataset;
use super::labelled::loss_target;
use super::rng::Rng;
use super::transform::{Transform, Transformer, to_inputs};
use crate::error::{Error, Result};

/// Kinds of random streams under a loader's seed.
mod stream {
    pub const ORDER: u64 = 0x6f72_6465;
    pub const IMAGE: u64 = 0x696d_6167;
}

/// Images made ahead of a batch that is being taken, in batches.
const AHEAD: usize = 2;

/// Prefetches batches; dropping it stops its threads.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    batch: usize,
    /// The step whose batch comes next.
    step: u64,
}

/// In which order images come.
#[derive(Clone, Copy)]
enum Order {
    /// Without an end, shuffled anew for every epoch.
    Shuffled,
    /// Once, as the set has them.
    Once,
}

struct Shared {
    set: Arc<Dataset>,
    transform: Transform,
    order: Order,
    seed: u64,
    /// Most slots at once.
    window: usize,
    state: Mutex<State>,
    /// All that the reader waits for is there.
    filled: Condvar,
    /// Slots were taken away.
    taken: Condvar,
}

struct State {
    /// Position, counted from the first image of the first epoch, of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    /// How many slots, from the first one on, the reader waits for, and how many of them are still to be filled.
    awaited: usize,
    missing: usize,
    /// Changes when the reader jumps: what was begun before it is of no use.
    generation: u64,
    stops: bool,
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
}

enum Slot {
    InWork,
    Done { image: usize, pixels: Vec<u8> },
    Failed(Error),
}

impl Loader {
    /// Batches of `batch` images in training order, from `first_step` on.
    ///
    /// Errors: a transform that is none; threads that cannot be started.
    pub fn new(
        set: Arc<Dataset>,
        transform: Transform,
        batch: usize,
        seed: u64,
        first_step: u64,
    ) -> Result<Loader> {
        Loader::start(set, transform, batch, seed, first_step, Order::Shuffled, cores())
    }

    /// Every image once, in the set's order: step `s` has images `s * batch` and on, the last step what is left.
    pub fn in_order(set: Arc<Dataset>, transform: Transform, batch: usize) -> Result<Loader> {
        Loader::start(set, transform, batch, 0, 0, Order::Once, cores())
    }

    /// As [`Loader::new`], with a number of threads.
    pub fn with_threads(
        set: Arc<Dataset>,
        transform: Transform,
        batch: usize,
        seed: u64,
        threads: usize,
    ) -> Result<Loader> {
        Loader::start(set, transform, batch, seed, 0, Order::Shuffled, threads)
    }

    fn start(
        set: Arc<Dataset>,
        transform: Transform,
        batch: usize,
        seed: u64,
        first_step: u64,
        order: Order,
        threads: usize,
    ) -> Result<Loader> {
        transform.check()?;
        let n = set.len();
        if n == 0 || n > u32::MAX as usize || batch == 0 {
            return Err(Error::shape(
                "loader",
                format!("expected images and a batch of some, found {n} and {batch}"),
            ));
        }
        let state = State {
            first: first_step.saturating_mul(batch as u64),
            slots: VecDeque::new(),
            awaited: 0,
            missing: 0,
            generation: 0,
            stops: false,
            spare: Vec::new(),
        };
        let window = AHEAD * batch + threads;
        let shared = Arc::new(Shared {
            set,
            transform,
            order,
            seed,
            window,
            state: Mutex::new(state),
            filled: Condvar::new(),
            taken: Condvar::new(),
        });
        let mut loader = Loader { shared, threads: Vec::new(), batch, step: first_step };
        for i in 0..threads.max(1) {
            let shared = loader.shared.clone();
            let thread = std::thread::Builder::new().name(format!("loader{i}")).spawn(move || shared.work());
            loader
                .threads
                .push(thread.map_err(|e| Error::Run(format!("cannot start a loader thread: {e}")))?);
        }
        Ok(loader)
    }

    /// Waits for the batch of `step` and writes it: images `[n, h, w, c]` in [-1, 1], targets `[n, labels]`, 1 for
    /// present, 0 for absent and -1 for difficult ([`loss_target`]). Steps that follow one another are ready ahead; any
    /// other one is a jump. Where the images end (see [`Loader::in_order`]), the rest of both stays as it was.
    ///
    /// Errors: room of the wrong size; an image that cannot be read, by its name.
    pub fn fill(&mut self, step: u64, images: &mut [f32], targets: &mut [f32]) -> Result<()> {
        let (len, labels) = (self.shared.transform.len(), self.shared.set.labels.len());
        if images.len() != self.batch * len || targets.len() != self.batch * labels {
            let message = format!(
                "expected room for {} x {len} pixels and {labels} targets, found {} and {} in all",
                self.batch,
                images.len(),
                targets.len()
            );
            return Err(Error::shape("loader", message));
        }
        let shown = self.next(step, images)?;
        for (to, image) in targets.chunks_exact_mut(labels).zip(shown) {
            let found = self.shared.set.targets(image);
            to.iter_mut().zip(found).for_each(|(t, y)| *t = loss_target(*y));
        }
        Ok(())
    }

    /// As [`Loader::fill`] without targets; there need be room for no more images than are left.
    pub fn read(&mut self, step: u64, images: &mut [f32]) -> Result<()> {
        let len = self.shared.transform.len();
        let left = self.shared.left(step.saturating_mul(self.batch as u64)).min(self.batch as u64) as usize;
        if images.len() < left * len {
            let message = format!("expected room for {left} x {len} pixels, found {}", images.len());
            return Err(Error::shape("loader", message));
        }
        self.next(step, images).map(|_| ())
    }

    /// Writes the images of `step` and says which they are.
    fn next(&mut self, step: u64, images: &mut [f32]) -> Result<Vec<usize>> {
        let len = self.shared.transform.len();
        if step != self.step {
            self.jump(step);
        }
        let taken = match self.take() {
            Ok(taken) => taken,
            Err(e) => {
                // Asked again, it tries again.
                self.jump(step);
                return Err(e);
            }
        };
        images.par_chunks_exact_mut(len).zip(&taken).for_each(|(to, (_, pixels))| to_inputs(pixels, to));
        let (shown, spare): (Vec<usize>, Vec<Vec<u8>>) = taken.into_iter().unzip();
        self.shared.lock().spare.extend(spare);
        self.step += 1;
        Ok(shown)
    }

    /// The next batch's images, by index and 8-bit pixels.
    fn take(&mut self) -> Result<Vec<(usize, Vec<u8>)>> {
        let first = self.step.saturating_mul(self.batch as u64);
        let count = self.shared.left(first).min(self.batch as u64) as usize;
        let mut state = self.shared.lock();
        let done = state.slots.iter().take(count).filter(|s| !matches!(s, Slot::InWork)).count();
        (state.awaited, state.missing) = (count, count - done);
        // Woken once: a reader that looks up at each image takes the core from who makes the next one.
        while state.missing > 0 {
            state = self.shared.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.awaited = 0;
        state.first += count as u64;
        let slots = state.slots.drain(..count);
        let taken = slots.filter_map(|slot| match slot {
            Slot::Done { image, pixels } => Some(Ok((image, pixels))),
            Slot::Failed(e) => Some(Err(e)),
            Slot::InWork => None,
        });
        let taken = taken.collect();
        self.shared.taken.notify_all();
        taken
    }

    fn jump(&mut self, step: u64) {
        self.step = step;
        let mut state = self.shared.lock();
        state.first = step.saturating_mul(self.batch as u64);
        state.slots.clear();
        state.generation += 1;
        self.shared.taken.notify_all();
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().stops = true;
        self.shared.taken.notify_all();
        for thread in self.threads.drain(..) {
            // A thread answers for its panics where it works.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// No thread panics while it holds the lock, and if one did, the state would still be whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Images from `position` on.
    fn left(&self, position: u64) -> u64 {
        match self.order {
            Order::Shuffled => u64::MAX,
            Order::Once => (self.set.len() as u64).saturating_sub(position),
        }
    }

    /// A thread's life.
    fn work(&self) {
        let mut transformer = Transformer::default();
        let mut epoch = Epoch::default();
        let mut room = Vec::new();
        while let Some((position, generation, mut pixels)) = self.claim() {
            let image = match self.order {
                Order::Shuffled => epoch.image(self.seed, self.set.len(), position),
                Order::Once => position as usize,
            };
            pixels.resize(self.transform.len(), 0);
            let mut rng = Rng::stream(self.seed, stream::IMAGE, position);
            let made = catch_unwind(AssertUnwindSafe(|| {
                let opened = self.set.open(image)?;
                let [h, w] = opened.size();
                let cut = self.transform.draw(h, w, &mut rng);
                let decoded = opened.pixels(cut.rows(), std::mem::take(&mut room))?;
                transformer.apply(self.transform.image, cut, &decoded, &mut pixels)?;
                room = decoded.data;
                Ok(())
            }));
            let slot = match made {
                Ok(Ok(())) => Slot::Done { image, pixels },
                Ok(Err(e)) => Slot::Failed(e),
                Err(_) => Slot::Failed(Error::Run(format!(
                    "image {image} of {}: its reader panicked",
                    self.set.file.display()
                ))),
            };
            let mut state = self.lock();
            if state.generation == generation {
                let at = (position - state.first) as usize;
                state.slots[at] = slot;
                if at < state.awaited {
                    state.missing -= 1;
                    if state.missing == 0 {
                        self.filled.notify_one();
                    }
                }
            }
        }
    }

    /// The next image to make: its position, the reader's generation, and a buffer. `None`: stop.
    fn claim(&self) -> Option<(u64, u64, Vec<u8>)> {
        let mut state = self.lock();
        loop {
            if state.stops {
                return None;
            }
            let position = state.first + state.slots.len() as u64;
            if state.slots.len() < self.window && self.left(position) > 0 {
                state.slots.push_back(Slot::InWork);
                let buffer = state.spare.pop().unwrap_or_default();
                return Some((position, state.generation, buffer));
            }
            state = self.taken.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The order of one epoch.
#[derive(Default)]
struct Epoch {
    drawn: (Option<u64>, Vec<u32>),
}

impl Epoch {
    /// The image at `position` of a set of `n`.
    fn image(&mut self, seed: u64, n: usize, position: u64) -> usize {
        let (epoch, at) = (position / n as u64, (position % n as u64) as usize);
        if self.drawn.0 != Some(epoch) {
            self.drawn = (Some(epoch), Rng::stream(seed, stream::ORDER, epoch).order(n as u32));
        }
        self.drawn.1[at] as usize
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}
