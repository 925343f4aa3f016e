//! The CUDA driver, which is opened at run time so that the program starts on machines without one: its
//! devices, the context, and its errors.

use crate::error::{Error, Result};
use cudarc::driver::sys::*;
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
}

/// Whether the host waits for every launch (`DFKA_SYNC=1`), so that an error names the kernel that failed.
pub(super) fn is_synchronous() -> bool {
    static SYNC: OnceLock<bool> = OnceLock::new();
    *SYNC.get_or_init(|| std::env::var("DFKA_SYNC").is_ok_and(|v| v != "0" && !v.is_empty()))
}

/// Turns a result of the driver into an error that says what was being done.
pub(super) fn check(result: CUresult, what: &str) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: on success the driver points `text` at a static string.
    let known = unsafe { cuGetErrorString(result, &mut text) } == CUresult::CUDA_SUCCESS && !text.is_null();
    // SAFETY: as above.
    let text = if known { unsafe { CStr::from_ptr(text) }.to_string_lossy() } else { "unknown error".into() };
    use CUresult as E;
    Err(match result {
        E::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory(format!("{what}: {text}")),
        // A failed kernel is reported by whichever call of the driver comes next.
        E::CUDA_ERROR_ILLEGAL_ADDRESS
        | E::CUDA_ERROR_MISALIGNED_ADDRESS
        | E::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | E::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | E::CUDA_ERROR_INVALID_PC
        | E::CUDA_ERROR_HARDWARE_STACK_ERROR
        | E::CUDA_ERROR_LAUNCH_FAILED
        | E::CUDA_ERROR_LAUNCH_TIMEOUT => Error::Run(if is_synchronous() {
            format!("{what}: a kernel failed: {text} ({result:?})")
        } else {
            format!(
                "a kernel launched before \"{what}\" failed: {text} ({result:?}); run again with \
                 DFKA_SYNC=1 to learn which"
            )
        }),
        _ => Error::Run(format!("CUDA: {what}: {text} ({result:?})")),
    })
}

/// Opens the driver and lists its devices. Returns the CUDA version that the driver supports (`13000` for
/// 13.0) as well.
///
/// Errors: no driver library, a driver without a device, or one that fails to start.
pub fn devices() -> Result<(i32, Vec<Found>)> {
    // SAFETY: only looks for the library; every other call of the driver would panic without it.
    if !unsafe { is_culib_present() } {
        return Err(Error::NoDevice(
            "no NVIDIA driver: libcuda.so.1 was looked for in the loader's path and LD_LIBRARY_PATH".into(),
        ));
    }
    let none = |e: Error| Error::NoDevice(format!("the NVIDIA driver is there, but does not start: {e}"));
    let (mut version, mut count) = (0, 0);
    // SAFETY: all pointers are to live locals; the driver is initialised first.
    unsafe {
        check(cuInit(0), "cuInit").map_err(none)?;
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
            use CUdevice_attribute_enum as A;
            let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
            let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
            let shared = attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
            let multiprocessors = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
            Ok(Found {
                name: CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned(),
                capability: (major, minor),
                memory_bytes: bytes,
                shared_bytes: shared as u32,
                multiprocessors: multiprocessors as usize,
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

/// Makes the context current on this thread, because replays may come from any worker.
pub(super) fn enter() -> Result<()> {
    let Some(context) = CONTEXT.get() else { return Err(Error::NoDevice("no CUDA device is open".into())) };
    // SAFETY: the primary context, retained for the life of the process.
    check(unsafe { cuCtxSetCurrent(*context as CUcontext) }, "cuCtxSetCurrent")
}
