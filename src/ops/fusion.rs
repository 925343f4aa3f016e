//! What an op's kernels can take over from its neighbours on a GPU, and what the neighbours can take over
//! from it.
//!
//! An op only states what it can do; `autograd::fuse` sees the whole step and decides what is done.

use crate::device::Slot;
use crate::tensor::{Elem, Shape};

/// The fusions an op takes part in. The default is an op that takes part in none, which is right for most of
/// them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fusion {
    /// The piecewise linear activation at the op's output. Its mask is the first saved buffer, and backward
    /// begins by multiplying the output's gradient by its slope. The op that writes that gradient last may do
    /// so instead.
    pub act_mask: Option<ActMask>,
    /// Backward's kernels can multiply the gradient of input 0 by the activation mask of the op that produced
    /// it.
    pub masks_input_grad: bool,
    /// Index of the input whose gradient equals the output's masked gradient, so that no kernel has to write
    /// it.
    pub grad_alias: Option<usize>,
    /// The gradient of input 0 equals the output's masked gradient too.
    pub copies_grad: bool,
    /// Backward can read a first term of the gradient of input 0 from another buffer and store the sum.
    pub adds_first_term: bool,
    /// Backward's gradient of input 0 is linear in that input, with the coefficients in the first saved buffer;
    /// the op that writes the gradient's other term can add it.
    pub has_linear_grad: bool,
    /// Backward's kernels can add such a term to the gradient of the input that input 0 is an activation of.
    pub adds_linear_grad: bool,
    /// Forward's kernels can write partial statistics of the output's channels; the number is the pixels per
    /// partial.
    pub writes_channel_stats: Option<usize>,
    /// Forward begins with the statistics of the channels of input 0.
    pub reads_channel_stats: bool,
    /// Index of the forward scratch buffer that is not needed if input 0's producer writes those statistics.
    pub scratch_without_stats: Option<usize>,
    /// Forward's kernels can also compute a piecewise linear activation of the output, with a residual in
    /// front of it.
    pub fuses_activation: bool,
    /// The op is an activation that the producer of input 0 can compute.
    pub is_fusable_activation: bool,
    /// Instructions of equal keys that do not depend on each other can run as one grouped launch.
    pub group_key: Option<String>,
    /// It counts in the length of a path, by which networks that run side by side are aligned (`autograd::plan::groups`).
    pub is_layer: bool,
    /// Forward's launches take any number of such instructions, whatever their sizes. They run together, as
    /// late as those allow that wait for them.
    pub gathers_forward: bool,
    /// Backward's launches take any number of such instructions too. Where all the gradients that it writes are those of
    /// leaves, which no other backward reads, it runs after all other backwards, together with those of its kind.
    pub gathers_backward: bool,
    /// The outputs are f32 even where the inputs are bf16: means, whose few elements cost nothing.
    pub has_f32_outputs: bool,
    /// Output 0 is a filter, stored as feature maps are because they are multiplied with it. Its gradient and all other
    /// outputs are f32, as the gradient of a trained filter is.
    pub is_filter: bool,
}

impl Fusion {
    /// How a GPU stores output `i` of an op with these inputs: scalars, and rows computed from f32 rows, in
    /// f32; feature maps, and rows computed from them, as `map_dtype` says.
    pub fn output_elem(&self, i: usize, output: Shape, inputs: &[Elem], map_dtype: Elem) -> Elem {
        if self.is_filter {
            return if i == 0 { map_dtype } else { Elem::F32 };
        }
        let is_map = output.h() * output.w() > 1 || inputs.contains(&Elem::Bf16);
        if is_map && output != Shape::SCALAR && !self.has_f32_outputs { map_dtype } else { Elem::F32 }
    }
    /// How a GPU stores the gradient of an output that it stores as `output`.
    pub fn gradient_elem(&self, output: Elem) -> Elem {
        if self.is_filter { Elem::F32 } else { output }
    }
}

/// The activation mask that forward saves: one bit per element, set where the derivative is 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActMask {
    /// The derivative where the bit is not set.
    pub slope: f32,
    /// Index of the backward scratch buffer needed only when this op must apply the activation mask itself.
    pub scratch: Option<usize>,
}

/// The gradient of a loss of a map u, added by the op that writes the rest of u's gradient:
/// `dloss * (slope * (u - shift) + offset)` for each channel.
#[derive(Clone, Copy, Debug)]
pub struct LinearGrad {
    /// The map.
    pub u: Slot,
    /// Shift, slope and offset: `[3][c]`.
    pub coefficients: Slot,
    /// The gradient of the loss.
    pub dloss: Slot,
    /// Where the sum goes; none if it replaces the rest.
    pub du: Option<Slot>,
}

/// An activation that the producer of its input computes: the slots of its operands.
#[derive(Clone, Copy, Debug)]
pub struct FusedActivation {
    /// Output.
    pub y: Slot,
    /// The activation's mask, if backward runs.
    pub mask: Option<Slot>,
    /// A second input, added before the activation.
    pub residual: Option<Slot>,
    /// The activation's slope below zero.
    pub slope: f32,
    /// Whether anything but the activation reads the producer's own output.
    pub keeps_sum: bool,
}
