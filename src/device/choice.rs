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
        self.gpu()?.map(|gpu| Machine::new(gpu, map_dtype)).transpose()
    }

    /// Opens the device and runs a kernel on it. Returns its name for people, `None` for the CPU.
    ///
    /// Errors: as [`Choice::machine`]; a device that does not run kernels.
    pub fn try_kernel(self) -> Result<Option<String>> {
        let Some(gpu) = self.gpu()? else { return Ok(None) };
        gpu.try_kernel()?;
        Ok(Some(gpu.name()))
    }

    fn gpu(self) -> Result<Option<Gpu>> {
        Ok(match self {
            Choice::Cpu => None,
            Choice::Cuda(index) => Some(Gpu::Cuda(Cuda::open(index)?.into())),
            Choice::Emu => Some(Gpu::Emu(Emu::open(0)?)),
        })
    }
}
