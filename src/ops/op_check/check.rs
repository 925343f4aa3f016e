//! All checks of a case.

use super::case::{Case, Residence};
use super::compare::{compare, compare_calibrated, round};
use super::cpu::run;
use super::device::{Delivery, Storage, Values, run_on};
use super::gradient::GradientCheck;
use super::layout::{GAPS, base_gradient};
use super::linear::Place;
use super::machines::machines;
use super::mask;
use super::naive::Naive;
use super::result::{Part, RunResult, bits, coordinates};
use crate::ops::operands::Write;
use crate::ops::operator::Operator;
use crate::tensor::Elem;

/// Allowed error of f32 on the CPU, in units of `f32::EPSILON * max|reference|`: suits sums of a few
/// thousand.
const F32_UNITS: f64 = 64.0;

/// Runs all checks on `case`.
pub fn check<O: Operator>(case: Case<O>) {
    let (inputs, dy) = (case.input_values(), case.output_gradients());
    let cpu = CpuCheck {
        result: run::<f64, O>(&case, &inputs, &case.needs_grad, &dy, Write::Set),
        case,
        inputs,
        dy,
    };
    cpu.outputs_equal_the_reference();
    cpu.everything_is_written();
    let gradients = GradientCheck { case: &cpu.case, inputs: &cpu.inputs, dy: &cpu.dy, result: &cpu.result };
    gradients.of_elements();
    gradients.along_a_direction();
    cpu.adding_gives_the_same_gradient();
    cpu.a_gradient_does_not_depend_on_the_others();
    cpu.f32_agrees_with_f64();
    for storage in cpu.case.storages() {
        check_on_machines(&cpu.case, &storage, &cpu.dy);
    }
}

/// A case on the CPU, and what it gives in f64.
struct CpuCheck<O> {
    case: Case<O>,
    inputs: Vec<Vec<f64>>,
    dy: Vec<Vec<f64>>,
    result: RunResult,
}

impl<O: Operator> CpuCheck<O> {
    fn outputs_equal_the_reference(&self) {
        let Some(reference) = &self.case.reference else { return };
        let (name, expected) = (self.case.name, reference(&self.inputs));
        assert_eq!(
            expected.len(),
            self.result.of_forward().count(),
            "{name}: the reference returns outputs, then updated inputs"
        );
        for (found, expected) in self.result.of_forward().zip(&expected) {
            compare(&format!("{name}, against the plain computation"), found, expected, 1e-10);
        }
    }

    /// Results began as NaN.
    fn everything_is_written(&self) {
        for t in &self.result.tensors {
            if let Some(i) = t.values.iter().position(|v| v.is_nan()) {
                let (name, at) = (self.case.name, coordinates(t.shape, i));
                panic!("{name}: {} at {at:?} is left unwritten, or NaN", t.part);
            }
        }
    }

    fn adding_gives_the_same_gradient(&self) {
        let added = run::<f64, O>(&self.case, &self.inputs, &self.case.needs_grad, &self.dy, Write::Add);
        for (i, set) in self.result.gradients() {
            let mut added = added.of(Part::Gradient(i)).clone();
            let base = base_gradient(added.values.len());
            added.values.iter_mut().zip(base).for_each(|(v, base)| *v -= base);
            let scale = set.values.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
            let what = format!("{}, added in place of stored", self.case.name);
            compare(&what, &added, &set.values, 1e-10 + 1e-14 / scale);
        }
    }

    fn a_gradient_does_not_depend_on_the_others(&self) {
        for (i, together) in self.result.gradients() {
            let only: Vec<bool> = (0..self.inputs.len()).map(|k| k == i).collect();
            let alone = run::<f64, O>(&self.case, &self.inputs, &only, &self.dy, Write::Set);
            let what = format!("{}, computed alone", self.case.name);
            compare(&what, alone.of(Part::Gradient(i)), &together.values, 1e-12);
        }
    }

    fn f32_agrees_with_f64(&self) {
        let in_f32 = || run::<f32, O>(&self.case, &self.inputs, &self.case.needs_grad, &self.dy, Write::Set);
        let found = in_f32();
        for (f32s, f64s) in found.tensors.iter().zip(&self.result.tensors) {
            let what = format!("{}, f32 against f64", self.case.name);
            compare(&what, f32s, &f64s.values, F32_UNITS * f64::from(f32::EPSILON));
        }
        let again = bits(&in_f32().tensors);
        assert!(bits(&found.tensors) == again, "{}: a second run gave other bits", self.case.name);
    }
}

/// Runs the checks that a machine can fail: values, storing and adding, masks, nothing left unwritten,
/// nothing else written, and the same bits in every order of a block's threads, whatever lies around the
/// operands.
///
/// Only the first machine (the emulator's order 0) is held to the error bounds. The others (orders 1 to 3, or
/// the GPU a second time) store the gradients once and must repeat its bits.
fn check_on_machines<O: Operator>(case: &Case<O>, storage: &Storage, dy: &[Vec<f64>]) {
    let what = format!("{} ({} maps)", case.name, storage.target.map_dtype);
    let values = Values::representable(case, storage, dy);
    let stored = Delivery { write: Write::Set, masked: false, linear: None };
    let mut first: Option<RunResult> = None;
    for (order, machine) in machines(storage.target.map_dtype).iter_mut().enumerate() {
        let gap = GAPS[order.min(1)];
        let mut run = |needs_grad: &[bool], delivery| {
            run_on(machine, case, storage, &values, needs_grad, delivery, gap)
                .unwrap_or_else(|e| panic!("{what}: {e}"))
        };
        let set = run(&case.needs_grad, stored);
        if let Some(first) = &first {
            assert!(
                bits(&set.tensors) == bits(&first.tensors),
                "{what}: order {order} of the threads, with other bytes around the operands, gave other bits"
            );
            continue;
        }
        let alone = run(&vec![false; case.inputs.len()], stored);
        assert!(
            bits(alone.of_forward()) == bits(set.of_forward()),
            "{what}: forward alone gives other bits than before backward"
        );
        compare_with_host(case, storage, &values, &set, stored);
        for delivery in deliveries(case, storage) {
            compare_with_host(case, storage, &values, &run(&case.needs_grad, delivery), delivery);
        }
        first = Some(set);
    }
}

/// The ways to deliver gradients, but for storing them unmasked.
fn deliveries<O: Operator>(case: &Case<O>, storage: &Storage) -> Vec<Delivery> {
    if !case.needs_grad.contains(&true) {
        return vec![];
    }
    let fusion = case.fusion(&storage.target);
    let mut all = vec![Delivery { write: Write::Add, masked: false, linear: None }];
    if (fusion.masks_input_grad && case.needs_grad[0]) || fusion.act_mask.is_some() {
        all.extend([Write::Set, Write::Add].map(|write| Delivery { write, masked: true, linear: None }));
    }
    if fusion.adds_linear_grad && case.needs_grad[0] {
        let writes = [Write::Set, Write::Add].into_iter();
        let both = writes.flat_map(|w| [Place::There, Place::Apart].map(|p| (w, p)));
        all.extend(both.map(|(write, place)| Delivery { write, masked: true, linear: Some(place) }));
    }
    all
}

/// Compares a machine's result with the host's in f64, under bounds that the host's naive f32 result sets.
fn compare_with_host<O: Operator>(
    case: &Case<O>,
    storage: &Storage,
    values: &Values,
    device: &RunResult,
    delivery: Delivery,
) {
    let write = delivery.write;
    let mut reference = run::<f64, O>(case, &values.inputs, &case.needs_grad, &values.dy, write);
    let mut naive = run::<Naive, O>(case, &values.inputs, &case.needs_grad, &values.dy, write);
    if delivery.masked && case.fusion(&storage.target).masks_input_grad && case.needs_grad[0] {
        let shape = case.inputs[0].0;
        for t in [&mut reference, &mut naive].into_iter().flat_map(|r| &mut r.tensors) {
            if t.part == Part::Gradient(0) {
                mask::apply(&mask::bytes(shape), shape.c(), mask::SLOPE, &mut t.values);
            }
        }
    }
    if let Some(place) = delivery.linear {
        for result in [&mut reference, &mut naive] {
            result.add_linear(place);
        }
    }
    let what = format!("{} ({} maps, {delivery:?})", case.name, storage.target.map_dtype);
    for (d, (n, r)) in device.tensors.iter().zip(naive.tensors.iter().zip(&reference.tensors)) {
        let elem = stored_as(case, storage, d.part);
        compare_calibrated(&what, d, &round(&n.values, elem), &r.values, elem);
    }
}

/// The type whose rounding a result carries.
fn stored_as<O>(case: &Case<O>, storage: &Storage, part: Part) -> Elem {
    match part {
        Part::Output(i) => storage.outputs[i],
        Part::Updated(i) => storage.inputs[i],
        // A parameter's gradient is f32, but what it sums came through feature maps.
        Part::Gradient(i) if case.residence[i] == Residence::Store => storage.target.map_dtype,
        Part::Gradient(i) => storage.inputs[i],
        Part::WithLinear => storage.inputs[0],
    }
}
