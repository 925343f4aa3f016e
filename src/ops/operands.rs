//! The operands of one instruction: their slots, and views of them while it runs on the CPU.

use crate::device::{Slot, StepState, Views};
use crate::ops::fusion::FusedActivation;
use crate::tensor::{Elem, Real, Shape};

/// How an op delivers a gradient: the first writer of a buffer stores, later ones add. Decided by the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Set,
    Add,
}

/// A gradient to be written.
pub struct Grad<'a, R> {
    pub data: &'a mut [R],
    pub write: Write,
}

impl<R: Real> Grad<'_, R> {
    /// `data[i] = v`, or `+= v`.
    #[inline(always)]
    pub fn store_or_add(&mut self, i: usize, v: R) {
        store_or_add(self.write, &mut self.data[i], v);
    }
}

#[inline(always)]
pub fn store_or_add<R: Real>(write: Write, at: &mut R, v: R) {
    match write {
        Write::Set => *at = v,
        Write::Add => *at += v,
    }
}

/// Slots of one instruction, in the op's own order.
#[derive(Clone, Debug, Default)]
pub struct Operands {
    pub inputs: Vec<Slot>,
    pub input_shapes: Vec<Shape>,
    pub outputs: Vec<Slot>,
    pub output_shapes: Vec<Shape>,
    /// How a GPU stores them; empty on the CPU, whose scalar is the op body's.
    pub input_elems: Vec<Elem>,
    pub output_elems: Vec<Elem>,
    /// Empty when nothing is to be saved for backward.
    pub saved: Vec<Slot>,
    pub scratch: Vec<Slot>,
    /// Gradient of each output; `None` when the loss does not depend on it. Backward only.
    pub output_grads: Vec<Option<Slot>>,
    /// Gradient of each input that wants one. Backward only.
    pub input_grads: Vec<Option<(Slot, Write)>>,
    /// Of each input whose gradient this instruction is the last to write: the mask and the slope of the activation that
    /// gave it, to be applied to the sum. Empty, or as many as inputs.
    pub input_masks: Vec<Option<(Slot, f32)>>,
    /// Whether the last writer of the output's gradient did so for this instruction.
    pub dy_is_masked: bool,
    /// An activation of the output that forward computes too.
    pub fused_activation: Option<FusedActivation>,
    /// Whether forward is left to the producer of the first input.
    pub is_fused_into_producer: bool,
    /// The first part of the first input's gradient, where another holds it: backward adds to it and stores the sum.
    pub first_term: Option<Slot>,
    /// Moments of the output, if somebody asks for them, or of the first input, if its producer leaves them; and of how
    /// many pixels each part is. Forward only.
    pub channel_stats: Option<(Slot, usize)>,
}

impl Operands {
    fn all(&self) -> impl Iterator<Item = &Slot> {
        let grads =
            self.output_grads.iter().flatten().chain(self.input_grads.iter().flatten().map(|(s, _)| s));
        let gates = self
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
            .chain(gates)
    }
    pub fn slots(&self) -> usize {
        self.all().count()
    }
    /// Whether they are backward's.
    pub fn is_backward(&self) -> bool {
        !self.output_grads.is_empty()
    }
    /// Bytes of a gradient to be written: twice where it is added to what is there.
    pub fn gradient_bytes(&self, input: usize) -> u64 {
        self.input_grads[input].map_or(0, |(slot, write)| match write {
            Write::Set => slot.bytes as u64,
            Write::Add => 2 * slot.bytes as u64,
        })
    }
    /// Bytes of all operands, each counted once.
    pub fn bytes(&self) -> u64 {
        self.all().map(|s| s.bytes as u64).sum()
    }
}

/// The operands of one instruction while it runs. Slices live as long as the instruction.
pub struct Io<'v, R> {
    pub operands: &'v Operands,
    pub views: Views<'v>,
    pub step: &'v StepState,
    pub scalar: std::marker::PhantomData<R>,
}

impl<'v, R: Real> Io<'v, R> {
    pub fn shape(&self, input: usize) -> Shape {
        self.operands.input_shapes[input]
    }
    pub fn out_shape(&self, output: usize) -> Shape {
        self.operands.output_shapes[output]
    }
    pub fn inputs(&self) -> usize {
        self.operands.inputs.len()
    }
    /// Input `i`.
    pub fn x(&self, i: usize) -> &'v [R] {
        self.views.read(self.operands.inputs[i])
    }
    /// Input `i`, updated in place; the signature lists it in `updates`.
    pub fn state(&self, i: usize) -> &'v mut [R] {
        self.views.write(self.operands.inputs[i])
    }
    /// Output `i`, to be written in full by forward.
    pub fn y(&self, i: usize) -> &'v mut [R] {
        self.views.write(self.operands.outputs[i])
    }
    /// Output `i` as backward sees it; the signature says `keeps_outputs`.
    pub fn kept_y(&self, i: usize) -> &'v [R] {
        self.views.read(self.operands.outputs[i])
    }
    /// Whether backward will run, so that forward fills the saved buffers.
    pub fn saves(&self) -> bool {
        !self.operands.saved.is_empty()
    }
    /// Saved buffer `i`: written by forward ...
    pub fn save<T: bytemuck::Pod>(&self, i: usize) -> &'v mut [T] {
        self.views.write(self.operands.saved[i])
    }
    /// ... and read by backward.
    pub fn saved<T: bytemuck::Pod>(&self, i: usize) -> &'v [T] {
        self.views.read(self.operands.saved[i])
    }
    pub fn scratch<T: bytemuck::Pod>(&self, i: usize) -> &'v mut [T] {
        self.views.write(self.operands.scratch[i])
    }
    /// Gradient of output `i`. Backward only runs when at least one output has one.
    pub fn dy(&self, i: usize) -> Option<&'v [R]> {
        self.operands.output_grads[i].map(|s| self.views.read(s))
    }
    /// The gradient of a single-output op's output.
    pub fn dy0(&self) -> &'v [R] {
        self.views
            .read(self.operands.output_grads[0].expect("backward of an op whose output has no gradient"))
    }
    /// Where the gradient of input `i` goes, if anybody wants it.
    pub fn dx(&self, i: usize) -> Option<Grad<'v, R>> {
        self.operands.input_grads[i].map(|(s, write)| Grad { data: self.views.write(s), write })
    }
}
