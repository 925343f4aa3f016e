//! What an op sees while it turns its operands into kernel launches: [`Io`](crate::ops::operands::Io), with
//! addresses in place of slices.

use crate::device::Slot;
pub use crate::device::gpu::launch::THREADS;
use crate::device::gpu::launch::{Candidates, Exchange, KernelArg, Launch, Matmul, Work};
use crate::device::gpu::pointer::Pointer;
use crate::device::gpu::target::Target;
use crate::error::{Error, Result};
use crate::ops::fusion::{FusedActivation, LinearGrad};
use crate::ops::launch::late_sums::LateSum;
use crate::ops::operands::{Operands, Write};
use crate::tensor::{Elem, Shape};

/// An operand on a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceTensor {
    /// Where it lies, or where the tensor lies that it is a copy of.
    pub slot: Slot,
    /// The type of its elements.
    pub elem: Elem,
    /// Whether it is the bf16 copy that the machine keeps of an f32 tensor of the store.
    pub is_bf16_copy: bool,
}

impl DeviceTensor {
    /// So many elements of it, from the element `first` on.
    pub fn part(self, first: usize, elements: usize) -> DeviceTensor {
        let bytes = self.elem.bytes();
        let Slot { space, offset, .. } = self.slot;
        DeviceTensor { slot: Slot { space, offset: offset + first * bytes, bytes: elements * bytes }, ..self }
    }
}

impl From<DeviceTensor> for Pointer {
    fn from(t: DeviceTensor) -> Pointer {
        if t.is_bf16_copy { Pointer::Bf16Copy(t.slot) } else { Pointer::Slot(t.slot) }
    }
}

impl From<DeviceTensor> for KernelArg {
    fn from(t: DeviceTensor) -> KernelArg {
        Pointer::from(t).into()
    }
}

/// The slope of the activation that computed a value: 1 where the mask's bit is set, else `slope`.
#[derive(Clone, Copy, Debug)]
pub struct InputMask {
    /// One bit for each element, whole bytes for each pixel.
    pub mask: DeviceTensor,
    /// The slope where the bit is not set.
    pub slope: f32,
}

/// Partial statistics of a feature map's channels, written by the op that computes the map and read by the
/// next one.
#[derive(Clone, Copy, Debug)]
pub struct ChannelStats {
    /// `[parts][2][c]`: of each run of `rows` pixels the mean and the sum of squared distances from it.
    pub parts: DeviceTensor,
    /// Pixels of a part; the last part may have fewer.
    pub rows: usize,
}

impl From<Write> for KernelArg {
    /// 1 if the kernel adds to its output, 0 if it overwrites it.
    fn from(w: Write) -> KernelArg {
        KernelArg::from(w == Write::Add)
    }
}

/// A grid given by one number or three.
pub trait Grid {
    /// Blocks in x, y and z.
    fn dims(self) -> [u32; 3];
}
impl Grid for u32 {
    fn dims(self) -> [u32; 3] {
        [self, 1, 1]
    }
}
impl Grid for [u32; 3] {
    fn dims(self) -> [u32; 3] {
        self
    }
}

/// The operands of one instruction, and its launches in order.
pub struct Launches<'a> {
    op: &'static str,
    operands: &'a Operands,
    target: Target,
    members: usize,
    /// The launches so far.
    pub list: Vec<Launch>,
    /// What the plan is to add after backward.
    pub late: Vec<LateSum>,
}

impl<'a> Launches<'a> {
    /// No launches yet, for an instruction of `op` on these operands.
    pub fn new(op: &'static str, operands: &'a Operands, target: &Target) -> Self {
        Launches { op, operands, target: *target, members: 1, list: Vec::new(), late: Vec::new() }
    }
    /// For an instruction that runs together with others alike: so many, itself included.
    pub fn among(self, members: usize) -> Self {
        Launches { members, ..self }
    }
    /// How many instructions are expected to share the launches. It may choose the work of each, but the launches must be
    /// right for any number.
    pub fn expected_members(&self) -> usize {
        self.members
    }
    /// The device that the launches are for.
    pub fn target(&self) -> &Target {
        &self.target
    }
    /// Blocks of a grid-stride loop over `elements`, `per_block` in a pass of one block:
    /// [`Target::blocks_for`].
    pub fn blocks_for(&self, elements: usize, per_block: usize) -> u32 {
        self.target.blocks_for(elements, per_block)
    }
    /// The shape of an input.
    pub fn shape(&self, input: usize) -> Shape {
        self.operands.input_shapes[input]
    }
    /// The shape of an output.
    pub fn out_shape(&self, output: usize) -> Shape {
        self.operands.output_shapes[output]
    }
    /// The number of inputs.
    pub fn inputs(&self) -> usize {
        self.operands.inputs.len()
    }
    /// Input `i`. An op that updates it in place writes through the same address.
    pub fn x(&self, i: usize) -> DeviceTensor {
        plain(self.operands.inputs[i], self.operands.input_elems[i])
    }
    /// The bf16 copy of input `i`, an f32 tensor of the store. `Machine` (device/gpu/machine.rs) allocates
    /// and fills it when it prepares the first launch that reads it, and casts it again whenever the host has
    /// changed the tensor (`Machine::push`). In a step, the kernels of `adam` and `sgd` write it together
    /// with the tensor ([`Launches::bf16_copy_of_state`]).
    pub fn bf16_copy(&self, i: usize) -> DeviceTensor {
        DeviceTensor { slot: self.operands.inputs[i], elem: Elem::Bf16, is_bf16_copy: true }
    }
    /// The bf16 copy that an optimiser has to update together with tensor `i`; none where feature maps are
    /// f32.
    pub fn bf16_copy_of_state(&self, i: usize) -> Option<DeviceTensor> {
        (self.target.map_dtype == Elem::Bf16).then(|| self.bf16_copy(i))
    }
    /// Output `i`. Backward may read it if the signature says `keeps_outputs`.
    pub fn y(&self, i: usize) -> DeviceTensor {
        plain(self.operands.outputs[i], self.operands.output_elems[i])
    }
    /// Whether forward must fill the saved buffers, because backward will run.
    pub fn saves(&self) -> bool {
        !self.operands.saved.is_empty()
    }
    /// Saved buffer `i`: filled by forward, read by backward. The type is always F32, although some of these
    /// buffers hold bytes, such as masks and indices: kernels use the address alone.
    pub fn saved(&self, i: usize) -> DeviceTensor {
        plain(self.operands.saved[i], Elem::F32)
    }
    /// Scratch buffer `i` of this direction.
    pub fn scratch(&self, i: usize) -> DeviceTensor {
        plain(self.operands.scratch[i], Elem::F32)
    }
    /// The gradient of output `i`, which has the output's type, but for that of a filter; none if the loss does not depend
    /// on it.
    pub fn dy(&self, i: usize) -> Option<DeviceTensor> {
        let o = self.operands;
        let elem = o.output_grad_elems.get(i).unwrap_or(&o.output_elems[i]);
        o.output_grads[i].map(|s| plain(s, *elem))
    }
    /// The gradient of a single-output op's output.
    pub fn dy0(&self) -> DeviceTensor {
        self.dy(0).expect("backward of an op whose output has no gradient")
    }
    /// Where the gradient of input `i` goes, which has the input's type, but for that of a filter; none if it is not
    /// needed.
    pub fn dx(&self, i: usize) -> Option<(DeviceTensor, Write)> {
        let o = self.operands;
        let elem = o.input_grad_elems.get(i).unwrap_or(&o.input_elems[i]);
        o.input_grads[i].map(|(s, write)| (plain(s, *elem), write))
    }
    /// Whether the plan adds the parts of the gradient of input `i` after backward. They must be in the buffer that the signature
    /// names, unless the gradient is stored whole ([`Write::Set`]).
    pub fn is_late(&self, i: usize) -> bool {
        self.operands.late_inputs.contains(&i)
    }
    /// The activation mask by which this op must multiply the gradient of input `i`, after it is summed.
    pub fn input_mask(&self, i: usize) -> Option<InputMask> {
        self.operands
            .input_masks
            .get(i)
            .copied()
            .flatten()
            .map(|(s, slope)| InputMask { mask: plain(s, Elem::F32), slope })
    }
    /// Whether the output's gradient is already multiplied by the slope of the op's activation.
    pub fn dy_is_masked(&self) -> bool {
        self.operands.dy_is_masked
    }
    /// In a producer's forward, where it stores the channel statistics of its output. In a consumer's
    /// forward, those of its first input.
    pub fn channel_stats(&self) -> Option<ChannelStats> {
        self.operands.channel_stats.map(|(s, rows)| ChannelStats { parts: plain(s, Elem::F32), rows })
    }
    /// The activation of the output that forward has to compute as well.
    pub fn fused_activation(&self) -> Option<FusedActivation> {
        self.operands.fused_activation
    }
    /// Whether the producer of the first input computes this op's forward.
    pub fn is_fused_into_producer(&self) -> bool {
        self.operands.is_fused_into_producer
    }
    /// The loss's gradient that backward has to add to that of the first input, after its mask.
    pub fn linear_grad(&self) -> Option<LinearGrad> {
        self.operands.linear_grad
    }
    /// Whether another instruction adds this one's gradient.
    pub fn is_grad_added(&self) -> bool {
        self.operands.is_grad_added
    }
    /// The first term of the first input's gradient, where it is not stored in the place of the sum.
    pub fn first_term(&self) -> Option<DeviceTensor> {
        self.operands.first_term.map(|s| plain(s, self.operands.input_elems[0]))
    }
    /// The address of the step's state.
    pub fn step(&self) -> KernelArg {
        KernelArg::Step
    }
    /// Adds a launch, which runs after those before it.
    ///
    /// Errors: a kernel that does not exist or takes other arguments; a geometry that no device, or more
    /// shared memory than the target, can launch.
    pub fn launch<const N: usize>(
        &mut self,
        kernel: impl AsRef<str>,
        grid: impl Grid,
        block: u32,
        shared_bytes: u32,
        args: [KernelArg; N],
    ) -> Result<()> {
        self.push(Launch::new(kernel.as_ref(), grid.dims(), block, shared_bytes, args.into()))
    }
    /// Adds a launch of the fastest of several kernels.
    ///
    /// Errors: as [`Launches::launch`], for any candidate; no candidate.
    pub fn launch_fastest<const N: usize>(
        &mut self,
        candidates: Candidates,
        args: [KernelArg; N],
    ) -> Result<()> {
        self.push(Launch::by_fastest(candidates, args.into()))
    }
    /// Adds an exchange between the ranks, which runs after the launches before it. `to` and `from` are scratch buffers.
    pub fn exchange(&mut self, exchange: Exchange, to: DeviceTensor, from: DeviceTensor) {
        self.list.push(Launch::of_exchange(exchange, to.slot, from.slot));
    }
    /// Adds a product of matrices by cuBLASLt, for targets with `library_matmul`. `operands` are d, a and b.
    ///
    /// Errors: an operand that is smaller than its matrix.
    pub fn multiply(&mut self, product: Matmul, operands: [DeviceTensor; 3]) -> Result<()> {
        self.push(Launch::of_matmul(product, operands.map(Pointer::from)))
    }
    /// Says what the last launch computes, for forecasts.
    pub fn last_takes(&mut self, work: Work) {
        self.list.last_mut().into_iter().for_each(|l| l.work = Some(work));
    }
    /// Adds a launch whose blocks fit the target's shared memory, or returns the error with the op's name.
    fn push(&mut self, launch: Result<Launch>) -> Result<()> {
        let launch = launch.and_then(|l| l.expect_shared_at_most(self.target.shared_bytes).map(|()| l));
        self.list.push(launch.map_err(|e| Error::Run(format!("{}: {e}", self.op)))?);
        Ok(())
    }
    /// Checks that two operands have the same element type, for kernels that take no others. `what` names
    /// the `found` one in the message.
    ///
    /// Errors: different types.
    pub fn expect_same(&self, what: &str, expected: DeviceTensor, found: DeviceTensor) -> Result<()> {
        if expected.elem == found.elem {
            return Ok(());
        }
        let message = format!("{what}: expected {}, found {}", expected.elem, found.elem);
        Err(Error::shape(self.op, message))
    }
}

fn plain(slot: Slot, elem: Elem) -> DeviceTensor {
    DeviceTensor { slot, elem, is_bf16_copy: false }
}
