//! Machines that run the kernels of `kernels/*.cu`: a CUDA device, or the emulator on the CPU.
//!
//! Both take the same calls: memory by address, copies, and `launch(kernel, geometry, arguments)`. What lies above knows
//! one [`Gpu`] and never asks which.

pub mod card;
pub mod cuda;
pub mod emu;
pub mod launch;
pub mod machine;
pub mod nvrtc;
pub mod nvtx;
pub mod room;
pub mod source;
pub mod target;
pub mod tensor_map;

use crate::device::StepState;
use crate::error::{Error, Result};
use crate::tensor::Elem;
use launch::Prepared;
use source::Parameter;
use std::ffi::c_void;
use std::time::Instant;
use target::Target;
use tensor_map::{Encoded, TensorMap};

/// One `kernels/<stem>.cu`.
pub struct Module {
    pub stem: &'static str,
    pub source: &'static str,
    /// Empty when the program was built without NVRTC.
    pub images: &'static [Image],
}

/// What a module became for one target.
pub struct Image {
    pub target: &'static str,
    pub cubin: &'static [u8],
    pub ptx: &'static [u8],
}

/// One launchable kernel.
pub struct Kernel {
    /// As its `INSTANCE` line spells it.
    pub name: &'static str,
    /// Index into [`MODULES`].
    pub module: usize,
    /// Its mangled name; empty when the program was built without NVRTC.
    pub symbol: &'static str,
    /// Most threads of a block.
    pub threads: u32,
    /// There is machine code for sm_90a only.
    pub needs_90a: bool,
    pub parameters: &'static [Parameter<&'static str>],
    /// Registers, spilled bytes and static shared bytes, for each of the module's images; zeros where an image lacks it.
    pub figures: &'static [[u32; 3]],
    pub emulated: Option<Entry>,
}

/// An emulated kernel: takes one pointer an argument.
pub type Entry = unsafe extern "C" fn(*mut *mut c_void);

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

impl Kernel {
    /// The kernel of that name.
    ///
    /// Errors: no `INSTANCE` line has it; a mistake of the op's, which names the nearest there are.
    pub fn find(name: &str) -> Result<&'static Kernel> {
        KERNELS.iter().find(|k| k.name == name).ok_or_else(|| {
            let base = name.split('<').next().unwrap_or(name);
            let near: Vec<_> =
                KERNELS.iter().map(|k| k.name).filter(|n| n.split('<').next() == Some(base)).collect();
            Error::Run(format!("no kernel {name}; of this name there are: {}", near.join(", ")))
        })
    }
}

/// How a machine's memory is addressed.
pub type Address = u64;

/// A machine that runs kernels.
pub enum Gpu {
    Cuda(cuda::Cuda),
    Emu(emu::Emu),
}

/// A point behind all that was launched before it, on the device's clock.
pub enum Mark {
    Cuda(cuda::Mark),
    Emu(Instant),
}

impl Mark {
    /// Milliseconds from an earlier mark to this one, waiting for what lies between.
    pub fn ms_since(&self, earlier: &Mark) -> Result<f32> {
        match (self, earlier) {
            (Mark::Cuda(later), Mark::Cuda(earlier)) => later.ms_since(earlier),
            (Mark::Emu(later), Mark::Emu(earlier)) => Ok((*later - *earlier).as_secs_f32() * 1e3),
            _ => Err(Error::Run("two marks of different machines".into())),
        }
    }
}

/// Memory of a machine, freed with it.
pub struct Block {
    pub address: Address,
    pub bytes: usize,
    free: fn(Address, usize),
}

impl Drop for Block {
    fn drop(&mut self) {
        (self.free)(self.address, self.bytes);
    }
}

impl Gpu {
    /// The device in words.
    pub fn name(&self) -> String {
        match self {
            Gpu::Cuda(d) => d.name(),
            Gpu::Emu(e) => e.name(),
        }
    }
    /// What plans for it are made for, feature maps stored as `map_dtype`; the emulator takes an H200's.
    pub fn target(&self, map_dtype: Elem) -> Target {
        match self {
            Gpu::Cuda(d) => d.target(map_dtype),
            Gpu::Emu(_) => Target::h200(map_dtype),
        }
    }
    /// Memory of undefined content.
    ///
    /// Errors: out of memory, with what was asked for and what is free.
    pub fn allocate(&self, bytes: usize) -> Result<Block> {
        match self {
            Gpu::Cuda(d) => d.allocate(bytes),
            Gpu::Emu(e) => e.allocate(bytes),
        }
    }
    /// Free and total bytes.
    pub fn memory(&self) -> Result<(usize, usize)> {
        match self {
            Gpu::Cuda(d) => d.memory(),
            Gpu::Emu(e) => Ok(e.memory()),
        }
    }
    /// Copies to the device and waits for it.
    pub fn upload(&self, to: &Block, offset: usize, bytes: &[u8]) -> Result<()> {
        assert!(offset + bytes.len() <= to.bytes, "upload past the end of a block");
        match self {
            Gpu::Cuda(d) => d.upload(to.address + offset as u64, bytes),
            Gpu::Emu(e) => e.upload(to.address + offset as u64, bytes),
        }
    }
    /// Copies a step's state to the start of a block, without waiting.
    pub fn send(&self, to: &Block, state: &StepState) -> Result<()> {
        match self {
            Gpu::Cuda(d) => d.send(to.address, state),
            Gpu::Emu(e) => e.upload(to.address, bytemuck::bytes_of(state)),
        }
    }
    /// Copies from the device, after all that was launched before.
    pub fn download(&self, from: &Block, offset: usize, bytes: &mut [u8]) -> Result<()> {
        assert!(offset + bytes.len() <= from.bytes, "download past the end of a block");
        match self {
            Gpu::Cuda(d) => d.download(from.address + offset as u64, bytes),
            Gpu::Emu(e) => e.download(from.address + offset as u64, bytes),
        }
    }
    /// A tensor map in the machine's own words, for a tensor at `address`.
    ///
    /// Errors: what no TMA unit takes, in the words of [`TensorMap::check`].
    pub fn encode(&self, map: &TensorMap, address: Address) -> Result<Encoded> {
        map.check(address)?;
        match self {
            Gpu::Cuda(d) => d.encode(map, address),
            Gpu::Emu(_) => Ok(map.emulated(address)),
        }
    }
    /// Starts a kernel after all that was launched before.
    pub fn launch(&self, p: &Prepared) -> Result<()> {
        match self {
            Gpu::Cuda(d) => d.launch(p),
            Gpu::Emu(e) => e.launch(p),
        }
    }
    /// Runs a kernel after all that was launched before, waits for it, and returns its milliseconds: between two events
    /// around it on a CUDA device, by the clock on the emulator.
    pub fn time(&self, p: &Prepared) -> Result<f32> {
        match self {
            Gpu::Cuda(d) => d.time(|| d.launch(p)),
            Gpu::Emu(e) => {
                let start = Instant::now();
                e.launch(p)?;
                Ok(start.elapsed().as_secs_f32() * 1e3)
            }
        }
    }
    /// Marks the point behind all that was launched before; the emulator has run it by then.
    pub fn mark(&self) -> Result<Mark> {
        match self {
            Gpu::Cuda(d) => d.mark().map(Mark::Cuda),
            Gpu::Emu(_) => Ok(Mark::Emu(Instant::now())),
        }
    }
    /// Waits for all that was launched.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Gpu::Cuda(d) => d.synchronize(),
            Gpu::Emu(_) => Ok(()),
        }
    }
}

/// Says on the terminal that a test did not run: what `eprintln!` says in a test that passes never gets there.
#[cfg(test)]
#[allow(clippy::explicit_write)]
pub fn skipped(why: &Error) {
    use std::io::Write;
    assert!(std::env::var_os("DFKA_REQUIRE_EMU").is_none(), "{why}");
    writeln!(std::io::stderr(), "SKIPPED: {why}").expect("standard error is open");
}
