//! An open CUDA device and its memory.

use super::cublaslt::{CublasLt, WORKSPACE_BYTES, is_asked_for};
use super::driver::{Found, LEAST_CAPABILITY, check, claim_context, devices, enter};
use super::handles::Stream;
use super::library::*;
use super::pinned::{Pinned, Staging, States};
use crate::device::gpu::block::{Address, Block};
use crate::device::gpu::kernel::is_compiled_for;
use crate::device::gpu::target::Target;
use crate::error::{Error, Result};
use crate::tensor::Elem;
use std::sync::Mutex;

/// One CUDA device, the stream in which kernels run, and one for copies beside them.
pub struct Cuda {
    pub(super) found: Found,
    /// The CUDA version that the driver supports, `13000` for 13.0.
    pub(super) driver: i32,
    /// Pinned memory from which the device copies: the states of steps, and everything else.
    pub(super) states: Mutex<States>,
    pub(super) staging: Mutex<Staging>,
    /// Pinned memory to which the device copies.
    pub(super) landing: Mutex<Option<Pinned>>,
    pub(super) stream: Stream,
    /// Copies to [`Inlet`](super::inlet::Inlet)s, and the pinned memory that they come from.
    pub(super) inflow: Stream,
    pub(super) inflow_staging: Mutex<Staging>,
    /// The library, if it computes 1x1 convolutions and linear layers instead of our kernels (`DFKA_MATMUL=cublaslt`).
    pub(super) cublaslt: Option<CublasLt>,
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Copies may still use the pinned memory, which is freed next. A wait fails when a kernel has failed, and
        // then the driver has ended all work.
        let _ = self.stream.synchronize();
        let _ = self.inflow.synchronize();
    }
}

impl Cuda {
    /// Opens the driver's device `index`.
    ///
    /// Errors: no driver, no such device, a device or driver too old for the kernels; no cuBLASLt, if
    /// `DFKA_MATMUL` asks for it.
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
        let (mut handle, mut context) = (0, std::ptr::null_mut());
        // SAFETY: the driver is initialised (`devices`), pointers are to live locals.
        unsafe {
            check(cuDeviceGet(&mut handle, index as i32), "cuDeviceGet")?;
            check(cuDevicePrimaryCtxRetain(&mut context, handle), "cuDevicePrimaryCtxRetain")?;
        }
        claim_context(context)?;
        let cuda = Cuda {
            found: device.clone(),
            driver,
            states: Mutex::new(States::new()?),
            staging: Mutex::new(Staging::new()?),
            landing: Mutex::new(None),
            stream: Stream::new()?,
            inflow: Stream::new()?,
            inflow_staging: Mutex::new(Staging::new()?),
            cublaslt: None,
        };
        if !is_asked_for()? {
            return Ok(cuda);
        }
        let wanted = |why| format!("DFKA_MATMUL=cublaslt: {why}");
        cuda.with_cublaslt().map_err(|e| match e {
            Error::NoDevice(why) => Error::NoDevice(wanted(why)),
            e => e,
        })
    }

    /// Opens cuBLASLt for this device.
    ///
    /// Errors: no library, an old one, no memory.
    pub fn with_cublaslt(mut self) -> Result<Cuda> {
        self.cublaslt = Some(CublasLt::open(self.allocate(WORKSPACE_BYTES)?)?);
        Ok(self)
    }

    /// The version and the file of cuBLASLt, if it is opened for this device.
    pub fn cublaslt_name(&self) -> Option<String> {
        self.cublaslt.as_ref().map(CublasLt::name)
    }

    /// The device's name, compute capability and driver, and the library that replaces kernels of ours.
    pub fn name(&self) -> String {
        let (major, minor) = self.found.capability;
        let version = format!("{}.{}", self.driver / 1000, self.driver % 1000 / 10);
        let products = self.cublaslt_name().map(|l| format!(", 1x1 convolutions by {l}")).unwrap_or_default();
        format!(
            "{} (compute capability {major}.{minor}, driver for CUDA {version}{products})",
            self.found.name
        )
    }

    /// The limits that plans for this device are made for, with feature maps stored as `map_dtype`.
    pub fn target(&self, map_dtype: Elem) -> Target {
        let Found { capability, multiprocessors, shared_bytes, .. } = self.found;
        let own =
            Target::new(capability, multiprocessors, shared_bytes, is_compiled_for("sm_90a"), map_dtype);
        Target { library_matmul: self.cublaslt.is_some(), ..own }
    }

    /// Bytes of the L2 cache.
    pub fn l2_bytes(&self) -> usize {
        self.found.l2_bytes
    }

    /// Free and total bytes of device memory.
    ///
    /// Errors: the driver's.
    pub fn memory(&self) -> Result<(usize, usize)> {
        enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: pointers to live locals.
        check(unsafe { cuMemGetInfo_v2(&mut free, &mut total) }, "cuMemGetInfo")?;
        Ok((free, total))
    }

    /// Allocates device memory, whose content is undefined.
    ///
    /// Errors: out of memory, with the bytes asked for and the bytes free.
    pub fn allocate(&self, bytes: usize) -> Result<Block> {
        enter()?;
        let mut address = 0;
        // SAFETY: `address` is a live local; the block is freed once, by `Block`.
        let result = unsafe { cuMemAlloc_v2(&mut address, bytes.max(1)) };
        if result == Status::OUT_OF_MEMORY {
            let mb = |b: usize| b as f64 / 1e6;
            let Ok((free, total)) = self.memory() else {
                let message = format!("{}: {:.0} MB more are needed", self.found.name, mb(bytes));
                return Err(Error::OutOfMemory(message));
            };
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
                // SAFETY: allocated by `cuMemAlloc`, freed once by `Block`.
                unsafe { cuMemFree_v2(address) };
            }
        }
        Ok(Block { address, bytes, free })
    }
}
