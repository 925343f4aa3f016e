//! Networks as sequences of recorded ops over tensors of a store. No arithmetic of their own.

pub mod filter;
pub mod fold;
pub mod generator;
pub mod init;
pub mod resnet;
pub mod targetnet;
pub mod torchvision;

use crate::autograd::tape::{Learn, Tape, Value};
use crate::autograd::{Store, TensorId};
use crate::error::Result;
use crate::ops::Op;
use crate::tensor::Real;

/// A tape being recorded over a store.
pub struct Recorder<'a, R> {
    pub tape: &'a mut Tape,
    pub store: &'a Store<R>,
}

impl<R: Real> Recorder<'_, R> {
    pub fn leaf(&mut self, id: TensorId, learn: Learn) -> Value {
        self.tape.leaf(self.store, id, learn)
    }
    /// Records `part` as the part `scope` of the step.
    pub fn within<T>(&mut self, scope: &'static str, part: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.tape.scope(scope);
        let out = part(self);
        self.tape.scope(before);
        out
    }
    pub fn apply(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value> {
        self.tape.apply(op, inputs)
    }
}
