//! Networks, losses and their gradients against PyTorch, both in f64 and from the same float32 weights.
//!
//! `tests/fixtures/golden.py` states the same computations with PyTorch's own layers and wrote `golden.npz`.

use dfka_engine::autograd::tape::Learn;
use dfka_engine::autograd::{Engine, Plan, Tape, TensorId, Value};
use dfka_engine::device::StepState;
use dfka_engine::models::Recorder;
use dfka_engine::models::filter::FilterKind;
use dfka_engine::models::fold::from_oihw;
use dfka_engine::models::resnet::{Build, Mode, ResNet, ResNetSpec, Source};
use dfka_engine::ops::layers::batch_norm::Stats;
use dfka_engine::ops::layers::conv2d::Conv2d;
use dfka_engine::ops::losses::bce::{Bce, Targets};
use dfka_engine::ops::optim::adam::Adam;
use dfka_engine::pipeline::Device;
use dfka_engine::pipeline::spec::*;
use dfka_engine::pipeline::stage::with_moments;
use dfka_engine::pipeline::stage_one::StageOne;
use dfka_engine::pipeline::stage_two::StageTwo;
use dfka_engine::pipeline::tasks::tasks;
use dfka_engine::pipeline::teachers::Teachers;
use dfka_engine::tensor::{Elem, Shape};
use dfka_engine::weights::{Tensors, npz};
use serde_json::{Value as Json, from_value};
use std::collections::BTreeMap;
use std::io::Read;

/// Allowed distance in units of a tensor's largest element.
const BOUND: f64 = 1e-9;

/// A tensor in PyTorch's layout; float32 values are exact in f64.
#[derive(Clone)]
struct Torch {
    shape: Vec<usize>,
    data: Vec<f64>,
}

impl Torch {
    fn f32(&self) -> Vec<f32> {
        self.data.iter().map(|v| *v as f32).collect()
    }
    /// In the engine's layout: `[n, c, h, w]` becomes `[n, h, w, c]`; vectors and matrices stay as they are.
    fn channels_last(&self) -> Vec<f64> {
        let [n, c, h, w] = self.shape[..] else { return self.data.clone() };
        let at = |i: usize| {
            let (pixel, c_i) = (i / c, i % c);
            (pixel / (h * w) * c + c_i) * h * w + pixel % (h * w)
        };
        (0..n * c * h * w).map(|i| self.data[at(i)]).collect()
    }
}

struct Golden {
    meta: Json,
    tensors: BTreeMap<String, Torch>,
}

impl Golden {
    fn load() -> Golden {
        let file = std::fs::File::open("tests/fixtures/golden.npz").unwrap();
        let mut zip = zip::ZipArchive::new(file).unwrap();
        let mut array = |name: &str| {
            let mut bytes = Vec::new();
            zip.by_name(&format!("{name}.npy")).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        };
        let npy = |bytes: &[u8]| npyz::NpyFile::new(std::io::Cursor::new(bytes.to_vec())).unwrap();
        let meta: Json = serde_json::from_slice(&npy(&array("__meta__")).into_vec::<u8>().unwrap()).unwrap();
        let single: Vec<f32> = npy(&array("float32")).into_vec().unwrap();
        let single: Vec<f64> = single.into_iter().map(f64::from).collect();
        let double: Vec<f64> = npy(&array("float64")).into_vec().unwrap();
        let index: BTreeMap<String, Vec<Json>> = from_value(meta["index"].clone()).unwrap();
        let tensors = index.into_iter().map(|(name, entry)| {
            let all = if entry[0] == "float32" { &single } else { &double };
            let numbers: Vec<usize> = entry[1..].iter().map(|v| v.as_u64().unwrap() as usize).collect();
            let shape = numbers[1..].to_vec();
            let data = all[numbers[0]..][..shape.iter().product()].to_vec();
            (name, Torch { shape, data })
        });
        let tensors = tensors.collect();
        Golden { meta, tensors }
    }

    fn get(&self, name: &str) -> &Torch {
        self.tensors.get(name).unwrap_or_else(|| panic!("golden.npz has no {name}"))
    }

    /// The tensors whose names begin with `prefix` and a dot, by the rest of their names.
    fn below<'a>(&'a self, prefix: &str) -> impl Iterator<Item = (&'a str, &'a Torch)> {
        let prefix = format!("{prefix}.");
        self.tensors.iter().filter_map(move |(name, t)| Some((name.strip_prefix(&prefix)?, t)))
    }

    fn network(&self, name: &str) -> (ResNetSpec, Vec<String>) {
        let spec = from_value(self.meta["networks"][name].clone()).unwrap();
        (spec, from_value(self.meta["labels"][name].clone()).unwrap())
    }

    /// A network's weights, as a teacher file would hold them.
    fn teacher(&self, name: &str) -> Tensors {
        let mut tensors = Tensors::new();
        for (tensor, t) in self.below(&format!("net.{name}")) {
            tensors.insert(tensor, &t.shape, t.f32()).unwrap();
        }
        for (key, of) in [("network", "networks"), ("labels", "labels")] {
            tensors.meta.insert(key.into(), self.meta[of][name].clone());
        }
        tensors
    }

    fn resnet(&self, engine: &mut Engine<f64>, name: &str, build: Build) -> ResNet {
        let ((spec, labels), mut tensors) = (self.network(name), self.teacher(name));
        let (blocks, source) = (1..=spec.blocks(), Source::Tensors(&mut tensors));
        let net =
            ResNet::new(&mut engine.store, name, &spec, blocks, Some(labels.len()), build, source).unwrap();
        tensors.finish().unwrap();
        net
    }

    /// Sets the engine's tensors below `prefix` to the fixture's values.
    fn set(&self, engine: &mut Engine<f64>, prefix: &str) {
        for (name, t) in self.below(prefix) {
            let id = engine.store.id(&format!("{prefix}.{name}")).expect(name);
            let values = from_oihw(engine.store.shape(id), &t.f32());
            engine.store.set(id, &values);
        }
    }

    /// Compares every gradient below `grads` with that of the engine's tensor of the same name below
    /// `prefix`, which [`step`] left in the store.
    fn check_gradients(&self, engine: &Engine<f64>, grads: &str, prefix: &str, learning: &[TensorId]) {
        let mut names: Vec<String> = self.below(grads).map(|(name, _)| format!("{prefix}.{name}")).collect();
        let mut learnt: Vec<String> = learning.iter().map(|id| engine.store.name(*id).to_string()).collect();
        names.sort();
        learnt.sort();
        assert_eq!(names, learnt, "{grads}: the tensors that learn");
        for (name, t) in self.below(grads) {
            let id = engine.store.id(&format!("{MOMENTS}.{prefix}.{name}")).expect(name);
            compare(&format!("{grads}.{name}"), engine.store.get(id), &t.channels_last(), BOUND);
        }
    }
}

fn compare(what: &str, found: &[f64], expected: &[f64], bound: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: elements");
    let scale = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    assert!(scale > 0.0, "{what}: all expected values are zero");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let off = (f - e).abs() / scale;
        assert!(off <= bound, "{what}[{i}]: expected {e}, found {f}: off by {off:.1e} of {scale:.2e}");
    }
}

/// Adam's first moment at `beta1 = 0` is the gradient itself.
const MOMENTS: &str = "grad.moments.first";

/// Compiles and runs one step that leaves the gradients of `learning` in the store and changes no weight.
fn step(
    engine: &mut Engine<f64>,
    tape: &Tape,
    loss: Value,
    learning: &[TensorId],
    at: StepState,
) -> Plan<f64> {
    let adam = Adam { lr_slot: 0, beta1: 0.0, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let optimiser = with_moments(&mut engine.store, "grad", adam, learning);
    let mut plan = Plan::compile(tape, &engine.store, Some(loss), &[optimiser]).unwrap();
    plan.reserve(engine).unwrap();
    plan.replay(engine, &StepState { lr: [0.0; 4], ..at }).unwrap();
    plan
}

/// A network in evaluation: batch norms with their running estimates, and folded into the convolutions.
#[test]
fn evaluation() {
    let golden = Golden::load();
    for name in ["left", "deep"] {
        let (image, fixed) = (golden.get(&format!("a.{name}.image")), golden.get(&format!("a.{name}.fixed")));
        for (build, how) in [(Build::Normed, "running"), (Build::Folded, "folded")] {
            let mut engine = Engine::<f64>::default();
            let net = golden.resnet(&mut engine, name, build);
            let image_id = engine.store.add("image", net.spec.feature(0, image.shape[0]));
            engine.store.get_mut(image_id).copy_from_slice(&image.channels_last());
            let row = Shape::vector(fixed.data.len());
            let fixed = engine.store.add_with("fixed", row, &fixed.f32());
            let zero = engine.store.add("zero", Shape::SCALAR);

            let mut tape = Tape::default();
            let mut r = Recorder { tape: &mut tape, store: &engine.store };
            let mut x = r.leaf(image_id, Learn::Trainable);
            let mut features = Vec::new();
            for b in 1..=net.spec.blocks() {
                x = net.block(&mut r, b, x, Mode::FROZEN, None).unwrap();
                features.push(x);
            }
            let logits = net.head(&mut r, x, Mode::FROZEN).unwrap().1;
            // sum(logits * fixed), as a linear layer over all of them.
            let flat = r.tape.reshape(logits, row).unwrap();
            let (fixed, zero) = (r.leaf(fixed, Learn::Frozen), r.leaf(zero, Learn::Frozen));
            let loss = r.apply(Conv2d::linear(), &[flat, fixed, zero]).unwrap();
            features.iter().chain([&logits]).for_each(|v| r.tape.output(*v));
            let plan = step(&mut engine, &tape, loss, &[image_id], StepState::default());

            for (b, f) in features.iter().enumerate() {
                let what = format!("a.{name}.running.block{}", b + 1);
                compare(
                    &format!("{what}, {how}"),
                    &plan.output(&engine, *f).unwrap(),
                    &golden.get(&what).channels_last(),
                    BOUND,
                );
            }
            let what = format!("a.{name}.{how}.logits");
            compare(&what, &plan.output(&engine, logits).unwrap(), &golden.get(&what).data, BOUND);
            let slope = engine.store.id(&format!("{MOMENTS}.image")).unwrap();
            let what = format!("a.{name}.{how}.slope");
            compare(&what, engine.store.get(slope), &golden.get(&what).channels_last(), BOUND);
        }
    }
}

/// A training step of a teacher: the gradients of all parameters, and the new running estimates.
#[test]
fn training_with_batch_statistics() {
    let golden = Golden::load();
    let mut engine = Engine::<f64>::default();
    let net = golden.resnet(&mut engine, "left", Build::Normed);
    let (image, targets) = (golden.get("b.image"), golden.get("b.targets"));
    let image_id = engine.store.add("image", net.spec.feature(0, image.shape[0]));
    engine.store.get_mut(image_id).copy_from_slice(&image.channels_last());
    let targets =
        engine.store.add_with("targets", Shape::rows(targets.shape[0], targets.shape[1]), &targets.f32());
    let blocks = 1..=net.spec.blocks();
    let learning: Vec<TensorId> = net.learning(blocks.clone()).into_iter().chain(net.head.unwrap()).collect();

    let mut tape = Tape::default();
    let mut r = Recorder { tape: &mut tape, store: &engine.store };
    let mode = Mode { learn: Learn::Trainable, stats: Stats::Batch };
    let mut x = r.leaf(image_id, Learn::Frozen);
    for b in blocks {
        x = net.block(&mut r, b, x, mode, None).unwrap();
    }
    let logits = net.head(&mut r, x, mode).unwrap().1;
    let targets = r.leaf(targets, Learn::Frozen);
    let bce = Bce::new(Targets::Probabilities);
    let loss = r.apply(bce, &[logits, targets]).unwrap();
    r.tape.output(loss);
    let plan = step(&mut engine, &tape, loss, &learning, StepState::default());

    compare("b.loss", &plan.output(&engine, loss).unwrap(), &golden.get("b.loss").data, BOUND);
    golden.check_gradients(&engine, "b.grad", "left", &learning);
    let mut states = 0;
    for (name, t) in golden.below("b.state") {
        let id = engine.store.id(&format!("left.{name}")).expect(name);
        compare(&format!("b.state.{name}"), engine.store.get(id), &t.data, BOUND);
        states += 1;
    }
    let norms = net.tensors(1..=net.spec.blocks()).len() - net.learning(1..=net.spec.blocks()).len();
    assert_eq!(states, norms);
}

/// A run with the fixture's settings over its two teachers, loaded from teacher files.
struct Run {
    spec: RunSpec,
    teachers: Teachers,
    one: StageOne,
    at: StepState,
    /// Where the teacher files are.
    _folder: tempfile::TempDir,
}

fn run_of(golden: &Golden, engine: &mut Engine<f64>) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let teachers: Vec<TeacherSpec> = ["left", "right"]
        .map(|name| {
            let weights = folder.path().join(format!("{name}.npz"));
            npz::save(&weights, &golden.teacher(name)).unwrap();
            TeacherSpec::new(name, weights)
        })
        .into();
    let (one, two) = (&golden.meta["stage_one"], &golden.meta["stage_two"]);
    let number = |v: &Json| v.as_f64().unwrap() as f32;
    let count = |v: &Json| v.as_u64().unwrap() as usize;
    let spec = RunSpec {
        name: "golden".into(),
        seed: 1,
        checkpoint_seconds: 1e6,
        precision: Elem::Bf16,
        split: Default::default(),
        device: Device::default(),
        teachers,
        student: StudentOptions {
            labels: from_value(two["labels"].clone()).unwrap(),
            init: StudentInit::Mean,
            norm: StudentNorm::Batch,
            branch: Branch::Block(2),
            network: None,
            filter: FilterKind::Gain,
            teachers_of: BTreeMap::new(),
            filter_reduction: count(&golden.meta["filter_reduction"]),
        },
        generator: GeneratorOptions {
            groups: count(&one["groups"]),
            latent: count(&one["latent"]),
            widths: from_value(one["widths"].clone()).unwrap(),
            steps: 1,
            batch: count(&one["batch"]),
            learning_rate: 0.0,
            betas: [0.5, 0.999],
            shift: 0,
            teachers_at_once: None,
        },
        loss: LossSpec {
            recipe: Recipe::Published,
            alpha: number(&one["alpha"]),
            mean_activation: false,
            beta: number(&one["beta"]),
            gamma: number(&one["gamma"]),
            statistics: 0.0,
            least_diversity: 0.0,
            least_entropy: 0.0,
            least_information: 0.0,
            least_found: 0.0,
        },
        dual: DualSpec {
            images: ImageSource::Noise,
            steps: vec![1; 3],
            batch: count(&two["batch"]),
            learning_rate: 0.0,
            feature: number(&two["feature"]),
            late_features: number(&two["late_features"]),
            freeze_earlier: false,
            lambda_in: from_value(two["lambda_in"].clone()).unwrap(),
            augment: AugmentSpec { shift: 0, flip: 0.0, mix_max: 0.0, cutmix: 0.0 },
            bank: 1,
        },
        evaluation: None,
        baselines: vec![],
    };
    let teachers = Teachers::load(&mut engine.store, &spec.teachers).unwrap();
    let one = StageOne::new(&mut engine.store, &spec, &teachers);
    golden.set(engine, "generator");
    let number = |key: &str| golden.meta["step"][key].as_u64().unwrap();
    let at = StepState { seed: number("seed"), step: number("step"), ..Default::default() };
    Run { spec, teachers, one, at, _folder: folder }
}

/// Ids of the tensors whose names begin with `prefix` and a dot, and that are parameters.
fn parameters(engine: &Engine<f64>, prefix: &str) -> Vec<TensorId> {
    let prefix = format!("{prefix}.");
    let is = |name: &str| name.starts_with(&prefix) && (name.ends_with(".weight") || name.ends_with(".bias"));
    engine.store.ids().filter(|id| is(engine.store.name(*id))).collect()
}

/// The published `L_joint` of three groups and two teachers.
#[test]
fn stage_one() {
    let golden = Golden::load();
    let mut engine = Engine::<f64>::default();
    let Run { spec, teachers, one, at, .. } = run_of(&golden, &mut engine);
    let learning = parameters(&engine, "generator");
    assert!(one.generator.learning().iter().all(|id| learning.contains(id)));

    let mut tape = Tape::default();
    let mut r = Recorder { tape: &mut tape, store: &engine.store };
    let (loss, image) = one.record_loss(&mut r, &spec, &teachers).unwrap();
    r.tape.output(loss);
    r.tape.output(image);
    let plan = step(&mut engine, &tape, loss, &learning, at);

    compare("c.image", &plan.output(&engine, image).unwrap(), &golden.get("c.image").channels_last(), BOUND);
    let readings: BTreeMap<&str, f32> = plan.metrics().collect();
    for (name, t) in golden.below("c.term") {
        // Metrics are read as float32.
        compare(&format!("c.term.{name}"), &[f64::from(readings[name])], &t.data, 1e-6);
    }
    compare("c.loss", &plan.output(&engine, loss).unwrap(), &golden.get("c.loss").data, BOUND);
    golden.check_gradients(&engine, "c.grad", "generator", &learning);
}

/// `L_u^b` of block 2, from images and from the generator's own features, with the relative feature errors.
#[test]
fn stage_two() {
    let golden = Golden::load();
    let mut engine = Engine::<f64>::default();
    let Run { spec, teachers, one, at, _folder } = run_of(&golden, &mut engine);
    let wanted = tasks(&teachers, &spec.student).unwrap();
    let two = StageTwo::new(&mut engine.store, &spec, &teachers, wanted, Some(&one)).unwrap();
    golden.set(&mut engine, "student");
    let block = golden.meta["stage_two"]["block"].as_u64().unwrap() as usize;
    let mut learning = two.trunk.learning(1..=block);
    learning.extend(parameters(&engine, &format!("student.filter{block}")));

    let mut tape = Tape::default();
    let mut r = Recorder { tape: &mut tape, store: &engine.store };
    let loss = two.record_loss(&mut r, &spec, &teachers, Some(&one), block).unwrap();
    r.tape.output(loss);
    let plan = step(&mut engine, &tape, loss, &learning, at);

    compare("d.loss", &plan.output(&engine, loss).unwrap(), &golden.get("d.loss").data, BOUND);
    golden.check_gradients(&engine, "d.grad", "student", &learning);
}
