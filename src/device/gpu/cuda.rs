//! A CUDA device through its driver, which is opened at run time: the program starts on machines without one.

use super::launch::Prepared;
use super::nvrtc::{Header, Nvrtc};
use super::{Address, Block, HEADERS, KERNELS, Kernel, MODULES};
use crate::error::{Error, Result};
use cudarc::driver::sys::*;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

/// The primary context of the one device that this process uses.
static CONTEXT: OnceLock<usize> = OnceLock::new();

/// bf16 tensor cores and cp.async came with it.
pub const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// One device, one stream.
pub struct Cuda {
    name: String,
    /// Major and minor, `(9, 0)` for an H200.
    capability: (i32, i32),
    /// What the driver supports, `13000` for CUDA 13.0.
    driver: i32,
    stream: CUstream,
    functions: Mutex<Functions>,
    /// Wait after every launch, so that a fault is found where it happens (`DFKA_SYNC=1`).
    synchronous: bool,
}

#[derive(Default)]
struct Functions {
    /// By index into `MODULES`: the loaded module, and the symbols of its kernels in the order of `KERNELS`.
    modules: HashMap<usize, (CUmodule, Vec<String>)>,
    by_name: HashMap<&'static str, CUfunction>,
}

// SAFETY: handles of the driver may be used from any thread on which the context is current (`enter`).
unsafe impl Send for Cuda {}
// SAFETY: as above; the only changing state is behind a mutex.
unsafe impl Sync for Cuda {}

impl Drop for Cuda {
    fn drop(&mut self) {
        if self.enter().is_ok() {
            // SAFETY: made by `open`, destroyed once; work on it ends by itself.
            unsafe { cuStreamDestroy_v2(self.stream) };
        }
    }
}

/// A captured step.
pub struct Graph(CUgraphExec);

// SAFETY: a handle of the driver, used under `&Cuda` only.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `capture`, destroyed once.
        unsafe { cuGraphExecDestroy(self.0) };
    }
}

/// What `doctor` says of one device.
pub struct Found {
    pub name: String,
    pub capability: (i32, i32),
    pub memory_bytes: usize,
}

fn check(result: CUresult, what: &str) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: on success the driver points `text` at a static string.
    let known = unsafe { cuGetErrorString(result, &mut text) } == CUresult::CUDA_SUCCESS && !text.is_null();
    // SAFETY: as above.
    let text = if known { unsafe { CStr::from_ptr(text) }.to_string_lossy() } else { "unknown error".into() };
    Err(match result {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory(format!("{what}: {text}")),
        _ => Error::Run(format!("CUDA: {what}: {text} ({result:?})")),
    })
}

/// Opens the driver and lists its devices.
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
            let name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
            Ok(Found { name, capability: (major, minor), memory_bytes: bytes })
        });
        Ok((version, found.collect::<Result<_>>()?))
    }
}

impl Cuda {
    /// Errors: no driver, no such device, a device or driver too old for the kernels.
    pub fn open(index: usize) -> Result<Cuda> {
        let (driver, found) = devices()?;
        let Some(device) = found.get(index) else {
            return Err(Error::NoDevice(format!(
                "cuda:{index}: the driver has {} device{}",
                found.len(),
                if found.len() == 1 { "" } else { "s" }
            )));
        };
        if device.capability < LEAST_CAPABILITY {
            return Err(Error::NoDevice(format!(
                "cuda:{index} ({}) has compute capability {}.{}; the kernels need 8.0 (bf16 tensor cores)",
                device.name, device.capability.0, device.capability.1
            )));
        }
        let (mut handle, mut context, mut stream) = (0, std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the driver is initialised (`devices`), pointers are to live locals.
        unsafe {
            check(cuDeviceGet(&mut handle, index as i32), "cuDeviceGet")?;
            check(cuDevicePrimaryCtxRetain(&mut context, handle), "cuDevicePrimaryCtxRetain")?;
            if *CONTEXT.get_or_init(|| context as usize) != context as usize {
                return Err(Error::NoDevice("this process already uses another CUDA device".into()));
            }
            check(cuCtxSetCurrent(context), "cuCtxSetCurrent")?;
            let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            check(cuStreamCreate(&mut stream, flags), "cuStreamCreate")?;
        }
        let synchronous = std::env::var("DFKA_SYNC").is_ok_and(|v| v != "0" && !v.is_empty());
        let (name, capability) = (device.name.clone(), device.capability);
        Ok(Cuda { name, capability, driver, stream, functions: Mutex::default(), synchronous })
    }

    pub fn name(&self) -> String {
        let (major, minor) = self.capability;
        let version = format!("{}.{}", self.driver / 1000, self.driver % 1000 / 10);
        format!("{} (compute capability {major}.{minor}, driver for CUDA {version})", self.name)
    }

    /// Makes the context current on this thread: replays may come from any worker.
    fn enter(&self) -> Result<()> {
        enter()
    }

    /// Free and total bytes of device memory.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: pointers to live locals.
        check(unsafe { cuMemGetInfo_v2(&mut free, &mut total) }, "cuMemGetInfo")?;
        Ok((free, total))
    }

    pub fn allocate(&self, bytes: usize) -> Result<Block> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: `address` is a live local; the block is freed once, by `Block`.
        let result = unsafe { cuMemAlloc_v2(&mut address, bytes.max(1)) };
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let (free, total) = self.memory()?;
            let mb = |b: usize| b as f64 / 1e6;
            return Err(Error::OutOfMemory(format!(
                "{}: {:.0} MB more are needed, {:.0} of {:.0} MB are free",
                self.name,
                mb(bytes),
                mb(free),
                mb(total)
            )));
        }
        check(result, "cuMemAlloc")?;
        fn free(address: Address, _: usize) {
            if enter().is_ok() {
                // SAFETY: `Block` frees once what `cuMemAlloc` gave.
                unsafe { cuMemFree_v2(address) };
            }
        }
        Ok(Block { address, bytes, free })
    }

    pub fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        // SAFETY: `Gpu::upload` checked the range of a live block. From pageable memory the driver returns when it has
        // read the bytes, so that they may change afterwards.
        check(
            unsafe { cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), self.stream) },
            "copy to the device",
        )
    }

    pub fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        self.enter()?;
        // SAFETY: `Gpu::download` checked the range of a live block; the wait ends the borrow of `bytes`.
        unsafe {
            check(
                cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), from, bytes.len(), self.stream),
                "copy from the device",
            )?;
        }
        self.synchronize()
    }

    pub fn synchronize(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        check(unsafe { cuStreamSynchronize(self.stream) }, "a kernel of this step failed").map_err(|e| {
            if self.synchronous {
                return e;
            }
            Error::Run(format!("{e}; run again with DFKA_SYNC=1 to learn which"))
        })
    }

    pub fn launch(&self, p: &Prepared) -> Result<()> {
        let function = self.function(p.kernel)?;
        self.enter()?;
        let named = |e: Error| Error::Run(format!("{}: {e}", p.in_words()));
        let [x, y, z] = p.grid;
        // SAFETY: number and kinds of the arguments were checked against the kernel's parameter list (`Launch::new`), the
        // geometry against its bounds; the driver copies the arguments before it returns. Addresses come from live
        // blocks: plans resolve them again whenever a block has moved (`Machine::epoch`).
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
        if self.synchronous { self.synchronize().map_err(named) } else { Ok(()) }
    }

    /// Whether a step may be captured: not while every launch is to be waited for.
    pub fn captures(&self) -> bool {
        !self.synchronous
    }

    /// Captures what `enqueue` launches into a graph; nothing of it runs yet. All kernels must have run once before, for
    /// a module cannot be loaded during capture.
    pub fn capture(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.enter()?;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the stream lives as long as `self`; capture is ended whatever `enqueue` says; pointers are to locals.
        unsafe {
            check(cuStreamBeginCapture_v2(self.stream, mode), "cuStreamBeginCapture")?;
            let enqueued = enqueue();
            let ended = check(cuStreamEndCapture(self.stream, &mut graph), "cuStreamEndCapture");
            enqueued.and(ended)?;
            let made = check(cuGraphInstantiateWithFlags(&mut executable, graph, 0), "cuGraphInstantiate");
            cuGraphDestroy(graph);
            made?;
        }
        Ok(Graph(executable))
    }

    /// Starts a captured step.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        self.enter()?;
        // SAFETY: graph and stream are alive; its kernels' addresses are, as in `launch`.
        check(unsafe { cuGraphLaunch(graph.0, self.stream) }, "cuGraphLaunch")
    }

    /// Brackets what a profiler records (`nsys --capture-range=cudaProfilerApi`, `ncu --profile-from-start off`).
    pub fn profile(&self, starts: bool) -> Result<()> {
        self.synchronize()?;
        // SAFETY: no pointers; without a profiler both calls do nothing.
        check(unsafe { if starts { cuProfilerStart() } else { cuProfilerStop() } }, "profiler")
    }

    /// Runs `work` and returns the milliseconds that the device spent on it.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f32> {
        self.enter()?;
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

    fn function(&self, kernel: &'static Kernel) -> Result<CUfunction> {
        let mut functions = self.functions.lock().expect("no thread panics while it holds the functions");
        let Functions { modules, by_name } = &mut *functions;
        if let Some(f) = by_name.get(kernel.name) {
            return Ok(*f);
        }
        self.enter()?;
        let (module, symbols) = match modules.entry(kernel.module) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(place) => place.insert(self.load(kernel.module)?),
        };
        let siblings = KERNELS.iter().filter(|k| k.module == kernel.module);
        let place = siblings.take_while(|k| k.name != kernel.name).count();
        let symbol = CString::new(symbols[place].as_str()).map_err(|e| Error::Run(e.to_string()))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded and never unloaded; the symbol is NUL-terminated.
        check(unsafe { cuModuleGetFunction(&mut function, *module, symbol.as_ptr()) }, kernel.name)?;
        by_name.insert(kernel.name, function);
        Ok(function)
    }

    /// Loads the machine code for this device, or the assembly that its driver compiles.
    fn load(&self, index: usize) -> Result<(CUmodule, Vec<String>)> {
        let module = &MODULES[index];
        let names: Vec<&'static Kernel> = KERNELS.iter().filter(|k| k.module == index).collect();
        let (image, symbols) = match self.choose(module.images) {
            Some(image) => (image.to_vec(), names.iter().map(|k| k.symbol.to_string()).collect()),
            None => self.compile(module, &names)?,
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: a whole CUBIN, or PTX that ends with NUL; the driver copies it.
        let result = unsafe { cuModuleLoadData(&mut handle, image.as_ptr().cast::<c_void>()) };
        check(result, &format!("kernels/{}.cu", module.stem)).map_err(|e| match result {
            CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
                let (major, minor) = self.capability;
                Error::NoDevice(format!(
                    "{e}: the kernels were compiled by CUDA 13's NVRTC, the driver knows CUDA {}.{} and the device has \
                     compute capability {major}.{minor}; update the driver",
                    self.driver / 1000,
                    self.driver % 1000 / 10
                ))
            }
            _ => e,
        })?;
        Ok((handle, symbols))
    }

    /// The CUBIN that runs here, newest first; else PTX; `None` when the program was built without NVRTC.
    fn choose(&self, images: &'static [super::Image]) -> Option<&'static [u8]> {
        let (major, minor) = self.capability;
        let runs = |target: &str| {
            let Some(digits) = target.strip_prefix("sm_") else { return false };
            match digits.strip_suffix('a') {
                Some(digits) => digits.parse() == Ok(major * 10 + minor),
                None => digits.parse::<i32>().is_ok_and(|t| t / 10 == major && t % 10 <= minor),
            }
        };
        let cubin = images.iter().rev().find(|i| runs(i.target)).map(|i| i.cubin);
        cubin.or_else(|| images.first().map(|i| i.ptx))
    }

    /// Compiles a module on this machine, or takes what an earlier run compiled.
    fn compile(&self, module: &super::Module, kernels: &[&'static Kernel]) -> Result<(Vec<u8>, Vec<String>)> {
        let (major, minor) = self.capability;
        let target = format!("sm_{major}{minor}{}", if major == 9 { "a" } else { "" });
        let mut hash = Sha256::new();
        hash.update(module.source);
        HEADERS.iter().for_each(|(_, text)| hash.update(text));
        hash.update(&target);
        let digest: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
        let file = cache_folder().join(format!("{}.{digest}", module.stem));
        let (cubin, names) = (file.with_extension("cubin"), file.with_extension("symbols"));
        if let (Ok(cubin), Ok(names)) = (std::fs::read(&cubin), std::fs::read_to_string(&names)) {
            return Ok((cubin, names.lines().map(str::to_string).collect()));
        }
        let headers: Vec<Header> = HEADERS.iter().map(|(n, t)| (n.to_string(), t.to_string())).collect();
        let instances: Vec<String> = kernels.iter().map(|k| k.name.to_string()).collect();
        let name = format!("{}.cu", module.stem);
        let compiled = Nvrtc::open()
            .and_then(|c| c.compile(&name, module.source, &headers, &instances, &target))
            .map_err(|e| {
                Error::NoDevice(format!("this program was built without NVRTC, and here there is {e}"))
            })?;
        // A cache that cannot be written costs the next run a second, and nothing else.
        if std::fs::create_dir_all(cache_folder()).is_ok() {
            let save = |to: &Path, bytes: &[u8]| {
                let partial = to.with_extension(format!("{}.partial", std::process::id()));
                std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, to))
            };
            let _ = save(&cubin, &compiled.cubin)
                .and_then(|()| save(&names, compiled.symbols.join("\n").as_bytes()));
        }
        Ok((compiled.cubin, compiled.symbols))
    }
}

fn enter() -> Result<()> {
    let Some(context) = CONTEXT.get() else { return Err(Error::NoDevice("no CUDA device is open".into())) };
    // SAFETY: the primary context, retained for the life of the process.
    check(unsafe { cuCtxSetCurrent(*context as CUcontext) }, "cuCtxSetCurrent")
}

/// Where kernels that were compiled on this machine are kept.
pub fn cache_folder() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
    base.or_else(home).unwrap_or_else(std::env::temp_dir).join("dfka-engine")
}
