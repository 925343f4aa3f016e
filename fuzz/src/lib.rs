//! What all targets in `fuzz/targets` share: the readers, and an allocator that turns an unbounded
//! allocation into a crash.

pub mod readers;

/// The most bytes that may be allocated at a time, whether or not they are used; libFuzzer's own limit counts
/// only pages in use. An input has at most 16 KiB (`-max_len` in scripts/fuzz.sh), deflate inflates it at
/// most a thousandfold, and decoding keeps a few copies.
const MOST_BYTES: usize = 768 << 20;

#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, MOST_BYTES);
