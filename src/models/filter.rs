//! The teacher-level filter `f_m^b`: channel gains that let one stream feed teachers with different features.

use super::Recorder;
use super::init::normal;
use crate::autograd::tape::{Learn, Value};
use crate::autograd::{Store, TensorId};
use crate::error::Result;
use crate::ops::layers::se_filter::SeFilter;
use crate::tensor::{Real, Shape};

/// The tensors of one filter over `c` channels with reduction `r` (supplement 1.2): two fully connected
/// layers.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Weight of the first layer, `[c/r, 1, 1, c]`.
    pub reduce: TensorId,
    /// Bias of the first layer, `[1, 1, 1, c/r]`.
    pub reduce_bias: TensorId,
    /// Weight of the second layer, `[c, 1, 1, c/r]`.
    pub expand: TensorId,
    /// Bias of the second layer, `[1, 1, 1, c]`.
    pub expand_bias: TensorId,
}

/// A channel's gain is `GAIN * sigmoid(...)` *(ours)*. With zero biases and small weights it starts near one,
/// so a filter begins as the identity; the published sigmoid alone would begin by halving the features that
/// the teacher expects.
pub const GAIN: f32 = 2.0;

impl Filter {
    /// Names and shapes of a filter's tensors, in the order of [`Filter::tensors`].
    pub fn shapes(c: usize, r: usize) -> [(&'static str, Shape); 4] {
        [
            ("fc1.weight", Shape::new(c / r, 1, 1, c)),
            ("fc1.bias", Shape::vector(c / r)),
            ("fc2.weight", Shape::new(c, 1, 1, c / r)),
            ("fc2.bias", Shape::vector(c)),
        ]
    }

    /// The shape in a file of the tensor of that name. As in PyTorch, a matrix of one row stays a matrix.
    pub fn file_shape(name: &str, shape: Shape) -> Vec<usize> {
        if name.ends_with("weight") { vec![shape.n(), shape.c()] } else { vec![shape.c()] }
    }

    /// Number of parameters of a filter over `c` channels with reduction `r`.
    pub fn parameters(c: usize, r: usize) -> usize {
        Self::shapes(c, r).iter().map(|(_, s)| s.elems()).sum()
    }

    /// Adds a new filter to the store. Weights are Gaussian with variance `1 / (3 fan_in)`, the second
    /// layer's with a tenth of that deviation; biases are zero.
    pub fn new<R: Real>(store: &mut Store<R>, prefix: &str, c: usize, r: usize, seed: u64) -> Filter {
        let id = Self::shapes(c, r).map(|(part, shape)| {
            let name = format!("{prefix}.{part}");
            let std = match part {
                "fc1.weight" => (1.0 / (3 * c) as f64).sqrt(),
                "fc2.weight" => 0.1 * (1.0 / (3 * (c / r)) as f64).sqrt(),
                _ => 0.0,
            };
            let values = store.drawn(|| normal(seed, &name, shape.elems(), std));
            store.add_with(&name, shape, &values)
        });
        Filter { reduce: id[0], reduce_bias: id[1], expand: id[2], expand_bias: id[3] }
    }

    /// The four tensors, first layer first.
    pub fn tensors(&self) -> [TensorId; 4] {
        [self.reduce, self.reduce_bias, self.expand, self.expand_bias]
    }

    /// Records the filter on features `x` `[n, h, w, c]`; the result has the same shape.
    pub fn record<R: Real>(&self, r: &mut Recorder<R>, x: Value, learn: Learn) -> Result<Value> {
        let [a, b, c, d] = self.tensors().map(|id| r.leaf(id, learn));
        r.apply(SeFilter { top: GAIN }, &[x, a, b, c, d])
    }
}
