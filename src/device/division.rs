//! How the batch of a step is cut, so that its sums do not depend on the number of processes.

use super::collective::{Ranks, current};
use crate::tensor::Real;

/// Shares of a batch, where its size allows: the most processes whose sums have the same bits. Each share of a process has
/// gradients of its own. With four instead of two, two processes took 11 % longer for the demo's block 4, and 3 % for its
/// generator.
const SHARES: usize = 4;

/// The *shares* of a batch: runs of equally many samples, which the processes of a run divide among themselves. Whatever
/// is summed over the batch is summed within each share first, and the sums of the shares are then added in an order that
/// the number of shares decides. One, two or four processes with four shares therefore compute the same bits.
#[derive(Clone, Copy)]
pub struct Division {
    ranks: Option<&'static Ranks>,
    own: usize,
}

impl Default for Division {
    /// The whole batch is one share, and this process has it.
    fn default() -> Self {
        Division { ranks: None, own: 1 }
    }
}

impl Division {
    /// Of a batch of so many samples among the processes of this run: four shares, two, or one for each process, the first
    /// number that divides the batch and that the processes divide.
    pub fn of(batch: usize) -> Division {
        let ranks = current();
        let processes = ranks.map_or(1, Ranks::size);
        Division { ranks, own: shares(batch, processes) / processes }
    }
    /// Shares of this process.
    pub fn own(&self) -> usize {
        self.own
    }
    /// The processes that have shares.
    pub fn processes(&self) -> usize {
        self.ranks.map_or(1, Ranks::size)
    }
    /// The ranks that have shares; none if this process has all of them.
    pub fn ranks(&self) -> Option<&'static Ranks> {
        self.ranks
    }
    /// Whether there is more than one share.
    pub fn is_divided(&self) -> bool {
        self.ranks.is_some() || self.own > 1
    }
    /// Whether this process has the first share. It alone counts what every process has computed for the whole batch.
    pub fn has_first(&self) -> bool {
        self.ranks.is_none_or(|r| r.rank() == 0)
    }
    /// Returns the sums of all shares, `[sums of rank 0, sums of rank 1, ...]`. `own` has the sums of this process's shares.
    pub fn gather<R: Real>(&self, own: Vec<R>) -> Vec<R> {
        let Some(ranks) = self.ranks else { return own };
        let mut all = vec![R::ZERO; own.len() * ranks.size()];
        ranks.all_gather(&own, &mut all);
        all
    }
}

fn shares(batch: usize, processes: usize) -> usize {
    let fits = |s: &usize| batch.is_multiple_of(*s) && s.is_multiple_of(processes);
    [SHARES, SHARES / 2].into_iter().find(fits).unwrap_or(processes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_two_and_four_processes_have_the_same_shares() {
        assert_eq!([1, 2, 4].map(|processes| shares(32, processes)), [4; 3]);
        assert_eq!([1, 2].map(|processes| shares(6, processes)), [2; 2]);
        assert_eq!([(7, 1), (6, 3), (32, 8)].map(|(batch, processes)| shares(batch, processes)), [1, 3, 8]);
    }
}
