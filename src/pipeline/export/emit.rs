//! The translation of recorded ops to ONNX nodes.

use super::describe::Facts;
use crate::autograd::tape::Value;
use crate::autograd::{Store, Tape};
use crate::error::{Error, Result};
use crate::ops::Op;
use crate::ops::layers::activation::Act;
use crate::ops::layers::batch_norm::{BatchNorm, Stats};
use crate::ops::layers::conv2d::Conv2d;
use crate::ops::layers::max_pool::MaxPool;
use crate::ops::layers::se_filter::SeFilter;
use crate::ops::movement::columns::Columns;
use crate::weights::Tensors;
use crate::weights::onnx::CONSTANT;
use crate::weights::onnx::proto::{GraphProto, NodeProto, TensorProto};
use std::collections::HashMap;

/// Name of the graph's input.
pub(super) const IMAGE: &str = "image";

/// Name of the images after their normalisation.
pub(super) const NORMALISED: &str = "image.normalised";

/// What the names of the network's tensors begin with in the store, before their names in the file.
pub(super) const PREFIX: &str = "net";

/// The error for an op that has no translation.
pub(super) fn unknown(op: &Op) -> Error {
    Error::Run(format!("{}: no ONNX operator is known for this op", op.name()))
}

/// Adds nodes to a graph, op by op.
pub(super) struct Emitter<'a> {
    tape: &'a Tape,
    store: &'a Store<f32>,
    /// The tensors of the file.
    tensors: &'a Tensors,
    pub(super) graph: GraphProto,
    /// Names of the values that the graph has so far.
    pub(super) names: HashMap<Value, String>,
}

impl<'a> Emitter<'a> {
    pub(super) fn new(tape: &'a Tape, store: &'a Store<f32>, tensors: &'a Tensors) -> Emitter<'a> {
        Emitter { tape, store, tensors, graph: GraphProto::default(), names: HashMap::new() }
    }

    /// Emits `(image - mean) / std`. With the default of one half this is the engine's own range, [-1, 1].
    pub(super) fn image(&mut self, image: Value, facts: &Facts) {
        let c = facts.image[2];
        let [mean, std] = [("mean", &facts.mean), ("std", &facts.std)]
            .map(|(name, v)| self.constant(name, |name| TensorProto::floats(name, &[1, c, 1, 1], v)));
        let centred = self.node("Sub", vec![IMAGE.into(), mean], "image.centred");
        let normalised = self.node("Div", vec![centred, std], NORMALISED);
        self.names.insert(image, normalised);
    }

    /// Emits one op; returns the name of its result.
    ///
    /// Errors: an op that has no translation.
    pub(super) fn op(&mut self, op: &Op, inputs: &[Value], image: Value) -> Result<String> {
        match op {
            // The network's own normalisation, which `image` has emitted already.
            Op::BatchNorm(_) if inputs[0] == image => self.name(image),
            Op::Conv2d(conv) => self.conv2d(op, conv, inputs),
            Op::BatchNorm(norm) if norm.stats == Stats::Running => self.batch_norm(norm, inputs),
            Op::Activation(act) => {
                let x = self.name(inputs[0])?;
                self.finish(x, inputs.get(1), act.0)
            }
            Op::MaxPool(pool) => self.max_pool(pool, inputs),
            Op::AvgPool(_) => self.avg_pool(inputs),
            Op::GlobalAvgPool(_) => {
                let x = self.name(inputs[0])?;
                let name = format!("{x}.mean");
                Ok(self.mean(x, &name))
            }
            Op::SeFilter(filter) => self.se_filter(op, filter, inputs),
            Op::ConcatColumns(_) => {
                let parts = self.operands(inputs)?;
                Ok(self.push(NodeProto::new("Concat", parts, "tasks").int("axis", 1)))
            }
            Op::Columns(columns) => self.columns(columns, inputs),
            _ => Err(unknown(op)),
        }
    }

    fn conv2d(&mut self, op: &Op, conv: &Conv2d, inputs: &[Value]) -> Result<String> {
        let [x, weight] = [self.name(inputs[0])?, self.name(inputs[1])?];
        let base = base(&weight).to_string();
        // The shape in the file; a matrix is the weight of a fully connected layer.
        let shape = self.tensors.get(&weight).map(|t| t.shape.clone()).unwrap_or_default();
        let mut operands = vec![x, weight];
        if conv.bias {
            operands.push(self.name(inputs[2])?);
        }
        let residual = if conv.residual { inputs.last() } else { None };
        let node = match shape[..] {
            [_, _] => NodeProto::new("Gemm", operands, &base).int("transB", 1),
            [_, _, r, s] => NodeProto::new("Conv", operands, &base)
                .ints("kernel_shape", &[r, s])
                .ints("pads", &[conv.pad; 4])
                .ints("strides", &[conv.stride; 2]),
            _ => return Err(unknown(op)),
        };
        let y = self.push(node);
        self.finish(y, residual, conv.act)
    }

    fn batch_norm(&mut self, norm: &BatchNorm, inputs: &[Value]) -> Result<String> {
        let operands = self.operands(inputs)?;
        let base = base(&operands[1]).to_string();
        let y = self.push(NodeProto::new("BatchNormalization", operands, &base).float("epsilon", norm.eps));
        self.finish(y, None, norm.act)
    }

    fn max_pool(&mut self, pool: &MaxPool, inputs: &[Value]) -> Result<String> {
        let x = self.name(inputs[0])?;
        let name = format!("{x}.pool");
        let node = NodeProto::new("MaxPool", vec![x], &name)
            .ints("kernel_shape", &[pool.window; 2])
            .ints("pads", &[pool.pad; 4])
            .ints("strides", &[pool.stride; 2]);
        Ok(self.push(node))
    }

    fn avg_pool(&mut self, inputs: &[Value]) -> Result<String> {
        let x = self.name(inputs[0])?;
        let name = format!("{x}.avg_pool");
        // Without padding and with `count_include_pad` left at 0, a window at an odd edge counts the pixels
        // that it has.
        let node = NodeProto::new("AveragePool", vec![x], &name)
            .ints("kernel_shape", &[2; 2])
            .ints("strides", &[2; 2])
            .int("ceil_mode", 1);
        Ok(self.push(node))
    }

    fn se_filter(&mut self, op: &Op, filter: &SeFilter, inputs: &[Value]) -> Result<String> {
        let names = self.operands(inputs)?;
        let [x, w1, b1, w2, b2] = &names[..] else { return Err(unknown(op)) };
        let filter_name = base(base(w1)).to_string();
        let gain = self.constant("filter_gain", |name| TensorProto::floats(name, &[], &[filter.top]));
        let axes = self.constant("spatial_axes", |name| TensorProto::int64s(name, &[2, 3]));
        let part = |what: &str| format!("{filter_name}.{what}");
        let mean = self.mean(x.clone(), &part("squeeze"));
        let fc = |x, w: &String, b: &String| {
            NodeProto::new("Gemm", vec![x, w.clone(), b.clone()], base(w)).int("transB", 1)
        };
        let hidden = self.push(fc(mean, w1, b1));
        let hidden = self.node("Relu", vec![hidden], &part("hidden"));
        let open = self.push(fc(hidden, w2, b2));
        let open = self.node("Sigmoid", vec![open], &part("open"));
        let rows = self.node("Mul", vec![open, gain], &part("gain"));
        let maps = self.node("Unsqueeze", vec![rows, axes], &part("gain_maps"));
        Ok(self.node("Mul", vec![x.clone(), maps], &filter_name))
    }

    fn columns(&mut self, columns: &Columns, inputs: &[Value]) -> Result<String> {
        let index: Vec<i64> = columns.index.iter().map(|i| i64::from(*i)).collect();
        let x = self.name(inputs[0])?;
        if index.iter().enumerate().all(|(i, from)| *from == i as i64) {
            return Ok(x); // every label is in its place already
        }
        let order = self.constant("label_order", |name| TensorProto::int64s(name, &index));
        Ok(self.push(NodeProto::new("Gather", vec![x, order], "ordered").int("axis", 1)))
    }

    /// Emits the sum with the residual and the activation, where the op has them.
    fn finish(&mut self, mut y: String, residual: Option<&Value>, act: Act) -> Result<String> {
        if let Some(residual) = residual {
            let (name, residual) = (format!("{y}.sum"), self.name(*residual)?);
            y = self.node("Add", vec![y, residual], &name);
        }
        let (op, what) = match act {
            Act::None => return Ok(y),
            Act::Relu => ("Relu", "relu"),
            Act::LeakyRelu(slope) => {
                let name = format!("{y}.leaky_relu");
                return Ok(self.push(NodeProto::new("LeakyRelu", vec![y], &name).float("alpha", slope)));
            }
            Act::Tanh => ("Tanh", "tanh"),
            Act::Sigmoid => ("Sigmoid", "sigmoid"),
        };
        let name = format!("{y}.{what}");
        Ok(self.node(op, vec![y], &name))
    }

    /// Emits the mean of every channel: `[N, c, h, w]` becomes `[N, c]`.
    fn mean(&mut self, x: String, name: &str) -> String {
        let maps = self.node("GlobalAveragePool", vec![x], &format!("{name}_maps"));
        self.push(NodeProto::new("Flatten", vec![maps], name).int("axis", 1))
    }

    fn node(&mut self, op: &str, inputs: Vec<String>, name: &str) -> String {
        self.push(NodeProto::new(op, inputs, name))
    }

    fn push(&mut self, node: NodeProto) -> String {
        let name = node.output[0].clone();
        self.graph.node.push(node);
        name
    }

    fn operands(&mut self, inputs: &[Value]) -> Result<Vec<String>> {
        inputs.iter().map(|v| self.name(*v)).collect()
    }

    /// The name of a value: of an op's result, or of a tensor, which is then added to the initializers.
    pub(super) fn name(&mut self, v: Value) -> Result<String> {
        if let Some(name) = self.names.get(&v) {
            return Ok(name.clone());
        }
        let missing = || Error::Run("ONNX export: an operand is neither an op's result nor a tensor".into());
        let id = self.tape.tensor(v).ok_or_else(missing)?;
        let name = self.store.name(id);
        let name = name.strip_prefix(PREFIX).and_then(|n| n.strip_prefix('.')).ok_or_else(missing)?;
        let t = self.tensors.get(name).ok_or_else(missing)?;
        self.graph.initializer.push(TensorProto::floats(name, &t.shape, &t.data));
        self.names.insert(v, name.into());
        Ok(name.into())
    }

    /// A constant of the graph, added once.
    fn constant(&mut self, name: &str, tensor: impl FnOnce(&str) -> TensorProto) -> String {
        let name = format!("{CONSTANT}{name}");
        if !self.graph.initializer.iter().any(|t| t.name.as_deref() == Some(&name)) {
            self.graph.initializer.push(tensor(&name));
        }
        name
    }
}

/// `layer1.0.conv1` of `layer1.0.conv1.weight`.
fn base(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(base, _)| base)
}
