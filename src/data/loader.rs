//! Loads batches of transformed images ahead of time, in threads of its own.
//!
//! A batch is a function of the set, the transform, the batch size, the seed and the step. Its images and
//! all random choices depend on nothing else, so that any number of threads, and a run that resumes at a
//! later step, give the same bits. An epoch has every image once, in an order that depends on the seed and
//! the epoch. A batch at the end of an epoch is completed with images of the next one.
//!
//! Each thread prepares one image at a time, not one batch: with one thread per core the first batch is
//! ready soonest. Up to two batches of 8-bit images wait in memory (19 MB for batches of 64 images of 224 x
//! 224). A batch is copied directly into the caller's buffer: as pixels, or converted to f32.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rayon::prelude::*;

use super::dataset::Dataset;
use super::labelled::loss_target;
use super::rng::Rng;
use super::transform::{Transform, Transformer};
use super::unlabelled::to_inputs;
use crate::error::{Error, Result};
use crate::tensor::ImagesMut;

/// The kinds of a loader's random streams (see [`Rng::stream`]).
mod stream {
    pub const ORDER: u64 = 0x6f72_6465;
    pub const IMAGE: u64 = 0x696d_6167;
}

/// The number of batches that are prepared ahead.
const AHEAD: usize = 2;

/// Prefetches batches. Dropping the loader stops its threads.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    batch: usize,
    /// The step of the next batch.
    step: u64,
}

/// The order of the images.
#[derive(Clone, Copy)]
enum Order {
    /// Endless, shuffled differently in every epoch.
    Shuffled,
    /// Every image once, in the order of the set.
    Once,
}

struct Shared {
    set: Arc<Dataset>,
    transform: Transform,
    order: Order,
    seed: u64,
    /// The most slots at a time.
    window: usize,
    state: Mutex<State>,
    /// Signals that all slots that the reader waits for are filled.
    filled: Condvar,
    /// Signals that slots were taken, so that there is work for the threads.
    taken: Condvar,
}

struct State {
    /// The position of the first slot, counted in images from the beginning of the first epoch.
    first: u64,
    slots: VecDeque<Slot>,
    /// The number of slots, from the first one on, that the reader waits for, and how many of them are not
    /// filled yet.
    awaited: usize,
    missing: usize,
    /// Changes when the reader jumps to another step; images that were begun before that are discarded.
    generation: u64,
    /// Tells the threads to end.
    should_stop: bool,
    /// Buffers for reuse.
    spare: Vec<Vec<u8>>,
}

/// The state of one image.
enum Slot {
    InProgress,
    Done { image: usize, pixels: Vec<u8> },
    Failed(Error),
}

impl Loader {
    /// Batches of `batch` images in training order, from `first_step` on.
    ///
    /// Errors: an invalid transform, an empty set or batch, threads that cannot be started.
    pub fn new(
        set: Arc<Dataset>,
        transform: Transform,
        batch: usize,
        seed: u64,
        first_step: u64,
    ) -> Result<Loader> {
        Loader::start(set, transform, batch, seed, first_step, Order::Shuffled, cores())
    }

    /// Batches of every image once, in the set's order: step `s` has the images from `s * batch` on, and the
    /// last step those that are left.
    pub fn in_order(set: Arc<Dataset>, transform: Transform, batch: usize) -> Result<Loader> {
        Loader::start(set, transform, batch, 0, 0, Order::Once, cores())
    }

    /// As [`Loader::new`] from step 0, with a given number of threads.
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
                format!(
                    "expected at least one image and a batch of at least one, found {n} images \
                     and a batch of {batch}"
                ),
            ));
        }
        let state = State {
            first: first_step.saturating_mul(batch as u64),
            slots: VecDeque::new(),
            awaited: 0,
            missing: 0,
            generation: 0,
            should_stop: false,
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

    /// Waits for the batch of `step` and writes it to `images` (`[n, h, w, c]`) and `targets`
    /// (`[n, labels]`, see [`loss_target`]). Batches of consecutive steps are prepared ahead; after any other
    /// step, loading starts again. If fewer images are left than a batch holds (see [`Loader::in_order`]),
    /// the rest of both slices keeps its values.
    ///
    /// Errors: slices of another size; an image that cannot be read, by its name.
    pub fn fill<'a>(
        &mut self,
        step: u64,
        images: impl Into<ImagesMut<'a>>,
        targets: &mut [f32],
    ) -> Result<()> {
        let images = images.into();
        let (len, labels) = (self.shared.transform.len(), self.shared.set.labels.len());
        if images.elems() != self.batch * len || targets.len() != self.batch * labels {
            let message = format!(
                "expected an output of {} x {len} pixels and {labels} targets each, found {} pixels and \
                 {} targets",
                self.batch,
                images.elems(),
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

    /// As [`Loader::fill`], without targets. `images` needs room only for the images that are left.
    pub fn read<'a>(&mut self, step: u64, images: impl Into<ImagesMut<'a>>) -> Result<()> {
        let images = images.into();
        let len = self.shared.transform.len();
        let left = self.shared.left(step.saturating_mul(self.batch as u64)).min(self.batch as u64) as usize;
        if images.elems() < left * len {
            let message =
                format!("expected an output of at least {left} x {len} pixels, found {}", images.elems());
            return Err(Error::shape("loader", message));
        }
        self.next(step, images).map(|_| ())
    }

    /// Writes the images of `step` and returns their indices in the set.
    fn next(&mut self, step: u64, images: ImagesMut) -> Result<Vec<usize>> {
        let len = self.shared.transform.len();
        if step != self.step {
            self.jump(step);
        }
        let taken = match self.take() {
            Ok(taken) => taken,
            Err(e) => {
                // A second call for the same step tries again.
                self.jump(step);
                return Err(e);
            }
        };
        match images {
            ImagesMut::Pixels(all) => all
                .par_chunks_exact_mut(len)
                .zip(&taken)
                .for_each(|(to, (_, pixels))| to.copy_from_slice(pixels)),
            ImagesMut::Inputs(all) => {
                all.par_chunks_exact_mut(len).zip(&taken).for_each(|(to, (_, pixels))| to_inputs(pixels, to));
            }
        }
        let (shown, spare): (Vec<usize>, Vec<Vec<u8>>) = taken.into_iter().unzip();
        self.shared.lock().spare.extend(spare);
        self.step += 1;
        Ok(shown)
    }

    /// Waits for the next batch; returns its images as indices and 8-bit pixels.
    fn take(&mut self) -> Result<Vec<(usize, Vec<u8>)>> {
        let first = self.step.saturating_mul(self.batch as u64);
        let count = self.shared.left(first).min(self.batch as u64) as usize;
        let mut state = self.shared.lock();
        let done = state.slots.iter().take(count).filter(|s| !matches!(s, Slot::InProgress)).count();
        (state.awaited, state.missing) = (count, count - done);
        // The reader is woken once per batch. If it woke for every image, it would take the core from a
        // loading thread.
        while state.missing > 0 {
            state = self.shared.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.awaited = 0;
        state.first += count as u64;
        let slots = state.slots.drain(..count);
        let taken = slots.filter_map(|slot| match slot {
            Slot::Done { image, pixels } => Some(Ok((image, pixels))),
            Slot::Failed(e) => Some(Err(e)),
            Slot::InProgress => None,
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
        self.shared.lock().should_stop = true;
        self.shared.taken.notify_all();
        for thread in self.threads.drain(..) {
            // `work` has turned panics of the image readers into errors, so that there is nothing to report
            // here.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Ignores poisoning: no thread panics while it holds the lock, and the state would be consistent even
    /// so.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of images from `position` on.
    fn left(&self, position: u64) -> u64 {
        match self.order {
            Order::Shuffled => u64::MAX,
            Order::Once => (self.set.len() as u64).saturating_sub(position),
        }
    }

    /// The loop of a thread: claims an image, prepares it, and stores it in its slot.
    fn work(&self) {
        let mut transformer = Transformer::default();
        let mut epoch = Epoch::default();
        let mut buffer = Vec::new();
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
                let crop = self.transform.draw(h, w, &mut rng);
                let decoded = opened.pixels(crop.rows(), std::mem::take(&mut buffer))?;
                transformer.apply(self.transform.image, crop, &decoded, &mut pixels)?;
                buffer = decoded.data;
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

    /// Waits for the next image to prepare; returns its position, the generation and a buffer. `None` means
    /// stop.
    fn claim(&self) -> Option<(u64, u64, Vec<u8>)> {
        let mut state = self.lock();
        loop {
            if state.should_stop {
                return None;
            }
            let position = state.first + state.slots.len() as u64;
            if state.slots.len() < self.window && self.left(position) > 0 {
                state.slots.push_back(Slot::InProgress);
                let buffer = state.spare.pop().unwrap_or_default();
                return Some((position, state.generation, buffer));
            }
            state = self.taken.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The order of one epoch, kept until another epoch is needed.
#[derive(Default)]
struct Epoch {
    /// The number of the epoch, and its order.
    drawn: (Option<u64>, Vec<u32>),
}

impl Epoch {
    /// The index of the image at `position`, for a set of `n` images.
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
