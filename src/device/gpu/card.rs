//! The peak figures of graphics cards, from their data sheets.

use super::launch::LAUNCH_CYCLES;

/// A card as an SXM board. Units are decimal, as in the data sheets.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Card {
    /// Its name as a value of `--card`.
    pub name: &'static str,
    /// Compute capability, major and minor.
    #[serde(skip)]
    pub capability: (i32, i32),
    /// Dynamic shared memory that a block may ask for, in bytes.
    #[serde(skip)]
    pub shared_bytes: u32,
    /// Streaming multiprocessors.
    #[serde(skip)]
    pub multiprocessors: usize,
    /// Cycles a second of a multiprocessor, at the boost clock.
    #[serde(skip)]
    pub clock: f64,
    /// Bytes of the L2 cache.
    #[serde(skip)]
    pub l2_bytes: usize,
    /// A part of the driver's name for it.
    #[serde(skip)]
    device: &'static str,
    /// Device memory.
    pub memory_bytes: f64,
    /// Peak bandwidth of device memory.
    pub bytes_per_second: f64,
    /// Peak operations a second of dense bf16 products with f32 sums.
    pub bf16_flops: f64,
    /// Peak operations a second in f32, without tensor cores.
    pub f32_flops: f64,
}

/// The share of the data sheet's bandwidth that kernels are assumed to reach.
const MEMORY_SHARE: f64 = 0.9;

/// The cards of which forecasts can be made, from NVIDIA's data sheets.
static CARDS: [Card; 4] = [
    card("h200", ((9, 0), 132), "H200", 141e9, 4.8e12, 989e12, 67e12),
    card("h100", ((9, 0), 132), "H100 80GB HBM3", 80e9, 3.35e12, 989e12, 67e12),
    card("a100", ((8, 0), 108), "A100-SXM4-80GB", 80e9, 2.039e12, 312e12, 19.5e12),
    card("a100-40gb", ((8, 0), 108), "A100-SXM4-40GB", 40e9, 1.555e12, 312e12, 19.5e12),
];

const fn card(
    name: &'static str,
    (capability, multiprocessors): ((i32, i32), usize),
    device: &'static str,
    memory_bytes: f64,
    bytes_per_second: f64,
    bf16_flops: f64,
    f32_flops: f64,
) -> Card {
    let is_hopper = capability.0 == 9;
    let (shared_bytes, l2_bytes, clock) =
        if is_hopper { (227 << 10, 50 << 20, 1.755e9) } else { (163 << 10, 40 << 20, 1.41e9) };
    Card {
        name,
        capability,
        shared_bytes,
        multiprocessors,
        clock,
        l2_bytes,
        device,
        memory_bytes,
        bytes_per_second,
        bf16_flops,
        f32_flops,
    }
}

impl Default for &'static Card {
    /// The H200, for which the kernels are tuned.
    fn default() -> Self {
        &CARDS[0]
    }
}

impl Card {
    /// The card with this name as a value of `--card`.
    pub fn named(name: &str) -> Option<&'static Card> {
        CARDS.iter().find(|c| c.name == name)
    }
    /// The card that the driver calls by this name.
    pub fn of_device(device: &str) -> Option<&'static Card> {
        CARDS.iter().find(|c| device.contains(c.device))
    }
    /// The values of `--card`.
    pub fn names() -> impl Iterator<Item = &'static str> {
        CARDS.iter().map(|c| c.name)
    }
    /// Bytes a second that it sends to another card of the same machine (NVLink).
    pub fn link_bytes_per_second(&self) -> f64 {
        if self.capability.0 == 9 { 450e9 } else { 300e9 }
    }
    /// The seconds that a launch is forecast to take, which moves so many bytes and computes so many cycles: 90 % of the
    /// bandwidth and the whole clock are assumed, and a start of [`LAUNCH_CYCLES`] that nothing overlaps with.
    pub fn modelled_seconds(&self, bytes: u64, cycles: usize) -> f64 {
        let moves = bytes as f64 / (MEMORY_SHARE * self.bytes_per_second);
        moves.max(cycles as f64 / self.clock) + LAUNCH_CYCLES as f64 / self.clock
    }
    /// The least seconds for so many bytes moved and operations: the longer of the two at peak rate.
    pub fn least_seconds(&self, bytes: u64, flops: u64, is_bf16: bool) -> f64 {
        let peak = if is_bf16 { self.bf16_flops } else { self.f32_flops };
        (bytes as f64 / self.bytes_per_second).max(flops as f64 / peak)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_found_by_its_own_name_and_by_the_drivers() {
        assert_eq!(<&Card>::default().name, "h200");
        assert_eq!(Card::named("a100").unwrap().memory_bytes, 80e9);
        assert_eq!(Card::named("b200"), None);
        assert_eq!(Card::of_device("NVIDIA H200").unwrap().name, "h200");
        assert_eq!(Card::of_device("NVIDIA A100-SXM4-40GB").unwrap().name, "a100-40gb");
        assert_eq!(Card::of_device("NVIDIA GeForce RTX 4090"), None);
    }

    #[test]
    fn the_slower_of_memory_and_arithmetic_is_the_least_time() {
        let card = <&Card>::default();
        assert_eq!(card.least_seconds(4_800_000_000, 0, true), 1e-3);
        assert_eq!(card.least_seconds(1, 989_000_000_000, true), 1e-3);
        assert_eq!(card.least_seconds(1, 67_000_000_000, false), 1e-3);
        let start = 3000.0 / 1.755e9;
        assert!((card.modelled_seconds(4_320_000_000, 1_000) - 1e-3 - start).abs() < 1e-12);
        assert!((card.modelled_seconds(1, 1_755_000) - 1e-3 - start).abs() < 1e-12);
    }
}
