//! The checks, checked: ops that are wrong on purpose must fail, with a message that says where.

use super::case::Case;
use super::check::check;
use super::compare::{compare_calibrated, round};
use super::machines::machines;
use super::result::{Part, ResultTensor, coordinates};
use crate::device::gpu::launch::KernelArg;
use crate::device::philox::Draws;
use crate::error::Result;
use crate::ops::launch::launches::Launches;
use crate::ops::layers::activation::Act;
use crate::ops::operands::Io;
use crate::ops::operator::{OperandInfo, Operator, Signature};
use crate::tensor::{Elem, Real, Shape};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What is wrong with an op.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// The gradient of this element is 1 % too large.
    Gradient(usize),
    /// The CPU does not write this element of the output.
    Unwritten(usize),
    /// The CPU writes the input.
    ChangesInput,
    /// Kernels get this many elements more, or fewer.
    Elements(i64),
    /// Kernels get x for y and y for x.
    SwappedPointers,
}

/// `y = tanh(x)`, with a fault.
struct Tanh(Fault);

impl Tanh {
    fn launch(&self, l: &mut Launches, kernel: &str, mut args: Vec<KernelArg>) -> Result<()> {
        if self.0 == Fault::SwappedPointers {
            args.swap(0, 1);
        }
        let elem = l.x(0).elem;
        let args: [KernelArg; 5] = args.try_into().expect("five arguments");
        l.launch(format!("{kernel}<{elem}>"), 1, 256, 0, args)
    }
    fn elements(&self, l: &Launches) -> KernelArg {
        let more = if let Fault::Elements(more) = self.0 { more } else { 0 };
        (l.shape(0).elems() as i64 + more).into()
    }
}

impl Operator for Tanh {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        Ok(Signature { outputs: vec![args[0].shape], keeps_outputs: true, ..Default::default() })
    }
    fn forward<R: Real>(&self, io: &Io<R>) {
        if self.0 == Fault::ChangesInput {
            let x = io.state(0);
            io.y(0).iter_mut().zip(&*x).for_each(|(y, x)| *y = x.tanh());
            x[3] = R::ZERO;
            return;
        }
        for (i, (y, x)) in io.y(0).iter_mut().zip(io.x(0)).enumerate() {
            if self.0 != Fault::Unwritten(i) {
                *y = x.tanh();
            }
        }
    }
    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(mut dx) = io.dx(0) else { return };
        for (i, (y, dy)) in io.kept_y(0).iter().zip(io.dy0()).enumerate() {
            let factor = R::of(if self.0 == Fault::Gradient(i) { 1.01 } else { 1.0 });
            dx.store_or_add(i, factor * *dy * (R::ONE - *y * *y));
        }
    }
    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let args = [l.y(0).into(), l.x(0).into(), KernelArg::Null, self.elements(l), Act::Tanh.into()];
        self.launch(l, "activation_fwd", args.to_vec())
    }
    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((dx, write)) = l.dx(0) else { return Ok(()) };
        let elements = (l.shape(0).elems() as i64).into();
        let args = [dx.into(), l.dy0().into(), l.y(0).into(), elements, Act::Tanh.into(), write.into()];
        l.launch(format!("activation_bwd<{}>", dx.elem), 1, 256, 0, args)
    }
}

const SHAPE: Shape = Shape::new(2, 5, 7, 11);

/// The message that a fault gives.
fn message(fault: Fault) -> String {
    let case = Case::of("tanh", Tanh(fault), &[SHAPE]);
    let result = catch_unwind(AssertUnwindSafe(|| check(case)));
    match result.map_err(|e| e.downcast::<String>()) {
        Ok(()) => "passed".into(),
        Err(message) => *message.expect("a panic with a formatted message"),
    }
}

#[test]
fn a_correct_op_passes() {
    assert_eq!(message(Fault::None), "passed");
}

#[test]
fn one_wrong_gradient_in_hundreds_is_found() {
    // No multiple of 769 / 23: finite differences of single elements do not look at it.
    let message = message(Fault::Gradient(500));
    let [n, h, w, c] = coordinates(SHAPE, 500);
    assert!(message.contains("tanh: the derivative along a random direction"), "{message}");
    let place = format!("gradient of input 0 at [{n}, {h}, {w}, {c}] differs most");
    assert!(message.contains(&place), "{message}");
}

#[test]
fn a_wrong_gradient_of_a_sampled_element_is_found() {
    let message = message(Fault::Gradient(0));
    assert!(message.starts_with("tanh: gradient of input 0 at [0, 0, 0, 0]: finite difference"), "{message}");
}

#[test]
fn an_unwritten_element_is_found() {
    let message = message(Fault::Unwritten(11 * 7 + 12));
    assert_eq!(message, "tanh: output 0 at [0, 1, 1, 1] is left unwritten, or NaN");
}

#[test]
fn a_changed_input_is_found() {
    assert_eq!(message(Fault::ChangesInput), "tanh: changed input 0, which it may only read");
}

#[test]
fn kernels_that_write_too_little_or_too_much_are_found() {
    if machines(Elem::F32).is_empty() {
        return;
    }
    let message = [-1, 1].map(|more| message(Fault::Elements(more)));
    let last = "tanh (float maps, Delivery { write: Set, masked: false, linear: None }): output 0 at \
        [1, 4, 6, 10]: expected ";
    assert!(message[0].starts_with(last) && message[0].contains("found NaN"), "{}", message[0]);
    let behind = "tanh (float maps): tanh: wrote outside its operands, 0 bytes behind the end of output 0";
    assert!(message[1].contains(behind), "{}", message[1]);
}

#[test]
fn swapped_pointers_are_found_by_name() {
    if machines(Elem::F32).is_empty() {
        return;
    }
    let message = message(Fault::SwappedPointers);
    let expected = "tanh: kernel activation_fwd<float>, argument 0: the parameter `y` may be written, the launch \
                    passes input 0";
    assert!(message.contains(expected), "{message}");
}

/// Channel 2 is a thousand times smaller than the others, and one of its elements is off by half its size.
#[test]
fn an_error_in_a_small_channel_is_not_measured_by_the_large_ones() {
    let (shape, draws) = (Shape::new(1, 8, 8, 4), Draws::new(1, 2, 3));
    let scale = |i: usize| if i % 4 == 2 { 1e-3 } else { 1.0 };
    let reference: Vec<f64> = (0..shape.elems()).map(|i| scale(i) * draws.normals(i as u32, 0)[0]).collect();
    let naive = round(&reference, Elem::Bf16);
    let compare = |values: Vec<f64>| {
        let device = ResultTensor { part: Part::Output(0), shape, values };
        let compare = || compare_calibrated("op", &device, &naive, &reference, Elem::Bf16);
        let failed = catch_unwind(AssertUnwindSafe(compare)).err();
        failed.map(|e| *e.downcast::<String>().expect("a panic with a formatted message"))
    };
    assert_eq!(compare(naive.clone()), None);
    let mut wrong = naive.clone();
    let largest = (0..shape.elems()).filter(|i| i % 4 == 2).max_by(|a, b| wrong[*a].total_cmp(&wrong[*b]));
    let i = largest.expect("a channel has elements");
    wrong[i] *= 1.5;
    let message = compare(wrong).expect("the error is found");
    let [n, h, w, c] = coordinates(shape, i);
    assert!(message.starts_with(&format!("op: output 0 at [{n}, {h}, {w}, {c}]: expected ")), "{message}");
}
