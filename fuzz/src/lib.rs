//! What every target of `fuzz/targets` shares: the readers, and an allocator that makes an unbounded allocation a crash.

pub mod readers;

/// Bytes that one input may hold at a time, whether or not it touches them: libFuzzer's own limit sees only pages in use.
/// An input has at most 64 KiB, deflate inflates it at most a thousandfold, and decoding holds a few copies.
const MOST_BYTES: usize = 768 << 20;

#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, MOST_BYTES);
