//! Which batch norms are folded into the filters in front of them.
//!
//! With running estimates, as in a student that starts from its teachers and in every evaluation,
//! `gamma (conv(x, w) - mean) / std + beta` is a convolution with another filter and a bias, which are computed once a step
//! ([`FoldNorm`]). A pair of nodes becomes one, whose kernel also computes the activation and the residual behind it. One map is
//! stored instead of two; backward does not read the convolution's output, and reads x once, for the filter's gradient.
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

/// A convolution and a batch norm of its output that can be folded.
struct Pair {
    /// The index of the convolution's node.
    at: usize,
    conv: Conv2d,
    norm: BatchNorm,
    fold: Fold,
}

/// What a folded filter is computed from: equal folds are the same filter.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Fold {
    /// w, gamma, beta, mean and variance.
    operands: Vec<Value>,
    eps_bits: u32,
}

/// The tape with a [`FoldNorm`] and one convolution in place of each pair that can be folded. Values keep their numbers;
/// the output of a folded pair's convolution has no writer any more, and no reader.
///
/// Errors: operands that an op refuses.
pub(crate) fn folded(tape: &Tape, loss: Option<Value>) -> Result<Tape> {
    let pairs = pairs(tape, loss)?;
    let mut new = tape.without_nodes();
    let mut filters: HashMap<&Fold, [Value; 2]> = HashMap::new();
    let convolutions: HashSet<usize> = pairs.values().map(|pair| pair.at).collect();
    for (i, node) in tape.nodes.iter().enumerate() {
        let Some(Pair { at, conv, norm, fold }) = pairs.get(&i) else {
            if !convolutions.contains(&i) {
                new.nodes.push(node.clone());
            }
            continue;
        };
        let from = &tape.nodes[*at];
        let [filter, bias] = match filters.get(fold) {
            Some(found) => *found,
            None => {
                let outputs = new.push(FoldNorm { eps: norm.eps }.into(), &fold.operands, from)?;
                filters.insert(fold, outputs);
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

/// Each pair that can be folded, by the index of its batch norm.
///
/// Errors: operands that an op refuses.
fn pairs(tape: &Tape, loss: Option<Value>) -> Result<HashMap<usize, Pair>> {
    let mut readers: HashMap<usize, usize> = HashMap::new();
    let mut writer: HashMap<usize, usize> = HashMap::new();
    let mut updated: HashSet<usize> = HashSet::new();
    for (i, node) in tape.nodes.iter().enumerate() {
        node.inputs.iter().for_each(|v| *readers.entry(tape.root(*v)).or_default() += 1);
        writer.extend(node.outputs.iter().map(|v| (tape.root(*v), i)));
        let args: Vec<OperandInfo> = node.inputs.iter().map(|v| tape.info(*v)).collect();
        updated.extend(node.op.signature(&args)?.updates.iter().map(|u| tape.root(node.inputs[*u])));
    }
    tape.results(loss).for_each(|v| *readers.entry(tape.root(v)).or_default() += 1);
    let mut found = HashMap::new();
    // The fold of each w, gamma and beta: two folds of one launch must not write the same gradient.
    let mut used: HashMap<Value, Fold> = HashMap::new();
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
        let operands: Vec<Value> = [from.inputs[1]].iter().chain(&node.inputs[1..]).copied().collect();
        // A view of a leaf would be another value with the same memory.
        let are_leaves =
            operands.iter().all(|v| tape.tensor(*v).is_some() && !updated.contains(&tape.root(*v)));
        let fold = Fold { operands, eps_bits: norm.eps.to_bits() };
        let is_unshared = fold.operands[..3].iter().all(|v| used.get(v).is_none_or(|other| *other == fold));
        if is_plain && is_map && is_alone && is_once && are_leaves && is_unshared {
            fold.operands[..3].iter().for_each(|v| drop(used.insert(*v, fold.clone())));
            found.insert(i, Pair { at, conv: *conv, norm: *norm, fold });
        }
    }
    Ok(found)
}

impl Tape {
    fn info(&self, v: Value) -> OperandInfo {
        OperandInfo { shape: self.shape(v), needs_grad: self.needs_grad(v) }
    }
    /// Adds an op with two outputs to the scope of another node.
    fn push(&mut self, op: Op, inputs: &[Value], beside: &Node) -> Result<[Value; 2]> {
        let args: Vec<OperandInfo> = inputs.iter().map(|v| self.info(*v)).collect();
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
    fn of_two_folds_of_one_filter_only_the_first_is_made() {
        let one = ["fold_norm", "conv2d", "conv2d", "batch_norm"];
        let mut r = Recorded::new();
        let w = r.filter();
        for _ in 0..2 {
            let (u, vectors) = (r.conv(r.x, w), r.vectors());
            r.norm(RUNNING, u, vectors);
        }
        assert_eq!(r.folded(), one, "two batch norms");
        let mut r = Recorded::new();
        let (w, vectors) = (r.filter(), r.vectors());
        for eps in [1e-5, 1e-3] {
            let u = r.conv(r.x, w);
            r.norm(BatchNorm { eps, ..RUNNING }, u, vectors);
        }
        assert_eq!(r.folded(), one, "two values of eps");
        let mut r = Recorded::new();
        let (w, vectors) = (r.filter(), r.vectors());
        for w in [w, r.tape.detach(w)] {
            let u = r.conv(r.x, w);
            r.norm(RUNNING, u, vectors);
        }
        assert_eq!(r.folded(), one, "the second filter is a constant");
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
        assert_eq!(
            kept(|r| {
                let (w, vectors, bias) = (r.filter(), r.vectors(), r.vectors()[0]);
                let u = r.tape.apply(Conv2d { bias: true, ..Conv2d::new(1, 0) }, &[r.x, w, bias]).unwrap();
                r.norm(RUNNING, u, vectors);
            }),
            pair,
            "the convolution has a bias already"
        );
        assert_eq!(
            kept(|r| {
                let (w, vectors) = (r.filter(), r.vectors());
                let u = r.conv(r.x, w);
                let u = r.tape.reshape(u, Shape::new(4, 2, 4, 8)).unwrap();
                r.norm(RUNNING, u, vectors);
            }),
            pair,
            "the norm reads a view"
        );
        assert_eq!(
            kept(|r| {
                let (w, vectors) = (r.filter(), r.vectors());
                r.tape.begin_segment();
                let u = r.conv(r.x, w);
                r.norm(RUNNING, u, vectors);
                r.tape.end_segment();
            }),
            pair,
            "a segment runs twice"
        );
    }
}
