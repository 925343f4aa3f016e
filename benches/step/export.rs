//! The teachers' part of a generator step on fixed inputs: its loss and gradients, which PyTorch then
//! computes too.

use crate::{Args, On, engine};
use dfka_engine::autograd::tape::Learn;
use dfka_engine::autograd::{Plan, Tape, TensorId};
use dfka_engine::device::{Choice, StepState};
use dfka_engine::error::{Error, Result};
use dfka_engine::models::Recorder;
use dfka_engine::models::init::normal;
use dfka_engine::models::resnet::Build;
use dfka_engine::ops::layers::activation::Act;
use dfka_engine::ops::layers::batch_norm::{BatchNorm, Stats};
use dfka_engine::ops::optim::adam::Adam;
use dfka_engine::pipeline::spec::{Recipe, RunSpec};
use dfka_engine::pipeline::stage::with_moments;
use dfka_engine::pipeline::stage_one::StageOne;
use dfka_engine::pipeline::teachers::{Absent, Teachers};
use dfka_engine::tensor::{Elem, Shape};
use dfka_engine::weights::Tensors;
use dfka_engine::weights::npz::{Array, CompressionMethod, Elems, write};
use serde_json::{Value, json};
use std::path::Path;

/// Writes the teachers as they are folded, the filters, every level's input, the wanted labels, the loss
/// with its terms, and the gradient at every level and filter: arrays `teacherM.*`, `filterL.M.*`, `levelL`,
/// `wanted`, `loss`, `metric.*` and `gradient.*`. Maps are NHWC, filters as PyTorch has them.
pub fn export(args: &Args, mut spec: RunSpec, path: &Path) -> Result<()> {
    // No shifts: they are random, and PyTorch would draw others.
    spec.generator.shift = 0;
    let is_cpu = args.device == On::Machine(Choice::Cpu);
    let (batch, precision) = (spec.generator.batch, if is_cpu { Elem::F32 } else { spec.precision });
    let mut engine = engine(args, &spec)?;
    let teachers = Teachers::load_or(&mut engine.store, &spec.teachers, Absent::IsDrawn)?;
    let one = StageOne::new(&mut engine.store, &spec, &teachers);
    let (net, labels) = (&teachers.network, teachers.labels().count());

    let store = &mut engine.store;
    let inputs: Vec<TensorId> = (one.generator.levels.iter())
        .map(|level| {
            let (name, shape) = (format!("parity.level{level}"), net.feature(*level, batch));
            let noise = normal(1, &name, shape.elems(), 1.0);
            // Like the generator's outputs: the image comes after a tanh, features after a ReLU.
            let values: Vec<f32> =
                noise.iter().map(|v| if *level == 0 { v.tanh() } else { v.max(0.0) }).collect();
            store.add_with(&name, shape, &values)
        })
        .collect();
    let marks: Vec<f32> =
        (0..batch * labels).map(|i| f32::from(u8::from(i % labels == i / labels % labels))).collect();
    let wanted = store.add_with("parity.wanted", Shape::rows(batch, labels), &marks);
    let channels = |level: &usize| net.feature(*level, 1).c();
    let vectors: Vec<[TensorId; 2]> = (one.generator.levels.iter())
        .map(|level| {
            let c = channels(level);
            ["zeros", "ones"].map(|name| {
                let value = f32::from(u8::from(name == "ones"));
                store.add_with(&format!("parity.{name}{level}"), Shape::vector(c), &vec![value; c])
            })
        })
        .collect();

    let mut tape = Tape::default();
    let mut r = Recorder { tape: &mut tape, store: &engine.store };
    let mut levels = Vec::new();
    for (input, [zeros, ones]) in inputs.iter().zip(&vectors) {
        let x = r.leaf(*input, Learn::Trainable);
        let [zeros, ones] = [zeros, ones].map(|id| r.leaf(*id, Learn::Frozen));
        // This batch norm changes only the type: a leaf is f32, a feature map has the machine's type.
        let same = BatchNorm { stats: Stats::Running, act: Act::None, momentum: 0.0, eps: 0.0 };
        levels.push(r.apply(same, &[x, ones, zeros, zeros, ones])?);
    }
    let is_conditional = matches!(spec.loss.recipe, Recipe::Conditional { .. });
    let target = is_conditional.then(|| r.leaf(wanted, Learn::Frozen));
    let loss = one.record_objective(&mut r, &spec, &teachers, &levels, target, teachers.all.len())?;
    // With beta1 = 0 the first moment is the gradient.
    let adam = Adam { lr_slot: 0, beta1: 0.0, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let mut learning = inputs.clone();
    let filters: Vec<TensorId> =
        (engine.store.ids()).filter(|id| engine.store.name(*id).starts_with("generator.filter")).collect();
    learning.extend(&filters);
    let optimiser = with_moments(&mut engine.store, "parity", adam, &learning);
    let mut plan = Plan::compile(&tape, &engine.store, Some(loss), &[optimiser])?;
    plan.reserve(&mut engine)?;
    plan.replay(&mut engine, &StepState::default())?;
    plan.collect(&engine)?;
    engine.pull()?;

    let mut out = Tensors::new();
    let store = &engine.store;
    for (m, t) in teachers.all.iter().enumerate() {
        let prefix = format!("teacher{m}.");
        t.net.export(store, 1..=net.blocks(), &prefix, Build::Folded, &mut out)?;
        let stored = format!("teacher.{}.", t.name);
        for id in store.ids() {
            let Some(name) = store.name(id).strip_prefix(&stored) else { continue };
            if name.ends_with(".target_mean") || name.ends_with(".target_std") {
                out.insert(format!("{prefix}{name}"), &[store.shape(id).c()], store.to_f32(id))?;
            }
        }
        let [w, b] = t.net.head.ok_or_else(|| Error::Run("a teacher without a head".into()))?;
        out.insert(format!("{prefix}fc.weight"), &[t.labels.len(), store.shape(w).c()], store.to_f32(w))?;
        out.insert(format!("{prefix}fc.bias"), &[t.labels.len()], store.to_f32(b))?;
    }
    let gradient = |id: TensorId| {
        let moment = store.id(&format!("parity.moments.first.{}", store.name(id)));
        moment.map(|m| store.to_f32(m)).ok_or_else(|| Error::Run("a gradient without its moment".into()))
    };
    for (id, level) in inputs.iter().zip(&one.generator.levels) {
        let shape = store.shape(*id).0;
        out.insert(format!("level{level}"), &shape, store.to_f32(*id))?;
        out.insert(format!("gradient.level{level}"), &shape, gradient(*id)?)?;
    }
    for id in filters {
        // `generator.filter2.A.fc1.weight` is here `filter2.0.fc1.weight`.
        let mut name = store.name(id).trim_start_matches("generator.").to_string();
        for (m, t) in teachers.all.iter().enumerate() {
            name = name.replacen(&format!(".{}.fc", t.name), &format!(".{m}.fc"), 1);
        }
        let shape = store.shape(id);
        let shape = if name.ends_with("weight") { vec![shape.n(), shape.c()] } else { vec![shape.c()] };
        out.insert(name.clone(), &shape, store.to_f32(id))?;
        out.insert(format!("gradient.{name}"), &shape, gradient(id)?)?;
    }
    if is_conditional {
        out.insert("wanted", &[batch, labels], marks)?;
    }
    for (name, value) in plan.metrics() {
        let name = if name == "loss" { name.into() } else { format!("metric.{name}") };
        out.insert(name, &[1], vec![value])?;
    }
    let (recipe, share, positive) = match spec.loss.recipe {
        Recipe::Published => ("published", 0.0, 1.0),
        Recipe::Conditional { positive, .. } => ("conditional", 0.0, positive),
        Recipe::Balanced { share } => ("balanced", share, 1.0),
    };
    let device = engine.machine().map_or("the CPU".into(), |m| m.gpu.name());
    let labels: Vec<&Vec<String>> = teachers.all.iter().map(|t| &t.labels).collect();
    let config = json!({
        "network": net, "labels": labels, "recipe": recipe, "share": share, "positive": positive, "alpha": spec.loss.alpha,
        "mean_activation": spec.loss.mean_activation,
        "beta": spec.loss.beta, "gamma": spec.loss.gamma, "statistics": spec.loss.statistics,
        "reduction": spec.student.filter_reduction,
    });
    let about = json!({
        "config": config, "levels": one.generator.levels, "precision": precision, "device": device, "batch": batch,
    });
    if let Value::Object(about) = about {
        out.meta.extend(about);
    }
    let arrays: Vec<Array> =
        out.iter().map(|(name, t)| Array { name, shape: &t.shape, elems: Elems::F32(&t.data) }).collect();
    write(path, &arrays, &out.meta, CompressionMethod::Stored)
}
