//! Launches on a CUDA device, one by one or captured as a graph.

use super::device::Cuda;
use super::driver::{check, enter, is_synchronous};
use crate::device::gpu::launch::Prepared;
use crate::error::{Error, Result};
use cudarc::driver::sys::*;

/// A captured step, which starts with one call.
pub struct Graph(CUgraphExec);

// SAFETY: a handle of the driver, used only by methods of `Cuda`, after `enter`.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if enter().is_ok() {
            // SAFETY: created by `capture`, destroyed once.
            unsafe { cuGraphExecDestroy(self.0) };
        }
    }
}

impl Cuda {
    /// Starts a kernel after all earlier work, and waits for it if `DFKA_SYNC=1`.
    ///
    /// Errors: a kernel that this device does not have; what the driver refuses, with the launch in words.
    pub fn launch(&self, p: &Prepared) -> Result<()> {
        let function = self.function(p.kernel)?;
        enter()?;
        let named = |e: Error| match e {
            Error::OutOfMemory(message) => Error::OutOfMemory(format!("{}: {message}", p.in_words())),
            e => Error::Run(format!("{}: {e}", p.in_words())),
        };
        let [x, y, z] = p.grid;
        // SAFETY: number and kinds of the arguments were checked against the kernel's parameter list
        // (`Launch::new`), the geometry against its bounds; the driver copies the arguments before it
        // returns. Addresses come from live blocks: plans resolve them again whenever a block has moved
        // (`Machine::epoch`).
        unsafe {
            if p.shared > 48 << 10 {
                let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                check(cuFuncSetAttribute(function, attribute, p.shared as i32), "shared memory")
                    .map_err(named)?;
            }
            let (mut arguments, none) = (p.pointers(), std::ptr::null_mut());
            let arguments = arguments.as_mut_ptr();
            check(
                cuLaunchKernel(function, x, y, z, p.block, 1, 1, p.shared, self.stream, arguments, none),
                "launch",
            )
            .map_err(named)?;
        }
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
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the stream lives as long as `self`; capture ends whether `enqueue` fails or not; pointers
        // are to locals.
        unsafe {
            check(cuStreamBeginCapture_v2(self.stream, mode), "cuStreamBeginCapture")?;
            let enqueued = enqueue();
            let ended = check(cuStreamEndCapture(self.stream, &mut graph), "cuStreamEndCapture");
            let made = enqueued.and(ended).and_then(|()| {
                check(cuGraphInstantiateWithFlags(&mut executable, graph, 0), "cuGraphInstantiate")
            });
            if !graph.is_null() {
                cuGraphDestroy(graph);
            }
            made?;
        }
        Ok(Graph(executable))
    }

    /// Starts a captured step after all earlier work.
    ///
    /// Errors: the driver's.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        enter()?;
        // SAFETY: graph and stream are alive, and so are the blocks that its kernels use, as in `launch`.
        check(unsafe { cuGraphLaunch(graph.0, self.stream) }, "cuGraphLaunch")
    }
}
