//! Times on the clock of a CUDA device, and the range that a profiler records.

use super::device::Cuda;
use super::driver::check;
use super::handles::Event;
use super::library::{cuProfilerStart, cuProfilerStop};
use crate::error::Result;

/// A point in the stream, after the work that was launched before it.
pub struct Mark(Event);

impl Mark {
    /// Milliseconds from an earlier mark to this one. Waits until the device has reached both.
    ///
    /// Errors: the driver's.
    pub fn ms_since(&self, earlier: &Mark) -> Result<f32> {
        self.0.wait()?;
        self.0.ms_since(&earlier.0)
    }
}

impl Cuda {
    /// Starts or stops a profiler's recording (`nsys --capture-range=cudaProfilerApi`, `ncu
    /// --profile-from-start off`).
    ///
    /// Errors: the driver's.
    pub fn profile(&self, starts: bool) -> Result<()> {
        self.synchronize()?;
        // SAFETY: no pointers; without a profiler both calls do nothing.
        check(unsafe { if starts { cuProfilerStart() } else { cuProfilerStop() } }, "profiler")
    }

    /// Runs `work`, waits for it, and returns the milliseconds that the device spent on it.
    ///
    /// Errors: those of `work`, and the driver's.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f32> {
        let start = self.mark()?;
        work()?;
        self.mark()?.ms_since(&start)
    }

    /// Marks the point after all earlier work.
    ///
    /// Errors: the driver's.
    pub fn mark(&self) -> Result<Mark> {
        let event = Event::timed()?;
        event.record(&self.stream)?;
        Ok(Mark(event))
    }
}
