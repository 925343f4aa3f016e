//! Which batch norms are folded into the filters in front of them.
//!
//! A student that starts from its teachers normalises with running estimates: `gamma (conv(x, w) - mean) / std + beta` is
//! then a convolution with another filter and a bias, which are computed once a step ([`FoldNorm`]). A pair of nodes
//! becomes one, whose kernel also computes the activation and the residual behind it. Such a unit stores one map instead of two,
//! and its backward reads neither the convolution's output nor x once more.
//!
//! The CPU keeps the pairs.

use crate::autograd::tape::{Node, Tape, Value, ValueInfo};
use crate::error::Result;
use crate::ops::Op;
use crate::ops::layers::activation::Act;
use crate::ops::layers::batch_norm::{BatchNorm, Stats};
use crate::ops::layers::conv2d::Conv2d;
use crate::ops::layers::fold_norm::FoldNorm;
use crate::ops::operator::{OperandInfo, Operator};
use std::collections::{HashMap, HashSet};

/// The tape with a [`FoldNorm`] and one convolution in place of each pair that can be folded. Values keep their numbers;
/// the output of a folded pair's convolution has no writer any more, and no reader.
///
/// Errors: operands that an op refuses.
pub(crate) fn folded(tape: &Tape, loss: Option<Value>) -> Result<Tape> {
    let pairs = pairs(tape, loss);
    let mut new = tape.without_nodes();
    let mut filters: HashMap<Vec<usize>, [Value; 2]> = HashMap::new();
    let convolutions: HashSet<usize> = pairs.values().map(|(conv, _, _)| *conv).collect();
    for (i, node) in tape.nodes.iter().enumerate() {
        let Some((conv_node, conv, norm)) = pairs.get(&i) else {
            if !convolutions.contains(&i) {
                new.nodes.push(node.clone());
            }
            continue;
        };
        let from = &tape.nodes[*conv_node];
        let vectors = [from.inputs[1]].into_iter().chain(node.inputs[1..].iter().copied());
        let operands: Vec<Value> = vectors.collect();
        let key = operands.iter().map(|v| tape.root(*v)).collect();
        let [filter, bias] = match filters.get(&key) {
            Some(found) => *found,
            None => {
                let outputs = new.push(FoldNorm { eps: norm.eps }.into(), &operands, from)?;
                filters.insert(key, outputs);
                outputs
            }
        };
        new.nodes.push(Node {
            op: Conv2d { bias: true, act: norm.act, ..*conv }.into(),
            inputs: vec![from.inputs[0], filter, bias],
            ..node.clone()
        });
    }
    Ok(new)
}

/// By the index of its batch norm, each pair that can be folded: the index of its convolution, and both ops.
fn pairs(tape: &Tape, loss: Option<Value>) -> HashMap<usize, (usize, Conv2d, BatchNorm)> {
    let mut readers: HashMap<usize, usize> = HashMap::new();
    let mut writer: HashMap<usize, usize> = HashMap::new();
    let mut updated: HashSet<usize> = HashSet::new();
    for (i, node) in tape.nodes.iter().enumerate() {
        node.inputs.iter().for_each(|v| *readers.entry(tape.root(*v)).or_default() += 1);
        writer.extend(node.outputs.iter().map(|v| (tape.root(*v), i)));
        if matches!(&node.op, Op::BatchNorm(b) if b.stats == Stats::Batch) {
            updated.extend(node.inputs[3..].iter().map(|v| tape.root(*v)));
        }
    }
    tape.results(loss).for_each(|v| *readers.entry(tape.root(v)).or_default() += 1);
    let mut found = HashMap::new();
    // The filter that each trained tensor is folded into: kernels add to the gradient of none twice in a launch.
    let mut used: HashMap<usize, Vec<usize>> = HashMap::new();
    for (i, node) in tape.nodes.iter().enumerate() {
        let Op::BatchNorm(norm) = &node.op else { continue };
        let u = tape.root(node.inputs[0]);
        let Some(&at) = writer.get(&u) else { continue };
        let (Op::Conv2d(conv), from) = (&tape.nodes[at].op, &tape.nodes[at]) else { continue };
        let is_plain = !conv.bias && !conv.residual && conv.act == Act::None && norm.stats == Stats::Running;
        // Only maps that an op computes are stored as filters are; leaves, and rows computed from them, are f32.
        let x = tape.root(from.inputs[0]);
        let is_map = tape.values[x].shape.h() * tape.values[x].shape.w() > 1 && writer.contains_key(&x);
        let is_alone = readers[&u] == 1 && node.inputs[0] == from.outputs[0];
        let is_once = from.segment.is_none() && node.segment.is_none();
        let operands: Vec<usize> =
            [from.inputs[1]].iter().chain(&node.inputs[1..]).map(|v| tape.root(*v)).collect();
        let are_leaves = operands.iter().all(|v| tape.values[*v].leaf.is_some() && !updated.contains(v));
        let is_unshared = operands[..3].iter().all(|v| used.get(v).is_none_or(|others| *others == operands));
        if is_plain && is_map && is_alone && is_once && are_leaves && is_unshared {
            operands[..3].iter().for_each(|v| drop(used.insert(*v, operands.clone())));
            found.insert(i, (at, *conv, *norm));
        }
    }
    found
}

impl Tape {
    /// Adds an op with two outputs to the scope of another node.
    fn push(&mut self, op: Op, inputs: &[Value], beside: &Node) -> Result<[Value; 2]> {
        let info = |v: &Value| OperandInfo { shape: self.shape(*v), needs_grad: self.needs_grad(*v) };
        let args: Vec<OperandInfo> = inputs.iter().map(info).collect();
        let (signature, needs_grad) = (op.signature(&args)?, args.iter().any(|a| a.needs_grad));
        let outputs = [0, 1].map(|i| {
            let info = ValueInfo { shape: signature.outputs[i], needs_grad, leaf: None, view_of: None };
            self.value(info)
        });
        let inputs = inputs.to_vec();
        self.nodes.push(Node { op, inputs, outputs: outputs.to_vec(), ..beside.clone() });
        Ok(outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Store;
    use crate::autograd::TensorId;
    use crate::autograd::tape::Learn;
    use crate::ops::layers::activation::Activation;
    use crate::tensor::Shape;

    const RUNNING: BatchNorm = BatchNorm { stats: Stats::Running, act: Act::Relu, momentum: 0.1, eps: 1e-5 };

    /// A map of 4x4 pixels with 8 channels that an op computes, and tensors for layers on it.
    struct Recorded {
        store: Store<f32>,
        tape: Tape,
        x: Value,
    }

    impl Recorded {
        fn new() -> Recorded {
            let mut store = Store::<f32>::default();
            let leaf = store.add("x", Shape::new(2, 4, 4, 8));
            let mut tape = Tape::default();
            let x = tape.leaf(&store, leaf, Learn::Frozen);
            let x = tape.apply(Activation(Act::Tanh), &[x]).unwrap();
            Recorded { store, tape, x }
        }
        fn leaf(&mut self, shape: Shape, learn: Learn) -> Value {
            let id: TensorId = self.store.add(&format!("t{}", self.tape.values.len()), shape);
            self.tape.leaf(&self.store, id, learn)
        }
        fn filter(&mut self) -> Value {
            self.leaf(Shape::new(8, 1, 1, 8), Learn::Trainable)
        }
        /// gamma, beta, mean and variance.
        fn vectors(&mut self) -> [Value; 4] {
            let learn = [Learn::Trainable, Learn::Trainable, Learn::Frozen, Learn::Frozen];
            learn.map(|l| self.leaf(Shape::vector(8), l))
        }
        fn conv(&mut self, x: Value, w: Value) -> Value {
            self.tape.apply(Conv2d::new(1, 0), &[x, w]).unwrap()
        }
        fn norm(&mut self, op: BatchNorm, u: Value, [a, b, c, d]: [Value; 4]) -> Value {
            self.tape.apply(op, &[u, a, b, c, d]).unwrap()
        }
        /// The names of the ops after folding, the activation in front left out.
        fn folded(&self) -> Vec<&'static str> {
            let folded = folded(&self.tape, None).unwrap();
            folded.nodes[1..].iter().map(|n| n.op.name()).collect()
        }
    }

    #[test]
    fn a_pair_becomes_one_convolution_with_the_norms_activation_and_output() {
        let mut r = Recorded::new();
        let (w, vectors) = (r.filter(), r.vectors());
        let u = r.conv(r.x, w);
        let y = r.norm(RUNNING, u, vectors);
        r.tape.output(y);
        let folded = folded(&r.tape, None).unwrap();
        let [_, fold, conv] = &folded.nodes[..] else { panic!("{} nodes", folded.nodes.len()) };
        assert!(matches!(fold.op, Op::FoldNorm(FoldNorm { eps: 1e-5 })));
        assert_eq!(fold.inputs, [&[w], &vectors[..]].concat());
        assert!(matches!(conv.op, Op::Conv2d(Conv2d { bias: true, residual: false, act: Act::Relu, .. })));
        assert_eq!(
            (&conv.inputs[..], &conv.outputs[..]),
            (&[r.x, fold.outputs[0], fold.outputs[1]][..], &[y][..])
        );
        assert!(fold.outputs.iter().all(|v| folded.needs_grad(*v)));
        assert_eq!((folded.shape(fold.outputs[0]), folded.outputs), (Shape::new(8, 1, 1, 8), vec![y]));
    }

    #[test]
    fn a_layer_that_is_used_twice_is_folded_once() {
        let mut r = Recorded::new();
        let (w, vectors) = (r.filter(), r.vectors());
        for _ in 0..2 {
            let u = r.conv(r.x, w);
            r.norm(RUNNING, u, vectors);
        }
        assert_eq!(r.folded(), ["fold_norm", "conv2d", "conv2d"]);
    }

    #[test]
    fn two_norms_of_one_filter_are_not_folded_both() {
        let mut r = Recorded::new();
        let w = r.filter();
        for _ in 0..2 {
            let (u, vectors) = (r.conv(r.x, w), r.vectors());
            r.norm(RUNNING, u, vectors);
        }
        assert_eq!(r.folded(), ["fold_norm", "conv2d", "conv2d", "batch_norm"]);
    }

    #[test]
    fn pairs_that_are_not_one_convolution_are_kept() {
        let pair = ["conv2d", "batch_norm"];
        let kept = |layers: fn(&mut Recorded)| {
            let mut r = Recorded::new();
            layers(&mut r);
            r.folded()
        };
        assert_eq!(
            kept(|r| {
                let (w, vectors) = (r.filter(), r.vectors());
                let u = r.conv(r.x, w);
                r.norm(BatchNorm { stats: Stats::Batch, ..RUNNING }, u, vectors);
            }),
            pair,
            "the batch's statistics are those of the convolution's output"
        );
        assert_eq!(
            kept(|r| {
                let (w, vectors) = (r.filter(), r.vectors());
                let u = r.conv(r.x, w);
                r.norm(RUNNING, u, vectors);
                r.tape.output(u);
            }),
            pair,
            "the convolution's output is read by others"
        );
        assert_eq!(
            kept(|r| {
                let (w, vectors) = (r.filter(), r.vectors());
                let leaf = r.leaf(Shape::new(2, 4, 4, 8), Learn::Frozen);
                let u = r.conv(leaf, w);
                r.norm(RUNNING, u, vectors);
            }),
            pair,
            "leaves are f32, and the filter would have the type of feature maps"
        );
        assert_eq!(
            kept(|r| {
                let (w, vectors) = (r.filter(), r.vectors());
                let u = r.conv(r.x, w);
                r.norm(RUNNING, u, vectors);
                r.norm(BatchNorm { stats: Stats::Batch, ..RUNNING }, r.x, vectors);
            }),
            ["conv2d", "batch_norm", "batch_norm"],
            "the running estimates change within the step"
        );
        assert_eq!(
            kept(|r| {
                let (w, vectors) = (r.filter(), r.vectors());
                let u = r.tape.apply(Conv2d { act: Act::Relu, ..Conv2d::new(1, 0) }, &[r.x, w]).unwrap();
                r.norm(RUNNING, u, vectors);
            }),
            pair,
            "an activation lies between them"
        );
    }
}
