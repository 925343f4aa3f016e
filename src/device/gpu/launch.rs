//! Launches: a kernel, its geometry and its arguments, checked against the kernel's own parameter list.

use super::source::Parameter;
use super::{Address, Kernel};
use crate::device::Slot;
use crate::error::{Error, Result};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// An argument while addresses are still unknown.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    Null,
    /// The address of a slot.
    Slot(Slot),
    /// The address of the bf16 copy of a slot of the store, which holds f32.
    Shadow(Slot),
    /// The address of the device's `StepState`.
    Step,
    /// The address of the metrics' ring.
    Ring,
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    F32(f32),
    F64(f64),
    /// A `#[repr(C)]` structure by value, under the name that the kernel gives it.
    Structure(&'static str, Vec<u8>),
    /// The address of an array of 8-byte cells; a value shorter than a cell fills its low end.
    Table(Vec<Arg>),
    /// `Members<S>` by value, `S` by its name: a row of addresses for each member.
    Members(&'static str, Vec<Vec<Arg>>),
}

/// Most members of a launch. Mirrors `Members` of kernels/lib/members.cuh.
pub const MEMBERS: usize = 8;

macro_rules! from {
    ($($t:ty => $variant:ident),*) => {
        $(impl From<$t> for Arg {
            fn from(v: $t) -> Arg { Arg::$variant(v) }
        })*
    };
}
from!(i32 => I32, u32 => U32, i64 => I64, u64 => U64, f32 => F32, f64 => F64);

impl From<bool> for Arg {
    fn from(v: bool) -> Arg {
        Arg::I32(i32::from(v))
    }
}

impl<T: Into<Arg>> From<Option<T>> for Arg {
    fn from(v: Option<T>) -> Arg {
        v.map_or(Arg::Null, Into::into)
    }
}

impl Arg {
    /// The address of an array of rows of cells.
    pub fn table<const N: usize>(rows: Vec<[Arg; N]>) -> Arg {
        Arg::Table(rows.into_iter().flatten().collect())
    }
    /// A structure by value, that the kernel calls `name`.
    pub fn structure<T: bytemuck::NoUninit>(name: &'static str, value: &T) -> Arg {
        Arg::Structure(name, bytemuck::bytes_of(value).to_vec())
    }
    /// The one member of a launch that others may join.
    pub fn member<const N: usize>(name: &'static str, addresses: [Arg; N]) -> Arg {
        Arg::Members(name, vec![addresses.into()])
    }
    fn fits(&self, parameter: &Parameter<&'static str>) -> bool {
        match (self, parameter) {
            (Arg::Members(name, rows), Parameter::Members(expected, pointers)) => {
                name == expected && rows.len() <= MEMBERS && rows.iter().all(|r| r.len() == *pointers)
            }
            (Arg::Members(..), _) => false,
            (Arg::Null | Arg::Slot(_) | Arg::Shadow(_) | Arg::Step | Arg::Ring | Arg::Table(_), p) => {
                *p == Parameter::Pointer
            }
            (Arg::I32(_), p) => *p == Parameter::I32,
            (Arg::U32(_), p) => *p == Parameter::U32,
            (Arg::I64(_), p) => *p == Parameter::I64,
            (Arg::U64(_), p) => *p == Parameter::U64,
            (Arg::F32(_), p) => *p == Parameter::F32,
            (Arg::F64(_), p) => *p == Parameter::F64,
            (Arg::Structure(name, _), Parameter::Structure(expected)) => name == expected,
            (Arg::Structure(..), _) => false,
        }
    }
}

/// Threads of a block, where nothing speaks for another number: eight warps hide a load's latency, and four such blocks
/// fit a multiprocessor even at 64 registers a thread.
pub const THREADS: u32 = 256;

/// What grids are sized for: an H200's multiprocessors.
pub const MULTIPROCESSORS: usize = 132;

/// Blocks for `elements` at `per_block` a pass of a grid-stride loop: at most 16 a multiprocessor.
pub fn blocks_for(elements: usize, per_block: usize) -> u32 {
    elements.div_ceil(per_block).clamp(1, 16 * MULTIPROCESSORS) as u32
}

/// Dynamic shared memory that a block may ask for, until a device says less: compute capability 9.0's.
static SHARED_LIMIT: AtomicU32 = AtomicU32::new(227 << 10);

/// Bytes of dynamic shared memory that a block may ask for on this process's device: 227 KB on compute capability 9.0, 163
/// on 8.0, 99 on 8.6, 8.9 and 12.0.
pub fn shared_limit() -> u32 {
    SHARED_LIMIT.load(Relaxed)
}

/// Plans compiled from here on keep to a device's shared memory; it is opened before they are.
pub(super) fn keep_to_shared(bytes: u32) {
    SHARED_LIMIT.store(bytes, Relaxed);
}

const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];

/// A kernel with everything but addresses.
#[derive(Clone)]
pub struct Launch {
    pub kernel: &'static Kernel,
    pub grid: [u32; 3],
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    pub args: Vec<Arg>,
}

impl Launch {
    /// Errors: no such kernel, arguments that it does not take, a geometry that no device can launch.
    pub fn new(name: &str, grid: [u32; 3], block: u32, shared: u32, args: Vec<Arg>) -> Result<Launch> {
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
        if !grid_fits || block == 0 || block > kernel.threads || shared > shared_limit() {
            return Err(wrong(format!(
                "cannot launch {grid:?} blocks of {block} threads with {shared} bytes of shared memory (at most \
                 {MAX_GRID:?}, {} and {})",
                kernel.threads,
                shared_limit()
            )));
        }
        Ok(Launch { kernel, grid, block, shared, args })
    }
    /// Takes the members of `other`, a launch of the same kernel and sizes, for its own: `blockIdx.y` tells them apart.
    /// Refuses, and changes nothing, if they are too many, if anything but their addresses differs, or if two of them
    /// write (the first address of each) to the same place.
    pub fn join(&mut self, other: &Launch) -> bool {
        let geometry = |l: &Launch| (l.kernel.name, l.grid[0], l.grid[2], l.block, l.shared);
        let members = |l: &Launch| l.args.iter().position(|a| matches!(a, Arg::Members(..)));
        let Some(at) = members(self).filter(|at| members(other) == Some(*at)) else { return false };
        let same = |i: usize| i == at || self.args[i] == other.args[i];
        if geometry(self) != geometry(other) || !(0..self.args.len()).all(same) {
            return false;
        }
        let (Arg::Members(_, mine), Arg::Members(_, theirs)) = (&mut self.args[at], &other.args[at]) else {
            return false;
        };
        let collides = |row: &Vec<Arg>| mine.iter().any(|m| m[0] == row[0]);
        if mine.len() + theirs.len() > MEMBERS || theirs.iter().any(collides) {
            return false;
        }
        mine.extend(theirs.iter().cloned());
        self.grid[1] += other.grid[1];
        true
    }
    /// How many problems of equal sizes it solves at once.
    pub fn members(&self) -> usize {
        let count = |a: &Arg| if let Arg::Members(_, rows) = a { Some(rows.len()) } else { None };
        self.args.iter().find_map(count).unwrap_or(1)
    }
    /// What its pointers and tables name, each once, with the bytes that lie there: a bf16 copy has half its tensor's.
    pub fn operands(&self) -> Vec<(Slot, usize)> {
        let mut found: Vec<(&Arg, Slot, usize)> = Vec::new();
        let cells = self.args.iter().flat_map(|a| match a {
            Arg::Table(cells) => cells.iter().collect(),
            Arg::Members(_, rows) => rows.iter().flatten().collect(),
            other => vec![other],
        });
        for arg in cells {
            let (slot, bytes) = match arg {
                Arg::Slot(s) => (*s, s.bytes),
                Arg::Shadow(s) => (*s, s.bytes / 2),
                _ => continue,
            };
            if !found.iter().any(|(a, ..)| *a == arg) {
                found.push((arg, slot, bytes));
            }
        }
        found.into_iter().map(|(_, slot, bytes)| (slot, bytes)).collect()
    }
}

/// A launch with its addresses: what a machine takes.
pub struct Prepared {
    pub kernel: &'static Kernel,
    pub grid: [u32; 3],
    pub block: u32,
    pub shared: u32,
    /// The arguments' bytes, each from a cell of its own on.
    cells: Vec<u64>,
    starts: Vec<usize>,
    /// What the launch is for, in an error's words.
    pub label: String,
}

impl Prepared {
    /// `address` knows where everything lies; it puts tables into device memory.
    pub fn new(
        launch: &Launch,
        label: String,
        address: &mut impl FnMut(&Arg) -> Result<Address>,
    ) -> Result<Self> {
        let (mut cells, mut starts) = (Vec::new(), Vec::new());
        for arg in &launch.args {
            starts.push(cells.len());
            match arg {
                Arg::Structure(_, bytes) => cells.extend(bytes.chunks(8).map(|c| {
                    let mut cell = [0; 8];
                    cell[..c.len()].copy_from_slice(c);
                    u64::from_le_bytes(cell)
                })),
                Arg::Members(_, rows) => {
                    let end = cells.len() + MEMBERS * rows.first().map_or(0, Vec::len);
                    for arg in rows.iter().flatten() {
                        cells.push(cell(arg, address)?);
                    }
                    cells.resize(end, 0);
                }
                _ => cells.push(cell(arg, address)?),
            }
        }
        let Launch { kernel, grid, block, shared, .. } = *launch;
        Ok(Prepared { kernel, grid, block, shared, cells, starts, label })
    }
    /// One pointer an argument, as drivers want them.
    pub fn pointers(&self) -> Vec<*mut std::ffi::c_void> {
        self.starts.iter().map(|s| std::ptr::from_ref(&self.cells[*s]).cast_mut().cast()).collect()
    }
    /// The launch in words: op, kernel and geometry.
    pub fn in_words(&self) -> String {
        format!(
            "{} ({}, {:?} blocks of {} threads, {} bytes of shared memory)",
            self.label, self.kernel.name, self.grid, self.block, self.shared
        )
    }
}

/// An argument's value in its cell (little-endian, as every machine that CUDA runs on is).
pub fn cell(arg: &Arg, address: &mut impl FnMut(&Arg) -> Result<Address>) -> Result<u64> {
    Ok(match arg {
        Arg::Null => 0,
        Arg::I32(v) => u64::from(*v as u32),
        Arg::U32(v) => u64::from(*v),
        Arg::I64(v) => *v as u64,
        Arg::U64(v) => *v,
        Arg::F32(v) => u64::from(v.to_bits()),
        Arg::F64(v) => v.to_bits(),
        Arg::Slot(_) | Arg::Shadow(_) | Arg::Step | Arg::Ring | Arg::Table(_) => address(arg)?,
        Arg::Structure(name, _) | Arg::Members(name, _) => {
            return Err(Error::Run(format!("a table cannot hold a {name}")));
        }
    })
}
