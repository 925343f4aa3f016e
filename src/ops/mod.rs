//! The operators, in a folder for each kind. Every op has a file (`conv2d` a folder) and a line in the
//! registry below.
//!
//! An op defines shapes, memory slots and arithmetic. It does not depend on the tape, on models, or on a
//! device beyond its own loops and launches. The CPU code is generic over [`Real`]: `f32` is the CPU backend,
//! and `f64` is the reference that every other result is compared with.

#![warn(missing_docs)]

use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::ops::fusion::Fusion;
use crate::ops::launch::launches::Launches;
use crate::ops::operands::{Io, Operands};
use crate::ops::operator::{OperandInfo, Operator, Signature};
use crate::tensor::{Real, Shape};

pub mod fusion;
pub mod launch;
pub mod layers;
pub mod losses;
pub mod movement;
#[cfg(test)]
pub mod op_check;
pub mod operands;
pub mod operator;
pub mod optim;
pub mod random;
pub mod ranks;

macro_rules! registry {
    ($($kind:ident :: $module:ident :: $op:ident),* $(,)?) => {
        /// Any operator, as a tape records it.
        #[derive(Clone, Debug)]
        pub enum Op {
            $(#[doc = concat!("See [`", stringify!($kind), "::", stringify!($module), "`].")]
            $op($kind::$module::$op)),*
        }

        $(impl From<$kind::$module::$op> for Op {
            fn from(op: $kind::$module::$op) -> Self { Op::$op(op) }
        })*

        impl Op {
            /// The name that messages and profiles use: the file's, such as `batch_norm`.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$op(_) => stringify!($module)),* }
            }
        }

        impl Operator for Op {
            fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
                match self { $(Op::$op(op) => op.signature(args)),* }
            }
            fn forward<R: Real>(&self, io: &Io<R>) {
                match self { $(Op::$op(op) => op.forward(io)),* }
            }
            fn backward<R: Real>(&self, io: &Io<R>) {
                match self { $(Op::$op(op) => op.backward(io)),* }
            }
            fn launch_forward(&self, l: &mut Launches) -> Result<()> {
                match self { $(Op::$op(op) => op.launch_forward(l)),* }
            }
            fn launch_backward(&self, l: &mut Launches) -> Result<()> {
                match self { $(Op::$op(op) => op.launch_backward(l)),* }
            }
            fn device_extents(&self, args: &[OperandInfo], target: &Target, signature: &mut Signature) {
                match self { $(Op::$op(op) => op.device_extents(args, target, signature)),* }
            }
            fn minimal_bytes(&self, operands: &Operands) -> u64 {
                match self { $(Op::$op(op) => op.minimal_bytes(operands)),* }
            }
            fn touched_bytes(&self, operands: &Operands, i: usize) -> u64 {
                match self { $(Op::$op(op) => op.touched_bytes(operands, i)),* }
            }
            fn fusion(&self, inputs: &[Shape], output: Shape, target: &Target) -> Fusion {
                match self { $(Op::$op(op) => op.fusion(inputs, output, target)),* }
            }
        }
    };
}

/// A number type that plans compute in.
///
/// Both types' CPU kernels are compiled here, once. Plans are generic; if they called [`Operator::forward`], every
/// crate that replays a plan would compile all kernels again, and a test binary took 40 to 80 seconds.
pub trait Scalar: Real {
    /// [`Operator::forward`] in this type.
    fn forward(op: &Op, io: &Io<Self>);
    /// [`Operator::backward`] in this type.
    fn backward(op: &Op, io: &Io<Self>);
}

impl Scalar for f32 {
    fn forward(op: &Op, io: &Io<f32>) {
        Operator::forward(op, io);
    }
    fn backward(op: &Op, io: &Io<f32>) {
        Operator::backward(op, io);
    }
}

impl Scalar for f64 {
    fn forward(op: &Op, io: &Io<f64>) {
        Operator::forward(op, io);
    }
    fn backward(op: &Op, io: &Io<f64>) {
        Operator::backward(op, io);
    }
}

// One line for each op.
registry! {
    layers::activation::Activation,
    layers::conv2d::Conv2d,
    layers::fold_norm::FoldNorm,
    layers::batch_norm::BatchNorm,
    losses::statistics_loss::StatisticsLoss,
    layers::max_pool::MaxPool,
    layers::avg_pool::AvgPool,
    layers::global_avg_pool::GlobalAvgPool,
    layers::upsample::Upsample,
    layers::se_filter::SeFilter,
    movement::columns::Columns,
    movement::concat_columns::ConcatColumns,
    losses::one_hot_loss::OneHotLoss,
    losses::bce::Bce,
    losses::activation_loss::ActivationLoss,
    losses::entropy_loss::EntropyLoss,
    losses::discrete_loss::DiscreteLoss,
    losses::feature_loss::FeatureLoss,
    losses::weighted_sum::WeightedSum,
    losses::diversity::Diversity,
    random::noise::Noise,
    random::draw_labels::DrawLabels,
    movement::gather_images::GatherImages,
    movement::scatter_images::ScatterImages,
    movement::to_maps::ToMaps,
    random::augment::Augment,
    optim::adam::Adam,
    optim::sgd::Sgd,
    ranks::spread::Spread,
    ranks::gather_columns::GatherColumns,
    ranks::own_rows::OwnRows,
    ranks::all_rows::AllRows,
}
