//! One op on one set of operands.

use crate::device::StepState;
use crate::device::gpu::target::Target;
use crate::device::philox::Draws;
use crate::ops::Op;
use crate::ops::operator::{OperandInfo, Operator, Signature};
use crate::tensor::{Elem, Shape};

/// Computes the outputs, followed by the inputs that the op updates in place, from the inputs.
type Reference = Box<dyn Fn(&[Vec<f64>]) -> Vec<Vec<f64>>>;

/// One op on one set of operands.
pub struct Case<O = Op> {
    /// The op.
    pub op: O,
    /// As messages name it.
    pub name: &'static str,
    /// Shape and values of each input.
    pub inputs: Vec<(Shape, Vec<f64>)>,
    /// Whether backward computes the gradient of each input.
    pub needs_grad: Vec<bool>,
    /// An independent computation of the results.
    pub reference: Option<Reference>,
    /// The step that the op runs in.
    pub step: StepState,
    /// The devices that its launches are planned for; each is checked with every way to store feature maps.
    pub targets: Vec<Target>,
    /// Where a device keeps each input.
    pub residence: Vec<Residence>,
    /// Whether the op also takes f32 inputs where outputs are bf16.
    pub mixes_dtypes: bool,
    /// Whether devices are checked with feature maps in bf16 alone.
    pub only_bf16: bool,
}

/// Where a device keeps an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residence {
    /// In the arena: f32, or the dtype of feature maps if it is one.
    Arena,
    /// In the arena, f32 whatever its shape: the gradient of a parameter.
    ArenaF32,
    /// In the store, f32 whatever its shape: a parameter, an optimiser's state or data.
    Store,
}

impl Case<Op> {
    /// Operands of the given shapes with standard normal values, all of which need gradients.
    pub fn new(op: impl Into<Op>, shapes: &[Shape]) -> Self {
        let op = op.into();
        let residence = (0..shapes.len()).map(|i| residence(&op, i)).collect();
        let mixes_dtypes = matches!(op, Op::BatchNorm(_));
        Case { residence, mixes_dtypes, ..Case::of(op.name(), op, shapes) }
    }
}

impl<O: Operator> Case<O> {
    /// The same for an op that is not in the registry.
    pub fn of(name: &'static str, op: O, shapes: &[Shape]) -> Self {
        let draws = Draws::new(20, 3, 0);
        let inputs = shapes.iter().enumerate().map(|(i, s)| {
            (*s, (0..s.elems()).map(|e| f64::from(draws.normals(e as u32, i as u32)[0] as f32)).collect())
        });
        Case {
            op,
            name,
            inputs: inputs.collect(),
            needs_grad: vec![true; shapes.len()],
            reference: None,
            step: StepState { seed: 11, step: 5, lr: [0.01; 4] },
            targets: vec![Target::h200(Elem::F32)],
            residence: vec![Residence::Arena; shapes.len()],
            mixes_dtypes: false,
            only_bf16: false,
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
    /// Input `i` needs no gradient.
    pub fn frozen(mut self, i: usize) -> Self {
        self.needs_grad[i] = false;
        self
    }
    /// Runs in another step than the fifth.
    pub fn step(mut self, step: u64) -> Self {
        self.step.step = step;
        self
    }
    /// Plans the launches for these devices in place of an H200, with feature maps in f32 and in bf16 for
    /// each.
    pub fn on_targets(mut self, targets: &[Target]) -> Self {
        self.targets = targets.to_vec();
        self
    }
    /// Checks devices with feature maps in bf16 alone: a case for kernels that take no others, whose sums are long
    /// for f32.
    pub fn in_bf16(mut self) -> Self {
        self.only_bf16 = true;
        self
    }

    /// The operands as the op's signature takes them.
    pub fn operands(&self, needs_grad: &[bool]) -> Vec<OperandInfo> {
        let operands = self.inputs.iter().zip(needs_grad);
        operands.map(|((shape, _), g)| OperandInfo { shape: *shape, needs_grad: *g }).collect()
    }
    /// What the op says about itself with the case's own operands.
    pub fn signature(&self) -> Signature {
        self.op.signature(&self.operands(&self.needs_grad)).unwrap()
    }
    /// The values of all inputs.
    pub fn input_values(&self) -> Vec<Vec<f64>> {
        self.inputs.iter().map(|(_, v)| v.clone()).collect()
    }
    /// Standard normal gradients of the outputs.
    pub fn output_gradients(&self) -> Vec<Vec<f64>> {
        let draws = Draws::new(21, 9, 0);
        let of_output = |(o, s): (usize, &Shape)| {
            (0..s.elems()).map(|e| f64::from(draws.normals(e as u32, o as u32)[1] as f32)).collect()
        };
        self.signature().outputs.iter().enumerate().map(of_output).collect()
    }
}

fn residence(op: &Op, i: usize) -> Residence {
    let store = match op {
        Op::Conv2d(conv) => i == 1 || (i == 2 && conv.bias),
        Op::GatherImages(_) | Op::ScatterImages(_) | Op::ToMaps(_) => i == 0,
        Op::FoldNorm(_) => true,
        Op::Adam(_) => i % 4 != 1,
        Op::Sgd(_) => i % 3 != 1,
        _ => false,
    };
    match op {
        _ if store => Residence::Store,
        Op::Adam(_) | Op::Sgd(_) => Residence::ArenaF32,
        _ => Residence::Arena,
    }
}
