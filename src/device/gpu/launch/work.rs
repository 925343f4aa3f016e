//! How long a launch is forecast to compute.

/// Bytes that the L2 delivers to each multiprocessor in a cycle. Kernels are chosen by the first rate. Forecasts state
/// the time at both, because no card has confirmed either: a kernel that waits for the L2 takes half as long again at
/// the second.
pub const L2_BYTES: [usize; 2] = [36, 24];

/// Cycles at each rate of the L2.
pub type Cycles = [usize; 2];

/// Cycles of a launch beside its work, about 1.7 microseconds of an H200: a forecast.
pub const LAUNCH_CYCLES: usize = 3000;

/// What a launch computes: tiles of equal size, one after the other on each multiprocessor.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Tiles of one member of the group.
    pub tiles: usize,
    /// Forecast cycles of a tile.
    pub cycles: Cycles,
    /// Of the device.
    pub multiprocessors: usize,
}

impl Work {
    /// Cycles of a group of so many members, in rounds of one tile for each multiprocessor.
    pub fn cycles_of(&self, members: usize) -> Cycles {
        let rounds = (self.tiles * members).div_ceil(self.multiprocessors);
        self.cycles.map(|c| rounds * c)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_round_counts_whole() {
        let work = Work { tiles: 133, cycles: [10, 15], multiprocessors: 132 };
        assert_eq!(work.cycles_of(1), [20, 30]);
        assert_eq!(work.cycles_of(2), [30, 45], "266 tiles");
    }
}
