//! Objects of the driver that are given back when they are dropped.

use super::driver::{check, enter};
use super::library::*;
use crate::error::Result;
use cudarc::driver::sys::{CUevent, CUevent_flags, CUgraph, CUgraphExec, CUstream, CUstream_flags};
use std::ptr::null_mut;

/// Makes a type of a handle, which `destroy` gives back.
macro_rules! handle {
    ($(#[$doc:meta])* $name:ident, $handle:ty, $destroy:ident) => {
        $(#[$doc])*
        pub(super) struct $name(pub(super) $handle);

        // SAFETY: a handle of the driver may be used from any thread on which the context is current (`enter`).
        unsafe impl Send for $name {}

        impl Drop for $name {
            fn drop(&mut self) {
                if enter().is_ok() {
                    // SAFETY: created by a function below, destroyed once. The driver lets work that uses it end.
                    unsafe { $destroy(self.0) };
                }
            }
        }
    };
}

handle!(
    /// A stream, whose work runs in the order in which it is enqueued.
    Stream, CUstream, cuStreamDestroy_v2
);
handle!(
    /// A point in a stream.
    Event, CUevent, cuEventDestroy_v2
);
handle!(
    /// Launches that were captured.
    Captured, CUgraph, cuGraphDestroy
);
handle!(
    /// A captured graph that can be launched.
    Executable, CUgraphExec, cuGraphExecDestroy
);

// SAFETY: the driver locks its own state of a stream. (It does not lock that of a graph.)
unsafe impl Sync for Stream {}
// SAFETY: as for a stream.
unsafe impl Sync for Event {}

impl Stream {
    /// Errors: the driver's.
    pub(super) fn new() -> Result<Stream> {
        enter()?;
        let mut stream = null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a pointer to a live local.
        check(unsafe { cuStreamCreate(&mut stream, flags) }, "cuStreamCreate")?;
        Ok(Stream(stream))
    }

    /// Waits for all work in the stream.
    ///
    /// Errors: a kernel that failed.
    pub(super) fn synchronize(&self) -> Result<()> {
        enter()?;
        // SAFETY: the stream is alive.
        check(unsafe { cuStreamSynchronize(self.0) }, "wait")
    }

    /// Lets work that is put into the stream from now on begin after an event of another stream. The host does not
    /// wait. An event that was never recorded has passed.
    ///
    /// Errors: the driver's.
    pub(super) fn wait_for(&self, event: &Event) -> Result<()> {
        enter()?;
        // SAFETY: stream and event are alive; 0 is the only value for the flags.
        check(unsafe { cuStreamWaitEvent(self.0, event.0, 0) }, "cuStreamWaitEvent")
    }
}

impl Event {
    /// An event whose time can be read.
    ///
    /// Errors: the driver's.
    pub(super) fn timed() -> Result<Event> {
        Event::new(CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// An event to wait for, which costs the device less than one with a time.
    ///
    /// Errors: the driver's.
    pub(super) fn untimed() -> Result<Event> {
        Event::new(CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn new(flags: CUevent_flags) -> Result<Event> {
        enter()?;
        let mut event = null_mut();
        // SAFETY: a pointer to a live local.
        check(unsafe { cuEventCreate(&mut event, flags as u32) }, "cuEventCreate")?;
        Ok(Event(event))
    }

    /// Places the event after all work that is in the stream by now.
    ///
    /// Errors: the driver's.
    pub(super) fn record(&self, stream: &Stream) -> Result<()> {
        enter()?;
        // SAFETY: event and stream are alive.
        check(unsafe { cuEventRecord(self.0, stream.0) }, "cuEventRecord")
    }

    /// Waits until the device has reached the event. Returns at once if it was never recorded.
    ///
    /// Errors: a kernel that failed.
    pub(super) fn wait(&self) -> Result<()> {
        enter()?;
        // SAFETY: the event is alive.
        check(unsafe { cuEventSynchronize(self.0) }, "cuEventSynchronize")
    }

    /// Milliseconds from an earlier event to this one, both of which the device has reached.
    ///
    /// Errors: the driver's.
    pub(super) fn ms_since(&self, earlier: &Event) -> Result<f32> {
        enter()?;
        let mut ms = 0.0;
        // SAFETY: both events are alive; a pointer to a live local.
        check(unsafe { cuEventElapsedTime(&mut ms, earlier.0, self.0) }, "cuEventElapsedTime")?;
        Ok(ms)
    }
}

impl Captured {
    /// Ends the capture of a stream.
    ///
    /// Errors: a call that may not be captured.
    pub(super) fn end(stream: &Stream) -> Result<Captured> {
        let mut graph = null_mut();
        // SAFETY: the stream is alive; a pointer to a live local.
        check(unsafe { cuStreamEndCapture(stream.0, &mut graph) }, "cuStreamEndCapture")?;
        Ok(Captured(graph))
    }

    /// Errors: out of memory; what the driver refuses.
    pub(super) fn instantiate(&self) -> Result<Executable> {
        let mut executable = null_mut();
        // SAFETY: the graph is alive; a pointer to a live local.
        check(unsafe { cuGraphInstantiateWithFlags(&mut executable, self.0, 0) }, "cuGraphInstantiate")?;
        Ok(Executable(executable))
    }
}
