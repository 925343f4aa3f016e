//! The operators: one file each (`src/ops/<op>.rs`), one line each in the registry below.
//!
//! An op knows shapes, memory slots and arithmetic. It knows no tape, no model, and no device beyond its inner loops.
//! Its body is generic over [`Real`]: `f32` is the CPU backend, `f64` the oracle.

use crate::device::{Slot, StepState, Views};
use crate::error::{Error, Result};
use crate::tensor::{Elem, Real, Shape};
use launches::Launches;

#[cfg(test)]
pub mod gates;
pub mod launches;
pub mod scalar;
mod tiles;

/// An operand as seen while recording: its shape, and whether the loss needs its gradient.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    pub shape: Shape,
    pub wants: bool,
}

/// What an op tells the plan about itself: results, and what its backward will want to see again.
#[derive(Clone, Debug, Default)]
pub struct Signature {
    pub outputs: Vec<Shape>,
    /// Inputs that backward reads, by index. Everything else may be overwritten after forward.
    pub keeps_inputs: Vec<usize>,
    /// Whether backward reads the outputs.
    pub keeps_outputs: bool,
    /// Buffers that forward writes for backward (only planned when a gradient is wanted).
    pub saved: Vec<Extent>,
    /// Temporary buffers, contents undefined at entry.
    pub scratch_forward: Vec<Extent>,
    pub scratch_backward: Vec<Extent>,
    /// Inputs that forward updates in place (running estimates, moments), by index.
    pub updates: Vec<usize>,
    /// Multiply-adds of forward, and of backward for the gradients that are wanted.
    pub macs_forward: u64,
    pub macs_backward: u64,
}

/// An activation at an op's output, as backward on a GPU meets it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gated {
    /// Where the mask's bit is not set.
    pub slope: f32,
    /// The scratch buffer of backward, if there is one, that is needed only where the op has to multiply by itself.
    pub scratch: Option<usize>,
}

/// An activation that the producer of its input computes: where its operands lie.
#[derive(Clone, Copy, Debug)]
pub struct Absorbs {
    pub y: Slot,
    /// The activation's first saved buffer, if backward runs.
    pub mask: Option<Slot>,
    pub residual: Option<Slot>,
    pub slope: f32,
}

/// Size of a saved or scratch buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Elements of the device's scalar.
    Reals(usize),
    /// Bytes: bit masks and indices.
    Bytes(usize),
}

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
    pub fn put(&mut self, i: usize, v: R) {
        put(self.write, &mut self.data[i], v);
    }
}

#[inline(always)]
pub fn put<R: Real>(write: Write, at: &mut R, v: R) {
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
    pub gates: Vec<Option<(Slot, f32)>>,
    /// Whether the last writer of the output's gradient did so for this instruction.
    pub is_gated: bool,
    /// An activation of the output that forward computes too.
    pub absorbs: Option<Absorbs>,
    /// Whether forward is left to the producer of the first input.
    pub is_absorbed: bool,
    /// The first part of the first input's gradient, where another holds it: backward adds to it and stores the sum.
    pub adds_from: Option<Slot>,
    /// Moments of the output, if somebody asks for them, or of the first input, if its producer leaves them; and of how
    /// many pixels each part is. Forward only.
    pub moments: Option<(Slot, usize)>,
}

impl Operands {
    fn all(&self) -> impl Iterator<Item = &Slot> {
        let grads =
            self.output_grads.iter().flatten().chain(self.input_grads.iter().flatten().map(|(s, _)| s));
        let gates = self.gates.iter().flatten().map(|(s, _)| s).chain(self.moments.iter().map(|(s, _)| s));
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

/// One operator.
pub trait Operator {
    /// Checks the operands and says what comes out, what is kept and what it costs.
    fn signature(&self, args: &[Arg]) -> Result<Signature>;
    fn forward<R: Real>(&self, io: &Io<R>);
    /// Writes every input gradient that `io.dx` yields. An op without inputs that learn has nothing to do here.
    fn backward<R: Real>(&self, io: &Io<R>);

    /// Turns forward into launches of the op's kernels. Runs once, when a plan is compiled; needs no GPU.
    fn launch_forward(&self, l: &mut Launches) -> Result<()>;
    /// The same for backward; an op without inputs that learn has nothing to do here.
    fn launch_backward(&self, l: &mut Launches) -> Result<()>;
    /// Rewrites the buffers that kernels need otherwise than the CPU's loops; `maps` is how feature maps are stored.
    fn device_extents(&self, _args: &[Arg], _maps: Elem, _signature: &mut Signature) {}
    /// Bytes that must move for this op in a schedule that fuses it with its neighbours as far as its arithmetic allows:
    /// what the plan's launches are held against. Counted from the operands' sizes alone.
    ///
    /// The default takes each operand once: forward reads the inputs and writes the outputs and what it saves; backward
    /// reads the outputs' gradients and what it kept, and writes the inputs' gradients. What is added to or updated in
    /// place counts twice, scratch not at all. An op that a neighbour can absorb has 0.
    fn minimal_bytes(&self, operands: &Operands) -> u64 {
        operands_once(self, operands)
    }
    /// Bytes of input `i` that forward touches: fewer than all where it takes rows of a bank.
    fn touched_bytes(&self, operands: &Operands, i: usize) -> u64 {
        operands.inputs[i].bytes as u64
    }
    /// On a GPU, the activation whose mask is the first saved buffer, if backward begins by multiplying the output's
    /// gradient by its slope: who writes that gradient last may do so instead, and save a pass over it.
    fn gated(&self) -> Option<Gated> {
        None
    }
    /// Whether backward's kernels can apply such a mask to the gradient of input `i`.
    fn can_gate(&self, _i: usize) -> bool {
        false
    }
    /// The input whose gradient is, behind the gate, the output's own: no kernel then writes it.
    fn passes_gradient(&self, _inputs: usize) -> Option<usize> {
        None
    }
    /// On a GPU, whether forward's kernels leave the moments of the output's channels behind, in parts of so many pixels.
    fn gives_moments(&self, _inputs: &[Shape], _output: Shape, _maps: Elem) -> Option<usize> {
        None
    }
    /// Whether forward begins with the moments of the first input's channels.
    fn takes_moments(&self) -> bool {
        false
    }
    /// On a GPU, whether forward's kernels can compute a step activation of the output, and a residual in front of it, too.
    fn absorbs(&self, _output: Shape) -> bool {
        false
    }
    /// Whether the producer of the first input may compute this op, an activation that `gated` describes.
    fn can_be_absorbed(&self) -> bool {
        false
    }
    /// On a GPU, whether backward can add to a first part of the first input's gradient that lies elsewhere.
    fn adds_from(&self) -> bool {
        false
    }
    /// Whether the gradient of the first input is, behind the gate, a copy of the output's.
    fn copies_gradient(&self) -> bool {
        false
    }
    /// Instructions of equal keys that do not depend on each other run as the members of one launch.
    fn launch_key(&self, _inputs: &[Shape]) -> Option<String> {
        None
    }
    /// Whether a GPU keeps the outputs in f32 even where the inputs are bf16: means, whose few elements cost nothing.
    fn gives_f32(&self) -> bool {
        false
    }
}

/// See [`Operator::minimal_bytes`].
fn operands_once<O: Operator + ?Sized>(op: &O, o: &Operands) -> u64 {
    let wants = |i: usize| o.input_grads.get(i).is_some_and(Option::is_some);
    let arg = |(i, shape): (usize, &Shape)| Arg { shape: *shape, wants: wants(i) };
    let args: Vec<Arg> = o.input_shapes.iter().enumerate().map(arg).collect();
    let s = op.signature(&args).unwrap_or_default();
    let all = |slots: &[Slot]| slots.iter().map(|s| s.bytes as u64).sum::<u64>();
    let inputs = |list: &[usize]| list.iter().map(|i| op.touched_bytes(o, *i)).sum::<u64>();
    if !o.is_backward() {
        let every: Vec<usize> = (0..o.inputs.len()).collect();
        // A bank's rows are written without a look at what they held.
        let is_whole = |i: &usize| op.touched_bytes(o, *i) == o.inputs[*i].bytes as u64;
        let updated: Vec<usize> = s.updates.into_iter().filter(is_whole).collect();
        return inputs(&every) + inputs(&updated) + all(&o.outputs) + all(&o.saved);
    }
    let dy: u64 = o.output_grads.iter().flatten().map(|s| s.bytes as u64).sum();
    let kept = inputs(&s.keeps_inputs) + if s.keeps_outputs { all(&o.outputs) } else { 0 };
    let dx: u64 = (0..o.inputs.len()).map(|i| o.gradient_bytes(i)).sum();
    dy + kept + all(&o.saved) + dx
}

macro_rules! registry {
    ($($module:ident :: $op:ident),* $(,)?) => {
        $(pub mod $module;)*

        /// Any operator, as recorded on a tape.
        #[derive(Clone, Debug)]
        pub enum Op { $($op($module::$op)),* }

        $(impl From<$module::$op> for Op {
            fn from(op: $module::$op) -> Self { Op::$op(op) }
        })*

        impl Op {
            pub fn name(&self) -> &'static str {
                match self { $(Op::$op(_) => stringify!($module)),* }
            }
        }

        impl Op {
            /// How a GPU stores an output: scalars, and rows of f32 operands, in f32; feature maps, and what comes of
            /// them, as `maps` says.
            pub fn output_elem(&self, output: Shape, inputs: &[Elem], maps: Elem) -> Elem {
                let is_map = output.h() * output.w() > 1 || inputs.contains(&Elem::Bf16);
                if is_map && output != Shape::SCALAR && !self.gives_f32() { maps } else { Elem::F32 }
            }
        }

        impl Operator for Op {
            fn signature(&self, args: &[Arg]) -> Result<Signature> {
                match self { $(Op::$op(op) => op.signature(args)),* }
            }
            fn forward<R: Real>(&self, io: &Io<R>) {
                match self { $(Op::$op(op) => op.forward(io)),* }
            }
            fn backward<R: Real>(&self, io: &Io<R>) {
                match self { $(Op::$op(op) => op.backward(io)),* }
            }
            fn launch_forward(&self, l: &mut Launches) -> Result<()> {
                match self { $(Op::$op(op) => op.launch_forward(l)),* }
            }
            fn launch_backward(&self, l: &mut Launches) -> Result<()> {
                match self { $(Op::$op(op) => op.launch_backward(l)),* }
            }
            fn device_extents(&self, args: &[Arg], maps: Elem, signature: &mut Signature) {
                match self { $(Op::$op(op) => op.device_extents(args, maps, signature)),* }
            }
            fn minimal_bytes(&self, operands: &Operands) -> u64 {
                match self { $(Op::$op(op) => op.minimal_bytes(operands)),* }
            }
            fn touched_bytes(&self, operands: &Operands, i: usize) -> u64 {
                match self { $(Op::$op(op) => op.touched_bytes(operands, i)),* }
            }
            fn gives_f32(&self) -> bool {
                match self { $(Op::$op(op) => op.gives_f32()),* }
            }
            fn gated(&self) -> Option<Gated> {
                match self { $(Op::$op(op) => op.gated()),* }
            }
            fn can_gate(&self, i: usize) -> bool {
                match self { $(Op::$op(op) => op.can_gate(i)),* }
            }
            fn passes_gradient(&self, inputs: usize) -> Option<usize> {
                match self { $(Op::$op(op) => op.passes_gradient(inputs)),* }
            }
            fn gives_moments(&self, inputs: &[Shape], output: Shape, maps: Elem) -> Option<usize> {
                match self { $(Op::$op(op) => op.gives_moments(inputs, output, maps)),* }
            }
            fn takes_moments(&self) -> bool {
                match self { $(Op::$op(op) => op.takes_moments()),* }
            }
            fn absorbs(&self, output: Shape) -> bool {
                match self { $(Op::$op(op) => op.absorbs(output)),* }
            }
            fn can_be_absorbed(&self) -> bool {
                match self { $(Op::$op(op) => op.can_be_absorbed()),* }
            }
            fn adds_from(&self) -> bool {
                match self { $(Op::$op(op) => op.adds_from()),* }
            }
            fn copies_gradient(&self) -> bool {
                match self { $(Op::$op(op) => op.copies_gradient()),* }
            }
            fn launch_key(&self, inputs: &[Shape]) -> Option<String> {
                match self { $(Op::$op(op) => op.launch_key(inputs)),* }
            }
        }
    };
}

// One op, one file, one line.
registry! {
    activation::Activation,
    conv2d::Conv2d,
    batch_norm::BatchNorm,
    statistics_loss::StatisticsLoss,
    max_pool::MaxPool,
    global_avg_pool::GlobalAvgPool,
    upsample::Upsample,
    se_filter::SeFilter,
    concat::Concat,
    slice::Slice,
    columns::Columns,
    concat_columns::ConcatColumns,
    one_hot_loss::OneHotLoss,
    bce::Bce,
    activation_loss::ActivationLoss,
    entropy_loss::EntropyLoss,
    discrete_loss::DiscreteLoss,
    feature_loss::FeatureLoss,
    disagreement::LogMeanAbs,
    weighted_sum::WeightedSum,
    diversity::Diversity,
    noise::Noise,
    draw_labels::DrawLabels,
    gather_images::GatherImages,
    scatter_images::ScatterImages,
    augment::Augment,
    adam::Adam,
    sgd::Sgd,
}

/// Checks an op's number of operands.
pub fn expect_args(op: &'static str, args: &[Arg], expected: &[&str]) -> Result<()> {
    if args.len() == expected.len() {
        return Ok(());
    }
    Err(Error::shape(
        op,
        format!("expected {} operands ({}), found {}", expected.len(), expected.join(", "), args.len()),
    ))
}

/// Checks one operand's shape.
pub fn expect_shape(op: &'static str, what: &str, expected: Shape, found: Shape) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what}: expected {expected}, found {found}")))
}
