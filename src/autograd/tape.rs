//! The record of one step: leaves, operators, and which values need a gradient.

use super::store::{Store, TensorId};
use crate::device::division::Division;
use crate::error::{Error, Result};
use crate::ops::Op;
use crate::ops::operator::{OperandInfo, Operator};
use crate::tensor::{Real, Shape};
use std::collections::HashMap;

/// A tensor that a step computes, or reads from the store (a leaf). It is valid for the tape that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Value(pub(super) u32);

/// Whether a leaf needs a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learn {
    /// It needs none: backward computes no gradient for it, and keeps no activation in memory for that
    /// gradient.
    Frozen,
    /// It needs one.
    Trainable,
}

#[derive(Clone)]
pub(super) struct ValueInfo {
    pub shape: Shape,
    pub needs_grad: bool,
    /// The tensor that a leaf reads.
    pub leaf: Option<TensorId>,
    /// The value whose memory a view shares.
    pub view_of: Option<Value>,
}

/// A recorded op.
#[derive(Clone)]
pub(super) struct Node {
    pub op: Op,
    /// See [`Tape::scope`].
    pub scope: &'static str,
    /// The segment that it belongs to: see [`Tape::begin_segment`].
    pub segment: Option<u32>,
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
}

/// The record of a step: ops in the order they are applied. Nothing is computed until the tape is compiled.
#[derive(Default)]
pub struct Tape {
    pub(super) values: Vec<ValueInfo>,
    pub(super) nodes: Vec<Node>,
    pub(super) metrics: Vec<(String, Value)>,
    pub(super) outputs: Vec<Value>,
    /// The scope of the ops that are recorded next.
    scope: &'static str,
    /// The segment of the ops that are recorded next, and the number of segments so far.
    segment: Option<u32>,
    segments: u32,
    leaves: HashMap<TensorId, Value>,
    /// The shares that the step's batch is cut into.
    pub(super) division: Division,
}

impl Tape {
    /// Divides the step's batch: this process has some of its shares, and other ranks have the rest. Ops then sum over all
    /// shares, and the gradients of the trainable tensors are sums over all shares.
    pub fn divide_batch(&mut self, division: Division) {
        self.division = division;
    }
    /// A tensor of the store, as a value. The same tensor is the same value wherever it is used, so that its
    /// gradients add up.
    ///
    /// Panics: a tensor that is already recorded, frozen then and trainable now, or the reverse.
    pub fn leaf<R: Real>(&mut self, store: &Store<R>, id: TensorId, learn: Learn) -> Value {
        let needs_grad = learn == Learn::Trainable;
        if let Some(v) = self.leaves.get(&id) {
            assert_eq!(
                self.values[v.0 as usize].needs_grad,
                needs_grad,
                "{} is recorded both as frozen and as trainable",
                store.name(id)
            );
            return *v;
        }
        let v = self.value(ValueInfo { shape: store.shape(id), needs_grad, leaf: Some(id), view_of: None });
        self.leaves.insert(id, v);
        v
    }

    /// Sets the scope of the ops that are recorded from here on, and returns the previous one. A scope names
    /// a part of the step ("teachers") in forecasts and in the labels of launches.
    pub fn scope(&mut self, scope: &'static str) -> &'static str {
        std::mem::replace(&mut self.scope, scope)
    }

    /// The ops that are recorded until [`Tape::end_segment`] form a segment: what they compute in forward is not kept for
    /// backward, but computed a second time right before it. Two segments then need only the memory of the larger one,
    /// and each costs another forward pass. On the CPU the gradients have the same bits as without segments.
    /// `Plan::compile` refuses an op that changes in place what a segment reads.
    ///
    /// Panics: within a segment.
    pub fn begin_segment(&mut self) {
        assert!(self.segment.is_none(), "a segment within a segment");
        self.segment = Some(self.segments);
        self.segments += 1;
    }
    /// See [`Tape::begin_segment`].
    pub fn end_segment(&mut self) {
        self.segment = None;
    }

    /// Records `op` and returns its only output.
    ///
    /// Errors: as [`Tape::apply_all`]; an op with another number of outputs than one.
    pub fn apply(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value> {
        let out = self.apply_all(op.into(), inputs)?;
        match out[..] {
            [v] => Ok(v),
            _ => Err(Error::Run(format!("an op with {} outputs was recorded as if it had one", out.len()))),
        }
    }

    /// Records `op` and returns all its outputs.
    ///
    /// Errors: operands that the op refuses; a value that needs a gradient and is passed twice, because the
    /// op would have to write the same gradient twice.
    pub fn apply_all(&mut self, op: Op, inputs: &[Value]) -> Result<Vec<Value>> {
        for (i, v) in inputs.iter().enumerate() {
            let is_same = |u: &Value| self.needs_grad(*u) && self.root(*u) == self.root(*v);
            if self.needs_grad(*v) && inputs[..i].iter().any(is_same) {
                let message = "the same value is passed twice, and it needs a gradient";
                return Err(Error::shape(op.name(), message));
            }
        }
        let args: Vec<OperandInfo> = inputs
            .iter()
            .map(|v| OperandInfo { shape: self.shape(*v), needs_grad: self.needs_grad(*v) })
            .collect();
        let signature = op.signature(&args)?;
        let needs_grad = args.iter().any(|a| a.needs_grad);
        let outputs: Vec<Value> = signature
            .outputs
            .iter()
            .map(|shape| self.value(ValueInfo { shape: *shape, needs_grad, leaf: None, view_of: None }))
            .collect();
        let (scope, segment) = (self.scope, self.segment);
        self.nodes.push(Node { op, scope, segment, inputs: inputs.to_vec(), outputs: outputs.clone() });
        Ok(outputs)
    }

    /// A view of the same elements in another shape: no copy, and gradients flow through it.
    ///
    /// Errors: a shape of another number of elements.
    pub fn reshape(&mut self, v: Value, shape: Shape) -> Result<Value> {
        if shape.elems() != self.shape(v).elems() {
            let (found, expected) = (self.shape(v), shape.elems());
            let message = format!("{found} has {} elements, {shape} has {expected}", found.elems());
            return Err(Error::shape("reshape", message));
        }
        Ok(self.value(ValueInfo { shape, needs_grad: self.needs_grad(v), leaf: None, view_of: Some(v) }))
    }

    /// A view of the same elements as a constant: no copy, and no gradient flows through it.
    pub fn detach(&mut self, v: Value) -> Value {
        self.value(ValueInfo { shape: self.shape(v), needs_grad: false, leaf: None, view_of: Some(v) })
    }

    /// Index of the value that owns the memory of `v`.
    pub(super) fn root(&self, v: Value) -> usize {
        let info = &self.values[v.0 as usize];
        info.view_of.map_or(v.0 as usize, |v| self.root(v))
    }

    /// The shape of a value.
    pub fn shape(&self, v: Value) -> Shape {
        self.values[v.0 as usize].shape
    }
    /// The recorded ops, in order: each with its inputs and its outputs.
    pub fn ops(&self) -> impl Iterator<Item = (&Op, &[Value], &[Value])> {
        self.nodes.iter().map(|n| (&n.op, &n.inputs[..], &n.outputs[..]))
    }
    /// The tensor that a leaf reads; none for other values.
    pub fn tensor(&self, v: Value) -> Option<TensorId> {
        self.values[v.0 as usize].leaf
    }
    /// Whether the value depends on a trainable leaf, other than through [`Tape::detach`].
    pub fn needs_grad(&self, v: Value) -> bool {
        self.values[v.0 as usize].needs_grad
    }
    /// Reports a scalar after every replay, under this name.
    ///
    /// Panics: a value of more than one element.
    pub fn metric(&mut self, name: &str, v: Value) {
        assert_eq!(self.shape(v).elems(), 1, "metric {name} is not a scalar");
        self.metrics.push((name.into(), v));
    }
    /// Keeps a value readable after the replay, by [`Plan::output`](super::Plan::output).
    pub fn output(&mut self, v: Value) {
        self.outputs.push(v);
    }

    /// The values that are read after the step: outputs, metrics and the loss.
    pub(super) fn results(&self, loss: Option<Value>) -> impl Iterator<Item = Value> {
        self.outputs.iter().copied().chain(self.metrics.iter().map(|(_, v)| *v)).chain(loss)
    }

    /// The same values and results, and no nodes.
    pub(super) fn without_nodes(&self) -> Tape {
        Tape {
            values: self.values.clone(),
            metrics: self.metrics.clone(),
            outputs: self.outputs.clone(),
            division: self.division,
            ..Tape::default()
        }
    }

    pub(super) fn value(&mut self, info: ValueInfo) -> Value {
        self.values.push(info);
        Value(self.values.len() as u32 - 1)
    }
}
