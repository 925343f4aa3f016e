//! Copies to the device beside the kernels, in a stream of their own.

use super::copies::copy_in;
use super::device::Cuda;
use super::handles::Event;
use crate::device::gpu::block::Address;
use crate::error::Result;

/// Who may use a block that is filled again and again: first the copies, then the kernels.
pub struct Turn {
    /// The end of the last copy into the block.
    filled: Event,
    /// The end of the last kernel that reads it.
    used: Event,
}

impl Turn {
    /// Errors: the driver's; no device is open.
    pub fn new() -> Result<Turn> {
        Ok(Turn { filled: Event::untimed()?, used: Event::untimed()? })
    }
}

impl Cuda {
    /// Copies to the device while kernels run, once the kernels before the last [`Cuda::used`] have ended; kernels that
    /// are launched later find the bytes. Returns when the bytes have left the caller's memory. The range must lie in
    /// a live block.
    ///
    /// Errors: as [`Cuda::upload`].
    pub fn fill(&self, turn: &Turn, to: Address, bytes: &[u8]) -> Result<()> {
        self.inflow.wait_for(&turn.used)?;
        copy_in(&self.inflow, &self.inflow_staging, to, bytes)?;
        turn.filled.record(&self.inflow)?;
        self.stream.wait_for(&turn.filled)
    }

    /// Lets the next [`Cuda::fill`] begin after what was launched by now.
    ///
    /// Errors: the driver's.
    pub fn used(&self, turn: &Turn) -> Result<()> {
        turn.used.record(&self.stream)
    }
}
