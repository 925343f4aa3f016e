//! Times on the clock of a CUDA device, and the range that a profiler records.

use super::device::Cuda;
use super::driver::{check, enter};
use crate::error::Result;
use cudarc::driver::sys::*;

/// An event in the stream: a point after the work that was launched before it.
pub struct Mark(CUevent);

impl Mark {
    /// Milliseconds from an earlier mark to this one. Waits until the device has reached both.
    ///
    /// Errors: the driver's.
    pub fn ms_since(&self, earlier: &Mark) -> Result<f32> {
        enter()?;
        let mut ms = 0.0;
        // SAFETY: both events are alive and recorded; the pointer is to a local.
        unsafe {
            check(cuEventSynchronize(self.0), "cuEventSynchronize")?;
            check(cuEventElapsedTime_v2(&mut ms, earlier.0, self.0), "cuEventElapsedTime")?;
        }
        Ok(ms)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: created by `Cuda::mark`, destroyed once; the driver keeps the event while the device
            // needs it.
            unsafe { cuEventDestroy_v2(self.0) };
        }
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
        enter()?;
        let (mut events, mut ms) = ([std::ptr::null_mut(); 2], 0.0);
        // SAFETY: events are created before use and destroyed once; pointers are to locals.
        unsafe {
            for e in &mut events {
                check(cuEventCreate(e, 0), "cuEventCreate")?;
            }
            check(cuEventRecord(events[0], self.stream), "cuEventRecord")?;
            let done = work();
            check(cuEventRecord(events[1], self.stream), "cuEventRecord")?;
            let waited = self.synchronize();
            let read = check(cuEventElapsedTime_v2(&mut ms, events[0], events[1]), "cuEventElapsedTime");
            for e in events {
                cuEventDestroy_v2(e);
            }
            done.and(waited).and(read)?;
        }
        Ok(ms)
    }

    /// Marks the point after all earlier work.
    ///
    /// Errors: the driver's.
    pub fn mark(&self) -> Result<Mark> {
        enter()?;
        let mut mark = Mark(std::ptr::null_mut());
        // SAFETY: the event is created before use and destroyed by `Mark`; the stream is alive.
        unsafe {
            check(cuEventCreate(&mut mark.0, 0), "cuEventCreate")?;
            check(cuEventRecord(mark.0, self.stream), "cuEventRecord")?;
        }
        Ok(mark)
    }
}
