//! Launches on a CUDA device, one by one or captured as a graph.

use super::device::Cuda;
use super::driver::{check, enter, is_synchronous};
use super::handles::{Captured, Executable};
use super::library::{cuGraphLaunch, cuLaunchKernel, cuStreamBeginCapture_v2};
use crate::device::collective::{self, Ranks};
use crate::device::gpu::launch::{LibraryCall, Matmul, Prepared};
use crate::error::{Error, Result};
use cudarc::driver::sys::CUstreamCaptureMode;

/// A captured step, which starts with one call.
pub struct Graph(Executable);

impl Cuda {
    /// Starts a kernel after all earlier work, and waits for it if `DFKA_SYNC=1`.
    ///
    /// Errors: a kernel that this device does not have; what the driver refuses, with the launch in words.
    pub fn launch(&self, p: &Prepared) -> Result<()> {
        enter()?;
        match p.library {
            Some(LibraryCall::Exchange(exchange)) => {
                let cards = collective::current().and_then(Ranks::cards);
                let cards =
                    cards.ok_or_else(|| Error::Run(format!("{}: no ranks on cards", p.in_words())))?;
                return cards.launch(exchange, p, &self.stream);
            }
            Some(LibraryCall::Matmul(product)) => return self.multiply(&product, p),
            None => {}
        }
        let named = |e: Error| match e {
            Error::OutOfMemory(message) => Error::OutOfMemory(format!("{}: {message}", p.in_words())),
            Error::NoDevice(message) => Error::NoDevice(message),
            e => Error::Run(format!("{}: {e}", p.in_words())),
        };
        let function = self.function(p).map_err(named)?;
        let [x, y, z] = p.grid;
        let (mut arguments, none) = (p.pointers(), std::ptr::null_mut());
        let arguments = arguments.as_mut_ptr();
        // SAFETY: number and kinds of the arguments were checked against the kernel's parameter list
        // (`Launch::new`), the geometry against its bounds; the driver copies the arguments before it
        // returns. Addresses come from live blocks: plans resolve them again whenever a block has moved
        // (`Machine::epoch`).
        let launched = unsafe {
            cuLaunchKernel(function, x, y, z, p.block, 1, 1, p.shared, self.stream.0, arguments, none)
        };
        check(launched, "launch").map_err(named)?;
        if is_synchronous() { self.synchronize().map_err(named) } else { Ok(()) }
    }

    /// Puts a product by cuBLASLt into the stream, and waits for it if `DFKA_SYNC=1`.
    fn multiply(&self, product: &Matmul, p: &Prepared) -> Result<()> {
        let named = |e: Error| Error::Run(format!("{}: {e}", p.in_words()));
        let library = self.cublaslt.as_ref().ok_or_else(|| {
            Error::Run(format!("{}: cuBLASLt was not opened for this device", p.in_words()))
        })?;
        library.multiply(product, [p.cell(0), p.cell(1), p.cell(2)], &self.stream).map_err(named)?;
        if is_synchronous() { self.synchronize().map_err(named) } else { Ok(()) }
    }

    /// Whether steps may be captured: not if the host waits for every launch.
    pub fn captures(&self) -> bool {
        !is_synchronous()
    }

    /// Captures what `enqueue` launches into a graph, without running it. Every kernel must have run once
    /// before, because a module cannot be loaded during capture.
    ///
    /// Errors: those of `enqueue`, and the driver's.
    pub fn capture(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Graph> {
        enter()?;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive; the capture ends below, whether `enqueue` fails or not.
        check(unsafe { cuStreamBeginCapture_v2(self.stream.0, mode) }, "cuStreamBeginCapture")?;
        let enqueued = enqueue();
        let captured = Captured::end(&self.stream);
        enqueued?;
        captured?.instantiate().map(Graph)
    }

    /// Starts a captured step after all earlier work.
    ///
    /// Errors: the driver's.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        enter()?;
        // SAFETY: graph and stream are alive, and so are the blocks that its kernels use, as in `launch`.
        check(unsafe { cuGraphLaunch(graph.0.0, self.stream.0) }, "cuGraphLaunch")
    }
}
