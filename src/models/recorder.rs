//! Recording ops onto a tape over the tensors of a store.

use crate::autograd::tape::{Learn, Tape, Value};
use crate::autograd::{Store, TensorId};
use crate::error::Result;
use crate::ops::Op;
use crate::tensor::Real;

/// A tape that is being recorded, and the store that its leaves are in.
pub struct Recorder<'a, R> {
    /// The tape that ops are added to.
    pub tape: &'a mut Tape,
    /// The tensors that the tape's leaves refer to.
    pub store: &'a Store<R>,
}

impl<R: Real> Recorder<'_, R> {
    /// Records tensor `id` of the store as a leaf.
    pub fn leaf(&mut self, id: TensorId, learn: Learn) -> Value {
        self.tape.leaf(self.store, id, learn)
    }

    /// Records everything that `part` records under the name `scope`; forecasts give the cost of a step by
    /// these names.
    pub fn within<T>(&mut self, scope: &'static str, part: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.tape.scope(scope);
        let out = part(self);
        self.tape.scope(before);
        out
    }

    /// Records an op that has one result.
    ///
    /// Errors: operands that the op cannot take.
    pub fn apply(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value> {
        self.tape.apply(op, inputs)
    }
}
