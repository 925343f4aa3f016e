//! The operands of one instruction: their slots, and typed views of them while it runs on the CPU.

use crate::device::division::Division;
use crate::device::{Slot, StepState, Views};
use crate::ops::fusion::{FusedActivation, LinearGrad};
use crate::tensor::{Elem, Real, Shape};
use std::ops::Range;

/// How an op delivers a gradient. The plan decides: the first writer of a buffer stores, later ones add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Overwrite the buffer.
    Set,
    /// Add to the buffer.
    Add,
}

/// A gradient to be written.
pub struct Grad<'a, R> {
    /// Its elements.
    pub data: &'a mut [R],
    /// Whether to store them or to add to them.
    pub write: Write,
}

impl<R: Real> Grad<'_, R> {
    /// `data[i] = v`, or `data[i] += v`.
    #[inline(always)]
    pub fn store_or_add(&mut self, i: usize, v: R) {
        store_or_add(self.write, &mut self.data[i], v);
    }
}

/// `at = v`, or `at += v`.
///
/// A closure that calls this in a hot loop copies `write` to a local variable first. The compiler reads a captured
/// variable again after every store and does not vectorise the loop: batch norm's backward took 900 us instead of 370.
#[inline(always)]
pub fn store_or_add<R: Real>(write: Write, at: &mut R, v: R) {
    match write {
        Write::Set => *at = v,
        Write::Add => *at += v,
    }
}

/// The slots of one instruction, forward or backward; inputs and outputs in the op's own order.
#[derive(Clone, Debug, Default)]
pub struct Operands {
    /// The inputs.
    pub inputs: Vec<Slot>,
    /// The inputs' shapes.
    pub input_shapes: Vec<Shape>,
    /// The outputs.
    pub outputs: Vec<Slot>,
    /// The outputs' shapes.
    pub output_shapes: Vec<Shape>,
    /// The element types of the inputs on a GPU. Empty on the CPU, where all elements are of the op's scalar
    /// type.
    pub input_elems: Vec<Elem>,
    /// The element types of the outputs on a GPU, likewise.
    pub output_elems: Vec<Elem>,
    /// The element types of the inputs' gradients on a GPU. Empty where they are those of the inputs.
    pub input_grad_elems: Vec<Elem>,
    /// The element types of the outputs' gradients on a GPU. Empty where they are those of the outputs.
    pub output_grad_elems: Vec<Elem>,
    /// The buffers that forward saves for backward; empty if backward does not run.
    pub saved: Vec<Slot>,
    /// The temporary buffers of this direction.
    pub scratch: Vec<Slot>,
    /// Whether no other instruction uses the first temporary buffer for anything else: see
    /// [`Signature::packed_from`](super::operator::Signature::packed_from).
    pub keeps_packed: bool,
    /// The gradient of each output, `None` if the loss does not depend on it. Empty in forward.
    pub output_grads: Vec<Option<Slot>>,
    /// The gradient of each input, `None` if it needs none. Empty in forward.
    pub input_grads: Vec<Option<(Slot, Write)>>,
    /// For each input, the mask and slope of the activation that produced it, if this instruction is the last
    /// to write the input's gradient and multiplies the sum by the activation's derivative. Empty, or as long
    /// as the inputs.
    pub input_masks: Vec<Option<(Slot, f32)>>,
    /// Whether the output's gradient has been multiplied by the derivative of this op's activation already.
    pub dy_is_masked: bool,
    /// An activation that consumes the output and that forward computes as well.
    pub fused_activation: Option<FusedActivation>,
    /// Whether the producer of input 0 computes this instruction's forward.
    pub is_fused_into_producer: bool,
    /// A buffer that holds the first term of the gradient of input 0: backward adds to it, and stores the sum
    /// in `input_grads`.
    pub first_term: Option<Slot>,
    /// A loss's gradient that this instruction adds to that of input 0, after the mask.
    pub linear_grad: Option<LinearGrad>,
    /// Whether another instruction adds this one's gradient, so that backward has nothing to do.
    pub is_grad_added: bool,
    /// The inputs whose gradients the plan adds after backward: see [`Signature::late_sums`](super::operator::Signature::late_sums).
    pub late_inputs: Vec<usize>,
    /// Partial channel statistics: (buffer, pixels per partial). Written by the producer of a feature map,
    /// for its output; read by a consumer, for input 0. `None` in backward.
    pub channel_stats: Option<(Slot, usize)>,
}

impl Operands {
    /// All slots except those of `fused_activation`, `first_term` and `linear_grad`.
    fn all(&self) -> impl Iterator<Item = &Slot> {
        let grads =
            self.output_grads.iter().flatten().chain(self.input_grads.iter().flatten().map(|(s, _)| s));
        let masks = self
            .input_masks
            .iter()
            .flatten()
            .map(|(s, _)| s)
            .chain(self.channel_stats.iter().map(|(s, _)| s));
        self.inputs
            .iter()
            .chain(&self.outputs)
            .chain(&self.saved)
            .chain(&self.scratch)
            .chain(grads)
            .chain(masks)
    }
    /// Bytes of a fused activation's output where the op's own output is not stored, so that no other instruction's
    /// operands count them.
    pub fn output_beside_sum(&self) -> u64 {
        self.fused_activation.filter(|a| !a.keeps_sum).map_or(0, |a| a.y.bytes as u64)
    }
    /// The number of slots that [`Operands::bytes`] counts.
    pub fn slots(&self) -> usize {
        self.all().count()
    }
    /// Whether these are the operands of backward.
    pub fn is_backward(&self) -> bool {
        !self.output_grads.is_empty()
    }
    /// The memory traffic of writing the gradient of an input: its bytes, twice if it is added to.
    pub fn gradient_bytes(&self, input: usize) -> u64 {
        self.input_grads[input].map_or(0, |(slot, write)| match write {
            Write::Set => slot.bytes as u64,
            Write::Add => 2 * slot.bytes as u64,
        })
    }
    /// The bytes of all operands, each counted once, without those of a fused activation, a first term and a
    /// linear gradient, which only GPUs have.
    pub fn bytes(&self) -> u64 {
        self.all().map(|s| s.bytes as u64).sum()
    }
}

/// The operands of one instruction while it runs on the CPU. Slices live as long as the instruction.
pub struct Io<'v, R> {
    /// The slots.
    pub operands: &'v Operands,
    /// Access to memory.
    pub views: Views<'v>,
    /// Seed, number and learning rates of the step.
    pub step: &'v StepState,
    /// The shares that the batch is cut into, and those of them that this process has.
    pub division: Division,
    /// Whether buffers that are kept from step to step have their values.
    pub has_packed: bool,
    /// The scalar type.
    pub scalar: std::marker::PhantomData<R>,
}

impl<'v, R: Real> Io<'v, R> {
    /// The shape of an input.
    pub fn shape(&self, input: usize) -> Shape {
        self.operands.input_shapes[input]
    }
    /// The shape of an output.
    pub fn out_shape(&self, output: usize) -> Shape {
        self.operands.output_shapes[output]
    }
    /// The number of inputs.
    pub fn inputs(&self) -> usize {
        self.operands.inputs.len()
    }
    /// Input `i`.
    pub fn x(&self, i: usize) -> &'v [R] {
        self.views.read(self.operands.inputs[i])
    }
    /// Input `i`, to be updated in place; the signature lists it in `updates`.
    pub fn state(&self, i: usize) -> &'v mut [R] {
        self.views.write(self.operands.inputs[i])
    }
    /// Output `i`, to be written in full by forward.
    pub fn y(&self, i: usize) -> &'v mut [R] {
        self.views.write(self.operands.outputs[i])
    }
    /// Output `i` in backward; the signature sets `keeps_outputs`.
    pub fn kept_y(&self, i: usize) -> &'v [R] {
        self.views.read(self.operands.outputs[i])
    }
    /// Whether backward will run, so that forward must fill the saved buffers.
    pub fn saves(&self) -> bool {
        !self.operands.saved.is_empty()
    }
    /// Saved buffer `i`, to be written by forward.
    pub fn save<T: bytemuck::Pod>(&self, i: usize) -> &'v mut [T] {
        self.views.write(self.operands.saved[i])
    }
    /// Saved buffer `i`, to be read by backward.
    pub fn saved<T: bytemuck::Pod>(&self, i: usize) -> &'v [T] {
        self.views.read(self.operands.saved[i])
    }
    /// Whether the first temporary buffer has its values from an earlier step.
    pub fn is_packed(&self) -> bool {
        self.operands.keeps_packed && self.has_packed
    }
    /// Temporary buffer `i` of this direction.
    pub fn scratch<T: bytemuck::Pod>(&self, i: usize) -> &'v mut [T] {
        self.views.write(self.operands.scratch[i])
    }
    /// The gradient of output `i`. Backward only runs if at least one output has one.
    pub fn dy(&self, i: usize) -> Option<&'v [R]> {
        self.operands.output_grads[i].map(|s| self.views.read(s))
    }
    /// The gradient of a single-output op's output.
    pub fn dy0(&self) -> &'v [R] {
        self.views
            .read(self.operands.output_grads[0].expect("backward of an op whose output has no gradient"))
    }
    /// Whether input `i` needs a gradient.
    pub fn needs_dx(&self, i: usize) -> bool {
        self.operands.input_grads[i].is_some()
    }
    /// The gradient of input `i`, if it needs one. Of a trained tensor in a divided batch, the gradient of this process's
    /// first share; those of its other shares become zero, or stay as they are if this one is added to.
    pub fn dx(&self, i: usize) -> Option<Grad<'v, R>> {
        let (slot, write) = self.operands.input_grads[i]?;
        let (data, others) = self.views.write(slot).split_at_mut(self.shape(i).elems());
        if write == Write::Set {
            others.fill(R::ZERO);
        }
        Some(Grad { data, write })
    }
    /// The gradient of input `i`, a parameter, if it needs one: the samples of each share that this process has, of `n` in
    /// all, and where their gradient goes. Without a divided batch that is one share.
    pub fn dx_of_shares(&self, i: usize, n: usize) -> impl Iterator<Item = (Range<usize>, Grad<'v, R>)> {
        let elems = self.shape(i).elems();
        let of = move |(slot, write): (Slot, Write)| {
            let data: &'v mut [R] = self.views.write(slot);
            assert!(
                (n * elems).is_multiple_of(data.len()),
                "{n} samples for {} gradients",
                data.len() / elems
            );
            let samples = n * elems / data.len();
            let shares = data.chunks_exact_mut(elems).enumerate();
            shares.map(move |(s, data)| (s * samples..(s + 1) * samples, Grad { data, write }))
        };
        self.operands.input_grads[i].into_iter().flat_map(of)
    }
}
