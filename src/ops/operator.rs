//! The trait that every op implements, and the signature by which an op describes itself to the plan.

use crate::device::Slot;
use crate::device::gpu::target::Target;
use crate::error::{Error, Result};
use crate::ops::fusion::Fusion;
use crate::ops::launch::launches::{DeviceTensor, Launches};
use crate::ops::operands::{Io, Operands};
use crate::tensor::{Elem, Real, Shape};

/// An operand as seen while recording: its shape, and whether the loss needs its gradient.
#[derive(Clone, Copy, Debug)]
pub struct OperandInfo {
    /// Its shape.
    pub shape: Shape,
    /// Whether backward computes its gradient.
    pub needs_grad: bool,
}

/// An op's description of itself, for given operands: its outputs, the buffers it needs and what backward
/// reads again.
#[derive(Clone, Debug, Default)]
pub struct Signature {
    /// The shapes of the outputs.
    pub outputs: Vec<Shape>,
    /// Indices of the inputs that backward reads. All others may be overwritten after forward.
    pub keeps_inputs: Vec<usize>,
    /// Whether backward reads the outputs.
    pub keeps_outputs: bool,
    /// Buffers that forward writes for backward. They are planned only if an input needs a gradient.
    pub saved: Vec<Extent>,
    /// Temporary buffers of forward, with undefined contents at its start.
    pub scratch_forward: Vec<Extent>,
    /// Temporary buffers of backward, with undefined contents at its start.
    pub scratch_backward: Vec<Extent>,
    /// Index of the input from which alone the first scratch buffers of forward and of backward are computed: packed
    /// filters. Where it does not change, a plan of the CPU keeps these buffers from step to step.
    pub packed_from: Option<usize>,
    /// Inputs whose gradients are sums of parts, each with the backward scratch buffer that holds the parts. Where such an
    /// input is a trained tensor or a folded filter, a plan for a GPU adds the parts after backward ([`LateSum`]).
    ///
    /// [`LateSum`]: crate::ops::launch::late_sums::LateSum
    pub late_sums: Vec<(usize, usize)>,
    /// Whether it exchanges data with other ranks. All ranks run such ops in the order of the tape, and backward in the
    /// reverse order.
    pub exchanges: bool,
    /// Indices of the inputs that forward updates in place, such as running estimates and an optimiser's
    /// moments.
    pub updates: Vec<usize>,
    /// Multiply-adds of forward.
    pub macs_forward: u64,
    /// Multiply-adds of backward, for the gradients that are needed.
    pub macs_backward: u64,
}

/// Size of a saved or scratch buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// A number of elements of the op's scalar type: f32, or f64 for the reference.
    Reals(usize),
    /// A number of bytes, for bit masks and indices.
    Bytes(usize),
}

/// One operator.
pub trait Operator {
    /// Checks the operands and describes the op for them.
    ///
    /// Errors: operands whose number or shapes do not fit, and settings outside their range.
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature>;
    /// Computes the outputs on the CPU.
    fn forward<R: Real>(&self, io: &Io<R>);
    /// Computes every input gradient that `io.dx` yields, on the CPU. An op that passes no gradient on does
    /// nothing.
    fn backward<R: Real>(&self, io: &Io<R>);

    /// Adds forward's kernel launches to `l`. Runs once, when a plan is compiled, and needs no GPU.
    ///
    /// Errors: operands of element types that no kernel takes together, and sizes that no launch can have.
    fn launch_forward(&self, l: &mut Launches) -> Result<()>;
    /// Adds backward's kernel launches to `l`. An op that passes no gradient on adds none.
    ///
    /// Errors: as [`Operator::launch_forward`].
    fn launch_backward(&self, l: &mut Launches) -> Result<()>;
    /// Replaces the sizes of saved and scratch buffers in `signature` where the kernels need others than the
    /// CPU does.
    fn device_extents(&self, _args: &[OperandInfo], _target: &Target, _signature: &mut Signature) {}
    /// A lower bound on the bytes of memory traffic of this op, in a schedule that fuses it with its
    /// neighbours as far as its arithmetic allows. The traffic of a plan's launches is compared with it. It
    /// follows from the operands' sizes.
    ///
    /// The default counts each operand once: forward reads the inputs and writes the outputs and saved
    /// buffers; backward reads the outputs' gradients and what was kept, and writes the inputs' gradients. A
    /// buffer that is added to or updated in place counts twice, scratch does not count. An op that a
    /// neighbour can compute on the way has 0.
    fn minimal_bytes(&self, operands: &Operands) -> u64 {
        operands_once(self, operands)
    }
    /// The bytes of input `i` that forward reads or writes: fewer than all where it uses some rows of a bank.
    fn touched_bytes(&self, operands: &Operands, i: usize) -> u64 {
        operands.inputs[i].bytes as u64
    }
    /// What this op can fuse with its neighbours on a GPU.
    fn fusion(&self, _inputs: &[Shape], _output: Shape, _target: &Target) -> Fusion {
        Fusion::default()
    }
}

/// Each operand counted once: the default of [`Operator::minimal_bytes`].
pub fn operands_once<O: Operator + ?Sized>(op: &O, o: &Operands) -> u64 {
    let needs_grad = |i: usize| o.input_grads.get(i).is_some_and(Option::is_some);
    let arg = |(i, shape): (usize, &Shape)| OperandInfo { shape: *shape, needs_grad: needs_grad(i) };
    let args: Vec<OperandInfo> = o.input_shapes.iter().enumerate().map(arg).collect();
    let s = op.signature(&args).unwrap_or_default();
    let all = |slots: &[Slot]| slots.iter().map(|s| s.bytes as u64).sum::<u64>();
    let inputs = |list: &[usize]| list.iter().map(|i| op.touched_bytes(o, *i)).sum::<u64>();
    if !o.is_backward() {
        let every: Vec<usize> = (0..o.inputs.len()).collect();
        // Rows of a bank are overwritten without being read.
        let is_whole = |i: &usize| op.touched_bytes(o, *i) == o.inputs[*i].bytes as u64;
        let updated: Vec<usize> = s.updates.into_iter().filter(is_whole).collect();
        return inputs(&every) + inputs(&updated) + all(&o.outputs) + all(&o.saved);
    }
    let dy: u64 = o.output_grads.iter().flatten().map(|s| s.bytes as u64).sum();
    let kept = inputs(&s.keeps_inputs) + if s.keeps_outputs { all(&o.outputs) } else { 0 };
    let dx: u64 = (0..o.inputs.len()).map(|i| o.gradient_bytes(i)).sum();
    dy + kept + all(&o.saved) + dx
}

/// Checks an op's number of operands, whose names are `expected`.
///
/// Errors: another number of operands.
pub fn expect_operands(op: &'static str, args: &[OperandInfo], expected: &[&str]) -> Result<()> {
    if args.len() == expected.len() {
        return Ok(());
    }
    Err(Error::shape(
        op,
        format!("expected {} operands ({}), found {}", expected.len(), expected.join(", "), args.len()),
    ))
}

/// Checks the shape of the operand that messages call `what`.
///
/// Errors: another shape than the expected one.
pub fn expect_shape(op: &'static str, what: &str, expected: Shape, found: Shape) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what}: expected {expected}, found {found}")))
}

/// Checks that an operand to which the op passes no gradient needs none.
///
/// Errors: an operand that needs a gradient.
pub fn expect_frozen(op: &'static str, what: &str, arg: OperandInfo) -> Result<()> {
    if !arg.needs_grad {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what}: needs a gradient, but the op passes none to it; detach it first")))
}

/// Checks that a condition on an op's settings holds.
///
/// Errors: `message`, if it does not.
pub fn expect_setting(op: &'static str, holds: bool, message: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::shape(op, message())) }
}

/// Checks an operand of kernels that read f32 only. Leaves, scalars, and rows that come from no feature map
/// are stored in f32.
///
/// Errors: a bf16 operand.
pub fn expect_f32(op: &'static str, what: &str, found: DeviceTensor) -> Result<DeviceTensor> {
    if found.elem == Elem::F32 {
        return Ok(found);
    }
    Err(Error::shape(op, format!("{what}: expected float elements, found {}", found.elem)))
}
