//! One launch: a kernel with everything but addresses.

use super::arg::KernelArg;
use super::candidates::{Candidate, Candidates};
use super::exchange::Exchange;
use super::library::LibraryCall;
use super::matmul::Matmul;
use super::work::{Cycles, Work};
use crate::device::gpu::kernel::Kernel;
use crate::device::gpu::pointer::Pointer;
use crate::device::memory::Slot;
use crate::error::{Error, Result};
use std::collections::HashSet;

/// Threads of a block, unless a kernel has a reason for another number: eight warps hide a load's latency,
/// and four such blocks fit a multiprocessor even at 64 registers a thread.
pub const THREADS: u32 = 256;

/// Most blocks of a grid in each dimension, on every device.
pub(super) const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];

/// A kernel with everything but addresses.
#[derive(Clone)]
pub struct Launch {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// One for each parameter of the kernel.
    pub args: Vec<KernelArg>,
    /// The kernels and geometries to choose from, if there are several. The choice is made again after each
    /// member that joins the group.
    pub(super) candidates: Option<Candidates>,
    /// What it computes, where a forecast is known.
    pub work: Option<Work>,
    /// What a library does in place of a kernel.
    pub library: Option<LibraryCall>,
}

impl Launch {
    /// A launch of a kernel by its name.
    ///
    /// Errors: no such kernel, arguments that it does not take, a geometry that no device can launch. Shared
    /// memory depends on the device: see [`Launch::expect_shared_at_most`].
    pub fn new(name: &str, grid: [u32; 3], block: u32, shared: u32, args: Vec<KernelArg>) -> Result<Launch> {
        let kernel = Kernel::find(name)?;
        let wrong = |message: String| Error::Run(format!("{name}: {message}"));
        if args.len() != kernel.parameters.len() {
            return Err(wrong(format!("takes {} arguments, found {}", kernel.parameters.len(), args.len())));
        }
        for (i, (arg, parameter)) in args.iter().zip(kernel.parameters).enumerate() {
            if !arg.fits(parameter) {
                return Err(wrong(format!("argument {i}: expected {parameter:?}, found {arg:?}")));
            }
        }
        let grid_fits = grid.iter().zip(MAX_GRID).all(|(g, most)| (1..=most).contains(g));
        if !grid_fits || block == 0 || block > kernel.threads {
            return Err(wrong(format!(
                "cannot launch {grid:?} blocks of {block} threads (at most {MAX_GRID:?} and {})",
                kernel.threads
            )));
        }
        Ok(Launch { kernel, grid, block, shared, args, candidates: None, work: None, library: None })
    }
    /// A launch of the fastest of several kernels that take the same arguments, with at most one block for
    /// each multiprocessor.
    ///
    /// Errors: those of [`Launch::new`] for any candidate; no candidate.
    pub fn by_fastest(candidates: Candidates, args: Vec<KernelArg>) -> Result<Launch> {
        let mut launch = Err(Error::Run("no candidate kernel for this launch".into()));
        for c in &candidates.all {
            launch = Ok(Launch::new(c.kernel.name, [1, 1, 1], c.block, c.shared, args.clone())?);
        }
        let mut launch = launch?;
        launch.candidates = Some(candidates);
        launch.choose();
        Ok(launch)
    }
    /// An exchange between ranks: `from` is this rank's source, whole, and `to` has room for what all ranks send.
    pub fn of_exchange(exchange: Exchange, to: Slot, from: Slot) -> Launch {
        let [sent, room] = [from, to].map(|slot| KernelArg::I64(slot.bytes as i64));
        let args = vec![KernelArg::Slot(to), KernelArg::Slot(from), sent, room];
        Launch::of_library(LibraryCall::Exchange(exchange), args)
    }
    /// A product of matrices by cuBLASLt. `operands` are d, a and b.
    ///
    /// Errors: an operand that is smaller than its matrix.
    pub fn of_matmul(product: Matmul, operands: [Pointer; 3]) -> Result<Launch> {
        for (name, (bytes, operand)) in ["d", "a", "b"].iter().zip(product.bytes().into_iter().zip(operands))
        {
            if operand.bytes() < bytes {
                let found = operand.bytes();
                return Err(Error::Run(format!("{product:?}: {name} needs {bytes} bytes, found {found}")));
            }
        }
        Ok(Launch::of_library(LibraryCall::Matmul(product), operands.map(KernelArg::from).into()))
    }
    fn of_library(call: LibraryCall, args: Vec<KernelArg>) -> Launch {
        Launch {
            kernel: call.kernel(),
            grid: [1, 1, 1],
            block: 1,
            shared: 0,
            args,
            candidates: None,
            work: None,
            library: Some(call),
        }
    }
    /// What it computes: launches of one family may share a launch.
    pub fn family(&self) -> &'static str {
        self.candidates.as_ref().map_or(self.kernel.name, |c| c.family)
    }
    /// Takes the fastest candidate for the group as it is now; a launch without candidates stays as it is.
    pub(super) fn choose(&mut self) {
        let group_size = self.group_size();
        let Some(candidates) = &self.candidates else { return };
        let Some((fastest, blocks)) = candidates.choose(group_size) else { return };
        self.work = Some(candidates.work(fastest));
        let Candidate { kernel, block, shared, box_rows, .. } = *fastest;
        (self.kernel, self.block, self.shared, self.grid) = (kernel, block, shared, [blocks, 1, 1]);
        for arg in &mut self.args {
            let KernelArg::TensorMaps(maps) = arg else { continue };
            let first = maps.len() / 2;
            maps[..first].iter_mut().for_each(|m| m.set_box_rows(box_rows));
        }
    }
    /// Checks that a block of the launch, and of each of its candidates, needs at most `bytes` of dynamic
    /// shared memory.
    ///
    /// Errors: one that needs more.
    pub fn expect_shared_at_most(&self, bytes: u32) -> Result<()> {
        let candidates = self.candidates.iter().flat_map(|c| &c.all).map(|c| (c.kernel.name, c.shared));
        match candidates.chain([(self.kernel.name, self.shared)]).find(|(_, shared)| *shared > bytes) {
            None => Ok(()),
            Some((name, shared)) => Err(Error::Run(format!(
                "{name}: a block needs {shared} bytes of shared memory, the device has {bytes}"
            ))),
        }
    }
    /// Forecast cycles of the launch's products. They are 0 where there is no forecast; the forecast of its time then
    /// follows from the bytes that it moves.
    pub fn cycles(&self) -> Cycles {
        self.work.map_or([0; 2], |w| w.cycles_of(self.group_size()))
    }
    /// How many problems the launch solves at once.
    pub fn group_size(&self) -> usize {
        self.args.iter().map(|a| a.members().len()).find(|n| *n > 0).unwrap_or(1)
    }
    /// What its arguments and tables point to, each once.
    pub fn operands(&self) -> Vec<Pointer> {
        let mut seen = HashSet::new();
        self.pointers().filter(|p| seen.insert(*p)).collect()
    }
    /// Whether its arguments and tables point to one of these tensors.
    pub fn uses(&self, slots: &[Slot]) -> bool {
        self.pointers().any(|p| slots.contains(&p.slot()))
    }
    fn pointers(&self) -> impl Iterator<Item = Pointer> {
        self.args.iter().flat_map(|arg| {
            let cells = arg.table_cells().into_iter().flatten();
            arg.pointers().chain(cells.filter_map(KernelArg::pointer))
        })
    }
}
