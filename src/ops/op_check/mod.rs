//! The checks that every op passes. An op's tests only write down cases: an op, its operands and, where there
//! is one, an independent computation of the result.
//!
//! On the CPU: the outputs equal the independent computation's; the gradients equal finite differences;
//! storing and adding give the same gradient; a gradient does not depend on which others are computed; f32
//! agrees with f64; a second run gives the same bits. On machines that run kernels (the emulator, or a GPU):
//! the results are as close to f64 as a naive f32 computation's; every order of a block's threads gives the
//! same bits; each kernel parameter that is a pointer of its own gets an operand that it may read or write
//! (the pointers in groups and tables are not looked at: their operands show in the results alone). On both:
//! every element of a result is written, and nothing else is.
//!
//! | file | holds |
//! |---|---|
//! | `check.rs` | `check`, which runs all of these |
//! | `case.rs` | one op with its operands |
//! | `result.rs` | what a run leaves behind |
//! | `layout.rs` | slots for a run's operands, with a gap around each |
//! | `cpu.rs`, `device.rs` | one run, on the CPU and on a machine that runs kernels |
//! | `gradient.rs` | finite differences, one element at a time and along a random direction |
//! | `compare.rs`, `naive.rs` | error bounds, and the naive f32 that sets those of a device |
//! | `mask.rs`, `linear.rs` | activation masks, and linear gradients of a loss |
//! | `parameters.rs` | kernel parameters against the operands passed to them |
//! | `machines.rs`, `engine.rs` | machines to test on, and the kernels that belong to no op |

mod case;
mod check;
mod compare;
mod cpu;
mod device;
mod engine;
mod gradient;
mod layout;
mod linear;
mod machines;
mod mask;
mod naive;
mod parameters;
mod result;
#[cfg(test)]
mod tests;

pub use case::Case;
pub use check::check;
pub use engine::check_bf16_copies;
