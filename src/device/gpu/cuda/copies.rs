//! Copies to and from a CUDA device.

use super::device::Cuda;
use super::driver::{check, enter};
use crate::device::gpu::block::Address;
use crate::device::step_state::StepState;
use crate::error::Result;
use cudarc::driver::sys::*;

impl Cuda {
    /// Copies to the device and waits for the copy. The range must lie in a live block.
    ///
    /// Errors: the driver's, among them the failure of an earlier kernel.
    pub fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        enter()?;
        // SAFETY: `Gpu::upload` checked the range of a live block; the wait ends the borrow of `bytes`.
        let copied = unsafe { cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), self.stream) };
        check(copied, "copy to the device")?;
        self.synchronize()
    }

    /// Copies a step's state without waiting.
    ///
    /// Errors: as [`Cuda::upload`].
    pub fn send(&self, to: Address, state: &StepState) -> Result<()> {
        enter()?;
        // SAFETY: `Gpu::send` checked the range of a live block; the pinned slot stays as it is for `STATES`
        // steps.
        let copied =
            unsafe { cuMemcpyHtoDAsync_v2(to, self.states.put(state), size_of::<StepState>(), self.stream) };
        check(copied, "copy of the step's state")
    }

    /// Copies from the device after all earlier work, and waits. The range must lie in a live block.
    ///
    /// Errors: as [`Cuda::upload`].
    pub fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        enter()?;
        // SAFETY: `Gpu::download` checked the range of a live block; the wait ends the borrow of `bytes`.
        unsafe {
            check(
                cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), from, bytes.len(), self.stream),
                "copy from the device",
            )?;
        }
        self.synchronize()
    }

    /// Waits for all work.
    ///
    /// Errors: a kernel that failed.
    pub fn synchronize(&self) -> Result<()> {
        enter()?;
        // SAFETY: the stream lives as long as `self`.
        check(unsafe { cuStreamSynchronize(self.stream) }, "wait")
    }
}
