//! Several processes that work on one run: their ranks, and the data that they exchange.
//!
//! A launcher (`mpirun`, `srun`, `torchrun`) starts the processes. A library that is opened at run time moves the data: the
//! launcher's MPI between the memories of processors, NCCL between cards. It does not add them: a library's sum may change
//! its order, and with it its bits, with the number of ranks and with its version. Every rank therefore receives the terms
//! and adds them in a fixed order.
//!
//! Without a launcher nothing is opened, and [`current`] is `None`.

mod launcher;
pub(in crate::device) mod library;
mod mpi;
mod pairs;
mod watch;

pub use launcher::{Launched, Launcher, launched};
pub use pairs::add_in_pairs;

use crate::device::gpu::cuda::{Id, Nccl};
use crate::error::{Error, Result};
use crate::tensor::Real;
use bytemuck::Pod;
use library::Library;
use mpi::Mpi;
use std::sync::{Arc, OnceLock};
use watch::{Lost, Watch};

/// This process among those of its run.
pub struct Ranks {
    rank: usize,
    size: usize,
    /// Moves data between the memories of the processes.
    library: Arc<dyn Library>,
    /// Moves data between the cards, if the ranks have some.
    cards: Option<Arc<Nccl>>,
    watch: Watch,
}

static RANKS: OnceLock<Ranks> = OnceLock::new();

/// Tells NCCL where torchrun's processes meet. To be called before the process has a second thread; later it does nothing.
pub fn prepare() {
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if let (1, Some(place)) = (threads, launcher::meeting_place()) {
        // SAFETY: no other thread reads the environment, because there is none.
        unsafe { std::env::set_var("NCCL_COMM_ID", place) };
    }
}

/// Joins the other processes of this launch, once; `None` without a launcher, or for a single process. `card` is the CUDA
/// device that this process computes on. `lost` ends this process when the others no longer answer.
///
/// Errors: a library that is not found or refuses to start, torchrun without a card; a `DFKA_RANK_TIMEOUT` that is not a
/// number of seconds.
pub fn join(card: Option<usize>, lost: Lost) -> Result<Option<&'static Ranks>> {
    let Some(launched) = launched().filter(|l| l.size > 1) else { return Ok(None) };
    if RANKS.get().is_none() {
        let _ = RANKS.set(start(launched, card, Watch::start(lost)?)?);
    }
    Ok(current())
}

fn start(launched: Launched, card: Option<usize>, watch: Watch) -> Result<Ranks> {
    let Launched { rank, size, launcher, .. } = launched;
    let mpi = match launcher {
        Launcher::Torchrun => None,
        Launcher::OpenMpi | Launcher::Mpi => Some(watch.during(|| started(&launched))?),
    };
    match &mpi {
        Some(mpi) => watch.during(|| expect_one_kind(mpi, size, card))?,
        None if card.is_some() && std::env::var_os("NCCL_COMM_ID").is_none() => {
            return Err(Error::NoDevice(
                "torchrun's MASTER_ADDR and MASTER_PORT do not say where its processes meet; name a free port of rank 0's \
                 machine: NCCL_COMM_ID=HOST:PORT"
                    .into(),
            ));
        }
        None => {}
    }
    let shared = mpi.as_ref().map(|mpi| |mut id: Id| mpi.broadcast(&mut id.0, 0).map(|()| id));
    let open = |index| watch.during(|| Nccl::start(index, rank, size, shared));
    let cards = card.map(open).transpose()?.map(Arc::new);
    let library: Arc<dyn Library> = match (mpi, &cards) {
        (Some(mpi), _) => Arc::new(mpi),
        (None, Some(nccl)) => nccl.clone(),
        (None, None) => {
            return Err(Error::NoDevice(format!(
                "torchrun started {size} processes, between which NCCL moves data, from card to card only: on processors \
                 start them with mpirun"
            )));
        }
    };
    Ok(Ranks { rank, size, library, cards, watch })
}

/// Errors: ranks of which some have a card and others not.
fn expect_one_kind(mpi: &Mpi, size: usize, card: Option<usize>) -> Result<()> {
    let mut all = vec![0; size];
    mpi.all_gather(&[u8::from(card.is_some())], &mut all).map_err(Error::NoDevice)?;
    match all.iter().position(|has| *has != all[0]) {
        None => Ok(()),
        Some(other) => {
            let on = |rank: usize| if all[rank] == 1 { "a card" } else { "the CPU" };
            Err(Error::NoDevice(format!(
                "rank 0 computes on {}, rank {other} on {}; say where with --device cuda or --device cpu",
                on(0),
                on(other)
            )))
        }
    }
}

/// The launcher's MPI.
fn started(launched: &Launched) -> Result<Mpi> {
    let (mpi, rank, size) = Mpi::start(launched)?;
    if (rank, size) == (launched.rank, launched.size) {
        return Ok(mpi);
    }
    Err(Error::NoDevice(format!(
        "{}: the launcher says rank {} of {}, the library says {rank} of {size}; it belongs to another MPI than the \
         launcher: name the launcher's library in DFKA_MPI",
        mpi.file(),
        launched.rank,
        launched.size
    )))
}

/// Ends this process without waiting for work on a card, which may wait for a rank that is gone.
pub fn end(exit_code: i32) -> ! {
    unsafe extern "C" {
        fn _exit(exit_code: i32) -> !;
    }
    // SAFETY: the C library's; it does not return.
    unsafe { _exit(exit_code) }
}

/// Runs something that may wait for other ranks. Without other ranks it runs it.
pub fn watched<O>(waits: impl FnOnce() -> O) -> O {
    match current() {
        Some(ranks) => ranks.watch.during(waits),
        None => waits(),
    }
}

/// The ranks that this process has joined.
pub fn current() -> Option<&'static Ranks> {
    RANKS.get()
}

/// Whether this process writes, evaluates and decides: rank 0, or a process that is alone.
pub fn leads() -> bool {
    current().is_none_or(|r| r.rank == 0)
}

impl Ranks {
    /// From 0.
    pub fn rank(&self) -> usize {
        self.rank
    }
    /// How many there are.
    pub fn size(&self) -> usize {
        self.size
    }
    /// The file of the library that moves what a step exchanges.
    pub fn library(&self) -> &str {
        self.cards.as_ref().map_or(self.library.file(), |nccl| nccl.file())
    }
    /// What moves data between cards; none if the ranks compute on processors.
    pub fn cards(&self) -> Option<&Nccl> {
        self.cards.as_deref()
    }

    /// Part i of `from` goes to rank i; part j of `to` comes from rank j. All parts are of one size.
    ///
    /// Ends the process if another rank does not answer, as do the other moves.
    pub fn all_to_all<T: Pod>(&self, from: &[T], to: &mut [T]) {
        assert_eq!((from.len() % self.size, from.len()), (0, to.len()), "parts of one size");
        self.watched(|| self.library.all_to_all(bytemuck::cast_slice(from), bytemuck::cast_slice_mut(to)));
    }
    /// Part j of `all` becomes what rank j passes as `own`.
    pub fn all_gather<T: Pod>(&self, own: &[T], all: &mut [T]) {
        assert_eq!(own.len() * self.size, all.len(), "a part for each rank");
        self.watched(|| self.library.all_gather(bytemuck::cast_slice(own), bytemuck::cast_slice_mut(all)));
    }
    /// `data` becomes that of rank `from`.
    pub fn broadcast<T: Pod>(&self, data: &mut [T], from: usize) {
        self.watched(|| self.library.broadcast(bytemuck::cast_slice_mut(data), from));
    }
    /// `values` become their sums over all ranks, each added from rank 0 on.
    pub fn add<R: Real>(&self, values: &mut [R]) {
        let (count, mut all) = (values.len(), vec![R::ZERO; values.len() * self.size]);
        self.all_gather(values, &mut all);
        values.copy_from_slice(&all[..count]);
        all[count..].chunks_exact(count.max(1)).for_each(|part| {
            values.iter_mut().zip(part).for_each(|(v, p)| *v += *p);
        });
    }
    /// Sums many values over all ranks. The number of values is a multiple of the number of ranks: each rank adds a slice of
    /// them in pairs, and passes it on. `own` is overwritten, and the sums are in `all`.
    pub fn add_in_slices<R: Real>(&self, own: &mut [R], all: &mut [R]) {
        self.all_to_all(own, all);
        let slice = own.len() / self.size;
        own[..slice].copy_from_slice(add_in_pairs(all, self.size));
        self.all_gather(&own[..slice], all);
    }
    /// One number of every rank.
    pub fn numbers(&self, own: u64) -> Vec<u64> {
        let mut all = vec![0; self.size];
        self.all_gather(&[own], &mut all);
        all
    }
    /// Waits for all ranks.
    pub fn meet(&self) {
        self.numbers(0);
    }
    /// Ends the exchange of data. Every rank calls it, and moves no data afterwards. [`current`] and [`leads`] return the same
    /// as before.
    pub fn leave(&self) {
        self.watch.during(|| self.library.finalize());
    }

    fn watched(&self, moves: impl FnOnce() -> std::result::Result<(), String>) {
        let moved = self.watch.during(moves);
        if let Err(e) = moved {
            self.watch.give_up(&e);
        }
    }
}
