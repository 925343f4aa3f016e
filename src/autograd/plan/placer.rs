//! Where buffers lie in the arena: never two that are alive at once on the same bytes.

use crate::device::memory::ALIGN;

/// A buffer of the arena while it is being placed: bytes and the first and last instruction that touch it.
pub(super) struct Life {
    pub(super) bytes: usize,
    pub(super) first: usize,
    pub(super) last: usize,
}

/// Buffers are named by what they hold; a node's saved and scratch buffers by their index in `lives`.
pub(super) struct Placer {
    pub(super) lives: Vec<Life>,
}

impl Placer {
    pub(super) fn add(&mut self, bytes: usize, first: usize) -> usize {
        self.lives.push(Life { bytes, first, last: first });
        self.lives.len() - 1
    }
    pub(super) fn extend(&mut self, buffer: usize, to: usize) {
        let life = &mut self.lives[buffer];
        life.last = life.last.max(to);
    }
    /// Offsets that never overlap in both time and space: largest first, each at the lowest place that is free.
    pub(super) fn place(&self) -> (Vec<usize>, usize) {
        let mut order: Vec<usize> = (0..self.lives.len()).collect();
        order.sort_by_key(|i| (std::cmp::Reverse(self.lives[*i].bytes), *i));
        let mut offsets = vec![0; self.lives.len()];
        let mut placed: Vec<usize> = Vec::new(); // by offset
        let mut end = 0;
        for i in order {
            let life = &self.lives[i];
            let size = life.bytes.next_multiple_of(ALIGN);
            let mut at = 0;
            for &j in &placed {
                let other = &self.lives[j];
                if other.first <= life.last && life.first <= other.last {
                    if at + size <= offsets[j] {
                        break;
                    }
                    at = at.max(offsets[j] + other.bytes.next_multiple_of(ALIGN));
                }
            }
            offsets[i] = at;
            end = end.max(at + size);
            let place = placed.partition_point(|j| offsets[*j] <= at);
            placed.insert(place, i);
        }
        (offsets, end)
    }
}
