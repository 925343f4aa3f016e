//! What runs a step: the compiled kernels, the emulator that runs them without a GPU, whole runs on either, and the
//! engine's promise to allocate nothing.

#[path = "../common/mod.rs"]
mod common;

mod emulator;
mod kernels;
mod lab;
mod machines;
mod no_alloc;
