//! Which device steps run on.

use super::gpu::Gpu;
use super::gpu::cuda::Cuda;
use super::gpu::emu::Emu;
use super::gpu::machine::Machine;
use crate::error::Result;
use crate::tensor::Elem;

/// The device that steps run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// This machine's processor.
    #[default]
    Cpu,
    /// The CUDA device of this index.
    Cuda(usize),
    /// The CUDA kernels, emulated on the CPU.
    Emu,
}

impl Choice {
    /// Opens the machine that steps run on, which stores feature maps as `map_dtype`. The CPU needs none.
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
