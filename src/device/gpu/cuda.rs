//! A CUDA device through its driver, which is opened at run time: the program starts on machines without one.

use super::launch::Prepared;
use super::nvrtc::{Header, Nvrtc, OPTIONS};
use super::source::runs_on;
use super::target::Target;
use super::tensor_map::{Boxes, Encoded, ROW, TensorMap};
use super::{Address, Block, HEADERS, KERNELS, Kernel, MODULES};
use crate::device::StepState;
use crate::error::{Error, Result};
use crate::tensor::Elem;
use cudarc::driver::sys::*;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

/// The primary context of the one device that this process uses.
static CONTEXT: OnceLock<usize> = OnceLock::new();

/// bf16 tensor cores and cp.async came with it.
pub const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// One device, one stream.
pub struct Cuda {
    found: Found,
    /// What the driver supports, `13000` for CUDA 13.0.
    driver: i32,
    stream: CUstream,
    states: Pinned,
}

/// Loaded once for all users of the device: a run opens it for every network that it scores.
static FUNCTIONS: Mutex<Option<Functions>> = Mutex::new(None);

#[derive(Default)]
struct Functions {
    /// By index into `MODULES`: the loaded module, and the symbols of its kernels in the order of `KERNELS`.
    modules: HashMap<usize, (CUmodule, Vec<String>)>,
    by_name: HashMap<&'static str, CUfunction>,
}

// SAFETY: handles of the driver, which belong to the process's one context and may be used from any thread.
unsafe impl Send for Functions {}

/// Steps whose states may be on their way at once; losses are collected long before.
const STATES: usize = 1024;

/// Memory that the device reads directly, in slots of a `StepState`: a copy from ordinary memory may be put off, and the
/// bytes changed in between.
struct Pinned {
    memory: *mut u8,
    next: AtomicUsize,
}

impl Pinned {
    fn new() -> Result<Pinned> {
        let mut memory = std::ptr::null_mut();
        // SAFETY: a context is current (`open`); freed once, by `drop`.
        check(unsafe { cuMemHostAlloc(&mut memory, STATES * size_of::<StepState>(), 0) }, "pinned memory")?;
        Ok(Pinned { memory: memory.cast(), next: AtomicUsize::new(0) })
    }
    /// Writes the next slot and returns it.
    fn put(&self, state: &StepState) -> *const c_void {
        let slot = self.next.fetch_add(1, Relaxed) % STATES;
        // SAFETY: within the allocation, and nobody reads this slot: its last use is `STATES` steps ago.
        unsafe {
            let to = self.memory.add(slot * size_of::<StepState>());
            std::ptr::copy_nonoverlapping(std::ptr::from_ref(state).cast(), to, size_of::<StepState>());
            to.cast_const().cast()
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if enter().is_ok() {
            // SAFETY: made by `new`, freed once; the driver waits for copies from it.
            unsafe { cuMemFreeHost(self.memory.cast()) };
        }
    }
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
        if enter().is_ok() {
            // SAFETY: made by `capture`, destroyed once.
            unsafe { cuGraphExecDestroy(self.0) };
        }
    }
}

/// What `doctor` says of one device.
#[derive(Clone)]
pub struct Found {
    pub name: String,
    /// Major and minor, `(9, 0)` for an H200.
    pub capability: (i32, i32),
    pub memory_bytes: usize,
    /// Dynamic shared memory that a block may ask for.
    pub shared_bytes: u32,
    pub multiprocessors: usize,
}

/// Whether every launch is waited for, so that a fault is found where it happens (`DFKA_SYNC=1`).
fn is_synchronous() -> bool {
    static SYNC: OnceLock<bool> = OnceLock::new();
    *SYNC.get_or_init(|| std::env::var("DFKA_SYNC").is_ok_and(|v| v != "0" && !v.is_empty()))
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
    use CUresult as E;
    Err(match result {
        E::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory(format!("{what}: {text}")),
        // These outlive the launch that caused them: any later call may bring the news.
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
                "a kernel launched before \"{what}\" failed: {text} ({result:?}); run again with DFKA_SYNC=1 to learn which"
            )
        }),
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

/// An event in the stream.
pub struct Mark(CUevent);

impl Mark {
    /// Milliseconds from an earlier mark to this one, once the device has come to both.
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
            // SAFETY: created by `Cuda::mark`, destroyed once; the device keeps what it still needs.
            unsafe { cuEventDestroy_v2(self.0) };
        }
    }
}

impl Cuda {
    /// Errors: no driver, no such device, a device or driver too old for the kernels.
    pub fn open(index: usize) -> Result<Cuda> {
        let (driver, found) = devices()?;
        let Some(device) = found.get(index) else {
            return Err(Error::NoDevice(format!(
                "the driver has {} device{}",
                found.len(),
                if found.len() == 1 { "" } else { "s" }
            )));
        };
        if device.capability < LEAST_CAPABILITY {
            return Err(Error::NoDevice(format!(
                "{} has compute capability {}.{}; the kernels need 8.0 (bf16 tensor cores)",
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
        Ok(Cuda { found: device.clone(), driver, stream, states: Pinned::new()? })
    }

    pub fn name(&self) -> String {
        let (major, minor) = self.found.capability;
        let version = format!("{}.{}", self.driver / 1000, self.driver % 1000 / 10);
        format!("{} (compute capability {major}.{minor}, driver for CUDA {version})", self.found.name)
    }

    /// What plans for it are made for.
    pub fn target(&self, map_dtype: Elem) -> Target {
        let Found { capability, multiprocessors, shared_bytes, .. } = self.found;
        Target::new(capability, multiprocessors, shared_bytes, is_compiled_for_90a(), map_dtype)
    }

    /// Makes the context current on this thread: replays may come from any worker.
    fn enter(&self) -> Result<()> {
        enter()
    }

    /// Loads the smallest module, to learn whether this driver and device take the kernels.
    pub fn try_kernels(&self) -> Result<()> {
        self.function(Kernel::find("fill")?).map(|_| ())
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
                self.found.name,
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
        // SAFETY: `Gpu::upload` checked the range of a live block; the wait ends the borrow of `bytes`.
        let copied = unsafe { cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), self.stream) };
        check(copied, "copy to the device")?;
        self.synchronize()
    }

    /// Copies a step's state without waiting.
    pub fn send(&self, to: Address, state: &StepState) -> Result<()> {
        self.enter()?;
        // SAFETY: `Gpu::send` checked the range of a live block; the pinned slot stays as it is for `STATES` steps.
        let copied =
            unsafe { cuMemcpyHtoDAsync_v2(to, self.states.put(state), size_of::<StepState>(), self.stream) };
        check(copied, "copy of the step's state")
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
        check(unsafe { cuStreamSynchronize(self.stream) }, "wait")
    }

    /// A tensor map that `TensorMap::check` has let pass.
    pub fn encode(&self, map: &TensorMap, address: Address) -> Result<Encoded> {
        self.enter()?;
        let (dims, strides) = map.extents();
        let rank = dims.len() as u32;
        let (mut encoded, base) = (CUtensorMap { opaque: [0; 16] }, address as *mut c_void);
        let (dims, strides) = (dims.as_ptr(), strides.as_ptr());
        let bf16 = CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
        let rows = CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE;
        let swizzle = CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B;
        let promotion = CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
        let zeros = CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
        // SAFETY: every array is live and has `rank` elements, strides one less and corners two less (`check`); the driver
        // only reads them, and writes `encoded`. It does not look at the tensor.
        let result = unsafe {
            match &map.boxes {
                Boxes::Tiled { boxes, .. } => {
                    let (boxes, steps) = (boxes.as_ptr(), [1; 2]);
                    cuTensorMapEncodeTiled(
                        &mut encoded,
                        bf16,
                        rank,
                        base,
                        dims,
                        strides,
                        boxes,
                        steps.as_ptr(),
                        rows,
                        swizzle,
                        promotion,
                        zeros,
                    )
                }
                Boxes::Im2col {
                    lower: [lower_h, lower_w],
                    upper: [upper_h, upper_w],
                    steps: [h, w],
                    pixels,
                    ..
                } => {
                    let (lower, upper) = ([*lower_w, *lower_h], [*upper_w, *upper_h]);
                    let steps = [1, *w, *h, 1];
                    cuTensorMapEncodeIm2col(
                        &mut encoded,
                        bf16,
                        rank,
                        base,
                        dims,
                        strides,
                        lower.as_ptr(),
                        upper.as_ptr(),
                        ROW,
                        *pixels,
                        steps.as_ptr(),
                        rows,
                        swizzle,
                        promotion,
                        zeros,
                    )
                }
            }
        };
        check(result, "cuTensorMapEncode")?;
        Ok(encoded.opaque)
    }

    pub fn launch(&self, p: &Prepared) -> Result<()> {
        let function = self.function(p.kernel)?;
        self.enter()?;
        let named = |e: Error| match e {
            Error::OutOfMemory(message) => Error::OutOfMemory(format!("{}: {message}", p.in_words())),
            e => Error::Run(format!("{}: {e}", p.in_words())),
        };
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
        if is_synchronous() { self.synchronize().map_err(named) } else { Ok(()) }
    }

    /// Whether a step may be captured: not while every launch is to be waited for.
    pub fn captures(&self) -> bool {
        !is_synchronous()
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

    /// Marks the point behind all that was launched before.
    pub fn mark(&self) -> Result<Mark> {
        self.enter()?;
        let mut mark = Mark(std::ptr::null_mut());
        // SAFETY: the event is created before use and destroyed by `Mark`; the stream is alive.
        unsafe {
            check(cuEventCreate(&mut mark.0, 0), "cuEventCreate")?;
            check(cuEventRecord(mark.0, self.stream), "cuEventRecord")?;
        }
        Ok(mark)
    }

    fn function(&self, kernel: &'static Kernel) -> Result<CUfunction> {
        let mut functions = FUNCTIONS.lock().expect("no thread panics while it holds the functions");
        let Functions { modules, by_name } = functions.get_or_insert_default();
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
        if symbols[place].is_empty() {
            let name = kernel.name;
            return Err(Error::Run(format!(
                "{name} needs compute capability 9.0, {} does not have it",
                self.name()
            )));
        }
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
            Some(image) => {
                let there = |k: &&Kernel| runs_on(k.needs_90a, image.target);
                let symbol =
                    |k: &&'static Kernel| if there(k) { k.symbol.to_string() } else { String::new() };
                let whole = if self.takes(image.target) { image.cubin } else { image.ptx };
                (whole.to_vec(), names.iter().map(symbol).collect())
            }
            None => self.compile(module, &names)?,
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: a whole CUBIN, or PTX that ends with NUL; the driver copies it.
        let result = unsafe { cuModuleLoadData(&mut handle, image.as_ptr().cast::<c_void>()) };
        check(result, &format!("kernels/{}.cu", module.stem)).map_err(|e| match result {
            CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_INVALID_IMAGE
            | CUresult::CUDA_ERROR_INVALID_PTX => {
                let (major, minor) = self.found.capability;
                Error::NoDevice(format!(
                    "{e}: the driver knows CUDA {}.{} and the device has compute capability {major}.{minor}; the kernels were \
                     compiled by a newer NVRTC: update the driver, or build with that CUDA's NVRTC (DFKA_NVRTC_DIR)",
                    self.driver / 1000,
                    self.driver % 1000 / 10
                ))
            }
            _ => e,
        })?;
        Ok((handle, symbols))
    }

    /// The image whose CUBIN runs here, newest first; else one whose PTX may; `None` when the program was built without
    /// NVRTC.
    fn choose(&self, images: &'static [super::Image]) -> Option<&'static super::Image> {
        let cubin = images.iter().rev().find(|i| self.takes(i.target));
        // The assembly of a target such as sm_90a is for that one alone.
        let any = images.iter().find(|i| !i.target.ends_with('a')).or(images.first());
        cubin.or(any)
    }

    /// Whether machine code for this target runs here.
    fn takes(&self, target: &str) -> bool {
        let (major, minor) = self.found.capability;
        let Some(digits) = target.strip_prefix("sm_") else { return false };
        match digits.strip_suffix('a') {
            Some(digits) => digits.parse() == Ok(major * 10 + minor),
            None => digits.parse::<i32>().is_ok_and(|t| t / 10 == major && t % 10 <= minor),
        }
    }

    /// Compiles a module on this machine, or takes what an earlier run compiled.
    fn compile(&self, module: &super::Module, kernels: &[&'static Kernel]) -> Result<(Vec<u8>, Vec<String>)> {
        let (major, minor) = self.found.capability;
        let target = format!("sm_{major}{minor}{}", if major == 9 { "a" } else { "" });
        let none = |e: String| {
            Error::NoDevice(format!(
                "this program was built without NVRTC, and this machine cannot compile: {e}"
            ))
        };
        let compiler = Nvrtc::open().map_err(none)?;
        let version = compiler.version().map_err(none)?;
        let (cubin, names) = cached(module, &target, version);
        // Kernels that this target cannot have get an empty symbol.
        let there = |k: &&&'static Kernel| runs_on(k.needs_90a, &target);
        let all = |found: Vec<String>| {
            let mut found = found.into_iter();
            let symbol = |k| if there(&k) { found.next().unwrap_or_default() } else { String::new() };
            kernels.iter().map(symbol).collect()
        };
        let instances: Vec<String> = kernels.iter().filter(there).map(|k| k.name.to_string()).collect();
        if let (Ok(cubin), Ok(names)) = (std::fs::read(&cubin), std::fs::read_to_string(&names)) {
            let names: Vec<String> = names.lines().map(str::to_string).collect();
            if names.len() == instances.len() {
                return Ok((cubin, all(names)));
            }
        }
        let headers: Vec<Header> = HEADERS.iter().map(|(n, t)| (n.to_string(), t.to_string())).collect();
        let name = format!("{}.cu", module.stem);
        let compiled = compiler
            .compile(&name, module.source, &headers, &instances, &target)
            .map_err(|e| Error::Run(format!("{}: kernels/{e}", compiler.path.display())))?;
        // A cache that cannot be written costs the next run a second, and nothing else.
        if std::fs::create_dir_all(cache_folder()).is_ok() {
            let save = |to: &Path, bytes: &[u8]| {
                let partial = to.with_extension(format!("{}.partial", std::process::id()));
                std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, to))
            };
            let _ = save(&cubin, &compiled.cubin)
                .and_then(|()| save(&names, compiled.symbols.join("\n").as_bytes()));
        }
        Ok((compiled.cubin, all(compiled.symbols)))
    }
}

/// Whether there is machine code for sm_90a, or will be at the first launch.
fn is_compiled_for_90a() -> bool {
    MODULES.iter().all(|m| m.images.is_empty() || m.images.iter().any(|i| i.target == "sm_90a"))
}

/// Where a module that was compiled here is kept, and its symbols: named after everything that it was made of.
fn cached(module: &super::Module, target: &str, version: (i32, i32)) -> (PathBuf, PathBuf) {
    let mut hash = Sha256::new();
    hash.update(module.source);
    HEADERS.iter().for_each(|(_, text)| hash.update(text));
    hash.update(format!("{target} {version:?} {OPTIONS:?}"));
    let digest: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    let at = |extension: &str| cache_folder().join(format!("{}-{digest}.{extension}", module.stem));
    (at("cubin"), at("symbols"))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::Module;

    #[test]
    fn a_cached_kernel_is_named_after_all_that_made_it() {
        let module = |source| Module { stem: "fill", source, images: &[] };
        let paths = [
            cached(&module("a"), "sm_80", (13, 0)),
            cached(&module("b"), "sm_80", (13, 0)),
            cached(&module("a"), "sm_90a", (13, 0)),
            cached(&module("a"), "sm_80", (12, 9)),
        ];
        let all: std::collections::BTreeSet<_> = paths.iter().flat_map(|(a, b)| [a, b]).collect();
        assert_eq!(all.len(), 8, "{paths:?}");
    }
}
