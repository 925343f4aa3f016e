//! A network as an ONNX graph: what the engine records for an image, op by op, in ONNX's words.
//!
//! Weights keep the names, shapes and bits of their file. The graph takes `image` `[N, c, h, w]`, RGB or gray in [0, 1],
//! normalises it, and gives `logits` and `probabilities` `[N, labels]`; N is free. Operators of opset 17.

use super::{Contents, Facts};
use crate::autograd::tape::{Learn, Value};
use crate::autograd::{Store, Tape};
use crate::error::{Error, Result};
use crate::models::Recorder;
use crate::models::resnet::{Build, Mode, ResNet, Source};
use crate::models::targetnet::TargetNet;
use crate::ops::Op;
use crate::ops::layers::activation::Act;
use crate::ops::layers::batch_norm::Stats;
use crate::weights::Tensors;
use crate::weights::onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    ValueInfoProto,
};
use crate::weights::onnx::{CONSTANT, META, PRODUCER};
use std::collections::HashMap;

/// The first with what onnx 1.12 has; every runtime of the last years runs it.
const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

const IMAGE: &str = "image";
const LOGITS: &str = "logits";
const PROBABILITIES: &str = "probabilities";

/// The model in a file's tensors, whose metadata says all that `facts` says.
pub fn model(tensors: &Tensors, contents: &Contents, facts: &Facts) -> Result<ModelProto> {
    // Names and shapes are all that the graph takes from the store: it needs no memory of its own.
    let (mut store, mut tape) = (Store::<f32>::planned(None), Tape::default());
    let (image, logits) = record(&mut store, &mut tape, tensors, contents)?;
    let mut e =
        Emitter { tape: &tape, store: &store, tensors, graph: GraphProto::default(), names: HashMap::new() };
    e.image(image, facts);
    for (op, inputs, outputs) in tape.ops() {
        let [y] = outputs else { return Err(unknown(op)) };
        let name = e.op(op, inputs, image)?;
        e.names.insert(*y, name);
    }
    let last = e.name(logits)?;
    let mut graph = e.graph;
    for name in graph.node.iter_mut().flat_map(|n| n.input.iter_mut().chain(&mut n.output).chain(&mut n.name))
    {
        if *name == last {
            *name = LOGITS.into();
        }
    }
    graph.node.push(NodeProto::new("Sigmoid", vec![LOGITS.into()], PROBABILITIES));
    let [h, w, c] = facts.image;
    graph.input = vec![ValueInfoProto::batch(IMAGE, &[c, h, w])];
    graph.output = [LOGITS, PROBABILITIES].map(|o| ValueInfoProto::batch(o, &[facts.labels.len()])).into();
    graph.name = Some("network".into());

    let mut metadata_props: Vec<StringStringEntryProto> = facts
        .json()?
        .iter()
        .map(|(key, value)| StringStringEntryProto::new(key, value.to_string()))
        .collect();
    metadata_props
        .push(StringStringEntryProto::new(META, serde_json::Value::from(tensors.meta.clone()).to_string()));
    Ok(ModelProto {
        ir_version: Some(IR_VERSION),
        producer_name: Some(PRODUCER.into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(OPSET) }],
        metadata_props,
    })
}

/// How the names of the network's tensors begin in the store, before their names in the file.
const PREFIX: &str = "net";

/// Records the network on one image; returns the image and the logits. A teacher keeps its batch norms.
fn record(
    store: &mut Store<f32>,
    tape: &mut Tape,
    tensors: &Tensors,
    contents: &Contents,
) -> Result<(Value, Value)> {
    let input = store.add("data.input", contents.network().feature(0, 1));
    let mut rest = tensors.clone();
    match contents {
        Contents::Student(_) => {
            let student = TargetNet::load(store, PREFIX, rest)?;
            let mut r = Recorder { tape, store };
            let image = r.leaf(input, Learn::Frozen);
            Ok((image, student.record(&mut r, image)?))
        }
        Contents::Teacher { network, labels } => {
            let (blocks, labels) = (1..=network.blocks(), Some(labels.len()));
            let source = Source::Tensors(&mut rest);
            let net = ResNet::new(store, PREFIX, network, blocks.clone(), labels, Build::Normed, source)?;
            rest.finish()?;
            let mut r = Recorder { tape, store };
            let image = r.leaf(input, Learn::Frozen);
            let mut x = image;
            for b in blocks {
                x = net.block(&mut r, b, x, Mode::FROZEN, None)?;
            }
            Ok((image, net.head(&mut r, x, Mode::FROZEN)?.1))
        }
    }
}

fn unknown(op: &Op) -> Error {
    Error::Run(format!("{}: an op that no ONNX graph of ours has", op.name()))
}

struct Emitter<'a> {
    tape: &'a Tape,
    store: &'a Store<f32>,
    /// The file's.
    tensors: &'a Tensors,
    graph: GraphProto,
    names: HashMap<Value, String>,
}

impl Emitter<'_> {
    /// `(image - mean) / std`. With the default of one half this is the engine's own range, [-1, 1].
    fn image(&mut self, image: Value, facts: &Facts) {
        let c = facts.image[2];
        let [mean, std] = [("mean", &facts.mean), ("std", &facts.std)]
            .map(|(name, v)| self.constant(name, |name| TensorProto::floats(name, &[1, c, 1, 1], v)));
        let centred = self.node("Sub", vec![IMAGE.into(), mean], "image.centred");
        let normalised = self.node("Div", vec![centred, std], "image.normalised");
        self.names.insert(image, normalised);
    }

    /// Emits one op; returns the name of its result.
    fn op(&mut self, op: &Op, inputs: &[Value], image: Value) -> Result<String> {
        match op {
            // The network's own normalisation, which the graph has done from [0, 1] already.
            Op::BatchNorm(_) if inputs[0] == image => self.name(image),
            Op::Conv2d(conv) => {
                let [x, weight] = [self.name(inputs[0])?, self.name(inputs[1])?];
                let base = base(&weight).to_string();
                // As the file has it: a matrix is a fully connected layer's.
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
            Op::BatchNorm(norm) if norm.stats == Stats::Running => {
                let operands = inputs.iter().map(|v| self.name(*v)).collect::<Result<Vec<_>>>()?;
                let base = base(&operands[1]).to_string();
                let y = self
                    .push(NodeProto::new("BatchNormalization", operands, &base).float("epsilon", norm.eps));
                self.finish(y, None, norm.act)
            }
            Op::Activation(act) => {
                let x = self.name(inputs[0])?;
                self.finish(x, inputs.get(1), act.0)
            }
            Op::MaxPool(pool) => {
                let x = self.name(inputs[0])?;
                let name = format!("{x}.pool");
                let node = NodeProto::new("MaxPool", vec![x], &name)
                    .ints("kernel_shape", &[pool.window; 2])
                    .ints("pads", &[pool.pad; 4])
                    .ints("strides", &[pool.stride; 2]);
                Ok(self.push(node))
            }
            Op::GlobalAvgPool(_) => {
                let x = self.name(inputs[0])?;
                let name = format!("{x}.mean");
                Ok(self.mean(x, &name))
            }
            Op::SeFilter(filter) => {
                let names = inputs.iter().map(|v| self.name(*v)).collect::<Result<Vec<_>>>()?;
                let [x, w1, b1, w2, b2] = &names[..] else { return Err(unknown(op)) };
                let base = base(base(w1)).to_string();
                let gain = self.constant("filter_gain", |name| TensorProto::floats(name, &[], &[filter.top]));
                let axes = self.constant("spatial_axes", |name| TensorProto::int64s(name, &[2, 3]));
                let part = |what: &str| format!("{base}.{what}");
                let mean = self.mean(x.clone(), &part("squeeze"));
                let fc = |x, w: &String, b: &String| {
                    NodeProto::new("Gemm", vec![x, w.clone(), b.clone()], self::base(w)).int("transB", 1)
                };
                let hidden = self.push(fc(mean, w1, b1));
                let hidden = self.node("Relu", vec![hidden], &part("hidden"));
                let open = self.push(fc(hidden, w2, b2));
                let open = self.node("Sigmoid", vec![open], &part("open"));
                let rows = self.node("Mul", vec![open, gain], &part("gain"));
                let maps = self.node("Unsqueeze", vec![rows, axes], &part("gain_maps"));
                Ok(self.node("Mul", vec![x.clone(), maps], &base))
            }
            Op::ConcatColumns(_) => {
                let parts = inputs.iter().map(|v| self.name(*v)).collect::<Result<Vec<_>>>()?;
                Ok(self.push(NodeProto::new("Concat", parts, "tasks").int("axis", 1)))
            }
            Op::Columns(columns) => {
                let index: Vec<i64> = columns.index.iter().map(|i| i64::from(*i)).collect();
                let x = self.name(inputs[0])?;
                if index.iter().enumerate().all(|(i, from)| *from == i as i64) {
                    return Ok(x); // all of them: the index is as long as the labels
                }
                let order = self.constant("label_order", |name| TensorProto::int64s(name, &index));
                Ok(self.push(NodeProto::new("Gather", vec![x, order], "ordered").int("axis", 1)))
            }
            _ => Err(unknown(op)),
        }
    }

    /// The sum with the residual, and the activation, where there are any.
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

    /// The mean of every channel, one row an image.
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

    /// The name of a value: a result's, or a tensor's, which then stands among the initializers.
    fn name(&mut self, v: Value) -> Result<String> {
        if let Some(name) = self.names.get(&v) {
            return Ok(name.clone());
        }
        let missing = || Error::Run("an ONNX graph's operand that nothing gives".into());
        let id = self.tape.tensor(v).ok_or_else(missing)?;
        let name = self.store.name(id);
        let name = name.strip_prefix(PREFIX).and_then(|n| n.strip_prefix('.')).ok_or_else(missing)?;
        let t = self.tensors.get(name).ok_or_else(missing)?;
        self.graph.initializer.push(TensorProto::floats(name, &t.shape, &t.data));
        self.names.insert(v, name.into());
        Ok(name.into())
    }

    /// A constant of the graph's own, made once.
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
