//! Kernels as functions of the CUDA driver: each module is loaded at the first launch of one of its kernels.

use super::compile::compile;
use super::device::Cuda;
use super::driver::{check, enter};
use crate::device::gpu::kernel::{Image, KERNELS, Kernel, MODULES};
use crate::device::gpu::source::runs_on;
use crate::error::{Error, Result};
use cudarc::driver::sys::*;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, c_void};
use std::sync::Mutex;

/// The kernels loaded so far. They are shared by all openings of the device, because a run opens it for
/// every network that it scores.
static FUNCTIONS: Mutex<Option<Functions>> = Mutex::new(None);

#[derive(Default)]
struct Functions {
    /// By index into `MODULES`: the loaded module, and the symbols of its kernels in the order of `KERNELS`.
    modules: HashMap<usize, (CUmodule, Vec<String>)>,
    by_name: HashMap<&'static str, CUfunction>,
}

// SAFETY: handles of the driver; they belong to the process's one context and may be used from any thread.
unsafe impl Send for Functions {}

impl Cuda {
    /// Loads the smallest module, to check that this driver and device take the kernels.
    ///
    /// Errors: why they do not.
    pub fn try_kernels(&self) -> Result<()> {
        self.function(Kernel::find("fill")?).map(|_| ())
    }

    /// The driver's function for a kernel; loads its module at the first use.
    pub(super) fn function(&self, kernel: &'static Kernel) -> Result<CUfunction> {
        let mut functions = FUNCTIONS.lock().expect("no thread panics while it holds the functions");
        let Functions { modules, by_name } = functions.get_or_insert_default();
        if let Some(f) = by_name.get(kernel.name) {
            return Ok(*f);
        }
        enter()?;
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

    /// Loads a module as machine code for this device, or as assembly that its driver compiles. Returns the
    /// symbols of its kernels too; a kernel that this device cannot run has an empty one.
    fn load(&self, index: usize) -> Result<(CUmodule, Vec<String>)> {
        let module = &MODULES[index];
        let names: Vec<&'static Kernel> = KERNELS.iter().filter(|k| k.module == index).collect();
        let (image, symbols) = match self.choose(module.images) {
            Some(image) => {
                let there = |k: &&Kernel| runs_on(k.needs_90a, image.target);
                let symbol =
                    |k: &&'static Kernel| if there(k) { k.symbol.to_string() } else { String::new() };
                let code = if self.takes(image.target) { image.cubin } else { image.ptx };
                (code.to_vec(), names.iter().map(symbol).collect())
            }
            None => compile(module, &names, self.found.capability)?,
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: a complete CUBIN, or PTX that ends with NUL; the driver copies it.
        let result = unsafe { cuModuleLoadData(&mut handle, image.as_ptr().cast::<c_void>()) };
        check(result, &format!("{}.cu", module.stem)).map_err(|e| match result {
            CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_INVALID_IMAGE
            | CUresult::CUDA_ERROR_INVALID_PTX => {
                let (major, minor) = self.found.capability;
                Error::NoDevice(format!(
                    "{e}: the driver supports CUDA {}.{} and the device has compute capability \
                     {major}.{minor}; the kernels were compiled by a newer NVRTC: update the driver, or \
                     build with that CUDA's NVRTC (DFKA_NVRTC_DIR)",
                    self.driver / 1000,
                    self.driver % 1000 / 10
                ))
            }
            _ => e,
        })?;
        Ok((handle, symbols))
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
