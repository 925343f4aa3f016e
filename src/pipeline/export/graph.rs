//! A network as an ONNX graph: the ops that the engine records for an image, each translated to ONNX
//! operators.
//!
//! Weights keep the names, shapes and bits of their file. The graph takes `image` `[N, c, h, w]`, RGB or grey
//! in [0, 1], normalises it, and gives `logits` and `probabilities` `[N, labels]`; N is free. Operators are
//! those of opset 17.

use super::describe::{Contents, Facts};
use super::emit::{Emitter, IMAGE, NORMALISED, PREFIX, unknown};
use crate::autograd::tape::{Learn, Value};
use crate::autograd::{Store, Tape};
use crate::error::Result;
use crate::models::Recorder;
use crate::models::resnet::{Build, Mode, ResNet, Source};
use crate::models::targetnet::TargetNet;
use crate::weights::Tensors;
use crate::weights::onnx::float16::to_float16;
use crate::weights::onnx::proto::{
    ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, ValueInfoProto,
};
use crate::weights::onnx::{META, PRODUCER};

/// The opset of onnx 1.12 (2022), which current runtimes support.
const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

const LOGITS: &str = "logits";
const PROBABILITIES: &str = "probabilities";

/// The ONNX model of a file's tensors. `facts` must be in the tensors' metadata already.
///
/// Errors: tensors that do not fit `contents`; an op that has no translation.
pub fn model(tensors: &Tensors, contents: &Contents, facts: &Facts) -> Result<ModelProto> {
    // The graph needs only names and shapes from the store, so the store needs no memory.
    let (mut store, mut tape) = (Store::<f32>::planned(None), Tape::default());
    let (image, logits) = record(&mut store, &mut tape, tensors, contents)?;
    let mut e = Emitter::new(&tape, &store, tensors);
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

/// Errors: tensors that do not fit `contents`, by name and shape.
pub fn check(tensors: &Tensors, contents: &Contents) -> Result<()> {
    record(&mut Store::planned(None), &mut Tape::default(), tensors, contents).map(|_| ())
}

/// Rounds the weights of a model of [`model`] to half precision. Images and logits stay float32, and so does the
/// normalisation of the images.
///
/// Errors: a weight beyond the range of float16.
pub fn halve(model: &mut ModelProto) -> Result<(), String> {
    model.graph.as_mut().map_or(Ok(()), |graph| to_float16(graph, NORMALISED, LOGITS))
}

/// Records the network on one image; returns the image and the logits. The batch norms of a teacher stay ops
/// of their own.
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
