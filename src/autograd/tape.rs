//! The record of one step: leaves, operators, and which values need a gradient.

use super::store::{Store, TensorId};
use crate::error::{Error, Result};
use crate::ops::Op;
use crate::ops::operator::{OperandInfo, Operator};
use crate::tensor::{Real, Shape};
use std::collections::HashMap;

/// A tensor computed (or read) during the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Value(pub(super) u32);

/// Whether a leaf's gradient is wanted. Frozen leaves cost no gradient and keep no activation alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learn {
    Frozen,
    Trainable,
}

pub(super) struct Info {
    pub shape: Shape,
    pub needs_grad: bool,
    pub leaf: Option<TensorId>,
    /// The value whose memory this one looks at.
    pub view_of: Option<Value>,
}

pub(super) struct Node {
    pub op: Op,
    pub scope: &'static str,
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
}

/// A step, recorded once.
#[derive(Default)]
pub struct Tape {
    pub(super) values: Vec<Info>,
    pub(super) nodes: Vec<Node>,
    pub(super) metrics: Vec<(String, Value)>,
    pub(super) outputs: Vec<Value>,
    /// The part of the step that is being recorded.
    scope: &'static str,
    leaves: HashMap<TensorId, Value>,
}

impl Tape {
    /// Reads a tensor of the store. The same tensor is the same value wherever it is used, so its gradients add up.
    pub fn leaf<R: Real>(&mut self, store: &Store<R>, id: TensorId, learn: Learn) -> Value {
        let needs_grad = learn == Learn::Trainable;
        if let Some(v) = self.leaves.get(&id) {
            assert_eq!(
                self.values[v.0 as usize].needs_grad,
                needs_grad,
                "{} is recorded both frozen and trainable",
                store.name(id)
            );
            return *v;
        }
        let v = self.value(Info { shape: store.shape(id), needs_grad, leaf: Some(id), view_of: None });
        self.leaves.insert(id, v);
        v
    }

    /// What is recorded from here on belongs to this part of the step, in forecasts and labels; returns the part before.
    pub fn scope(&mut self, scope: &'static str) -> &'static str {
        std::mem::replace(&mut self.scope, scope)
    }

    /// Records `op` and returns its single output.
    pub fn apply(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value> {
        let out = self.apply_all(op.into(), inputs)?;
        match out[..] {
            [v] => Ok(v),
            _ => Err(Error::Run(format!("an op with {} outputs was recorded as if it had one", out.len()))),
        }
    }

    /// Records `op` and returns all its outputs.
    pub fn apply_all(&mut self, op: Op, inputs: &[Value]) -> Result<Vec<Value>> {
        for (i, v) in inputs.iter().enumerate() {
            if self.needs_grad(*v)
                && inputs[..i].iter().any(|u| self.needs_grad(*u) && self.root(*u) == self.root(*v))
            {
                return Err(Error::shape(
                    op.name(),
                    "the same value that needs_grad a gradient stands twice among the operands",
                ));
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
            .map(|shape| self.value(Info { shape: *shape, needs_grad, leaf: None, view_of: None }))
            .collect();
        let scope = self.scope;
        self.nodes.push(Node { op, scope, inputs: inputs.to_vec(), outputs: outputs.clone() });
        Ok(outputs)
    }

    /// The same numbers in another shape: no copy, and gradients pass through.
    pub fn reshape(&mut self, v: Value, shape: Shape) -> Result<Value> {
        if shape.elems() != self.shape(v).elems() {
            return Err(Error::shape("reshape", format!("{} elements do not fill {shape}", self.shape(v))));
        }
        Ok(self.value(Info { shape, needs_grad: self.needs_grad(v), leaf: None, view_of: Some(v) }))
    }

    /// The same numbers as a constant: no copy, and no gradient passes.
    pub fn detach(&mut self, v: Value) -> Value {
        self.value(Info { shape: self.shape(v), needs_grad: false, leaf: None, view_of: Some(v) })
    }

    /// Index of the value that owns the memory of `v`.
    pub(super) fn root(&self, v: Value) -> usize {
        let info = &self.values[v.0 as usize];
        info.view_of.map_or(v.0 as usize, |v| self.root(v))
    }

    pub fn shape(&self, v: Value) -> Shape {
        self.values[v.0 as usize].shape
    }
    /// What was recorded, in order: each op, its operands and its results.
    pub fn ops(&self) -> impl Iterator<Item = (&Op, &[Value], &[Value])> {
        self.nodes.iter().map(|n| (&n.op, &n.inputs[..], &n.outputs[..]))
    }
    /// The tensor that a leaf reads.
    pub fn tensor(&self, v: Value) -> Option<TensorId> {
        self.values[v.0 as usize].leaf
    }
    pub fn needs_grad(&self, v: Value) -> bool {
        self.values[v.0 as usize].needs_grad
    }
    /// Reports a scalar after every replay.
    pub fn metric(&mut self, name: &str, v: Value) {
        assert_eq!(self.shape(v).elems(), 1, "metric {name} is not a scalar");
        self.metrics.push((name.into(), v));
    }
    /// Keeps a value readable after the replay.
    pub fn output(&mut self, v: Value) {
        self.outputs.push(v);
    }

    fn value(&mut self, info: Info) -> Value {
        self.values.push(info);
        Value(self.values.len() as u32 - 1)
    }
}
