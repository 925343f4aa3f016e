//! Several processes that work on one run: their ranks, and the data that they exchange.
//!
//! A launcher (`mpirun`, `srun`) starts the processes. The launcher's MPI library is opened at run time and moves the data.
//! It does not add them: a library's sum may change its order, and with it its bits, with the number of ranks and with its
//! version. Every rank therefore receives the terms and adds them in a fixed order.
//!
//! Without a launcher nothing is opened, and [`current`] is `None`.

mod launcher;
mod mpi;
mod watch;

pub use launcher::{Launched, launched};

use crate::error::{Error, Result};
use crate::tensor::Real;
use bytemuck::Pod;
use mpi::Mpi;
use std::sync::OnceLock;
use watch::{Lost, Watch};

/// This process among those of its run.
pub struct Ranks {
    rank: usize,
    size: usize,
    mpi: Mpi,
    watch: Watch,
}

static RANKS: OnceLock<Ranks> = OnceLock::new();

/// Joins the other processes of this launch, once; `None` without a launcher, or for a single process. `lost` ends this
/// process when the others no longer answer.
///
/// Errors: a launcher whose MPI library is not found, or which refuses to start; a `DFKA_RANK_TIMEOUT` that is not a number of seconds.
pub fn join(lost: Lost) -> Result<Option<&'static Ranks>> {
    let Some(launched) = launched().filter(|l| l.size > 1) else { return Ok(None) };
    if RANKS.get().is_none() {
        let watch = Watch::start(lost)?;
        let (mpi, rank, size) = Mpi::start(&launched)?;
        if (rank, size) != (launched.rank, launched.size) {
            return Err(Error::NoDevice(format!(
                "{}: the launcher says rank {} of {}, the library says {rank} of {size}; it belongs to another MPI than the \
                 launcher: name the launcher's library in DFKA_MPI",
                mpi.file(),
                launched.rank,
                launched.size
            )));
        }
        let _ = RANKS.set(Ranks { rank, size, mpi, watch });
    }
    Ok(current())
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
    /// The library's file.
    pub fn library(&self) -> &str {
        self.mpi.file()
    }

    /// Part i of `from` goes to rank i; part j of `to` comes from rank j. All parts are of one size.
    ///
    /// Ends the process if another rank does not answer, as do the other moves.
    pub fn all_to_all<T: Pod>(&self, from: &[T], to: &mut [T]) {
        assert_eq!((from.len() % self.size, from.len()), (0, to.len()), "parts of one size");
        self.watched(|| self.mpi.all_to_all(bytemuck::cast_slice(from), bytemuck::cast_slice_mut(to)));
    }
    /// Part j of `all` becomes what rank j passes as `own`.
    pub fn all_gather<T: Pod>(&self, own: &[T], all: &mut [T]) {
        assert_eq!(own.len() * self.size, all.len(), "a part for each rank");
        self.watched(|| self.mpi.all_gather(bytemuck::cast_slice(own), bytemuck::cast_slice_mut(all)));
    }
    /// `data` becomes that of rank `from`.
    pub fn broadcast<T: Pod>(&self, data: &mut [T], from: usize) {
        self.watched(|| self.mpi.broadcast(bytemuck::cast_slice_mut(data), from));
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
    /// The same for many values, whose number is a multiple of the ranks: each rank adds a slice of them, and passes it on.
    /// `own` is overwritten, and the sums are in `all`.
    pub fn add_in_slices<R: Real>(&self, own: &mut [R], all: &mut [R]) {
        self.all_to_all(own, all);
        let slice = own.len() / self.size;
        let sum = &mut own[..slice];
        sum.copy_from_slice(&all[..slice]);
        for part in all.chunks_exact(slice.max(1)).skip(1) {
            sum.iter_mut().zip(part).for_each(|(s, p)| *s += *p);
        }
        self.all_gather(sum, all);
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
    /// Ends the exchange, in all ranks; no move of data may follow. [`current`] and [`leads`] stay what they are.
    pub fn leave(&self) {
        self.watch.during(|| self.mpi.finalize());
    }

    fn watched(&self, moves: impl FnOnce() -> std::result::Result<(), String>) {
        let moved = self.watch.during(moves);
        if let Err(e) = moved {
            self.watch.give_up(&e);
        }
    }
}
