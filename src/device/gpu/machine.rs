//! A GPU with its memory: a mirror of the store, the arena, and the step's varying values.

use super::backend::Gpu;
use super::block::{Address, Block};
use super::cuda::Graph;
use super::launch::{KernelArg, Launch, LibraryCall, Prepared, THREADS, cell};
use super::nvtx;
use super::pixels::Pixels;
use super::pointer::Pointer;
use super::target::Target;
use crate::device::memory::{Buffer, Mirrored, Slot, Space};
use crate::device::step_state::StepState;
use crate::error::{Error, Result};
use crate::tensor::Elem;
use half::slice::HalfFloatSliceExt;
use std::ops::Range;

/// Bytes of the ring to which steps write their metrics: 256 steps of 64 metrics.
pub(super) const RING_BYTES: usize = 64 << 10;

/// One buffer of the store on the device.
struct Mirror {
    block: Block,
    /// Its elements as bf16, each at half its f32's offset. Allocated when the first kernel needs it.
    bf16_copy: Option<Block>,
    /// How the host's pixels get there, if it has pixels.
    pixels: Option<Pixels>,
}

/// A GPU, and what all plans on it share.
pub struct Machine {
    /// The GPU.
    pub gpu: Gpu,
    /// The limits that plans for it are made for.
    pub target: Target,
    store: Vec<Mirror>,
    arena: Option<Block>,
    state: Block,
    ring: Block,
    /// Steps that a profiler is to record, in every stage.
    profile: Range<u64>,
    /// Whether the profiler records now.
    records: bool,
    capture: Capture,
    /// Increases whenever an address changes. A step prepared in another epoch must be prepared again.
    epoch: u64,
}

/// A step with its addresses, ready to run.
pub struct Ready {
    launches: Vec<Prepared>,
    /// The tables that launches point to.
    _tables: Block,
    graph: Option<Graph>,
    epoch: u64,
    runs: u64,
}

/// Whether steps are captured as graphs.
#[derive(Clone, Debug, PartialEq)]
enum Capture {
    /// From their second run on.
    Tried,
    /// No longer, because the driver refused one: why, until [`Machine::note`] has told it.
    Refused(Option<String>),
}

impl Machine {
    /// A machine with an empty store, whose plans store feature maps as `map_dtype`.
    ///
    /// Errors: out of memory.
    pub fn new(gpu: Gpu, map_dtype: Elem) -> Result<Machine> {
        let target = gpu.target(map_dtype);
        let (state, ring) = (gpu.allocate(size_of::<StepState>())?, gpu.allocate(RING_BYTES)?);
        Ok(Machine {
            gpu,
            target,
            store: Vec::new(),
            arena: None,
            state,
            ring,
            profile: 0..0,
            records: false,
            capture: Capture::Tried,
            epoch: 1,
        })
    }

    /// Sets the steps of every stage that a profiler records. They run launch by launch, each launch in a
    /// range with its label.
    pub fn profile(&mut self, steps: Range<u64>) {
        self.profile = steps;
    }

    /// Bytes of the arena.
    pub fn arena_bytes(&self) -> usize {
        self.arena.as_ref().map_or(0, |a| a.bytes)
    }

    /// Bytes held for plans: the store's mirror, its bf16 copies, the blocks for pixels, and the arena.
    pub fn held_bytes(&self) -> usize {
        let beside = |m: &Mirror| {
            m.bf16_copy.as_ref().map_or(0, |s| s.bytes) + m.pixels.as_ref().map_or(0, Pixels::bytes)
        };
        self.store.iter().map(|m| m.block.bytes + beside(m)).sum::<usize>() + self.arena_bytes()
    }

    /// Allocates everything that these launches use: the store, the bf16 copies that they read, and the
    /// arena. Copies the changed buffers of the store to the device.
    ///
    /// Errors: out of memory.
    pub fn make_room(
        &mut self,
        store: &[Buffer],
        mirrored: &mut [Mirrored],
        launches: &[Launch],
        arena_bytes: usize,
    ) -> Result<()> {
        self.push(store, mirrored)?;
        self.add_bf16_copies(launches)?;
        self.reserve(arena_bytes)
    }

    /// Makes the arena large enough for a step.
    ///
    /// Errors: out of memory.
    pub fn reserve(&mut self, arena_bytes: usize) -> Result<()> {
        if self.arena_bytes() < arena_bytes {
            // Nothing in the arena outlives a step, so the old one is freed before the new one is allocated.
            self.arena = None;
            self.epoch += 1;
            self.arena = Some(self.gpu.allocate(arena_bytes)?);
        }
        Ok(())
    }

    /// Copies the store's new and changed buffers to the device, and marks them unchanged.
    ///
    /// Errors: out of memory; the driver's.
    pub fn push(&mut self, store: &[Buffer], mirrored: &mut [Mirrored]) -> Result<()> {
        for (i, (buffer, state)) in store.iter().zip(mirrored).enumerate() {
            if i == self.store.len() {
                self.add(state)?;
                state.is_changed = true;
            }
            if std::mem::take(&mut state.is_changed) {
                let mirror = &mut self.store[i];
                match &mut mirror.pixels {
                    Some(pixels) => pixels.send(&self.gpu, buffer)?,
                    None => self.gpu.upload(&mirror.block, 0, buffer.get(0, buffer.bytes()))?,
                }
                self.refresh_bf16_copy(i)?;
            }
        }
        Ok(())
    }

    /// Allocates the mirror of one more buffer of the store.
    fn add(&mut self, buffer: &Mirrored) -> Result<()> {
        let block = self.gpu.allocate(buffer.bytes)?;
        let pixels = || Pixels::new(&self.gpu, &self.target, buffer.bytes / size_of::<f32>(), &block);
        let pixels = buffer.holds_pixels.then(pixels).transpose()?;
        self.store.push(Mirror { block, bf16_copy: None, pixels });
        self.epoch += 1;
        Ok(())
    }

    /// Copies a buffer of the store back to the host.
    ///
    /// Errors: the driver's.
    pub fn pull(&self, index: usize, buffer: &mut Buffer) -> Result<()> {
        let bytes = buffer.bytes();
        self.gpu.download(&self.store[index].block, 0, buffer.get_mut(0, bytes))
    }

    /// Computes the bf16 copy of a whole buffer again.
    fn refresh_bf16_copy(&self, index: usize) -> Result<()> {
        let mirror = &self.store[index];
        let Some(bf16_copy) = &mirror.bf16_copy else { return Ok(()) };
        let elements = mirror.block.bytes / size_of::<f32>();
        let blocks = self.target.blocks_for(elements, 16 * THREADS as usize);
        let args = vec![
            KernelArg::Bf16Copy(slot_of(index)),
            KernelArg::Slot(slot_of(index)),
            KernelArg::I64(elements as i64),
        ];
        let launch = Launch::new("cast_bf16", [blocks, 1, 1], THREADS, 0, args)?;
        let mut address = |a: &KernelArg| match a {
            KernelArg::Bf16Copy(_) => Ok(bf16_copy.address),
            _ => Ok(mirror.block.address),
        };
        self.gpu.launch(&self.gpu.prepare(&launch, "bf16 copy of the store".into(), &mut address)?)
    }

    /// Allocates and fills the bf16 copies that these launches read.
    fn add_bf16_copies(&mut self, launches: &[Launch]) -> Result<()> {
        copies_read(launches).try_for_each(|slot| self.add_bf16_copy(slot))
    }

    fn add_bf16_copy(&mut self, slot: Slot) -> Result<()> {
        let Space::Store(i) = slot.space else {
            return Err(Error::Run(format!("{slot:?} has no bf16 copy: it is not in the store")));
        };
        let i = i as usize;
        if self.store[i].bf16_copy.is_none() {
            self.store[i].bf16_copy = Some(self.gpu.allocate(self.store[i].block.bytes / 2)?);
            // Optimisers that were prepared earlier got a null pointer for this copy and would not update
            // it.
            self.epoch += 1;
            self.refresh_bf16_copy(i)?;
        }
        Ok(())
    }

    fn address(&self, slot: Slot) -> Result<Address> {
        match self.block(slot.space)? {
            b if slot.offset + slot.bytes <= b.bytes => Ok(b.address + slot.offset as u64),
            _ => Err(Error::Run(format!("{slot:?} lies outside the device's memory"))),
        }
    }

    /// Gives launches their addresses. `label(i)` says what launch `i` is for.
    ///
    /// Errors: out of memory; a slot outside the device's memory; a tensor map that no TMA unit takes.
    pub fn prepare(&mut self, launches: &[Launch], label: impl Fn(usize) -> String) -> Result<Ready> {
        self.add_bf16_copies(launches)?;
        let (mut cells, mut at) = (Vec::new(), Vec::new());
        for table in launches.iter().flat_map(|l| &l.args) {
            let Some(args) = table.table_cells() else { continue };
            at.push(cells.len() * 8);
            for arg in args {
                cells.push(cell(arg, &mut |a| self.resolve(a, &mut std::iter::empty()))?);
            }
        }
        let tables = self.gpu.allocate(cells.len() * 8)?;
        if !cells.is_empty() {
            self.gpu.upload(&tables, 0, bytemuck::cast_slice(&cells))?;
        }
        let mut offsets = at.into_iter().map(|o| tables.address + o as u64);
        let prepared = launches
            .iter()
            .enumerate()
            .map(|(i, l)| self.gpu.prepare(l, label(i), &mut |a| self.resolve(a, &mut offsets)))
            .collect::<Result<_>>()?;
        Ok(Ready { launches: prepared, _tables: tables, graph: None, epoch: self.epoch, runs: 0 })
    }

    /// An argument's address. `tables` yields the addresses of the tables, in the order of the launches'
    /// arguments.
    fn resolve(&self, arg: &KernelArg, tables: &mut dyn Iterator<Item = Address>) -> Result<Address> {
        match arg {
            KernelArg::Slot(slot) => self.address(*slot),
            KernelArg::Bf16Copy(slot) => Ok(match slot.space {
                Space::Store(i) => self.store[i as usize].bf16_copy.as_ref(),
                Space::Arena => None,
            }
            .map_or(0, |s| s.address + slot.offset as u64 / 2)),
            KernelArg::Step => Ok(self.state.address),
            KernelArg::Ring => Ok(self.ring.address),
            KernelArg::Table(_) | KernelArg::Members(_) => {
                tables.next().ok_or_else(|| Error::Run("a table inside a table".into()))
            }
            other => Err(Error::Run(format!("{other:?} has no address"))),
        }
    }

    /// Whether the addresses of a prepared step are still valid.
    pub fn holds(&self, ready: &Ready) -> bool {
        ready.epoch == self.epoch
    }

    /// Starts a step. The first run goes launch by launch, so that every module is loaded; the second is
    /// captured as a graph, which it and all later runs replay. Runs that a profiler records go launch by
    /// launch, and so do all once the driver has refused a capture, which [`Machine::note`] then tells.
    ///
    /// Errors: a launch that the machine refuses; the failure of an earlier kernel.
    pub fn run(&mut self, ready: &mut Ready, step: &StepState) -> Result<()> {
        self.record(self.profile.contains(&step.step))?;
        self.gpu.send(&self.state, step)?;
        ready.runs += 1;
        let _range = nvtx::range("step");
        let exchanges = |l: &Prepared| matches!(l.library, Some(LibraryCall::Exchange(_)));
        if let Gpu::Cuda(device) = &self.gpu
            && device.captures()
            && self.capture == Capture::Tried
            && ready.runs > 1
            && !self.records
        {
            if ready.graph.is_none() {
                match device.capture(|| self.launch_all(ready)) {
                    Ok(graph) => ready.graph = Some(graph),
                    // Either all ranks replay a graph or none does, as NCCL asks, so this rank cannot go on without one.
                    Err(e) if ready.launches.iter().any(exchanges) => return Err(e),
                    Err(e) => self.capture = Capture::Refused(Some(e.to_string())),
                }
            }
            if let Some(graph) = &ready.graph {
                return device.replay(graph);
            }
        }
        self.launch_all(ready)
    }

    fn launch_all(&self, ready: &Ready) -> Result<()> {
        ready.launches.iter().try_for_each(|launch| {
            let _range = self.records.then(|| nvtx::range(&launch.label));
            self.gpu.launch(launch)
        })
    }

    /// What the user should know about the machine, once.
    pub fn note(&mut self) -> Option<String> {
        let Capture::Refused(why) = &mut self.capture else { return None };
        why.take().map(|why| {
            format!(
                "the driver could not make a CUDA graph of a step, so kernels are launched one by one: the results are \
                 the same, steps may take longer: {why}"
            )
        })
    }

    /// Starts or stops a profiler's recording. A stage stops it at its end, because the next stage counts
    /// steps from 0.
    ///
    /// Errors: the driver's.
    pub fn record(&mut self, records: bool) -> Result<()> {
        if let Gpu::Cuda(device) = &self.gpu
            && records != self.records
        {
            device.profile(records)?;
        }
        self.records = records;
        Ok(())
    }

    /// Runs a step launch by launch and returns each launch's milliseconds. Before each launch the device
    /// overwrites `flush`, which should be larger than its cache, so that the launch finds none of its
    /// operands there; an empty `flush` leaves the cache as it is. The host submits the launch while the
    /// device still writes, so that the time between two launches is not counted.
    ///
    /// Errors: as [`Machine::run`].
    pub fn time(&self, ready: &Ready, step: &StepState, flush: &Block) -> Result<Vec<f32>> {
        let elements = (flush.bytes / size_of::<f32>()) as i64;
        let args = vec![KernelArg::Slot(slot_of(0)), 0.0f32.into(), elements.into()];
        let blocks = self.target.blocks_for(flush.bytes / size_of::<f32>(), 4 * THREADS as usize);
        let fill = Launch::new("fill", [blocks, 1, 1], THREADS, 0, args)?;
        let fill = self.gpu.prepare(&fill, "cache flush".into(), &mut |_| Ok(flush.address))?;
        self.gpu.upload(&self.state, 0, bytemuck::bytes_of(step))?;
        let one = |launch: &Prepared| {
            if elements > 0 {
                self.gpu.launch(&fill)?;
            }
            self.gpu.time(launch)
        };
        ready.launches.iter().map(one).collect()
    }

    /// Reads the first `rows` rows of the ring, `count` numbers each, after everything that was launched
    /// before.
    ///
    /// Errors: the failure of an earlier kernel.
    pub fn ring(&self, rows: usize, count: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0f32; rows * count];
        if values.is_empty() {
            self.gpu.synchronize()?;
        } else {
            self.gpu.download(&self.ring, 0, bytemuck::cast_slice_mut(&mut values))?;
        }
        Ok(values)
    }

    fn block(&self, space: Space) -> Result<&Block> {
        let block = match space {
            Space::Store(i) => self.store.get(i as usize).map(|m| &m.block),
            Space::Arena => self.arena.as_ref(),
        };
        block.ok_or_else(|| Error::Run(format!("{space:?} is not on the device")))
    }

    /// Overwrites a slot, after everything that was launched before.
    ///
    /// Errors: the slot is not on the device; the driver's.
    pub fn write(&self, slot: Slot, bytes: &[u8]) -> Result<()> {
        self.gpu.upload(self.block(slot.space)?, slot.offset, bytes)
    }
    /// Reads a slot, after everything that was launched before.
    ///
    /// Errors: as [`Machine::write`].
    pub fn read_bytes(&self, slot: Slot, bytes: &mut [u8]) -> Result<()> {
        self.gpu.download(self.block(slot.space)?, slot.offset, bytes)
    }
    /// Reads a slot of elements of type `elem` as f32.
    ///
    /// Errors: as [`Machine::write`].
    pub fn read(&self, slot: Slot, elem: Elem) -> Result<Vec<f32>> {
        let mut values = vec![0.0f32; slot.bytes / elem.bytes()];
        match elem {
            Elem::F32 => self.read_bytes(slot, bytemuck::cast_slice_mut(&mut values))?,
            Elem::Bf16 => {
                let mut halves = vec![half::bf16::ZERO; values.len()];
                self.read_bytes(slot, bytemuck::cast_slice_mut(&mut halves))?;
                halves.convert_to_f32_slice(&mut values);
            }
        }
        Ok(values)
    }
}

/// The slots whose bf16 copies these launches read. Copies that only a table names do not count: optimisers
/// list them there and update those that exist.
pub fn copies_read(launches: &[Launch]) -> impl Iterator<Item = Slot> {
    let pointers = launches.iter().flat_map(|l| &l.args).flat_map(KernelArg::pointers);
    pointers.filter_map(|p| if let Pointer::Bf16Copy(slot) = p { Some(slot) } else { None })
}

/// Rows of the ring for steps with so many metrics.
pub fn ring_rows(metrics: usize) -> usize {
    (RING_BYTES / (4 * metrics.max(1))).min(256)
}

fn slot_of(index: usize) -> Slot {
    Slot { space: Space::Store(index as u32), offset: 0, bytes: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::emu::Emu;
    use crate::device::gpu::skipped;

    /// A machine on the emulator, if the build has one.
    fn machine() -> Option<Machine> {
        match Emu::open(0) {
            Ok(e) => Some(Machine::new(Gpu::Emu(e), Elem::F32).unwrap()),
            Err(e) => {
                skipped(&e);
                None
            }
        }
    }

    fn fill(elements: i64) -> Launch {
        let slot = Slot { space: Space::Arena, offset: 0, bytes: 64 };
        Launch::new("fill", [1, 1, 1], 32, 0, vec![KernelArg::Slot(slot), 1.0f32.into(), elements.into()])
            .unwrap()
    }

    #[test]
    fn a_kernel_that_writes_out_of_bounds_is_named_with_its_op_and_geometry() {
        let Some(mut machine) = machine() else { return };
        machine.reserve(64).unwrap();
        let step = StepState::default();
        let mut good = machine.prepare(&[fill(16)], |_| "conv2d Forward of [[1, 2, 2, 4]]".into()).unwrap();
        machine.run(&mut good, &step).unwrap();
        let written = machine.read(Slot { space: Space::Arena, offset: 0, bytes: 64 }, Elem::F32).unwrap();
        assert_eq!(written, [1.0; 16]);
        // Writes past the end of the arena, and past the 256 bytes to which allocations are rounded up.
        let mut out_of_bounds =
            machine.prepare(&[fill(4096)], |_| "conv2d Forward of [[1, 2, 2, 4]]".into()).unwrap();
        let e = machine.run(&mut out_of_bounds, &step).unwrap_err().to_string();
        for part in ["conv2d Forward of [[1, 2, 2, 4]]", "fill", "[1, 1, 1] blocks of 32 threads"] {
            assert!(e.contains(part), "{e}");
        }
    }

    #[test]
    fn launches_with_a_wrong_name_arguments_or_geometry_are_refused() {
        let refused = |name: &str, grid: [u32; 3], block: u32, args: Vec<KernelArg>| {
            Launch::new(name, grid, block, 0, args).map(|_| ()).unwrap_err().to_string()
        };
        let args = || vec![KernelArg::Null, 1.0f32.into(), 1i64.into()];
        assert!(refused("fil", [1; 3], 32, args()).contains("no kernel fil"));
        assert!(refused("activation_fwd<double>", [1; 3], 32, vec![]).contains("activation_fwd<float>"));
        assert!(refused("fill", [1; 3], 32, vec![]).contains("takes 3 arguments, found 0"));
        let e = refused("fill", [1; 3], 32, vec![KernelArg::Null, 1i32.into(), 1i64.into()]);
        assert!(e.contains("argument 1: expected F32, found I32(1)"), "{e}");
        assert!(refused("fill", [1; 3], 2048, args()).contains("cannot launch"));
        assert!(refused("fill", [1, 1, 70_000], 32, args()).contains("cannot launch"));
    }

    #[test]
    fn a_prepared_step_is_stale_once_the_arena_has_moved() {
        let Some(mut machine) = machine() else { return };
        machine.reserve(64).unwrap();
        let ready = machine.prepare(&[fill(16)], |_| String::new()).unwrap();
        assert!(machine.holds(&ready));
        machine.reserve(64).unwrap();
        assert!(machine.holds(&ready), "nothing moved");
        machine.reserve(128).unwrap();
        assert!(!machine.holds(&ready), "the arena moved");
    }
}
