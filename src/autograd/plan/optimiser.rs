//! The optimisers that end a step.

use crate::autograd::TensorId;
use crate::ops::Op;

/// An update rule, and the tensors that it updates. Every tensor has moments of its own.
pub struct Optimiser {
    /// `Adam` or `Sgd`.
    pub op: Op,
    /// `(parameter, moments)`: all of one shape, the moments in the order that `op` expects.
    pub tensors: Vec<(TensorId, Vec<TensorId>)>,
}
