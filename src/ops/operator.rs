//! What every op implements, and what it tells the plan about itself.

use crate::device::Slot;
use crate::device::gpu::target::Target;
use crate::error::{Error, Result};
use crate::ops::fusion::Fusion;
use crate::ops::launch::launches::Launches;
use crate::ops::operands::{Io, Operands};
use crate::tensor::{Real, Shape};

/// An operand as seen while recording: its shape, and whether the loss needs its gradient.
#[derive(Clone, Copy, Debug)]
pub struct OperandInfo {
    pub shape: Shape,
    pub needs_grad: bool,
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

/// Size of a saved or scratch buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Elements of the device's scalar.
    Reals(usize),
    /// Bytes: bit masks and indices.
    Bytes(usize),
}

/// One operator.
pub trait Operator {
    /// Checks the operands and says what comes out, what is kept and what it costs.
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature>;
    fn forward<R: Real>(&self, io: &Io<R>);
    /// Writes every input gradient that `io.dx` yields. An op without inputs that learn has nothing to do here.
    fn backward<R: Real>(&self, io: &Io<R>);

    /// Turns forward into launches of the op's kernels. Runs once, when a plan is compiled; needs no GPU.
    fn launch_forward(&self, l: &mut Launches) -> Result<()>;
    /// The same for backward; an op without inputs that learn has nothing to do here.
    fn launch_backward(&self, l: &mut Launches) -> Result<()>;
    /// Rewrites the buffers that kernels need otherwise than the CPU's loops; `target` says how feature maps are stored.
    fn device_extents(&self, _args: &[OperandInfo], _target: &Target, _signature: &mut Signature) {}
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
    /// What this op can fuse with its neighbours on a GPU.
    fn fusion(&self, _inputs: &[Shape], _output: Shape, _target: &Target) -> Fusion {
        Fusion::default()
    }
}

/// See [`Operator::minimal_bytes`].
pub fn operands_once<O: Operator + ?Sized>(op: &O, o: &Operands) -> u64 {
    let needs_grad = |i: usize| o.input_grads.get(i).is_some_and(Option::is_some);
    let arg = |(i, shape): (usize, &Shape)| OperandInfo { shape: *shape, needs_grad: needs_grad(i) };
    let args: Vec<OperandInfo> = o.input_shapes.iter().enumerate().map(arg).collect();
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

/// Checks an op's number of operands.
pub fn expect_operands(op: &'static str, args: &[OperandInfo], expected: &[&str]) -> Result<()> {
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
