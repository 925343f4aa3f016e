//! The six gates every op passes on a device: value, gradient, set and add, canaries, nothing left unwritten, bitwise
//! repeat. An op's tests only write down cases.

use super::Op;
use super::operands::{Io, Operands, Write};
use super::operator::{Extent, OperandInfo, Operator, Signature};
use crate::device::gpu::target::Target;
use crate::device::memory::{ALIGN, Borrows, Buffer, Memory};
use crate::device::philox::Draws;
use crate::device::{Slot, Space, StepState};
use crate::tensor::{Elem, Real, Shape};
use std::marker::PhantomData;

mod device;
pub use device::check_bf16_copies;

type Reference = Box<dyn Fn(&[Vec<f64>]) -> Vec<Vec<f64>>>;

/// One op on one set of operands.
pub struct Case {
    op: Op,
    inputs: Vec<(Shape, Vec<f64>)>,
    needs_grad: Vec<bool>,
    reference: Option<Reference>,
    step: StepState,
    tolerance: f64,
    probe: f64,
    /// The devices that launches are planned for, whatever machine runs them.
    targets: Vec<Target>,
}

impl Case {
    /// Operands of the given shapes, standard normal, all wanting gradients.
    pub fn new(op: impl Into<Op>, shapes: &[Shape]) -> Self {
        let draws = Draws::new(20, 3, 0);
        let inputs = shapes.iter().enumerate().map(|(i, s)| {
            (*s, (0..s.elems()).map(|e| f64::from(draws.normals(e as u32, i as u32)[0] as f32)).collect())
        });
        Case {
            op: op.into(),
            inputs: inputs.collect(),
            needs_grad: vec![true; shapes.len()],
            reference: None,
            step: StepState { seed: 11, step: 5, lr: [0.01; 4] },
            tolerance: 64.0,
            probe: 1e-5,
            targets: vec![Target::h200(Elem::F32)],
        }
    }
    /// An independent, plain computation of the outputs, followed by the inputs that the op updates in place.
    pub fn reference(mut self, f: impl Fn(&[Vec<f64>]) -> Vec<Vec<f64>> + 'static) -> Self {
        self.reference = Some(Box::new(f));
        self
    }
    /// Maps the values of input `i` (into a legal range, away from a kink).
    pub fn map(mut self, i: usize, f: impl Fn(f64) -> f64) -> Self {
        self.inputs[i].1.iter_mut().for_each(|v| *v = f64::from(f(*v) as f32));
        self
    }
    /// Replaces the values of input `i`.
    pub fn values(mut self, i: usize, v: Vec<f64>) -> Self {
        assert_eq!(v.len(), self.inputs[i].0.elems());
        self.inputs[i].1 = v;
        self
    }
    pub fn frozen(mut self, i: usize) -> Self {
        self.needs_grad[i] = false;
        self
    }
    pub fn step(mut self, step: u64) -> Self {
        self.step.step = step;
        self
    }
    /// Allowed f32 error in units of `f32::EPSILON * max|reference|`; the default of 64 suits sums of a few thousand.
    pub fn tolerance(mut self, units: f64) -> Self {
        self.tolerance = units;
        self
    }
    /// Plans the launches for these devices in place of an H200. Maps are stored as f32 and as bf16 for each.
    pub fn on_targets(mut self, targets: &[Target]) -> Self {
        self.targets = targets.to_vec();
        self
    }
    /// The outputs in f64, for what a reference cannot say: statistics of random draws.
    pub fn outputs(&self) -> Vec<Vec<f64>> {
        let inputs: Vec<Vec<f64>> = self.inputs.iter().map(|(_, v)| v.clone()).collect();
        run::<f64>(self, &inputs, &vec![false; inputs.len()], &[], Write::Set).outputs
    }
    /// The input gradients in f64 for these output gradients, for what finite differences cannot see: a kink itself.
    pub fn gradients(&self, dy: &[Vec<f64>]) -> Vec<Option<Vec<f64>>> {
        let inputs: Vec<Vec<f64>> = self.inputs.iter().map(|(_, v)| v.clone()).collect();
        run::<f64>(self, &inputs, &self.needs_grad, dy, Write::Set).grads
    }
}

/// What one run of a case leaves behind.
#[derive(Clone, PartialEq, Debug)]
struct Outcome {
    outputs: Vec<Vec<f64>>,
    updated: Vec<Vec<f64>>,
    grads: Vec<Option<Vec<f64>>>,
}

/// Lays the operands out with a poisoned gap around each, runs forward and (where wanted) backward.
fn run<R: Real>(
    case: &Case,
    inputs: &[Vec<f64>],
    needs_grad: &[bool],
    dy: &[Vec<f64>],
    write: Write,
) -> Outcome {
    let args: Vec<OperandInfo> = case
        .inputs
        .iter()
        .zip(needs_grad)
        .map(|((shape, _), w)| OperandInfo { shape: *shape, needs_grad: *w })
        .collect();
    let sig = case.op.signature(&args).unwrap();
    let backward = needs_grad.iter().any(|w| *w);
    let mut end = ALIGN;
    let mut slots = Vec::new();
    let mut take = |bytes: usize| {
        let s = Slot { space: Space::Arena, offset: end, bytes };
        end = (end + bytes).next_multiple_of(ALIGN) + ALIGN;
        slots.push(s);
        s
    };
    let reals = |s: &Shape| s.elems() * size_of::<R>();
    let extent = |e: &Extent| match e {
        Extent::Reals(n) => n * size_of::<R>(),
        Extent::Bytes(n) => *n,
    };
    let mut forward = Operands {
        inputs: args.iter().map(|a| take(reals(&a.shape))).collect(),
        input_shapes: args.iter().map(|a| a.shape).collect(),
        outputs: sig.outputs.iter().map(|s| take(reals(s))).collect(),
        output_shapes: sig.outputs.clone(),
        saved: if backward { sig.saved.iter().map(|e| take(extent(e))).collect() } else { vec![] },
        scratch: sig.scratch_forward.iter().map(|e| take(extent(e))).collect(),
        ..Default::default()
    };
    let back = backward.then(|| Operands {
        scratch: sig.scratch_backward.iter().map(|e| take(extent(e))).collect(),
        output_grads: sig.outputs.iter().map(|s| Some(take(reals(s)))).collect(),
        input_grads: args.iter().map(|a| a.needs_grad.then(|| (take(reals(&a.shape)), write))).collect(),
        ..forward.clone()
    });
    let (mut store, mut arena, mut borrows) = ([], Buffer::with_bytes(end), Borrows::default());
    arena.fill(0xFF); // NaN in f32 and f64
    let mut m = Memory { store: &mut store, arena: &mut arena, borrows: &mut borrows };
    let load = |m: &mut Memory, slot: Slot, v: &[f64]| {
        m.views().write::<R>(slot).iter_mut().zip(v).for_each(|(a, b)| *a = R::of(*b));
    };
    let get =
        |m: &mut Memory, slot: Slot| m.views().read::<R>(slot).iter().map(|v| v.f64()).collect::<Vec<_>>();
    for (s, v) in forward.inputs.iter().zip(inputs) {
        load(&mut m, *s, v);
    }
    let step = &case.step;
    case.op.forward::<R>(&Io { operands: &forward, views: m.views(), step, scalar: PhantomData });
    let outputs: Vec<_> = forward.outputs.iter().map(|s| get(&mut m, *s)).collect();
    let updated = sig.updates.iter().map(|i| get(&mut m, forward.inputs[*i])).collect();
    // What the signature does not list as kept may be overwritten before backward runs.
    for (i, s) in forward.inputs.iter().enumerate() {
        if !sig.keeps_inputs.contains(&i) {
            m.views().write::<u8>(*s).fill(0xFF);
        }
    }
    if !sig.keeps_outputs {
        forward.outputs.iter().for_each(|s| m.views().write::<u8>(*s).fill(0xFF));
    }
    for s in std::mem::take(&mut forward.scratch) {
        m.views().write::<u8>(s).fill(0xFF);
    }
    let mut grads = vec![None; args.len()];
    if let Some(back) = back {
        for (s, v) in back.output_grads.iter().zip(dy) {
            load(&mut m, s.unwrap(), v);
        }
        for (s, _) in back.input_grads.iter().flatten() {
            if write == Write::Add {
                let n = s.bytes / size_of::<R>();
                load(&mut m, *s, &(0..n).map(|i| (i % 5) as f64 - 2.0).collect::<Vec<_>>());
            }
        }
        case.op.backward::<R>(&Io { operands: &back, views: m.views(), step, scalar: PhantomData });
        grads = back.input_grads.iter().map(|g| g.map(|(s, _)| get(&mut m, s))).collect();
    }
    // Everything between slots must still be poison.
    slots.sort_by_key(|s| s.offset);
    let mut at = 0;
    for s in slots.iter().chain([&Slot { space: Space::Arena, offset: end, bytes: 0 }]) {
        let gap = Slot { space: Space::Arena, offset: at, bytes: s.offset.saturating_sub(at) };
        let bytes = read_unaligned(&mut m, gap);
        assert!(
            bytes.iter().all(|b| *b == 0xFF),
            "{}: wrote outside its operands, before {s:?}",
            case.op.name()
        );
        at = s.offset + s.bytes;
    }
    Outcome { outputs, updated, grads }
}

/// Bytes of a range that need not start on a line.
fn read_unaligned(m: &mut Memory, s: Slot) -> Vec<u8> {
    let start = s.offset / ALIGN * ALIGN;
    let v = m.views().read::<u8>(Slot { offset: start, bytes: s.offset + s.bytes - start, ..s }).to_vec();
    v[s.offset - start..].to_vec()
}

/// Largest difference in units of the largest reference magnitude, with its place.
fn compare(what: &str, op: &str, got: &[f64], want: &[f64], bound: f64) {
    assert_eq!(got.len(), want.len(), "{op}: {what}: length");
    let scale = want.iter().fold(0.0f64, |m, v| m.max(v.abs())).max(1e-30);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let off = (g - w).abs() / scale;
        assert!(
            off <= bound,
            "{op}: {what}[{i}]: expected {w}, found {g}: off by {off:.2e} of {scale:.3e}, allowed {bound:.1e}"
        );
    }
}

/// Runs all six gates on `case`.
pub fn check(case: Case) {
    let op = case.op.name();
    let inputs: Vec<Vec<f64>> = case.inputs.iter().map(|(_, v)| v.clone()).collect();
    let args: Vec<OperandInfo> = case
        .inputs
        .iter()
        .zip(&case.needs_grad)
        .map(|((shape, _), w)| OperandInfo { shape: *shape, needs_grad: *w })
        .collect();
    let sig = case.op.signature(&args).unwrap();
    let draws = Draws::new(21, 9, 0);
    let dy: Vec<Vec<f64>> = sig
        .outputs
        .iter()
        .enumerate()
        .map(|(o, s)| {
            (0..s.elems()).map(|e| f64::from(draws.normals(e as u32, o as u32)[1] as f32)).collect()
        })
        .collect();

    // Value, and nothing left unwritten: outputs began as NaN, which no bound admits.
    let oracle = run::<f64>(&case, &inputs, &case.needs_grad, &dy, Write::Set);
    if let Some(reference) = &case.reference {
        let want = reference(&inputs);
        assert_eq!(
            want.len(),
            oracle.outputs.len() + oracle.updated.len(),
            "{op}: the reference returns outputs, then updated inputs"
        );
        for (i, (got, want)) in oracle.outputs.iter().chain(&oracle.updated).zip(&want).enumerate() {
            compare(&format!("output {i} against the plain computation"), op, got, want, 1e-10);
        }
    }
    for (i, v) in oracle.outputs.iter().chain(&oracle.updated).enumerate() {
        assert!(v.iter().all(|v| !v.is_nan()), "{op}: output {i} has elements left unwritten or NaN");
    }

    // Gradient: finite differences of sum(dy * y) in f64, on a sample of the elements.
    let none = vec![false; args.len()];
    let loss = |inputs: &[Vec<f64>]| -> f64 {
        let out = run::<f64>(&case, inputs, &none, &[], Write::Set);
        out.outputs.iter().zip(&dy).map(|(y, d)| y.iter().zip(d).map(|(y, d)| y * d).sum::<f64>()).sum()
    };
    for (i, grad) in oracle.grads.iter().enumerate() {
        let Some(grad) = grad else { continue };
        let n = grad.len();
        let sample: Vec<usize> =
            (0..n.min(24)).map(|k| k * (n - 1) / n.clamp(2, 24).saturating_sub(1)).collect();
        let scale = grad.iter().fold(0.0f64, |m, v| m.max(v.abs())).max(1e-3);
        for e in sample {
            let mut moved = inputs.clone();
            let h = case.probe;
            moved[i][e] = inputs[i][e] + h;
            let up = loss(&moved);
            moved[i][e] = inputs[i][e] - h;
            let slope = (up - loss(&moved)) / (2.0 * h);
            let off = (slope - grad[e]).abs() / scale;
            assert!(
                off < 2e-5,
                "{op}: gradient of input {i} at {e}: finite difference {slope}, backward {}: off by {off:.1e}",
                grad[e]
            );
        }
    }

    // Set and add agree; a gradient does not depend on which others are wanted.
    let added = run::<f64>(&case, &inputs, &case.needs_grad, &dy, Write::Add);
    for (i, (set, add)) in oracle.grads.iter().zip(&added.grads).enumerate() {
        let (Some(set), Some(add)) = (set, add) else { continue };
        let back: Vec<f64> = add.iter().enumerate().map(|(i, v)| v - ((i % 5) as f64 - 2.0)).collect();
        let scale = set.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
        compare(&format!("gradient {i}, add mode"), op, &back, set, 1e-10 + 1e-14 / scale);
        let mut alone = none.clone();
        alone[i] = true;
        let alone = run::<f64>(&case, &inputs, &alone, &dy, Write::Set);
        compare(&format!("gradient {i}, wanted alone"), op, alone.grads[i].as_ref().unwrap(), set, 1e-12);
    }

    // f32 against the oracle, and bitwise repeat.
    let f32s = run::<f32>(&case, &inputs, &case.needs_grad, &dy, Write::Set);
    let bound = case.tolerance * f64::from(f32::EPSILON);
    for (i, (got, want)) in
        f32s.outputs.iter().chain(&f32s.updated).zip(oracle.outputs.iter().chain(&oracle.updated)).enumerate()
    {
        compare(&format!("output {i}, f32 against f64"), op, got, want, bound);
    }
    for (i, (got, want)) in f32s.grads.iter().zip(&oracle.grads).enumerate() {
        if let (Some(got), Some(want)) = (got, want) {
            compare(&format!("gradient {i}, f32 against f64"), op, got, want, bound);
        }
    }
    assert!(
        f32s == run::<f32>(&case, &inputs, &case.needs_grad, &dy, Write::Set),
        "{op}: a second run gave other bits"
    );

    // The same on machines that run kernels.
    device::check(&case, &dy);
}
