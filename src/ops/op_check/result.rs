//! What one run of a case leaves behind.

use super::linear::{self, Place};
use crate::tensor::Shape;
use std::fmt;

/// Which tensor of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// An output, by index.
    Output(usize),
    /// An input that forward updates in place, by its index among the inputs.
    Updated(usize),
    /// The gradient of an input, by the input's index.
    Gradient(usize),
    /// The gradient of input 0 with the linear gradient of a loss, where it is apart.
    WithLinear,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Output(i) => write!(f, "output {i}"),
            Part::Updated(i) => write!(f, "updated input {i}"),
            Part::Gradient(i) => write!(f, "gradient of input {i}"),
            Part::WithLinear => write!(f, "gradient of input 0 with a loss's"),
        }
    }
}

/// One tensor of a result.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultTensor {
    /// Which one.
    pub part: Part,
    /// Its shape.
    pub shape: Shape,
    /// Its values.
    pub values: Vec<f64>,
}

/// What one run of a case leaves behind: outputs, then updated inputs, then gradients.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunResult {
    /// Its tensors.
    pub tensors: Vec<ResultTensor>,
}

impl RunResult {
    /// Adds a tensor behind those before it.
    pub fn push(&mut self, part: Part, shape: Shape, values: Vec<f64>) {
        self.tensors.push(ResultTensor { part, shape, values });
    }
    /// Adds the linear gradient of a loss to the gradient of input 0, or the sum behind all others.
    pub fn add_linear(&mut self, place: Place) {
        let at =
            self.tensors.iter().position(|t| t.part == Part::Gradient(0)).expect("a gradient of input 0");
        let mut sum = self.tensors[at].clone();
        linear::add(sum.shape, &mut sum.values);
        match place {
            Place::There => self.tensors[at] = sum,
            Place::Apart => self.tensors.push(ResultTensor { part: Part::WithLinear, ..sum }),
        }
    }
    /// Everything but gradients.
    pub fn of_forward(&self) -> impl Iterator<Item = &ResultTensor> {
        self.tensors.iter().filter(|t| !matches!(t.part, Part::Gradient(_) | Part::WithLinear))
    }
    /// The gradients, with their inputs.
    pub fn gradients(&self) -> impl Iterator<Item = (usize, &ResultTensor)> {
        self.tensors.iter().filter_map(|t| match t.part {
            Part::Gradient(i) => Some((i, t)),
            Part::Output(_) | Part::Updated(_) | Part::WithLinear => None,
        })
    }
    /// One tensor, which must be there.
    pub fn of(&self, part: Part) -> &ResultTensor {
        let found = self.tensors.iter().find(|t| t.part == part);
        found.unwrap_or_else(|| panic!("the result has no {part}"))
    }
}

/// For comparisons that tell one NaN from another.
pub fn bits<'a>(tensors: impl IntoIterator<Item = &'a ResultTensor>) -> Vec<u64> {
    tensors.into_iter().flat_map(|t| &t.values).map(|v| v.to_bits()).collect()
}

/// The coordinates `[n, h, w, c]` of element `i`.
pub fn coordinates(shape: Shape, i: usize) -> [usize; 4] {
    let [_, h, w, c] = shape.0.map(|d| d.max(1));
    [i / c / w / h, i / c / w % h, i / c % w, i % c]
}
