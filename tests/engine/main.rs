//! Tests of the engine: the compiled kernels, the emulator that runs them without a GPU, values from NVIDIA's
//! documents that both are compared with, whole runs on the emulator or a GPU, and that a step allocates no
//! memory.

#[path = "../common/mod.rs"]
mod common;

mod emulator;
mod facts;
mod kernels;
mod lab;
mod machines;
mod no_alloc;
mod stalls;
mod units;
