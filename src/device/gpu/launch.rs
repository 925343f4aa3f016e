//! Launches: a kernel, its geometry and its arguments, checked against the kernel's own parameter list.

use super::source::Parameter;
use super::tensor_map::TensorMap;
use super::{Address, Gpu, Kernel};
use crate::device::Slot;
use crate::error::{Error, Result};

/// An argument while addresses are still unknown.
#[derive(Clone, Debug, PartialEq)]
pub enum KernelArg {
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
    Table(Vec<KernelArg>),
    /// `MAPS_PARAM`: up to 8 maps of the first operand (`maps.of[member]`), then as many of the second
    /// (`maps.of[8 + member]`).
    TensorMaps(Vec<TensorMap>),
    /// `Members<S>` by value, `S` by its name: a row of addresses for each member.
    Members(&'static str, Vec<Vec<KernelArg>>),
}

/// Most members of a launch. Mirrors `Members` of kernels/lib/members.cuh.
pub const MEMBERS: usize = 8;

macro_rules! from {
    ($($t:ty => $variant:ident),*) => {
        $(impl From<$t> for KernelArg {
            fn from(v: $t) -> KernelArg { KernelArg::$variant(v) }
        })*
    };
}
from!(i32 => I32, u32 => U32, i64 => I64, u64 => U64, f32 => F32, f64 => F64);

impl From<bool> for KernelArg {
    fn from(v: bool) -> KernelArg {
        KernelArg::I32(i32::from(v))
    }
}

impl<T: Into<KernelArg>> From<Option<T>> for KernelArg {
    fn from(v: Option<T>) -> KernelArg {
        v.map_or(KernelArg::Null, Into::into)
    }
}

impl KernelArg {
    /// The address of an array of rows of cells.
    pub fn table<const N: usize>(rows: Vec<[KernelArg; N]>) -> KernelArg {
        KernelArg::Table(rows.into_iter().flatten().collect())
    }
    /// A structure by value, that the kernel calls `name`.
    pub fn structure<T: bytemuck::NoUninit>(name: &'static str, value: &T) -> KernelArg {
        KernelArg::Structure(name, bytemuck::bytes_of(value).to_vec())
    }
    /// The one member of a launch that others may join.
    pub fn member<const N: usize>(name: &'static str, addresses: [KernelArg; N]) -> KernelArg {
        KernelArg::Members(name, vec![addresses.into()])
    }
    fn fits(&self, parameter: &Parameter<&'static str>) -> bool {
        match (self, parameter) {
            (KernelArg::Members(name, rows), Parameter::Members(expected, pointers)) => {
                name == expected && rows.len() <= MEMBERS && rows.iter().all(|r| r.len() == *pointers)
            }
            (KernelArg::Members(..), _) => false,
            (
                KernelArg::Null
                | KernelArg::Slot(_)
                | KernelArg::Shadow(_)
                | KernelArg::Step
                | KernelArg::Ring
                | KernelArg::Table(_),
                p,
            ) => *p == Parameter::Pointer,
            (KernelArg::I32(_), p) => *p == Parameter::I32,
            (KernelArg::U32(_), p) => *p == Parameter::U32,
            (KernelArg::I64(_), p) => *p == Parameter::I64,
            (KernelArg::U64(_), p) => *p == Parameter::U64,
            (KernelArg::F32(_), p) => *p == Parameter::F32,
            (KernelArg::F64(_), p) => *p == Parameter::F64,
            (KernelArg::Structure(name, _), Parameter::Structure(expected)) => name == expected,
            (KernelArg::TensorMaps(maps), Parameter::TensorMaps) => {
                (2..=2 * MEMBERS).contains(&maps.len()) && maps.len() % 2 == 0
            }
            (KernelArg::Structure(..) | KernelArg::TensorMaps(_), _) => false,
        }
    }
}

/// Threads of a block, where nothing speaks for another number: eight warps hide a load's latency, and four such blocks
/// fit a multiprocessor even at 64 registers a thread.
pub const THREADS: u32 = 256;

/// An H200's multiprocessors.
pub const MULTIPROCESSORS: usize = 132; // conv2d only; goes when it takes a Target

/// [`Target::blocks_for`](super::target::Target::blocks_for) of an H200.
pub fn blocks_for(elements: usize, per_block: usize) -> u32 {
    // conv2d only; goes when it takes a Target
    elements.div_ceil(per_block).clamp(1, 16 * MULTIPROCESSORS) as u32
}

/// An H200's dynamic shared memory of a block, in bytes.
pub fn shared_limit() -> u32 {
    227 << 10 // conv2d only; goes when it takes a Target
}

/// Whether kernels of an `INSTANCE_90A` line run on an H200.
pub fn has_wgmma() -> bool {
    true // conv2d only; goes when it takes a Target
}

const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];

/// One way to do a launch whose blocks stay and take tile after tile.
#[derive(Clone)]
pub struct Way {
    pub kernel: &'static Kernel,
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Of one member.
    pub tiles: usize,
    /// What a multiprocessor spends on a tile, about.
    pub cycles: usize,
    /// Rows or windows in a box of the first operand's tensor maps.
    pub box_rows: u32,
}

/// The ways to do a launch, on so many multiprocessors. Which is fastest depends on how many members have joined: tiles
/// come in rounds of as many as there are multiprocessors, and the last round is seldom full.
#[derive(Clone)]
struct Ways {
    all: Vec<Way>,
    multiprocessors: usize,
}

/// A kernel with everything but addresses.
#[derive(Clone)]
pub struct Launch {
    pub kernel: &'static Kernel,
    pub grid: [u32; 3],
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    pub args: Vec<KernelArg>,
    /// What kernel and geometry are chosen from, again with every member that joins.
    ways: Option<Ways>,
}

impl Launch {
    /// A launch by the fastest of several ways, a block a multiprocessor.
    ///
    /// Errors: as [`Launch::new`], of any of them; no way.
    pub fn by_fastest(all: Vec<Way>, multiprocessors: usize, args: Vec<KernelArg>) -> Result<Launch> {
        let mut launch = Err(Error::Run("a launch with no way to do it".into()));
        for way in &all {
            launch = Ok(Launch::new(way.kernel.name, [1, 1, 1], way.block, way.shared, args.clone())?);
        }
        let mut launch = launch?;
        launch.ways = Some(Ways { all, multiprocessors });
        launch.settle();
        Ok(launch)
    }
    /// Takes the fastest way for the members that there are.
    fn settle(&mut self) {
        let members = self.members();
        let Some(Ways { all, multiprocessors }) = &self.ways else { return };
        let blocks = |w: &Way| (w.tiles * members).min(*multiprocessors);
        let cycles = |w: &Way| (w.tiles * members).div_ceil(*multiprocessors) * w.cycles;
        if let Some(w) = all.iter().min_by_key(|w| cycles(w)) {
            let Way { kernel, block, shared, box_rows, .. } = *w;
            (self.kernel, self.block, self.shared, self.grid) =
                (kernel, block, shared, [blocks(w) as u32, 1, 1]);
            for arg in &mut self.args {
                let KernelArg::TensorMaps(maps) = arg else { continue };
                let first = maps.len() / 2;
                maps[..first].iter_mut().for_each(|m| m.set_box_rows(box_rows));
            }
        }
    }
    /// Errors: no such kernel, arguments that it does not take, a geometry that no device can launch.
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
        Ok(Launch { kernel, grid, block, shared, args, ways: None })
    }
    /// Errors: blocks, of any way to do the launch, that ask for more dynamic shared memory than a target has.
    pub fn expect_shared_at_most(&self, bytes: u32) -> Result<()> {
        let ways = self.ways.iter().flat_map(|w| &w.all).map(|w| (w.kernel.name, w.shared));
        match ways.chain([(self.kernel.name, self.shared)]).find(|(_, shared)| *shared > bytes) {
            None => Ok(()),
            Some((name, shared)) => Err(Error::Run(format!(
                "{name}: a block needs {shared} bytes of shared memory, the device has {bytes}"
            ))),
        }
    }
    /// Takes the members of `other`, a launch of the same kernel and sizes, for its own: `blockIdx.y` tells them apart.
    /// Refuses, and changes nothing, if they are too many, if anything but their addresses differs, or if two of them
    /// write (the first address of each) to the same place.
    pub fn join(&mut self, other: &Launch) -> bool {
        // Of a launch that chooses, the ways: those of the same arguments are the same.
        let geometry = |l: &Launch| match &l.ways {
            Some(w) => (w.all[0].kernel.name, 0, 0, 0, 0),
            None => (l.kernel.name, l.grid[0], l.grid[2], l.block, l.shared),
        };
        if geometry(self) != geometry(other) || self.args.len() != other.args.len() {
            return false;
        }
        let (mut rows, mut written) = (0, Vec::new());
        for (mine, theirs) in self.args.iter().zip(&other.args) {
            match (mine, theirs) {
                (KernelArg::Members(_, a), KernelArg::Members(_, b)) => {
                    rows = a.len() + b.len();
                    written = a.iter().chain(b).map(|row| &row[0]).collect();
                }
                (KernelArg::TensorMaps(_), KernelArg::TensorMaps(_)) => {}
                (a, b) if a == b => {}
                _ => return false,
            }
        }
        let collides = |i: usize| written[..i].contains(&written[i]);
        if rows == 0 || rows > MEMBERS || (0..rows).any(collides) {
            return false;
        }
        for (mine, theirs) in self.args.iter_mut().zip(&other.args) {
            match (mine, theirs) {
                (KernelArg::Members(_, a), KernelArg::Members(_, b)) => a.extend(b.iter().cloned()),
                (KernelArg::TensorMaps(a), KernelArg::TensorMaps(b)) => {
                    // Each has its first operands, then its second.
                    let second = a.split_off(a.len() / 2);
                    let (b_first, b_second) = b.split_at(b.len() / 2);
                    a.extend(b_first.iter().cloned().chain(second).chain(b_second.iter().cloned()));
                }
                _ => {}
            }
        }
        match self.ways {
            Some(_) => self.settle(),
            None => self.grid[1] += other.grid[1],
        }
        true
    }
    /// Where its members write: the first address of each.
    pub fn writes(&self) -> impl Iterator<Item = Slot> {
        let rows = self
            .args
            .iter()
            .flat_map(|a| if let KernelArg::Members(_, rows) = a { rows.as_slice() } else { &[] });
        rows.filter_map(|row| if let KernelArg::Slot(slot) = row[0] { Some(slot) } else { None })
    }
    /// How many problems of equal sizes it solves at once.
    pub fn members(&self) -> usize {
        let count = |a: &KernelArg| if let KernelArg::Members(_, rows) = a { Some(rows.len()) } else { None };
        self.args.iter().find_map(count).unwrap_or(1)
    }
    /// What its pointers and tables name, each once, with the bytes that lie there: a bf16 copy has half its tensor's.
    pub fn operands(&self) -> Vec<(Slot, usize)> {
        let mut found: Vec<(&KernelArg, Slot, usize)> = Vec::new();
        let cells = self.args.iter().flat_map(|a| match a {
            KernelArg::Table(cells) => cells.iter().collect(),
            KernelArg::TensorMaps(maps) => maps.iter().map(|m| &m.tensor).collect(),
            KernelArg::Members(_, rows) => rows.iter().flatten().collect(),
            other => vec![other],
        });
        for arg in cells {
            let (slot, bytes) = match arg {
                KernelArg::Slot(s) => (*s, s.bytes),
                KernelArg::Shadow(s) => (*s, s.bytes / 2),
                _ => continue,
            };
            if !found.iter().any(|(a, ..)| *a == arg) {
                found.push((arg, slot, bytes));
            }
        }
        found.into_iter().map(|(_, slot, bytes)| (slot, bytes)).collect()
    }
}

/// Cells of arguments, aligned as tensor maps must be.
#[repr(C, align(128))]
struct Line([u64; LINE]);

/// Cells of a line, and of a tensor map.
const LINE: usize = 16;

/// A launch with its addresses: what a machine takes.
pub struct Prepared {
    pub kernel: &'static Kernel,
    pub grid: [u32; 3],
    pub block: u32,
    pub shared: u32,
    /// The arguments' bytes, each from a cell of its own on; tensor maps begin a line.
    lines: Vec<Line>,
    /// In cells.
    starts: Vec<usize>,
    /// What the launch is for, in an error's words.
    pub label: String,
}

impl Prepared {
    /// `address` knows where everything lies; it puts tables into device memory.
    pub fn new(
        launch: &Launch,
        label: String,
        gpu: &Gpu,
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
                    cells.resize(start + 2 * MEMBERS * LINE, 0);
                    let members = maps.len() / 2;
                    for (i, map) in maps.iter().enumerate() {
                        let at = start + (i / members * MEMBERS + i % members) * LINE;
                        let encoded = gpu.encode(map, address(&map.tensor)?);
                        let named = |e: Error| Error::Run(format!("{label}: tensor map {i}: {e}"));
                        cells[at..at + LINE].copy_from_slice(&encoded.map_err(named)?);
                    }
                }
                KernelArg::Members(_, rows) => {
                    let end = cells.len() + MEMBERS * rows.first().map_or(0, Vec::len);
                    for arg in rows.iter().flatten() {
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
        let Launch { kernel, grid, block, shared, .. } = *launch;
        Ok(Prepared { kernel, grid, block, shared, lines, starts, label })
    }
    /// One pointer an argument, as drivers want them.
    pub fn pointers(&self) -> Vec<*mut std::ffi::c_void> {
        let cells = self.lines.as_ptr().cast::<u64>().cast_mut();
        self.starts.iter().map(|s| cells.wrapping_add(*s).cast()).collect()
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
        | KernelArg::Shadow(_)
        | KernelArg::Step
        | KernelArg::Ring
        | KernelArg::Table(_) => address(arg)?,
        KernelArg::Structure(name, _) | KernelArg::Members(name, _) => {
            return Err(Error::Run(format!("a table cannot hold a {name}")));
        }
        KernelArg::TensorMaps(_) => return Err(Error::Run("a table cannot hold tensor maps".into())),
    })
}
