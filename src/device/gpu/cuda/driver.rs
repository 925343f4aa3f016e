//! The CUDA driver's devices, the context, and its errors.

use super::library::*;
use crate::error::{Error, Result};
use cudarc::driver::sys::{CUcontext, CUdevice_attribute_enum as Attribute};
use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

/// The primary context of the one device that this process uses.
static CONTEXT: OnceLock<usize> = OnceLock::new();

/// Least compute capability: the first with bf16 tensor cores and `cp.async`.
pub const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// A device that the driver lists.
#[derive(Clone)]
pub struct Found {
    /// The driver's name for it: `NVIDIA H200`.
    pub name: String,
    /// Major and minor, `(9, 0)` for an H200.
    pub capability: (i32, i32),
    /// All of its memory.
    pub memory_bytes: usize,
    /// Dynamic shared memory that a block may ask for.
    pub shared_bytes: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of its L2 cache.
    pub l2_bytes: usize,
}

/// Whether the host waits for every launch (`DFKA_SYNC=1`), so that an error names the kernel that failed.
pub(super) fn is_synchronous() -> bool {
    static SYNC: OnceLock<bool> = OnceLock::new();
    *SYNC.get_or_init(|| std::env::var("DFKA_SYNC").is_ok_and(|v| v != "0" && !v.is_empty()))
}

/// The driver's words for a status, and its number.
fn text(status: Status) -> String {
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: on success the driver points `text` at a static string.
    let known = unsafe { cuGetErrorString(status, &mut text) } == Status::SUCCESS && !text.is_null();
    // SAFETY: as above.
    let text = if known { unsafe { CStr::from_ptr(text) }.to_string_lossy() } else { "unknown error".into() };
    format!("{text} (CUDA error {})", status.0)
}

/// Turns a status of the driver into an error that says what was being done.
pub(super) fn check(status: Status, what: &str) -> Result<()> {
    Err(match status {
        Status::SUCCESS => return Ok(()),
        Status::OUT_OF_MEMORY => Error::OutOfMemory(format!("{what}: {}", text(status))),
        // A failed kernel, which whichever call of the driver comes next reports: an illegal address, a time-out,
        // and from 714 on an error of the stack, an illegal instruction, a misaligned address and the like.
        Status(700 | 702 | 714..=719) => Error::Run(if is_synchronous() {
            format!("{what}: a kernel failed: {}", text(status))
        } else {
            format!(
                "a kernel launched before \"{what}\" failed: {}; run again with DFKA_SYNC=1 to learn which",
                text(status)
            )
        }),
        _ => Error::Run(format!("CUDA: {what}: {}", text(status))),
    })
}

/// Opens the driver and lists its devices. Returns the CUDA version that the driver supports (`13000` for
/// 13.0) as well.
///
/// Errors: no driver library, a driver without a device, or one that fails to start.
pub fn devices() -> Result<(i32, Vec<Found>)> {
    let none = |e: Error| Error::NoDevice(format!("the NVIDIA driver is there, but does not start: {e}"));
    check(start()?, "cuInit").map_err(none)?;
    let (mut version, mut count) = (0, 0);
    // SAFETY: all pointers are to live locals; the driver is initialised.
    unsafe {
        check(cuDriverGetVersion(&mut version), "cuDriverGetVersion")?;
        check(cuDeviceGetCount(&mut count), "cuDeviceGetCount")?;
        let found = (0..count).map(|i| {
            let (mut device, mut bytes, mut name) = (0, 0, [0 as c_char; 128]);
            check(cuDeviceGet(&mut device, i), "cuDeviceGet")?;
            check(cuDeviceGetName(name.as_mut_ptr(), 128, device), "cuDeviceGetName")?;
            check(cuDeviceTotalMem_v2(&mut bytes, device), "cuDeviceTotalMem")?;
            let attribute = |a| {
                let mut v = 0;
                check(cuDeviceGetAttribute(&mut v, a, device), "cuDeviceGetAttribute").map(|()| v)
            };
            let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
            let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
            let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
            let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
            let l2_bytes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
            Ok(Found {
                name: CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned(),
                capability: (major, minor),
                memory_bytes: bytes,
                shared_bytes: shared as u32,
                multiprocessors: multiprocessors as usize,
                l2_bytes: l2_bytes as usize,
            })
        });
        Ok((version, found.collect::<Result<_>>()?))
    }
}

/// Makes a device's primary context the one of this process.
///
/// Errors: the process uses another device already.
pub(super) fn claim_context(context: CUcontext) -> Result<()> {
    if *CONTEXT.get_or_init(|| context as usize) != context as usize {
        return Err(Error::NoDevice("this process already uses another CUDA device".into()));
    }
    Ok(())
}

thread_local! {
    /// Whether the context is current on this thread.
    static ENTERED: Cell<bool> = const { Cell::new(false) };
}

/// Makes the context current on this thread, once: replays may come from any worker.
pub(super) fn enter() -> Result<()> {
    if ENTERED.get() {
        return Ok(());
    }
    let Some(context) = CONTEXT.get() else { return Err(Error::NoDevice("no CUDA device is open".into())) };
    // SAFETY: the primary context, retained for the life of the process.
    check(unsafe { cuCtxSetCurrent(*context as CUcontext) }, "cuCtxSetCurrent")?;
    ENTERED.set(true);
    Ok(())
}
