//! What an op sees while it turns its operands into kernel launches: [`Io`](super::Io), with addresses in place of slices.

use crate::device::Slot;
use crate::device::gpu::launch::{Candidate, KernelArg, Launch};
pub use crate::device::gpu::launch::{THREADS, blocks_for};
use crate::device::gpu::pointer::Pointer;
use crate::device::gpu::target::Target;
use crate::error::{Error, Result};
use crate::ops::fusion::FusedActivation;
use crate::ops::operands::{Operands, Write};
use crate::tensor::{Elem, Shape};

/// An operand on a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceTensor {
    pub slot: Slot,
    pub elem: Elem,
    /// Whether it is the bf16 copy that the machine keeps of an f32 tensor of the store.
    pub is_bf16_copy: bool,
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

/// The slope of the activation in front of a value: 1 where the mask's bit is set, else `slope`.
#[derive(Clone, Copy, Debug)]
pub struct InputMask {
    /// A bit an element, whole bytes a pixel.
    pub mask: DeviceTensor,
    pub slope: f32,
}

/// What the producer of a map found out about its channels: `[parts][2][c]`, of each run of `rows` pixels the mean and the
/// sum of squared distances from it.
#[derive(Clone, Copy, Debug)]
pub struct ChannelStats {
    pub parts: DeviceTensor,
    pub rows: usize,
}

/// As kernels take it: whether to add.
impl From<Write> for KernelArg {
    fn from(w: Write) -> KernelArg {
        KernelArg::from(w == Write::Add)
    }
}

/// A grid given by one number or three.
pub trait Grid {
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

/// The launches of one instruction, in order.
pub struct Launches<'a> {
    op: &'static str,
    operands: &'a Operands,
    target: Target,
    pub list: Vec<Launch>,
}

impl<'a> Launches<'a> {
    pub fn new(op: &'static str, operands: &'a Operands, target: &Target) -> Self {
        Launches { op, operands, target: *target, list: Vec::new() }
    }
    /// The device that the launches are for.
    pub fn target(&self) -> &Target {
        &self.target
    }
    /// Blocks for `elements` at `per_block` a pass of a grid-stride loop: [`Target::blocks_for`].
    pub fn blocks_for(&self, elements: usize, per_block: usize) -> u32 {
        self.target.blocks_for(elements, per_block)
    }
    pub fn shape(&self, input: usize) -> Shape {
        self.operands.input_shapes[input]
    }
    pub fn out_shape(&self, output: usize) -> Shape {
        self.operands.output_shapes[output]
    }
    pub fn inputs(&self) -> usize {
        self.operands.inputs.len()
    }
    /// Input `i`; one that the op updates in place is written through the same address.
    pub fn x(&self, i: usize) -> DeviceTensor {
        plain(self.operands.inputs[i], self.operands.input_elems[i])
    }
    /// The bf16 copy of input `i`, an f32 tensor of the store.
    pub fn bf16_copy(&self, i: usize) -> DeviceTensor {
        DeviceTensor { slot: self.operands.inputs[i], elem: Elem::Bf16, is_bf16_copy: true }
    }
    /// The bf16 copy that an optimiser has to refresh with tensor `i`; none where maps are f32.
    pub fn bf16_copy_of_state(&self, i: usize) -> Option<DeviceTensor> {
        (self.target.map_dtype == Elem::Bf16).then(|| self.bf16_copy(i))
    }
    /// Output `i`; backward may read it if the signature says `keeps_outputs`.
    pub fn y(&self, i: usize) -> DeviceTensor {
        plain(self.operands.outputs[i], self.operands.output_elems[i])
    }
    /// Whether backward will run, so that forward fills the saved buffers.
    pub fn saves(&self) -> bool {
        !self.operands.saved.is_empty()
    }
    pub fn saved(&self, i: usize) -> DeviceTensor {
        plain(self.operands.saved[i], Elem::F32)
    }
    pub fn scratch(&self, i: usize) -> DeviceTensor {
        plain(self.operands.scratch[i], Elem::F32)
    }
    /// Gradient of output `i`, of the output's type.
    pub fn dy(&self, i: usize) -> Option<DeviceTensor> {
        self.operands.output_grads[i].map(|s| plain(s, self.operands.output_elems[i]))
    }
    /// The gradient of a single-output op's output.
    pub fn dy0(&self) -> DeviceTensor {
        self.dy(0).expect("backward of an op whose output has no gradient")
    }
    /// Where the gradient of input `i` goes, if anybody wants it; of the input's type.
    pub fn dx(&self, i: usize) -> Option<(DeviceTensor, Write)> {
        self.operands.input_grads[i].map(|(s, write)| (plain(s, self.operands.input_elems[i]), write))
    }
    /// What the gradient of input `i` is to be multiplied by, once it is added up.
    pub fn input_mask(&self, i: usize) -> Option<InputMask> {
        self.operands
            .input_masks
            .get(i)
            .copied()
            .flatten()
            .map(|(s, slope)| InputMask { mask: plain(s, Elem::F32), slope })
    }
    /// Whether the gradient of the output has been multiplied by the activation's slope already.
    pub fn dy_is_masked(&self) -> bool {
        self.operands.dy_is_masked
    }
    /// Of the producer, where the moments of its output go; of a consumer, those of its first input. Forward only.
    pub fn channel_stats(&self) -> Option<ChannelStats> {
        self.operands.channel_stats.map(|(s, rows)| ChannelStats { parts: plain(s, Elem::F32), rows })
    }
    /// An activation of the output that forward computes too.
    pub fn fused_activation(&self) -> Option<FusedActivation> {
        self.operands.fused_activation
    }
    /// Whether forward is left to the producer of the first input.
    pub fn is_fused_into_producer(&self) -> bool {
        self.operands.is_fused_into_producer
    }
    /// The first part of the first input's gradient, of its type, if it lies elsewhere than where the sum goes.
    pub fn first_term(&self) -> Option<DeviceTensor> {
        self.operands.first_term.map(|s| plain(s, self.operands.input_elems[0]))
    }
    pub fn step(&self) -> KernelArg {
        KernelArg::Step
    }
    /// Adds a launch after those before it.
    ///
    /// Errors: a kernel that does not exist, takes other arguments, or cannot be launched so.
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
    /// Adds a launch by the fastest of several ways.
    ///
    /// Errors: as [`Launches::launch`].
    pub fn launch_fastest<const N: usize>(
        &mut self,
        ways: Vec<Candidate>,
        multiprocessors: usize,
        args: [KernelArg; N],
    ) -> Result<()> {
        self.push(Launch::by_fastest(ways, multiprocessors, args.into()))
    }
    /// Adds a launch whose blocks fit the target's shared memory, or returns the error with the op's name.
    fn push(&mut self, launch: Result<Launch>) -> Result<()> {
        let launch = launch.and_then(|l| l.expect_shared_at_most(self.target.shared_bytes).map(|()| l));
        self.list.push(launch.map_err(|e| Error::Run(format!("{}: {e}", self.op)))?);
        Ok(())
    }
    /// Refuses operands whose types no kernel of the op takes together.
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
