//! The functions of the CUDA driver, found in `libcuda` at run time, so that the program starts on machines
//! without a driver. The types are cudarc's; the loader is ours, because cudarc's panics if a symbol is missing
//! and opens a toolkit's stub as gladly as a driver.

#![allow(non_snake_case)] // the driver's names

use crate::device::loader;
use crate::error::{Error, Result};
use cudarc::driver::sys::*;
use libloading::Library;
use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::mem::ManuallyDrop;
use std::sync::OnceLock;

/// What a function of the driver returns: a value of CUDA's `CUresult`. An integer, because a newer driver may
/// return values that cudarc's enum does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Status(pub(super) c_int);

impl Status {
    pub(super) const SUCCESS: Status = Status(0);
    pub(super) const OUT_OF_MEMORY: Status = Status(2);
    pub(super) const NOT_INITIALIZED: Status = Status(3);
    /// A toolkit's `stubs/libcuda.so`, against which programs are linked and which does nothing.
    pub(super) const STUB_LIBRARY: Status = Status(34);
}

/// Where drivers lie that the loader does not search: WSL, NixOS.
const ELSEWHERE: [&str; 3] = [
    "/usr/lib/wsl/lib/libcuda.so.1",
    "/run/opengl-driver/lib/libcuda.so.1",
    "/usr/lib64/nvidia/libcuda.so.1",
];

/// Declares the functions that the program calls: a table of them, how it is filled, and one function of each
/// name that calls the opened driver's.
macro_rules! functions {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {
        /// The functions of an opened driver.
        struct Functions {
            $($name: unsafe extern "C" fn($($type),*) -> Status,)*
        }

        impl Functions {
            /// Looks for every function.
            ///
            /// Errors: the first that the library lacks.
            fn of(library: &Library, file: &str) -> std::result::Result<Functions, String> {
                $(
                    // SAFETY: the type is that of cuda.h, which does not change for a name.
                    let $name = *unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }
                        .map_err(|_| lacks(file, stringify!($name)))?;
                )*
                Ok(Functions { $($name),* })
            }
        }

        $(
            /// The driver's function of this name, see CUDA's manual of the driver API.
            ///
            /// # Safety
            /// As the manual asks. Without an opened driver it returns [`Status::NOT_INITIALIZED`].
            // SAFETY: the caller keeps what the manual asks.
            #[allow(clippy::too_many_arguments)]
            pub(super) unsafe fn $name($($argument: $type),*) -> Status {
                match driver() {
                    // SAFETY: the caller's.
                    Ok(driver) => unsafe { (driver.functions.$name)($($argument),*) },
                    Err(_) => Status::NOT_INITIALIZED,
                }
            }
        )*
    };
}

functions! {
    cuDriverGetVersion(version: *mut c_int);
    cuGetErrorString(error: Status, text: *mut *const c_char);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGet(device: *mut CUdevice, index: c_int);
    cuDeviceGetName(name: *mut c_char, length: c_int, device: CUdevice);
    cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    cuCtxSetCurrent(context: CUcontext);
    cuProfilerStart();
    cuProfilerStop();
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
    cuMemFree_v2(address: CUdeviceptr);
    cuMemHostAlloc(memory: *mut *mut c_void, bytes: usize, flags: c_uint);
    cuMemFreeHost(memory: *mut c_void);
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    cuStreamDestroy_v2(stream: CUstream);
    cuStreamSynchronize(stream: CUstream);
    cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
    cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode);
    cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    cuGraphInstantiateWithFlags(executable: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
    cuGraphDestroy(graph: CUgraph);
    cuGraphLaunch(executable: CUgraphExec, stream: CUstream);
    cuGraphExecDestroy(executable: CUgraphExec);
    cuEventCreate(event: *mut CUevent, flags: c_uint);
    cuEventRecord(event: CUevent, stream: CUstream);
    cuEventSynchronize(event: CUevent);
    cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent);
    cuEventDestroy_v2(event: CUevent);
    cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
    cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    cuFuncSetAttribute(function: CUfunction, attribute: CUfunction_attribute, value: c_int);
    cuLaunchKernel(
        function: CUfunction,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        stream: CUstream,
        parameters: *mut *mut c_void,
        extra: *mut *mut c_void
    );
    cuTensorMapEncodeTiled(
        map: *mut CUtensorMap,
        elements: CUtensorMapDataType,
        rank: u32,
        address: *mut c_void,
        dims: *const u64,
        strides: *const u64,
        boxes: *const u32,
        steps: *const u32,
        interleave: CUtensorMapInterleave,
        swizzle: CUtensorMapSwizzle,
        promotion: CUtensorMapL2promotion,
        fill: CUtensorMapFloatOOBfill
    );
    cuTensorMapEncodeIm2col(
        map: *mut CUtensorMap,
        elements: CUtensorMapDataType,
        rank: u32,
        address: *mut c_void,
        dims: *const u64,
        strides: *const u64,
        lower: *const c_int,
        upper: *const c_int,
        channels: u32,
        pixels: u32,
        steps: *const u32,
        interleave: CUtensorMapInterleave,
        swizzle: CUtensorMapSwizzle,
        promotion: CUtensorMapL2promotion,
        fill: CUtensorMapFloatOOBfill
    );
}

/// An opened driver, which stays open as long as the process.
struct Driver {
    functions: Functions,
    /// The file that was opened.
    file: String,
    /// What `cuInit` returned.
    start: Status,
    _library: ManuallyDrop<Library>,
}

/// The driver, opened and initialised at the first call.
fn driver() -> std::result::Result<&'static Driver, &'static str> {
    static OPENED: OnceLock<std::result::Result<Driver, String>> = OnceLock::new();
    OPENED.get_or_init(open).as_ref().map_err(String::as_str)
}

/// Opens the driver, if that has not happened yet. Returns what `cuInit` returned.
///
/// Errors: no library, only a toolkit's stub, a library that lacks a function.
pub(super) fn start() -> Result<Status> {
    driver().map(|d| d.start).map_err(|e| Error::NoDevice(e.to_string()))
}

/// The file of the opened driver.
pub fn file() -> Option<&'static str> {
    driver().ok().map(|d| d.file.as_str())
}

/// Opens the first driver that is not a stub. `libcuda.so` without a version comes last: it belongs to a toolkit
/// more often than to a driver.
fn open() -> std::result::Result<Driver, String> {
    let names = ["libcuda.so.1"].into_iter().chain(ELSEWHERE).chain(["libcuda.so"]);
    let mut problem = None;
    for name in names {
        // SAFETY: loading a driver runs its initialisers, which only set up its own tables.
        let library = match unsafe { Library::new(name) } {
            Ok(library) => library,
            Err(e) => {
                // The error of a file that exists says more than that of one that does not.
                let why = loader::words(&e);
                let is_absent =
                    why.starts_with(&format!("{name}: cannot open")) && why.contains("No such file");
                problem = problem.or((!is_absent).then(|| format!("{name} does not open: {why}")));
                continue;
            }
        };
        match opened(library, name) {
            Ok(driver) => return Ok(driver),
            Err(e) => problem = problem.or(Some(e)),
        }
    }
    Err(problem.unwrap_or_else(|| {
        "no NVIDIA driver: libcuda.so.1 is neither in LD_LIBRARY_PATH nor where the loader looks; install NVIDIA's \
         driver, 525 or newer (a container must be started with the GPU)"
            .into()
    }))
}

fn opened(library: Library, name: &str) -> std::result::Result<Driver, String> {
    type Init = unsafe extern "C" fn(c_uint) -> Status;
    // SAFETY: the type is that of cuda.h.
    let init = *unsafe { library.get::<Init>(b"cuInit\0") }.map_err(|_| lacks(name, "cuInit"))?;
    let file = mapped_file(init as usize).unwrap_or_else(|| name.into());
    // Never unloaded: an initialised driver may have threads and exit handlers.
    let library = ManuallyDrop::new(library);
    // SAFETY: 0 is the only value for the flags.
    let start = unsafe { init(0) };
    if start == Status::STUB_LIBRARY {
        return Err(format!(
            "{file} is a CUDA toolkit's stub and no driver: install NVIDIA's driver, or take the stubs' folder out of \
             LD_LIBRARY_PATH"
        ));
    }
    Ok(Driver { functions: Functions::of(&library, &file)?, file, start, _library: library })
}

fn lacks(file: &str, function: &str) -> String {
    format!(
        "{file} has no function {function}: it is no NVIDIA driver, or one older than 525 (CUDA 12.0); update it"
    )
}

/// The file from which the code at this address was loaded, by `/proc/self/maps`:
/// `7f00-7f10 r-xp 00000000 fe:00 123 /usr/lib/libcuda.so.1`.
fn mapped_file(address: usize) -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let bound = |text: &str| usize::from_str_radix(text, 16).ok();
    maps.lines().find_map(|line| {
        let (first, last) = line.split_whitespace().next()?.split_once('-')?;
        let is_inside = (bound(first)?..bound(last)?).contains(&address);
        let path = line.find('/').map(|at| line[at..].to_string())?;
        is_inside.then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_in_the_file_that_holds_it() {
        let here = mapped_file(mapped_file as *const () as usize).unwrap();
        assert_eq!(here, std::env::current_exe().unwrap().to_string_lossy());
        assert_eq!(mapped_file(1), None);
    }
}
