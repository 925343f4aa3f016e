//! One run of a case on a machine that runs kernels.

use super::case::{Case, Residence};
use super::compare::round;
use super::layout::{
    LaidOut, POISON, Placement, base_gradient, dropped_after_forward, lay_out, read_only_backward,
    read_only_forward,
};
use super::linear::{self, Place};
use super::machines::within_reach;
use super::mask;
use super::parameters::first_misplaced;
use super::result::{Part, RunResult};
use crate::device::gpu::launch::Launch;
use crate::device::gpu::machine::Machine;
use crate::device::gpu::target::Target;
use crate::device::memory::{Buffer, Mirrored};
use crate::device::{Slot, Space};
use crate::error::{Error, Result};
use crate::ops::fusion::{Fusion, LinearGrad};
use crate::ops::launch::launches::Launches;
use crate::ops::operands::{Operands, Write};
use crate::ops::operator::{OperandInfo, Operator, Signature};
use crate::tensor::{Elem, Shape};
use half::slice::HalfFloatSliceExt;

/// How one run of a case stores its operands.
#[derive(Clone)]
pub struct Storage {
    /// The device that launches are planned for.
    pub target: Target,
    /// The element type of each input.
    pub inputs: Vec<Elem>,
    /// The element type of each output.
    pub outputs: Vec<Elem>,
    /// The element type of each output's gradient.
    pub dy: Vec<Elem>,
    residence: Vec<Residence>,
}

impl Storage {
    /// Feature maps among the inputs are of type `input`; outputs follow.
    fn new<O: Operator>(case: &Case<O>, target: Target, input: Elem) -> Self {
        let elem = |((s, _), residence): (&(Shape, _), &Residence)| {
            let is_map = s.h() * s.w() > 1 && *residence == Residence::Arena;
            if is_map { input } else { Elem::F32 }
        };
        let inputs: Vec<Elem> = case.inputs.iter().zip(&case.residence).map(elem).collect();
        let (signature, fusion) = (case.signature(), case.fusion(&target));
        let output = |(i, s): (usize, &Shape)| fusion.output_elem(i, *s, &inputs, target.map_dtype);
        let outputs: Vec<Elem> = signature.outputs.iter().enumerate().map(output).collect();
        let dy = outputs.iter().map(|e| fusion.gradient_elem(*e)).collect();
        Storage { target, inputs, outputs, dy, residence: case.residence.clone() }
    }
    /// Whether input `i` is kept in the store.
    pub fn is_in_store(&self, i: usize) -> bool {
        self.residence[i] == Residence::Store
    }
}

impl Placement for Storage {
    fn input(&self, i: usize) -> (Space, usize) {
        (if self.is_in_store(i) { Space::Store(0) } else { Space::Arena }, self.inputs[i].bytes())
    }
    fn output(&self, i: usize) -> usize {
        self.outputs[i].bytes()
    }
    fn dy(&self, i: usize) -> usize {
        self.dy[i].bytes()
    }
    fn real(&self) -> usize {
        Elem::F32.bytes()
    }
}

impl<O: Operator> Case<O> {
    /// Every way to store its operands: all f32, feature maps in bf16, and where the op takes it, f32 in and
    /// bf16 out.
    pub fn storages(&self) -> Vec<Storage> {
        let of_target = |target: &Target| {
            let storage =
                |map_dtype, input| Storage::new(self, Target { map_dtype, ..within_reach(*target) }, input);
            let mut all = vec![storage(Elem::Bf16, Elem::Bf16)];
            if !self.only_bf16 {
                all.insert(0, storage(Elem::F32, Elem::F32));
            }
            if self.mixes_dtypes {
                // Rows that a view turned into a feature map.
                all.push(storage(Elem::Bf16, Elem::F32));
            }
            all
        };
        self.targets.iter().flat_map(of_target).collect()
    }
    /// What the op can fuse with its neighbours on this device.
    pub fn fusion(&self, target: &Target) -> Fusion {
        let inputs: Vec<Shape> = self.inputs.iter().map(|(s, _)| *s).collect();
        self.op.fusion(&inputs, self.signature().outputs.first().copied().unwrap_or(Shape::SCALAR), target)
    }
}

/// How a run delivers gradients.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Delivery {
    /// Whether gradients are stored or added.
    pub write: Write,
    /// Whether the gradient of the output comes multiplied by the slope of the op's activation, and the
    /// gradient of input 0 is to be multiplied by the mask of an activation in front of it, as far as the op
    /// can.
    pub masked: bool,
    /// Whether, and where, the linear gradient of a loss is to be added to the gradient of input 0.
    pub linear: Option<Place>,
}

/// The values that a run reads, rounded to the types that store them.
#[derive(Clone)]
pub struct Values {
    /// Of each input.
    pub inputs: Vec<Vec<f64>>,
    /// The gradient of each output.
    pub dy: Vec<Vec<f64>>,
}

impl Values {
    /// Values that host and device can represent alike; parameters too, since kernels may read their bf16
    /// copies.
    pub fn representable<O>(case: &Case<O>, storage: &Storage, dy: &[Vec<f64>]) -> Self {
        Values {
            inputs: case.inputs.iter().map(|(_, v)| round(v, storage.target.map_dtype)).collect(),
            dy: dy.iter().zip(&storage.dy).map(|(v, e)| round(v, *e)).collect(),
        }
    }
}

/// Runs the case's launches, with a gap of the byte `gap` around every operand.
pub fn run_on<O: Operator>(
    machine: &mut Machine,
    case: &Case<O>,
    storage: &Storage,
    values: &Values,
    needs_grad: &[bool],
    delivery: Delivery,
    gap: u8,
) -> Result<RunResult> {
    let operands = case.operands(needs_grad);
    let mut signature = case.op.signature(&operands)?;
    case.op.device_extents(&operands, &storage.target, &mut signature);
    let laid = lay_out_on(case, storage, &operands, &signature, delivery);
    let mut run = DeviceRun { machine, case, storage, laid: &laid, signature: &signature };
    run.begin(values, gap)?;
    let mut result = run.forward()?;
    if let Some(backward) = &laid.backward {
        for slot in dropped_after_forward(&laid.forward, &signature) {
            // Nothing overwrites the store within a step.
            if slot.space == Space::Arena {
                run.poison(slot)?;
            }
        }
        run.backward(backward, &values.dy, &mut result)?;
    }
    run.expect_unchanged_gaps(gap)?;
    Ok(result)
}

/// Slots for all operands, with the element types and masks that launches see.
fn lay_out_on<O: Operator>(
    case: &Case<O>,
    storage: &Storage,
    operands: &[OperandInfo],
    signature: &Signature,
    delivery: Delivery,
) -> LaidOut {
    let fusion = case.fusion(&storage.target);
    let mut laid = lay_out(operands, signature, storage, delivery.write);
    for o in [Some(&mut laid.forward), laid.backward.as_mut()].into_iter().flatten() {
        (o.input_elems, o.output_elems) = (storage.inputs.clone(), storage.outputs.clone());
        o.output_grad_elems = storage.dy.clone();
    }
    if let Some(backward) = laid.backward.as_mut().filter(|_| delivery.masked) {
        backward.dy_is_masked = fusion.act_mask.is_some();
        backward.input_masks = vec![None; operands.len()];
        if fusion.masks_input_grad && operands[0].needs_grad {
            let bytes = mask::bytes(operands[0].shape).len();
            let slot = laid.layout.take("mask of input 0".into(), Space::Arena, bytes);
            backward.input_masks[0] = Some((slot, mask::SLOPE));
        }
    }
    if let (Some(backward), Some(place)) = (laid.backward.as_mut(), delivery.linear) {
        let (shape, elem) = (operands[0].shape, storage.inputs[0]);
        let mut take = |label: &str, bytes| laid.layout.take(label.into(), Space::Arena, bytes);
        let map = shape.elems() * elem.bytes();
        backward.linear_grad = Some(LinearGrad {
            u: take("the loss's map", map),
            coefficients: take("the loss's coefficients", 3 * shape.c() * 4),
            dloss: take("gradient of the loss", 4),
            du: (place == Place::Apart).then(|| take("gradient of input 0 with the loss's", map)),
        });
    }
    laid
}

/// A machine with the operands of one run.
struct DeviceRun<'a, O> {
    machine: &'a mut Machine,
    case: &'a Case<O>,
    storage: &'a Storage,
    laid: &'a LaidOut,
    signature: &'a Signature,
}

impl<O: Operator> DeviceRun<'_, O> {
    fn poison(&self, slot: Slot) -> Result<()> {
        self.machine.write(slot, &vec![POISON; slot.bytes])
    }
    fn store(&self, slot: Slot, elem: Elem, values: &[f64]) -> Result<()> {
        let f32s: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        match elem {
            Elem::F32 => self.machine.write(slot, bytemuck::cast_slice(&f32s)),
            Elem::Bf16 => {
                let mut halves = vec![half::bf16::ZERO; f32s.len()];
                halves.convert_from_f32_slice(&f32s);
                self.machine.write(slot, bytemuck::cast_slice(&halves))
            }
        }
    }
    fn load(&self, slot: Slot, elem: Elem) -> Result<Vec<f64>> {
        Ok(self.machine.read(slot, elem)?.into_iter().map(f64::from).collect())
    }
    fn bytes(&self, slot: Slot) -> Result<Vec<u8>> {
        let mut bytes = vec![0; slot.bytes];
        self.machine.read_bytes(slot, &mut bytes)?;
        Ok(bytes)
    }
    fn failure(&self, message: String) -> Error {
        Error::Run(format!("{}: {message}", self.case.name))
    }

    /// Fills memory: inputs hold their values, the other slots NaN, and gaps the byte `gap`.
    fn begin(&mut self, values: &Values, gap: u8) -> Result<()> {
        let layout = &self.laid.layout;
        let mut store = [Buffer::with_bytes(layout.whole(Space::Store(0)).bytes)];
        store[0].fill(gap);
        let inputs = || self.laid.forward.inputs.iter().zip(&values.inputs).enumerate();
        for (_, (slot, v)) in inputs().filter(|(i, _)| self.storage.is_in_store(*i)) {
            let to = store[0].get_mut::<f32>(slot.offset, slot.bytes);
            to.iter_mut().zip(v).for_each(|(a, b)| *a = *b as f32);
        }
        self.machine.reserve(layout.whole(Space::Arena).bytes)?;
        self.machine.push(&store, &mut [Mirrored::new(store[0].bytes())])?;
        let arena = Slot { space: Space::Arena, offset: 0, bytes: self.machine.arena_bytes() };
        self.machine.write(arena, &vec![gap; arena.bytes])?;
        layout.slots(Space::Arena).try_for_each(|s| self.poison(s))?;
        for (i, (slot, v)) in inputs().filter(|(i, _)| !self.storage.is_in_store(*i)) {
            self.store(*slot, self.storage.inputs[i], v)?;
        }
        Ok(())
    }

    /// Runs launches whose arguments fit their parameters, and fails if they change any of `read_only`.
    fn execute(&mut self, launches: &[Launch], read_only: &[Slot]) -> Result<()> {
        let label = |slot: Slot| self.laid.layout.label(slot).map(str::to_string);
        for launch in launches {
            if let Some(message) = first_misplaced(launch, label, read_only) {
                return Err(self.failure(message));
            }
        }
        let before: Vec<Vec<u8>> = read_only.iter().map(|s| self.bytes(*s)).collect::<Result<_>>()?;
        let mut ready = self.machine.prepare(launches, |_| self.case.name.into())?;
        self.machine.run(&mut ready, &self.case.step)?;
        for (slot, before) in read_only.iter().zip(&before) {
            if self.bytes(*slot)? != *before {
                let label = label(*slot).unwrap_or_default();
                return Err(self.failure(format!("kernels changed {label}, which they may only read")));
            }
        }
        Ok(())
    }

    fn forward(&mut self) -> Result<RunResult> {
        let (forward, signature) = (&self.laid.forward, self.signature);
        let mut l = Launches::new(self.case.name, forward, &self.storage.target);
        self.case.op.launch_forward(&mut l)?;
        self.execute(&l.list, &read_only_forward(forward, signature))?;
        let mut result = RunResult::default();
        for (i, slot) in forward.outputs.iter().enumerate() {
            let values = self.load(*slot, self.storage.outputs[i])?;
            result.push(Part::Output(i), forward.output_shapes[i], values);
        }
        for i in &signature.updates {
            let values = self.load(forward.inputs[*i], self.storage.inputs[*i])?;
            result.push(Part::Updated(*i), forward.input_shapes[*i], values);
        }
        Ok(result)
    }

    fn backward(&mut self, backward: &Operands, dy: &[Vec<f64>], result: &mut RunResult) -> Result<()> {
        let act_mask = self.case.fusion(&self.storage.target).act_mask.filter(|_| backward.dy_is_masked);
        for (i, slot) in backward.output_grads.iter().flatten().enumerate() {
            let mut dy = dy[i].clone();
            if let Some(act_mask) = act_mask {
                let mask = self.bytes(backward.saved[0])?;
                mask::apply(&mask, backward.output_shapes[i].c(), act_mask.slope, &mut dy);
            }
            self.store(*slot, self.storage.dy[i], &dy)?;
        }
        for (i, mask) in backward.input_masks.iter().enumerate() {
            if let Some((slot, _)) = mask {
                self.machine.write(*slot, &mask::bytes(backward.input_shapes[i]))?;
            }
        }
        for (i, gradient) in backward.input_grads.iter().enumerate() {
            if let Some((slot, Write::Add)) = gradient {
                let base = base_gradient(backward.input_shapes[i].elems());
                self.store(*slot, self.storage.inputs[i], &base)?;
            }
        }
        let input = (backward.input_shapes[0], self.storage.inputs[0]);
        if let Some(grad) = backward.linear_grad {
            self.store(grad.u, input.1, &linear::u(input.0))?;
            self.store(grad.coefficients, Elem::F32, &linear::coefficients(input.0.c()))?;
            self.store(grad.dloss, Elem::F32, &[f64::from(linear::DLOSS)])?;
        }
        let mut l = Launches::new(self.case.name, backward, &self.storage.target);
        self.case.op.launch_backward(&mut l)?;
        self.execute(&l.list, &read_only_backward(backward))?;
        for (i, gradient) in backward.input_grads.iter().enumerate() {
            if let Some((slot, _)) = gradient {
                let values = self.load(*slot, self.storage.inputs[i])?;
                result.push(Part::Gradient(i), backward.input_shapes[i], values);
            }
        }
        if let Some(du) = backward.linear_grad.and_then(|g| g.du) {
            result.push(Part::WithLinear, input.0, self.load(du, input.1)?);
        }
        Ok(())
    }

    fn expect_unchanged_gaps(&self, gap: u8) -> Result<()> {
        for space in [Space::Store(0), Space::Arena] {
            let bytes = self.bytes(self.laid.layout.whole(space))?;
            if let Some(stray) = self.laid.layout.first_stray_byte(space, &bytes, gap) {
                return Err(self.failure(stray));
            }
        }
        Ok(())
    }
}
