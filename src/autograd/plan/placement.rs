//! Where buffers lie in the arena: never two that are in use at the same time on the same bytes.

use crate::device::memory::ARENA_ALIGN;

/// A buffer of the arena before it has an offset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Life {
    pub bytes: usize,
    /// The times of the first and of the last group of nodes that use the buffer, both included.
    pub first: usize,
    pub last: usize,
}

impl Life {
    fn overlaps(&self, o: &Life) -> bool {
        self.first <= o.last && o.first <= self.last
    }
}

/// The buffers of a step. A buffer is named by its index; the index decides between buffers of equal size
/// when they are placed, so that the order in which buffers are added decides addresses.
#[derive(Default)]
pub(crate) struct Lives(pub Vec<Life>);

impl Lives {
    /// A buffer that is first used at time `first`.
    pub(crate) fn add(&mut self, bytes: usize, first: usize) -> usize {
        self.add_from_to(bytes, first, first)
    }
    /// A buffer that is in use from `first` to `last`.
    pub(crate) fn add_from_to(&mut self, bytes: usize, first: usize, last: usize) -> usize {
        self.0.push(Life { bytes, first, last });
        self.0.len() - 1
    }
    /// The buffer is used at time `to`, too.
    pub(crate) fn extend(&mut self, buffer: usize, to: usize) {
        let life = &mut self.0[buffer];
        life.last = life.last.max(to);
    }
}

/// The offset of every buffer, and the bytes of the arena.
pub(crate) struct Placement {
    pub offsets: Vec<usize>,
    pub arena_bytes: usize,
}

impl Placement {
    /// Places the largest buffer first, each at the lowest offset that is free for its whole life. Empty buffers lie
    /// at the beginning.
    ///
    /// The time grows with the square of the buffers, of which 32 ResNet-101 have 50,000 in a step; what the inner loop
    /// reads of a placed buffer is therefore kept together.
    pub(crate) fn of(lives: &Lives) -> Placement {
        struct Placed {
            life: Life,
            offset: usize,
            end: usize,
        }
        let lives = &lives.0;
        let mut order: Vec<usize> = (0..lives.len()).filter(|i| lives[*i].bytes > 0).collect();
        order.sort_by_key(|i| (std::cmp::Reverse(lives[*i].bytes), *i));
        let mut offsets = vec![0; lives.len()];
        let mut placed: Vec<Placed> = Vec::new(); // by offset
        let mut arena_bytes = 0;
        for i in order {
            let (life, size) = (lives[i], lives[i].bytes.next_multiple_of(ARENA_ALIGN));
            let mut offset = 0;
            for p in placed.iter().filter(|p| p.life.overlaps(&life)) {
                if offset + size <= p.offset {
                    break;
                }
                offset = offset.max(p.end);
            }
            offsets[i] = offset;
            arena_bytes = arena_bytes.max(offset + size);
            let place = placed.partition_point(|p| p.offset <= offset);
            placed.insert(place, Placed { life, offset, end: offset + size });
        }
        Placement { offsets, arena_bytes }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Panics where two buffers share bytes while both are in use.
    pub(in crate::autograd::plan) fn expect_no_overlap(lives: &Lives, placement: &Placement) {
        let (lives, offsets) = (&lives.0, &placement.offsets);
        for i in 0..lives.len() {
            assert!(
                offsets[i] + lives[i].bytes <= placement.arena_bytes,
                "buffer {i} ends outside the arena"
            );
            for j in 0..i {
                let (a, b) = (&lives[i], &lives[j]);
                let in_space = offsets[i] < offsets[j] + b.bytes && offsets[j] < offsets[i] + a.bytes;
                assert!(
                    !(a.overlaps(b) && in_space),
                    "buffers {i} and {j} share bytes while both are in use"
                );
            }
        }
    }

    fn random(seed: u32) -> impl FnMut(u32) -> usize {
        let mut s = seed;
        move |n| {
            s = s.wrapping_mul(1664525).wrapping_add(1013904223);
            ((s >> 16) % n) as usize
        }
    }

    #[test]
    fn random_lives_never_overlap_in_time_and_space() {
        for seed in 0..20 {
            let (mut next, mut lives) = (random(seed), Lives::default());
            for _ in 0..100 {
                let b = lives.add(next(5000), next(50));
                let last = lives.0[b].first + next(20);
                lives.extend(b, last);
            }
            expect_no_overlap(&lives, &Placement::of(&lives));
        }
    }

    #[test]
    fn the_arena_is_little_larger_than_the_most_that_is_in_use_at_once() {
        let (mut next, mut lives) = (random(7), Lives::default());
        for _ in 0..300 {
            let b = lives.add(next(5000) + 1, next(200));
            let last = lives.0[b].first + next(20);
            lives.extend(b, last);
        }
        let placement = Placement::of(&lives);
        expect_no_overlap(&lives, &placement);
        let end = placement.arena_bytes;
        let size = |l: &Life| l.bytes.next_multiple_of(ARENA_ALIGN);
        let total: usize = lives.0.iter().map(size).sum();
        let in_use = |t| lives.0.iter().filter(|l| l.first <= t && t <= l.last).map(size).sum::<usize>();
        let peak = (0..220).map(in_use).max().unwrap();
        assert!(end < total / 3 && end < peak * 13 / 10, "{end} bytes for a peak of {peak}");
    }

    #[test]
    fn buffers_of_equal_size_are_placed_in_the_order_they_were_added() {
        let mut lives = Lives::default();
        for bytes in [256, 512, 256] {
            lives.add(bytes, 0);
        }
        assert_eq!(Placement::of(&lives).offsets, [512, 0, 768]);
    }
}
