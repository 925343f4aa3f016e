//! Copies to and from a CUDA device, all of them through pinned memory that the device owns.

use super::device::Cuda;
use super::driver::{check, enter};
use super::handles::Stream;
use super::library::{cuMemcpyDtoHAsync_v2, cuMemcpyHtoDAsync_v2};
use super::pinned::{Pinned, Staging};
use crate::device::gpu::block::Address;
use crate::device::step_state::StepState;
use crate::error::Result;
use std::sync::Mutex;

/// Larger copies go in pieces of so many bytes, which bounds the pinned memory: a batch of 64 photographs of 224
/// pixels (38 MB) is one piece.
const PIECE: usize = 64 << 20;

/// Copies `bytes` to a range of a live block, in a stream and through pinned memory of its own.
///
/// Errors: as [`Cuda::upload`].
pub(super) fn copy_in(stream: &Stream, staging: &Mutex<Staging>, to: Address, bytes: &[u8]) -> Result<()> {
    enter()?;
    let mut staging = staging.lock().expect("no thread panics while it holds the staging memory");
    for (i, piece) in bytes.chunks(PIECE).enumerate() {
        staging.send(stream, piece, |from| {
            let to = to + (i * PIECE) as u64;
            // SAFETY: callers checked the range of a live block. `from` is pinned memory of the device's, which keeps
            // these bytes until the copy has ended (`Staging`).
            let copied = unsafe { cuMemcpyHtoDAsync_v2(to, from, piece.len(), stream.0) };
            check(copied, "copy to the device")
        })?;
    }
    Ok(())
}

impl Cuda {
    /// Copies to the device, and returns when the bytes have left the caller's memory: work that is launched later
    /// finds them. The range must lie in a live block.
    ///
    /// Errors: the driver's, among them the failure of an earlier kernel.
    pub fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        copy_in(&self.stream, &self.staging, to, bytes)
    }

    /// Copies a step's state without waiting.
    ///
    /// Errors: as [`Cuda::upload`].
    pub fn send(&self, to: Address, state: &StepState) -> Result<()> {
        enter()?;
        let mut states = self.states.lock().expect("no thread panics while it holds the states");
        states.send(&self.stream, state, |from| {
            // SAFETY: as in `upload`; `Gpu::send` checked the range.
            let copied = unsafe { cuMemcpyHtoDAsync_v2(to, from, size_of::<StepState>(), self.stream.0) };
            check(copied, "copy of the step's state")
        })
    }

    /// Copies from the device after all earlier work, and waits. The range must lie in a live block.
    ///
    /// Errors: as [`Cuda::upload`].
    pub fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        enter()?;
        let mut landing = self.landing.lock().expect("no thread panics while it holds the landing memory");
        for (i, piece) in bytes.chunks_mut(PIECE).enumerate() {
            let landing = Pinned::enlarge(&mut landing, piece.len())?;
            let to = landing.room(0, piece.len());
            // SAFETY: `Gpu::download` checked the range of a live block. The device owns `to`, which stays allocated
            // if the wait fails and the copy is still on its way.
            let copied =
                unsafe { cuMemcpyDtoHAsync_v2(to, from + (i * PIECE) as u64, piece.len(), self.stream.0) };
            check(copied, "copy from the device")?;
            self.stream.synchronize()?;
            landing.get(0, piece);
        }
        Ok(())
    }

    /// Waits for all work.
    ///
    /// Errors: a kernel that failed.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize()
    }
}
