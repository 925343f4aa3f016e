//! A machine that runs kernels, whichever it is.

use super::block::{Address, Block};
use super::card::Card;
use super::cuda;
use super::emu::Emu;
use super::launch::{KernelArg, Launch, Prepared};
use super::target::Target;
use super::tensor_map::{Encoded, TensorMap};
use crate::device::memory::{Slot, Space};
use crate::device::step_state::StepState;
use crate::error::{Error, Result};
use crate::tensor::Elem;
use std::time::Instant;

/// A machine that runs kernels. Work runs in the order in which it is launched.
pub enum Gpu {
    /// A CUDA device.
    Cuda(Box<cuda::Cuda>),
    /// The emulator on the CPU.
    Emu(Emu),
}

/// A block that is filled again and again while kernels run.
pub struct Inlet {
    /// Its memory.
    pub block: Block,
    /// Only on a CUDA device: the emulator has finished every kernel when its launch returns.
    turn: Option<cuda::Turn>,
}

/// A point after everything that was launched before it, on the device's clock.
pub enum Mark {
    /// An event in the CUDA device's stream.
    Cuda(cuda::Mark),
    /// The time at which the emulator finished.
    Emu(Instant),
}

impl Mark {
    /// Milliseconds from an earlier mark to this one. Waits until the device has reached both.
    ///
    /// Errors: marks of different machines, a kernel that failed.
    pub fn ms_since(&self, earlier: &Mark) -> Result<f32> {
        match (self, earlier) {
            (Mark::Cuda(later), Mark::Cuda(earlier)) => later.ms_since(earlier),
            (Mark::Emu(later), Mark::Emu(earlier)) => Ok((*later - *earlier).as_secs_f32() * 1e3),
            _ => Err(Error::Run("two marks of different machines".into())),
        }
    }
}

impl Gpu {
    /// The device's name for people, such as `NVIDIA H200 (compute capability 9.0, driver for CUDA 13.0)`.
    pub fn name(&self) -> String {
        match self {
            Gpu::Cuda(d) => d.name(),
            Gpu::Emu(e) => e.name(),
        }
    }
    /// The limits that plans for this machine are made for, with feature maps stored as `map_dtype`. The
    /// emulator has an H200's.
    pub fn target(&self, map_dtype: Elem) -> Target {
        match self {
            Gpu::Cuda(d) => d.target(map_dtype),
            Gpu::Emu(_) => Target::h200(map_dtype),
        }
    }
    /// Bytes of the L2 cache; the emulator has an H200's.
    pub fn l2_bytes(&self) -> usize {
        match self {
            Gpu::Cuda(d) => d.l2_bytes(),
            Gpu::Emu(_) => <&Card>::default().l2_bytes,
        }
    }
    /// Allocates memory, whose content is undefined.
    ///
    /// Errors: out of memory, with the bytes asked for and the bytes free.
    pub fn allocate(&self, bytes: usize) -> Result<Block> {
        match self {
            Gpu::Cuda(d) => d.allocate(bytes),
            Gpu::Emu(e) => e.allocate(bytes),
        }
    }
    /// Free and total bytes.
    ///
    /// Errors: the driver's.
    pub fn memory(&self) -> Result<(usize, usize)> {
        match self {
            Gpu::Cuda(d) => d.memory(),
            Gpu::Emu(e) => Ok(e.memory()),
        }
    }
    /// Copies `bytes` to the device, `offset` bytes into a block. Returns when the bytes may be changed; later work
    /// finds them on the device.
    ///
    /// Errors: the driver's, among them the failure of an earlier kernel.
    pub fn upload(&self, to: &Block, offset: usize, bytes: &[u8]) -> Result<()> {
        assert!(offset + bytes.len() <= to.bytes, "upload past the end of a block");
        match self {
            Gpu::Cuda(d) => d.upload(to.address + offset as u64, bytes),
            Gpu::Emu(e) => e.upload(to.address + offset as u64, bytes),
        }
    }
    /// A block of so many bytes that [`Gpu::fill`] fills.
    ///
    /// Errors: as [`Gpu::allocate`].
    pub fn inlet(&self, bytes: usize) -> Result<Inlet> {
        let turn = match self {
            Gpu::Cuda(_) => Some(cuda::Turn::new()?),
            Gpu::Emu(_) => None,
        };
        Ok(Inlet { block: self.allocate(bytes)?, turn })
    }
    /// Copies `bytes` to the start of an inlet while kernels run, once those before the last [`Gpu::used`] have ended.
    /// Returns when the bytes may be changed; later work finds them on the device.
    ///
    /// Errors: as [`Gpu::upload`].
    pub fn fill(&self, to: &Inlet, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= to.block.bytes, "more bytes than the inlet holds");
        match (self, &to.turn) {
            (Gpu::Cuda(d), Some(turn)) => d.fill(turn, to.block.address, bytes),
            _ => self.upload(&to.block, 0, bytes),
        }
    }
    /// Tells that no later kernel reads what is in the inlet now.
    ///
    /// Errors: the driver's.
    pub fn used(&self, inlet: &Inlet) -> Result<()> {
        match (self, &inlet.turn) {
            (Gpu::Cuda(d), Some(turn)) => d.used(turn),
            _ => Ok(()),
        }
    }
    /// Copies a step's state to the start of a block without waiting.
    ///
    /// Errors: as [`Gpu::upload`].
    pub fn send(&self, to: &Block, state: &StepState) -> Result<()> {
        match self {
            Gpu::Cuda(d) => d.send(to.address, state),
            Gpu::Emu(e) => e.upload(to.address, bytemuck::bytes_of(state)),
        }
    }
    /// Copies from the device, `offset` bytes into a block, after everything that was launched before.
    ///
    /// Errors: as [`Gpu::upload`].
    pub fn download(&self, from: &Block, offset: usize, bytes: &mut [u8]) -> Result<()> {
        assert!(offset + bytes.len() <= from.bytes, "download past the end of a block");
        match self {
            Gpu::Cuda(d) => d.download(from.address + offset as u64, bytes),
            Gpu::Emu(e) => e.download(from.address + offset as u64, bytes),
        }
    }
    /// Encodes a tensor map of a tensor at `address` in the machine's own format.
    ///
    /// Errors: those of [`TensorMap::check`].
    pub fn encode(&self, map: &TensorMap, address: Address) -> Result<Encoded> {
        map.check(address)?;
        match self {
            Gpu::Cuda(d) => d.encode(map, address),
            Gpu::Emu(_) => Ok(map.emulated(address)),
        }
    }
    /// Gives a launch its addresses, which `address` returns for each argument that is one. `label` says in
    /// errors what the launch is for.
    ///
    /// Errors: those of `address` and of [`Gpu::encode`].
    pub fn prepare(
        &self,
        launch: &Launch,
        label: String,
        address: &mut impl FnMut(&KernelArg) -> Result<Address>,
    ) -> Result<Prepared> {
        Prepared::new(launch, label, &|map, at| self.encode(map, at), address)
    }
    /// Starts a kernel after everything that was launched before.
    ///
    /// Errors: out of memory; a launch that the device refuses; the emulator's findings.
    pub fn launch(&self, p: &Prepared) -> Result<()> {
        match self {
            Gpu::Cuda(d) => d.launch(p),
            Gpu::Emu(e) => e.launch(p),
        }
    }
    /// Runs a kernel after everything that was launched before, waits for it, and returns its milliseconds:
    /// between two events around it on a CUDA device, by the host's clock on the emulator.
    ///
    /// Errors: as [`Gpu::launch`].
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
    /// Runs the smallest kernel and reads its result, so that a device which cannot run kernels is found before
    /// anything depends on it.
    ///
    /// Errors: why it cannot, as [`Error::NoDevice`]; out of memory.
    pub fn try_kernel(&self) -> Result<()> {
        const ELEMENTS: usize = 64;
        let slot = Slot { space: Space::Arena, offset: 0, bytes: 4 * ELEMENTS };
        let args = vec![KernelArg::Slot(slot), 1.5f32.into(), (ELEMENTS as i64).into()];
        let launch = Launch::new("fill", [1, 1, 1], 32, 0, args)?;
        let mut values = [0.0f32; ELEMENTS];
        let mut run = || {
            let block = self.allocate(slot.bytes)?;
            self.launch(&self.prepare(&launch, "first kernel".into(), &mut |_| Ok(block.address))?)?;
            self.download(&block, 0, bytemuck::cast_slice_mut(&mut values))
        };
        run().map_err(|e| match e {
            Error::Run(why) => Error::NoDevice(format!("{} does not run kernels: {why}", self.name())),
            e => e,
        })?;
        match values.iter().find(|v| **v != 1.5) {
            None => Ok(()),
            Some(found) => Err(Error::NoDevice(format!(
                "{} computes wrongly: a kernel filled memory with 1.5, and {found} was read back; update the driver, \
                 check the card (nvidia-smi -q)",
                self.name()
            ))),
        }
    }
    /// Marks the point after everything that was launched before. The emulator has finished it by then.
    ///
    /// Errors: the driver's.
    pub fn mark(&self) -> Result<Mark> {
        match self {
            Gpu::Cuda(d) => d.mark().map(Mark::Cuda),
            Gpu::Emu(_) => Ok(Mark::Emu(Instant::now())),
        }
    }
    /// Waits for everything that was launched.
    ///
    /// Errors: a kernel that failed.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Gpu::Cuda(d) => d.synchronize(),
            Gpu::Emu(_) => Ok(()),
        }
    }
}
