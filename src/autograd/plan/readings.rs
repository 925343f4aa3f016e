//! The metrics of the replays that were collected last.

use crate::device::Slot;
use crate::device::gpu::machine::ring_rows;

/// Scalars that a plan reports after every replay. On the CPU they are read at the end of a replay; a GPU
/// stores those of the last replays in a ring of rows, one row for each, until they are collected.
#[derive(Default)]
pub(crate) struct Readings {
    pub names: Vec<String>,
    /// Where each is computed.
    pub slots: Vec<Slot>,
    /// Steps that were started on a GPU and not collected yet.
    pending: Vec<u64>,
    /// Steps whose metrics are in `values`, one row for each.
    steps: Vec<u64>,
    values: Vec<f32>,
}

impl Readings {
    pub(crate) fn new(names: Vec<String>, slots: Vec<Slot>) -> Readings {
        Readings { names, slots, ..Readings::default() }
    }
    /// Rows of the ring.
    pub(crate) fn ring_rows(&self) -> usize {
        ring_rows(self.names.len())
    }
    /// Whether another step would overwrite a row that was not collected.
    pub(crate) fn ring_is_full(&self) -> bool {
        self.pending.len() == self.ring_rows()
    }
    /// A step was started on a GPU, which will store its metrics in the ring.
    pub(crate) fn add_pending(&mut self, step: u64) {
        if !self.names.is_empty() {
            self.pending.push(step);
        }
    }
    /// Takes the metrics of the pending steps from the ring, `[ring_rows][names]`.
    pub(crate) fn take_from_ring(&mut self, ring: &[f32]) {
        let (count, rows) = (self.names.len(), self.ring_rows());
        std::mem::swap(&mut self.steps, &mut self.pending);
        self.pending.clear();
        self.values.clear();
        for step in &self.steps {
            let row = (step % rows as u64) as usize;
            self.values.extend_from_slice(&ring[row * count..][..count]);
        }
    }
    /// Replaces the metrics by those of one step on the CPU; `read` reads a scalar.
    pub(crate) fn read(&mut self, step: u64, mut read: impl FnMut(Slot) -> f32) {
        self.steps.clear();
        self.steps.push(step);
        self.values.clear();
        self.values.extend(self.slots.iter().map(|slot| read(*slot)));
    }
    /// The steps, and the metrics of each.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (u64, &[f32])> {
        let count = self.names.len();
        self.steps.iter().enumerate().map(move |(i, s)| (*s, &self.values[i * count..][..count]))
    }
    /// The metrics of the last step; none before the first replay.
    pub(crate) fn last(&self) -> impl Iterator<Item = (&str, f32)> {
        let last = self.values.len().saturating_sub(self.names.len());
        self.names.iter().map(String::as_str).zip(self.values[last..].iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_from_their_rows_of_the_ring() {
        let mut r = Readings::new(vec!["a".into(), "b".into()], vec![]);
        let rows = r.ring_rows() as u64;
        let mut ring = vec![0.0; 2 * r.ring_rows()];
        let (last_row, end) = (ring.len() - 2, ring.len());
        ring[last_row..end].copy_from_slice(&[1.0, 2.0]);
        ring[..2].copy_from_slice(&[3.0, 4.0]);
        r.add_pending(rows - 1);
        r.add_pending(rows);
        r.take_from_ring(&ring);
        let expected = [(rows - 1, &[1.0, 2.0][..]), (rows, &[3.0, 4.0])];
        assert_eq!(r.rows().collect::<Vec<_>>(), expected);
        assert_eq!(r.last().collect::<Vec<_>>(), [("a", 3.0), ("b", 4.0)]);
        r.take_from_ring(&ring);
        assert_eq!(r.rows().count(), 0, "each step is collected once");
    }

    #[test]
    fn the_ring_is_full_when_every_row_is_pending_and_a_plan_without_metrics_needs_none() {
        let mut r = Readings::new(vec!["a".into()], vec![]);
        (0..r.ring_rows() as u64).for_each(|step| r.add_pending(step));
        assert!(r.ring_is_full());
        let mut none = Readings::default();
        (0..1000).for_each(|step| none.add_pending(step));
        assert!(!none.ring_is_full());
    }
}
