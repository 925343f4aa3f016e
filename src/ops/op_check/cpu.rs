//! One run of a case on the CPU, in f32 or f64.

use super::case::Case;
use super::layout::{
    LaidOut, POISON, Placement, base_gradient, dropped_after_forward, lay_out, read_only_backward,
    read_only_forward,
};
use super::result::{Part, RunResult};
use crate::device::division::Division;
use crate::device::memory::{Borrows, Buffer, Memory};
use crate::device::{Slot, Space};
use crate::ops::operands::{Io, Operands, Write};
use crate::ops::operator::{Operator, Signature};
use crate::tensor::Real;
use std::marker::PhantomData;

impl<O: Operator> Case<O> {
    /// The outputs in f64, for what a reference cannot say: statistics of random draws.
    pub fn outputs(&self) -> Vec<Vec<f64>> {
        let inputs = self.input_values();
        let result = run::<f64, O>(self, &inputs, &vec![false; inputs.len()], &[], Write::Set);
        (0..self.signature().outputs.len()).map(|i| result.of(Part::Output(i)).values.clone()).collect()
    }
    /// The input gradients in f64 for these output gradients, for what finite differences cannot see: a kink
    /// itself.
    pub fn gradients(&self, dy: &[Vec<f64>]) -> Vec<Option<Vec<f64>>> {
        let result = run::<f64, O>(self, &self.input_values(), &self.needs_grad, dy, Write::Set);
        let gradient = |i: usize| self.needs_grad[i].then(|| result.of(Part::Gradient(i)).values.clone());
        (0..self.inputs.len()).map(gradient).collect()
    }
}

/// Every operand in the arena, all of one type.
struct AllReal<R>(PhantomData<R>);

impl<R> Placement for AllReal<R> {
    fn input(&self, _: usize) -> (Space, usize) {
        (Space::Arena, size_of::<R>())
    }
    fn output(&self, _: usize) -> usize {
        size_of::<R>()
    }
    fn dy(&self, _: usize) -> usize {
        size_of::<R>()
    }
    fn real(&self) -> usize {
        size_of::<R>()
    }
}

/// The arena of a run.
struct Arena<R> {
    buffer: Buffer,
    scalar: PhantomData<R>,
}

impl<R: Real> Arena<R> {
    fn store(&mut self, slot: Slot, values: &[f64]) {
        let to = self.buffer.get_mut::<R>(slot.offset, slot.bytes);
        to.iter_mut().zip(values).for_each(|(a, b)| *a = R::of(*b));
    }
    fn load(&self, slot: Slot) -> Vec<f64> {
        self.buffer.get::<R>(slot.offset, slot.bytes).iter().map(|v| v.f64()).collect()
    }
    fn bytes(&self, slot: Slot) -> Vec<u8> {
        self.buffer.get::<u8>(slot.offset, slot.bytes).to_vec()
    }
    fn poison(&mut self, slot: Slot) {
        self.buffer.get_mut::<u8>(slot.offset, slot.bytes).fill(POISON);
    }
    /// Calls `f`, and fails if it changed any of `read_only`.
    fn run<O: Operator>(
        &mut self,
        case: &Case<O>,
        operands: &Operands,
        laid: &LaidOut,
        read_only: &[Slot],
        f: impl FnOnce(&Io<R>),
    ) {
        let before: Vec<_> = read_only.iter().map(|s| self.bytes(*s)).collect();
        let mut borrows = Borrows::default();
        let mut memory = Memory { store: &mut [], arena: &mut self.buffer, borrows: &mut borrows };
        f(&Io {
            operands,
            views: memory.views(),
            step: &case.step,
            division: Division::default(),
            has_packed: false,
            scalar: PhantomData,
        });
        for (slot, before) in read_only.iter().zip(&before) {
            let label = laid.layout.label(*slot).unwrap_or_default();
            assert!(self.bytes(*slot) == *before, "{}: changed {label}, which it may only read", case.name);
        }
    }
}

/// Lays the operands out with a poisoned gap around each, runs forward, and backward if an input needs a
/// gradient.
pub fn run<R: Real, O: Operator>(
    case: &Case<O>,
    inputs: &[Vec<f64>],
    needs_grad: &[bool],
    dy: &[Vec<f64>],
    write: Write,
) -> RunResult {
    let operands = case.operands(needs_grad);
    let signature = case.op.signature(&operands).unwrap();
    let laid = lay_out(&operands, &signature, &AllReal::<R>(PhantomData), write);
    let whole = laid.layout.whole(Space::Arena);
    let mut arena = Arena::<R> { buffer: Buffer::with_bytes(whole.bytes), scalar: PhantomData };
    arena.poison(whole);
    let mut result = run_forward(case, &mut arena, &laid, &signature, inputs);
    if let Some(backward) = &laid.backward {
        dropped_after_forward(&laid.forward, &signature).into_iter().for_each(|s| arena.poison(s));
        run_backward(case, &mut arena, &laid, backward, dy, &mut result);
    }
    if let Some(stray) = laid.layout.first_stray_byte(Space::Arena, &arena.bytes(whole), POISON) {
        panic!("{}: {stray}", case.name);
    }
    result
}

fn run_forward<R: Real, O: Operator>(
    case: &Case<O>,
    arena: &mut Arena<R>,
    laid: &LaidOut,
    signature: &Signature,
    inputs: &[Vec<f64>],
) -> RunResult {
    let forward = &laid.forward;
    forward.inputs.iter().zip(inputs).for_each(|(s, v)| arena.store(*s, v));
    arena.run(case, forward, laid, &read_only_forward(forward, signature), |io| case.op.forward(io));
    let mut result = RunResult::default();
    for (i, slot) in forward.outputs.iter().enumerate() {
        result.push(Part::Output(i), forward.output_shapes[i], arena.load(*slot));
    }
    for i in &signature.updates {
        result.push(Part::Updated(*i), forward.input_shapes[*i], arena.load(forward.inputs[*i]));
    }
    result
}

fn run_backward<R: Real, O: Operator>(
    case: &Case<O>,
    arena: &mut Arena<R>,
    laid: &LaidOut,
    backward: &Operands,
    dy: &[Vec<f64>],
    result: &mut RunResult,
) {
    backward.output_grads.iter().flatten().zip(dy).for_each(|(s, v)| arena.store(*s, v));
    for (slot, write) in backward.input_grads.iter().flatten() {
        if *write == Write::Add {
            arena.store(*slot, &base_gradient(slot.bytes / size_of::<R>()));
        }
    }
    arena.run(case, backward, laid, &read_only_backward(backward), |io| case.op.backward(io));
    for (i, gradient) in backward.input_grads.iter().enumerate() {
        if let Some((slot, _)) = gradient {
            result.push(Part::Gradient(i), backward.input_shapes[i], arena.load(*slot));
        }
    }
}
