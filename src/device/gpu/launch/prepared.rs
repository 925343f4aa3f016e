//! A launch with its addresses.

use super::arg::{KernelArg, MAX_GROUP};
use super::kernel_launch::Launch;
use super::library::LibraryCall;
use crate::device::gpu::block::Address;
use crate::device::gpu::kernel::Kernel;
use crate::device::gpu::tensor_map::{Encoded, TensorMap};
use crate::error::{Error, Result};
use std::ffi::c_void;
use std::sync::atomic::AtomicUsize;

/// Cells of a line of arguments, and of a tensor map.
const LINE: usize = 16;

/// Cells of arguments, aligned as tensor maps must be.
#[repr(C, align(128))]
struct Line([u64; LINE]);

/// A launch with its addresses, ready for a machine.
pub struct Prepared {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// The arguments' bytes. Each argument begins in a cell of its own, tensor maps in a line of their own.
    lines: Vec<Line>,
    /// The cell in which each argument begins.
    starts: Vec<usize>,
    /// What a library does in place of the kernel.
    pub library: Option<LibraryCall>,
    /// What the launch is for, as errors say it.
    pub label: String,
    /// The kernel's handle on the machine that has launched it before, or 0.
    pub(in crate::device::gpu) handle: AtomicUsize,
}

impl Prepared {
    /// Lays out the arguments. `address` returns the address that an argument stands for; `encode` writes a
    /// tensor map in the machine's format.
    ///
    /// Errors: those of `address` and `encode`, and an argument that a table cannot hold.
    pub(in crate::device::gpu) fn new(
        launch: &Launch,
        label: String,
        encode: &impl Fn(&TensorMap, Address) -> Result<Encoded>,
        address: &mut impl FnMut(&KernelArg) -> Result<Address>,
    ) -> Result<Self> {
        let (mut cells, mut starts) = (Vec::new(), Vec::new());
        for arg in &launch.args {
            starts.push(cells.len());
            match arg {
                KernelArg::Structure(_, bytes) => cells.extend(bytes.chunks(8).map(|c| {
                    let mut cell = [0; 8];
                    cell[..c.len()].copy_from_slice(c);
                    u64::from_le_bytes(cell)
                })),
                KernelArg::TensorMaps(maps) => {
                    let start = cells.len().next_multiple_of(LINE);
                    *starts.last_mut().expect("pushed above") = start;
                    cells.resize(start + 2 * MAX_GROUP * LINE, 0);
                    let members = maps.len() / 2;
                    for (i, map) in maps.iter().enumerate() {
                        let at = start + (i / members * MAX_GROUP + i % members) * LINE;
                        let encoded = encode(map, address(&map.tensor.into())?);
                        let named = |e: Error| Error::Run(format!("{label}: tensor map {i}: {e}"));
                        cells[at..at + LINE].copy_from_slice(&encoded.map_err(named)?);
                    }
                }
                KernelArg::Group(_, members) => {
                    let end = cells.len() + MAX_GROUP * members.first().map_or(0, Vec::len);
                    for arg in members.iter().flatten() {
                        cells.push(cell(arg, address)?);
                    }
                    cells.resize(end, 0);
                }
                _ => cells.push(cell(arg, address)?),
            }
        }
        let line = |part: &[u64]| {
            let mut line = Line([0; LINE]);
            line.0[..part.len()].copy_from_slice(part);
            line
        };
        let lines = cells.chunks(LINE).map(line).collect();
        let Launch { kernel, grid, block, shared, library, .. } = *launch;
        Ok(Prepared {
            kernel,
            grid,
            block,
            shared,
            lines,
            starts,
            library,
            label,
            handle: AtomicUsize::new(0),
        })
    }
    /// A pointer to each argument, as the driver and the emulator take them. They are valid as long as
    /// `self`.
    pub fn pointers(&self) -> Vec<*mut c_void> {
        let cells = self.lines.as_ptr().cast::<u64>().cast_mut();
        self.starts.iter().map(|s| cells.wrapping_add(*s).cast()).collect()
    }
    /// Argument `i`, which is a single cell: an address or a number.
    pub fn cell(&self, i: usize) -> u64 {
        self.lines[self.starts[i] / LINE].0[self.starts[i] % LINE]
    }
    /// The launch as errors name it: what it is for, its kernel and its geometry.
    pub fn in_words(&self) -> String {
        format!(
            "{} ({}, {:?} blocks of {} threads, {} bytes of shared memory)",
            self.label, self.kernel.name, self.grid, self.block, self.shared
        )
    }
}

/// An argument as the 8 bytes of its cell, little-endian like every machine that CUDA runs on. `address`
/// returns the address that an argument stands for.
///
/// Errors: those of `address`; a structure, a group or tensor maps, which take more than a cell.
pub fn cell(arg: &KernelArg, address: &mut impl FnMut(&KernelArg) -> Result<Address>) -> Result<u64> {
    Ok(match arg {
        KernelArg::Null => 0,
        KernelArg::I32(v) => u64::from(*v as u32),
        KernelArg::U32(v) => u64::from(*v),
        KernelArg::I64(v) => *v as u64,
        KernelArg::U64(v) => *v,
        KernelArg::F32(v) => u64::from(v.to_bits()),
        KernelArg::F64(v) => v.to_bits(),
        KernelArg::Slot(_)
        | KernelArg::Bf16Copy(_)
        | KernelArg::Step
        | KernelArg::Ring
        | KernelArg::Table(_)
        | KernelArg::Members(_) => address(arg)?,
        KernelArg::Structure(name, _) | KernelArg::Group(name, _) => {
            return Err(Error::Run(format!("a table cannot hold a {name}")));
        }
        KernelArg::TensorMaps(_) => return Err(Error::Run("a table cannot hold tensor maps".into())),
    })
}
