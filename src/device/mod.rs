//! Where ops run: memory, the step's varying values, the counter-based generator, and the CPU's inner loops.
//!
//! A device knows pointers and sizes; it knows no op and no model. All `unsafe` of the crate lives below this module.

pub mod cpu;
pub mod gpu;
pub mod memory;
pub mod philox;

pub use memory::{Memory, Slot, Space, Views};

use crate::error::Result;
use crate::tensor::Elem;
use gpu::{Gpu, cuda::Cuda, emu::Emu, machine::Machine};

/// Where steps run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    #[default]
    Cpu,
    /// The CUDA device of this index.
    Cuda(usize),
    /// CUDA's kernels, on the CPU.
    Emu,
}

impl Choice {
    /// Opens the machine that steps run on, feature maps stored as `map_dtype`; none is needed for the CPU.
    ///
    /// Errors: no such device (exit code 5).
    pub fn machine(self, map_dtype: Elem) -> Result<Option<Machine>> {
        let gpu = match self {
            Choice::Cpu => return Ok(None),
            Choice::Cuda(index) => Gpu::Cuda(Cuda::open(index)?),
            Choice::Emu => Gpu::Emu(Emu::open(0)?),
        };
        Machine::new(gpu, map_dtype).map(Some)
    }
}

/// What changes from one replay of a step to the next, in one small struct that a device reads from its memory,
/// so that a captured step needs no argument rewritten.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct StepState {
    /// Key of every random draw; one run and stage has one.
    pub seed: u64,
    /// Replay number, from 0.
    pub step: u64,
    /// Learning rates of the step's optimisers, by optimiser slot.
    pub lr: [f32; 4],
}
