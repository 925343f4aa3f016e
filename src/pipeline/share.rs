//! What each of several processes computes of a step, and how their values come together again: some teachers on the whole
//! batch, or all teachers on a part of it.

use super::spec::Split;
use crate::autograd::plan::Optimiser;
use crate::autograd::tape::Value;
use crate::autograd::{Store, Tape, TensorId};
use crate::device::collective::{self, Ranks};
use crate::device::division::Division;
use crate::error::{Error, Result};
use crate::models::Recorder;
use crate::ops::movement::columns::Columns;
use crate::ops::movement::concat_columns::ConcatColumns;
use crate::ops::ranks::all_rows::AllRows;
use crate::ops::ranks::gather_columns::GatherColumns;
use crate::ops::ranks::own_rows::OwnRows;
use crate::ops::ranks::spread::Spread;
use crate::tensor::Real;
use std::ops::Range;

/// The division of a step among the ranks. A process that is alone records what it would record without a share;
/// where a batch is to be divided, it adds the gradients of the batch's shares as several ranks do.
#[derive(Clone, Copy)]
pub struct Share {
    /// Teachers, or tasks of the student.
    all: usize,
    rank: usize,
    /// Those that divide the teachers or tasks: into runs of neighbours whose lengths differ by at most one.
    ranks: Option<&'static Ranks>,
    /// Those that divide the batch, into equal parts.
    of_batch: Option<&'static Ranks>,
    /// Whether sums over the batch are taken as several ranks would take them.
    divides_batch: bool,
}

impl Share {
    /// Of so many teachers or tasks, among the ranks that this process has joined.
    ///
    /// Errors: more ranks than teachers or tasks.
    pub fn of(split: Split, all: usize, what: &str) -> Result<Share> {
        let alone = Share { divides_batch: split == Split::Batch, ..Share::alone(all) };
        let Some(ranks) = collective::current() else { return Ok(alone) };
        if split == Split::Batch {
            return Ok(Share { rank: ranks.rank(), of_batch: Some(ranks), ..alone });
        }
        if ranks.size() > all {
            return Err(Error::Usage(format!(
                "{} ranks for {all} {what}, which are divided among the ranks: start at most {all}, or divide the batch: \
                 --set parallel.split=batch",
                ranks.size()
            )));
        }
        Ok(Share { rank: ranks.rank(), ranks: Some(ranks), ..alone })
    }
    /// Of a process that computes everything.
    pub fn alone(all: usize) -> Share {
        Share { all, rank: 0, ranks: None, of_batch: None, divides_batch: false }
    }
    /// Begins a step of so many samples on the tape.
    pub fn begin(&self, tape: &mut Tape, batch: usize) {
        if self.divides_batch {
            tape.divide_batch(Division::of(batch));
        }
    }

    /// The teachers or tasks of this rank.
    pub fn own(&self) -> Range<usize> {
        if self.ranks.is_some() { self.range(self.rank) } else { 0..self.all }
    }
    /// The rank that computes number `i`.
    pub fn owner(&self, i: usize) -> usize {
        (0..self.size()).find(|rank| self.range(*rank).contains(&i)).unwrap_or(0)
    }
    /// The most that a rank has.
    pub fn most(&self) -> usize {
        self.all.div_ceil(self.size())
    }
    fn size(&self) -> usize {
        self.ranks.map_or(1, Ranks::size)
    }
    fn range(&self, rank: usize) -> Range<usize> {
        part(self.all, self.size(), rank)
    }

    /// Records a value for each of this rank's networks, whose gradients come together from all ranks.
    pub fn spread<R: Real>(&self, r: &mut Recorder<R>, x: Value) -> Result<Vec<Value>> {
        if self.ranks.is_none() {
            return Ok(vec![x; self.all]);
        }
        let networks = (0..self.size()).map(|rank| self.range(rank).len()).collect();
        r.tape.apply_all(Spread { networks, rank: self.rank }.into(), &[x])
    }

    /// Records the columns of all networks side by side, from those of this rank.
    pub fn gather<R: Real>(&self, r: &mut Recorder<R>, own: &[Value]) -> Result<Value> {
        let x = concat(r, own)?;
        let x = self.whole(r, x)?;
        let Some(ranks) = self.ranks else { return Ok(x) };
        let widths = ranks.numbers(r.tape.shape(x).c() as u64).iter().map(|w| *w as usize).collect();
        let all = r.apply(GatherColumns { widths, rank: self.rank }, &[x])?;
        // Every rank takes part in the exchange, even if its own share does not need the result.
        r.tape.output(all);
        Ok(all)
    }

    /// Records the samples of this rank, of the whole batch `x`.
    pub fn part<R: Real>(&self, r: &mut Recorder<R>, x: Value) -> Result<Value> {
        match self.of_batch {
            Some(ranks) => r.apply(OwnRows { rank: self.rank, ranks: ranks.size() }, &[x]),
            None => Ok(x),
        }
    }
    /// Records the whole batch, of which this rank has the part `x`.
    pub fn whole<R: Real>(&self, r: &mut Recorder<R>, x: Value) -> Result<Value> {
        match self.of_batch {
            Some(ranks) => r.apply(AllRows { rank: self.rank, ranks: ranks.size() }, &[x]),
            None => Ok(x),
        }
    }

    /// Records the scalars of all networks in order, from those of this rank.
    pub fn gather_scalars<R: Real>(&self, r: &mut Recorder<R>, own: Vec<Value>) -> Result<Vec<Value>> {
        if self.ranks.is_none() {
            return Ok(own);
        }
        let all = self.gather(r, &own)?;
        let count = r.tape.shape(all).c() as u32;
        (0..count).map(|i| r.apply(Columns { index: vec![i] }, &[all])).collect()
    }

    /// Whether something holds in every rank.
    pub fn all_agree(&self, holds: bool) -> bool {
        self.ranks
            .or(self.of_batch)
            .map_or(holds, |ranks| ranks.numbers(u64::from(holds)).iter().all(|n| *n == 1))
    }

    /// The tensors of an optimiser that only one rank trains, with their moments: those for which `network` names a network.
    pub fn owned(
        &self,
        optimiser: &Optimiser,
        network: impl Fn(TensorId) -> Option<usize>,
    ) -> Vec<(usize, TensorId)> {
        let of = |(id, moments): &(TensorId, Vec<TensorId>)| {
            let owner = network(*id).map(|i| self.owner(i));
            let all = std::iter::once(*id).chain(moments.clone());
            all.filter_map(|t| Some((owner?, t))).collect::<Vec<_>>()
        };
        optimiser.tensors.iter().flat_map(of).collect()
    }
}

/// Records the predictions or features of several teachers side by side: `[n, 1, 1, c_i]` become one
/// `[n, 1, 1, sum c_i]`.
pub fn concat<R: Real>(r: &mut Recorder<R>, parts: &[Value]) -> Result<Value> {
    if parts.len() == 1 { Ok(parts[0]) } else { r.apply(ConcatColumns, parts) }
}

/// The part of one of several ranks.
fn part(all: usize, ranks: usize, rank: usize) -> Range<usize> {
    let first = |rank: usize| all / ranks * rank + rank.min(all % ranks);
    first(rank)..first(rank + 1)
}

/// Gives every rank the tensors that only one of them has trained.
pub fn bring_together(store: &mut Store<f32>, owned: &[(usize, TensorId)]) {
    let Some(ranks) = collective::current() else { return };
    for (owner, id) in owned {
        ranks.broadcast(store.get_mut(*id), *owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_neighbours_and_differ_by_at_most_one() {
        for (all, ranks) in [(1, 1), (2, 2), (5, 3), (32, 5), (7, 7)] {
            let parts: Vec<_> = (0..ranks).map(|rank| part(all, ranks, rank)).collect();
            assert_eq!(parts.iter().cloned().flatten().collect::<Vec<_>>(), (0..all).collect::<Vec<_>>());
            let lengths = || parts.iter().map(ExactSizeIterator::len);
            assert!(lengths().max().unwrap() - lengths().min().unwrap() <= 1, "{parts:?}");
        }
    }

    #[test]
    fn a_process_that_is_alone_computes_all() {
        let share = Share::of(Split::Teachers, 3, "teachers").unwrap();
        assert_eq!((share.own(), share.owner(2)), (0..3, 0));
    }
}
