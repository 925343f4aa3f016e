//! The plan of a step, and how it is compiled from a tape.

use super::instruction::{Instruction, LossGrad, Phase};
use super::joined::Joined;
use super::lifetimes::Buffers;
use super::lowering::Lowering;
use super::optimiser::Optimiser;
use super::placement::Placement;
use super::program::Program;
use super::readings::Readings;
use super::step::Step;
use crate::autograd::Store;
use crate::autograd::cost::bytes::{Cost, bytes_moved};
use crate::autograd::fuse::folded_norms;
use crate::autograd::tape::{Tape, Value};
use crate::device::Slot;
use crate::device::gpu::launch::Launch;
use crate::error::Result;
use crate::tensor::{Elem, Real};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A compiled step: a list of instructions with addresses, which can be replayed any number of times.
pub struct Plan<R> {
    pub(crate) instructions: Vec<Instruction>,
    pub(crate) loss_grad: Option<LossGrad>,
    pub(crate) readings: Readings,
    pub(crate) outputs: Vec<(Value, Slot, Elem)>,
    pub(crate) cost: Cost,
    /// None for a plan of the CPU.
    pub(crate) program: Option<Program>,
    /// Whether it was replayed before, so that the scratch memory of all worker threads is as large as it
    /// has to be.
    pub(crate) is_warm: bool,
    /// Where the batch is divided: the gradients of the trainable tensors, and room for their exchange.
    pub(crate) joined: Option<Joined<R>>,
    /// Differs from every other plan's.
    pub(crate) id: u64,
    pub(crate) scalar: PhantomData<R>,
}

/// Number of plans that were compiled.
static PLANS: AtomicU64 = AtomicU64::new(0);

impl<R: Real> Plan<R> {
    /// Compiles a tape, for the device that the store's steps run on.
    ///
    /// With a `loss`, a scalar, gradients flow from it to every trainable leaf. The `optimisers` then
    /// update, in this order, those of their tensors that have a gradient. For a GPU, a convolution and a batch norm of its
    /// output with running estimates become one convolution first.
    ///
    /// Errors: operands that an op refuses; an op that changes in place what a segment reads.
    pub fn compile(
        tape: &Tape,
        store: &Store<R>,
        loss: Option<Value>,
        optimisers: &[Optimiser],
    ) -> Result<Plan<R>> {
        let target = store.target.as_ref();
        let folded = target.map(|_| folded_norms::folded(tape, loss)).transpose()?;
        let tape = folded.as_ref().unwrap_or(tape);
        // Needs, element types, groups and fusions.
        let step = Step::of::<R>(tape, loss, target)?;
        // Lifetimes: which buffers there are, and how long each is in use.
        let buffers = Buffers::of(&step, optimisers.len());
        // Placement: the offset of each buffer in the arena.
        let placement = Placement::of(&buffers.lives);
        // Lowering: instructions with addresses, and for a GPU their launches.
        let lowering = Lowering { step: &step, buffers: &buffers, placement: &placement, store };
        let (instructions, loss_grad) = (lowering.instructions(optimisers), lowering.loss_grad());
        let metrics: Vec<Slot> = tape.metrics.iter().map(|(_, v)| lowering.value_slot(*v)).collect();
        let program = target.map(|t| Program::new(&instructions, loss_grad, &metrics, t)).transpose()?;

        let all = optimisers.iter().flat_map(|o| &o.tensors);
        let trained = all.filter(|(id, _)| buffers.leaf_grads.contains_key(id));
        let cost = Cost {
            instructions: instructions.len(),
            arena_bytes: placement.arena_bytes,
            macs: step.macs(),
            bytes_moved: bytes_moved(&instructions, program.as_ref()),
            launches: program.as_ref().map_or(0, |p| p.launches.len()),
            trained_elements: trained.map(|(id, _)| store.shape(*id).elems()).sum(),
        };
        let joined = step
            .division
            .is_divided()
            .then(|| Joined::of(step.division, optimisers, &buffers.leaf_grads, |b| lowering.slot(b)));
        let output = |v: &Value| (*v, lowering.value_slot(*v), step.storage.elem(*v));
        let names = tape.metrics.iter().map(|(name, _)| name.clone()).collect();
        Ok(Plan {
            outputs: tape.outputs.iter().map(output).collect(),
            instructions,
            loss_grad,
            readings: Readings::new(names, metrics),
            cost,
            program,
            is_warm: false,
            joined,
            id: PLANS.fetch_add(1, Relaxed),
            scalar: PhantomData,
        })
    }

    /// What the plan costs.
    pub fn cost(&self) -> &Cost {
        &self.cost
    }
    /// The phase and op of every instruction, in order, and the bytes of its operands, scratch included,
    /// each counted once ([`Operands::bytes`](crate::ops::operands::Operands::bytes)).
    pub fn listing(&self) -> impl Iterator<Item = (Phase, &'static str, u64)> {
        self.instructions.iter().map(|i| (i.phase, i.op.name(), i.operands.bytes()))
    }
    /// What a GPU runs, in order: each launch, and a label with its op, phase and shapes. Empty for a plan
    /// of the CPU.
    pub fn launches(&self) -> impl Iterator<Item = (&Launch, &str)> {
        self.program.iter().flat_map(|p| p.launches.iter().zip(p.labels.iter().map(String::as_str)))
    }
}
