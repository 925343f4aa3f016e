//! Tests of the method: networks, losses and gradients against PyTorch, and whole runs through the library.

#[path = "../common/mod.rs"]
mod common;

mod evaluation;
mod golden;
mod golden_recipes;
mod long_runs;
mod paper_scale;
mod pipeline;
mod ranks;
mod teach;
mod torchvision;
mod variants;
