//! Kernels as functions of the CUDA driver: each module is loaded at the first launch of one of its kernels.

use super::compile::compile;
use super::device::Cuda;
use super::driver::check;
use super::library::{Status, cuFuncSetAttribute, cuModuleGetFunction, cuModuleLoadData};
use crate::device::gpu::kernel::{Image, KERNELS, Kernel, MODULES};
use crate::device::gpu::launch::Prepared;
use crate::device::gpu::source::runs_on;
use crate::error::{Error, Result};
use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUmodule};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, c_void};
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

/// The kernels loaded so far. They are shared by all openings of the device, because a run opens it for
/// every network that it scores, and stay loaded as long as the process.
static FUNCTIONS: Mutex<Option<Functions>> = Mutex::new(None);

#[derive(Default)]
struct Functions {
    /// By index into `MODULES`: the loaded module, and the symbols of its kernels in the order of `KERNELS`.
    modules: HashMap<usize, (CUmodule, Vec<String>)>,
    by_name: HashMap<&'static str, Function>,
}

/// A loaded kernel.
struct Function {
    handle: CUfunction,
    /// Bytes of dynamic shared memory that launches may ask for.
    shared: u32,
}

// SAFETY: handles of the driver; they belong to the process's one context and may be used from any thread.
unsafe impl Send for Functions {}

/// Why a driver does not take an image that NVRTC may replace: not for this device, not valid, for a newer driver, or
/// assembly that it cannot compile or has no compiler for.
const REFUSALS: [Status; 6] = [Status(200), Status(209), Status(218), Status(221), Status(222), Status(223)];

impl Cuda {
    /// The driver's function for a launch, which may use as much shared memory as the launch does. The launch keeps
    /// it; the first launch of a module's kernels loads the module.
    pub(super) fn function(&self, launch: &Prepared) -> Result<CUfunction> {
        let known = launch.handle.load(Relaxed);
        if known != 0 {
            return Ok(known as CUfunction);
        }
        let mut functions = FUNCTIONS.lock().expect("no thread panics while it holds the functions");
        let Functions { modules, by_name } = functions.get_or_insert_default();
        let function = match by_name.entry(launch.kernel.name) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => {
                let handle = self.find(launch.kernel, modules)?;
                place.insert(Function { handle, shared: 0 })
            }
        };
        if launch.shared > function.shared {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function's module is loaded and never unloaded.
            let set = unsafe { cuFuncSetAttribute(function.handle, attribute, launch.shared as i32) };
            check(set, &format!("{} bytes of shared memory", launch.shared))?;
            function.shared = launch.shared;
        }
        launch.handle.store(function.handle as usize, Relaxed);
        Ok(function.handle)
    }

    /// Finds a kernel in its module, which is loaded if it is not yet.
    fn find(
        &self,
        kernel: &'static Kernel,
        modules: &mut HashMap<usize, (CUmodule, Vec<String>)>,
    ) -> Result<CUfunction> {
        let (module, symbols) = match modules.entry(kernel.module) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(place) => place.insert(self.load(kernel.module)?),
        };
        let siblings = KERNELS.iter().filter(|k| k.module == kernel.module);
        let place = siblings.take_while(|k| k.name != kernel.name).count();
        if symbols[place].is_empty() {
            let (name, device) = (kernel.name, self.name());
            return Err(Error::Run(format!(
                "{name} needs compute capability 9.0, {device} does not have it"
            )));
        }
        let symbol = CString::new(symbols[place].as_str()).map_err(|e| Error::Run(e.to_string()))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded and never unloaded; the symbol is NUL-terminated.
        check(unsafe { cuModuleGetFunction(&mut function, *module, symbol.as_ptr()) }, kernel.name)?;
        Ok(function)
    }

    /// Loads a module as machine code for this device, or as assembly that its driver compiles. If the driver
    /// refuses what is in the program, the machine's own NVRTC compiles the source. Returns the symbols of the
    /// module's kernels too; a kernel that this device cannot run has an empty one.
    ///
    /// Errors: a driver that takes neither.
    fn load(&self, index: usize) -> Result<(CUmodule, Vec<String>)> {
        let module = &MODULES[index];
        let kernels: Vec<&'static Kernel> = KERNELS.iter().filter(|k| k.module == index).collect();
        let file = format!("{}.cu", module.stem);
        let mut refused = None;
        if let Some(image) = self.choose(module.images) {
            let code = if self.takes(image.target) { image.cubin } else { image.ptx };
            match load_image(code) {
                Ok(handle) => {
                    let is_there = |k: &Kernel| runs_on(k.needs_90a, image.target);
                    let symbol = |k: &&Kernel| if is_there(k) { k.symbol.to_string() } else { String::new() };
                    return Ok((handle, kernels.iter().map(symbol).collect()));
                }
                Err(status) if REFUSALS.contains(&status) => refused = check(status, &file).err(),
                Err(status) => return Err(check(status, &file).expect_err("the image was refused")),
            }
        }
        let too_old = |why: String| {
            let ((major, minor), driver) = (self.found.capability, self.driver);
            Error::NoDevice(format!(
                "{why}: the driver supports CUDA {}.{} and the device has compute capability {major}.{minor}; the kernels \
                 were probably compiled by a newer NVRTC: update the driver, or install an NVRTC of the driver's CUDA version \
                 (DFKA_NVRTC_DIR names its folder)",
                driver / 1000,
                driver % 1000 / 10
            ))
        };
        let (code, symbols) = match (compile(module, &kernels, self.found.capability, self.driver), refused) {
            (Ok(compiled), _) => compiled,
            (Err(e), Some(refused)) => return Err(too_old(format!("{refused}; {e}"))),
            (Err(e), None) => return Err(e),
        };
        match load_image(&code) {
            Ok(handle) => Ok((handle, symbols)),
            Err(status) => {
                let e = check(status, &file).expect_err("the image was refused");
                Err(if REFUSALS.contains(&status) { too_old(e.to_string()) } else { e })
            }
        }
    }

    /// The newest image whose machine code runs on this device, or else one whose PTX may. None when the
    /// program was built without NVRTC.
    fn choose(&self, images: &'static [Image]) -> Option<&'static Image> {
        let cubin = images.iter().rev().find(|i| self.takes(i.target));
        // Assembly for a target with an `a`, such as sm_90a, runs on that target only.
        let any = images.iter().find(|i| !i.target.ends_with('a')).or(images.first());
        cubin.or(any)
    }

    /// Whether machine code for this target runs on this device.
    fn takes(&self, target: &str) -> bool {
        let (major, minor) = self.found.capability;
        let Some(digits) = target.strip_prefix("sm_") else { return false };
        match digits.strip_suffix('a') {
            Some(digits) => digits.parse() == Ok(major * 10 + minor),
            None => digits.parse::<i32>().is_ok_and(|t| t / 10 == major && t % 10 <= minor),
        }
    }
}

/// Loads a complete CUBIN, or PTX that ends with NUL; the driver copies it.
fn load_image(code: &[u8]) -> std::result::Result<CUmodule, Status> {
    let mut handle = std::ptr::null_mut();
    // SAFETY: `code` is what NVRTC wrote; a pointer to a live local.
    match unsafe { cuModuleLoadData(&mut handle, code.as_ptr().cast::<c_void>()) } {
        Status::SUCCESS => Ok(handle),
        status => Err(status),
    }
}
