//! Whole runs on the machines that run kernels: the emulator, or the GPU that `DFKA_TEST_DEVICE=cuda` asks
//! for.

use crate::common::{Lab, network, skipped};
use dfka_engine::autograd::tape::Learn;
use dfka_engine::autograd::{Engine, Optimiser, Plan, Store, Tape};
use dfka_engine::config::{self, Override};
use dfka_engine::device::{Choice, StepState};
use dfka_engine::labelled::evaluate::evaluate;
use dfka_engine::labelled::run::run;
use dfka_engine::labelled::spec::{
    CropSpec, OptimiserSpec, TeachSpec, TeacherNorm, TrainingData, TrainingSpec,
};
use dfka_engine::labelled::teach::teach;
use dfka_engine::models::Recorder;
use dfka_engine::models::resnet::{
    BlockKind, Build, Mode, Normalisation, ResNet, ResNetSpec, Shortcut, Source, Stem, Variant,
};
use dfka_engine::ops::Scalar;
use dfka_engine::ops::layers::activation::{Act, Activation};
use dfka_engine::ops::layers::batch_norm::{BatchNorm, Stats};
use dfka_engine::ops::layers::conv2d::Conv2d;
use dfka_engine::ops::losses::feature_loss::FeatureLoss;
use dfka_engine::ops::losses::statistics_loss::StatisticsLoss;
use dfka_engine::ops::losses::weighted_sum::WeightedSum;
use dfka_engine::ops::optim::adam::Adam;
use dfka_engine::pipeline::Device;
use dfka_engine::pipeline::observer::Observer;
use dfka_engine::pipeline::schedule::Schedule;
use dfka_engine::pipeline::spec::{EvaluationData, RunSpec};
use dfka_engine::tensor::{Elem, Shape};
use std::path::PathBuf;

/// The machine to test. Without one the test prints that it is skipped, or fails if it is required.
pub fn machine() -> Option<Choice> {
    let asked = std::env::var("DFKA_TEST_DEVICE").unwrap_or_else(|_| "emu".into());
    let choice = match asked.strip_prefix("cuda") {
        Some(index) => Choice::Cuda(index.trim_start_matches(':').parse().unwrap_or(0)),
        None => Choice::Emu,
    };
    match choice.machine(Elem::F32) {
        Ok(_) => Some(choice),
        Err(e) => {
            assert!(std::env::var_os("DFKA_REQUIRE_EMU").is_none(), "{e}");
            skipped(&e.to_string());
            None
        }
    }
}

/// Records every loss: stage, step, name, value.
#[derive(Default)]
struct Losses {
    stage: String,
    all: Vec<(String, usize, String, f32)>,
}

impl Observer for Losses {
    fn stage(&mut self, name: &str, _: usize) {
        self.stage = name.into();
    }
    fn step(&mut self, step: usize, metrics: &mut dyn Iterator<Item = (&str, f32)>) {
        let stage = &self.stage;
        self.all.extend(metrics.map(|(name, v)| (stage.clone(), step, name.to_string(), v)));
    }
    fn note(&mut self, _: &str) {}
}

/// The demo, with a few steps per stage.
fn demo(sets: &[&str]) -> RunSpec {
    let file = crate::common::root().join("configs/demo.toml");
    let few = [
        "generator.steps=2",
        "dual.steps=[2, 2, 2, 2]",
        "generator.batch=8",
        "dual.batch=8",
        "dual.bank=16",
        "loss.least_diversity=0",
        "loss.least_information=0",
        "loss.least_found=0",
    ];
    let sets: Vec<Override> = few.iter().chain(sets).map(|s| Override::set(s).unwrap()).collect();
    let mut spec = config::load_run(&file, &sets).unwrap().spec;
    spec.evaluation = None;
    spec
}

fn losses(spec: &RunSpec) -> Vec<(String, usize, String, f32)> {
    let (out, mut losses) = (tempfile::tempdir().unwrap(), Losses::default());
    run(spec, out.path(), false, &mut losses).unwrap();
    losses.all
}

/// f32 feature maps differ from the CPU's by the order of additions, bf16 maps by 2^-9 per stored element.
/// Adam divides by the gradient's size, so that a difference in the last digit of a small gradient can turn
/// the direction of a step: at the demo's learning rates, the bf16 losses of two correct programs differ by
/// a quarter after one step. bf16 therefore takes small steps, and f32 an eighth of the student's: the largest difference
/// in f32 is 8.5e-4 with those, 1.7e-3 with twice the rate and 5.6e-3 with four times the rate.
#[test]
fn every_stage_of_the_demo_has_the_losses_of_the_cpu() {
    let Some(choice) = machine() else { return };
    let small = ["generator.learning_rate=1e-5", "dual.learning_rate=1e-5"];
    let eighth = ["dual.learning_rate=5e-4"];
    for (precision, rates, bounds) in [("f32", &eighth[..], [2e-5, 2e-3]), ("bf16", &small[..], [0.02, 0.04])]
    {
        let cpu = losses(&demo(rates));
        let mut spec = demo(&[rates, &[&format!("precision={precision:?}")]].concat());
        spec.device.choice = choice;
        let found = losses(&spec);
        assert_eq!(found.len(), cpu.len());
        // The first bound is for the very first step, where the weights are still equal. Every later stage
        // starts from weights that already differ.
        let bound = |stage: &str, step: usize| bounds[usize::from(stage != "generator" || step > 0)];
        for (expected, found) in cpu.iter().zip(&found) {
            let (stage, step, name, value) = expected;
            assert_eq!((&found.0, found.1, &found.2), (stage, *step, name));
            let off = (found.3 - value).abs() / value.abs().max(0.1);
            assert!(
                off <= bound(stage, *step),
                "{precision}: {stage}, step {step}: {name}: expected {value}, found {}: off by {off:.1e}",
                found.3
            );
        }
    }
}

/// Networks that differ from He et al.'s, in f32 and bf16. The rates are small for the reason above.
#[test]
fn every_stage_of_wide_and_deep_networks_has_the_losses_of_the_cpu() {
    let Some(choice) = machine() else { return };
    let wide = Variant { inner_widths: vec![2, 4, 3, 6], ..Variant::default() };
    let shortcut = Shortcut::AveragePool;
    let deep = Variant { deep_stem: Some([3, 2]), shortcut, ..Variant::default() };
    for (block, variant) in [(BlockKind::Bottleneck, wide), (BlockKind::Basic, deep)] {
        let lab = Lab::of(&ResNetSpec { block, variant, ..network() });
        let of = |precision: Elem, choice| {
            let mut spec = lab.spec(&["generator.learning_rate=1e-5", "dual.learning_rate=1e-5"]);
            (spec.evaluation, spec.precision, spec.device.choice) = (None, precision, choice);
            losses(&spec)
        };
        let cpu = of(Elem::F32, Choice::Cpu);
        for (precision, bound) in [(Elem::F32, 2e-3), (Elem::Bf16, 0.1)] {
            for (expected, found) in cpu.iter().zip(of(precision, choice)) {
                let off = (found.3 - expected.3).abs() / expected.3.abs().max(0.1);
                assert!(off <= bound, "{block:?}, {precision}: expected {expected:?}, found {found:?}");
            }
        }
    }
}

/// Every stage and every baseline, on a network that the emulator runs in seconds.
#[test]
fn a_run_repeats_itself_bit_for_bit_captured_or_not() {
    let Some(choice) = machine() else { return };
    let lab = Lab::new();
    let mut spec = lab.spec(&["seed=5", "baselines.noise=true", "baselines.ka=ka.npz"]);
    spec.device.choice = choice;
    lab.run_spec("a", &spec).unwrap();
    // A profiled step runs launch by launch; the other steps replay a captured graph.
    spec.device.profile = 0..1_000_000;
    lab.run_spec("b", &spec).unwrap();
    for name in ["student.npz", "student-block1.npz", "noise.student.npz", "ka.student.npz", "samples.png"] {
        assert!(lab.bytes(&format!("a/{name}")) == lab.bytes(&format!("b/{name}")), "{name} differs");
    }
}

/// A checkpoint does not depend on the device: a run that began on a machine can end on the CPU.
#[test]
fn a_run_moves_from_a_machine_to_the_cpu() {
    let Some(choice) = machine() else { return };
    let lab = Lab::new();
    let mut spec = lab.spec(&["checkpoint_seconds=0"]);
    spec.device.choice = choice;
    let whole = lab.run_spec("whole", &spec).unwrap();
    // The machine trains the generator and the first block, the CPU the rest.
    struct Stop(usize);
    impl Observer for Stop {
        fn stage(&mut self, _: &str, _: usize) {
            self.0 += 1;
            assert!(self.0 < 3, "stopped on purpose");
        }
        fn step(&mut self, _: usize, _: &mut dyn Iterator<Item = (&str, f32)>) {}
        fn note(&mut self, _: &str) {}
    }
    let out = lab.path("moved");
    std::fs::create_dir_all(&out).unwrap();
    let stopped =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&spec, &out, false, &mut Stop(0))));
    assert!(stopped.is_err());
    spec.device.choice = Choice::Cpu;
    let moved = run(&spec, &out, true, &mut Losses::default()).unwrap();
    assert!(moved.labels == whole.labels && moved.student.unwrap().score.map.is_finite());
}

/// A teacher is trained, with batch statistics, and scored on a machine as on the CPU.
/// A teacher of the labels on the left, trained on `data` for a few steps in f32 on the CPU.
fn teacher(data: TrainingData, steps: usize, batch: usize) -> TeachSpec {
    let network = network();
    TeachSpec {
        name: "tiny".into(),
        seed: 3,
        data,
        labels: crate::common::LEFT.iter().map(|l| l.to_string()).collect(),
        block: network.block,
        stem: network.stem,
        widths: network.widths,
        depths: network.depths,
        variant: network.variant,
        image_size: None,
        init: None,
        training: TrainingSpec {
            steps,
            batch,
            optimiser: OptimiserSpec::Adam { weight_decay: 0.0 },
            schedule: Schedule::OneCycle,
            learning_rate: 1e-3,
            backbone_learning_rate: 1e-3,
            layer_decay: 1.0,
            norm: TeacherNorm::Batch,
        },
        evaluation: None,
        checkpoint_seconds: 20.0,
        precision: Elem::F32,
        device: Device::default(),
    }
}

#[test]
fn a_teacher_is_trained_and_scored() {
    let Some(choice) = machine() else { return };
    let lab = Lab::new();
    let train = |device: Choice, out: &str| {
        let data = TrainingData::Labelled(lab.path("evaluation.npz"));
        let device = Device { choice: device, ..Device::default() };
        let spec = TeachSpec { device, ..teacher(data, 8, 8) };
        teach(&spec, &lab.path(out), false, &mut Losses::default()).unwrap()
    };
    let (on_cpu, on_machine) = (train(Choice::Cpu, "cpu"), train(choice, "machine"));
    assert!(
        (on_cpu.loss - on_machine.loss).abs() < 0.05 * on_cpu.loss,
        "{} {}",
        on_cpu.loss,
        on_machine.loss
    );
    // The same file scored on both: predictions differ by rounding, which may swap two images with equal
    // scores.
    let evaluation = EvaluationData::Npz(lab.path("evaluation.npz"));
    let device = Device { choice, ..Device::default() };
    let cpu = evaluate(&on_machine.weights, &evaluation, &Device::default()).unwrap();
    let found = evaluate(&on_machine.weights, &evaluation, &device).unwrap();
    assert!((cpu.map - found.map).abs() < 0.5, "{} {}", cpu.map, found.map);
}

/// Photographs lie in the store in f32, and a network without a normalisation begins with a convolution of them.
#[test]
fn a_teacher_of_photographs_has_the_same_losses_in_bf16_with_and_without_initial_weights() {
    let Some(choice) = machine() else { return };
    let lab = Lab::new();
    let folder = crate::common::root().join("tests/fixtures/voc/VOCdevkit/VOC2007");
    let crop = CropSpec { scale: [0.5, 1.0], ratio: [0.75, 4.0 / 3.0], flip: 0.5 };
    let data = TrainingData::Voc { folder, split: "trainval".into(), crop };
    let train = |precision: Elem, out: &str, init: Option<PathBuf>| {
        let labels = ["person", "bus"].map(String::from).to_vec();
        let device = Device { choice, ..Device::default() };
        let spec = TeachSpec {
            labels,
            image_size: Some(32),
            init,
            precision,
            device,
            ..teacher(data.clone(), 20, 4)
        };
        let mut losses = Losses::default();
        let summary = teach(&spec, &lab.path(out), false, &mut losses).unwrap();
        let losses: Vec<f32> = losses.all.iter().filter(|l| l.2 == "loss").map(|l| l.3).collect();
        assert_eq!(losses.len(), 20);
        (summary.weights, losses)
    };
    let mut init = None;
    for start in ["random", "initial"] {
        let (weights, f32s) = train(Elem::F32, &format!("{start}-f32"), init.clone());
        let (_, bf16s) = train(Elem::Bf16, &format!("{start}-bf16"), init.clone());
        for (step, (a, b)) in f32s.iter().zip(&bf16s).enumerate() {
            assert!((a - b).abs() < 0.02 * a, "{start}, step {step}: f32 {a}, bf16 {b}");
        }
        init = Some(weights);
    }
}

/// The program on a device too small for the step: exit code 6, what is needed, and a batch that would fit.
#[test]
fn a_small_device_names_the_batch_that_fits() {
    if machine() != Some(Choice::Emu) {
        skipped("only the emulator's memory can be made small");
        return;
    }
    let lab = Lab::new();
    // One step of each stage; the generator's batch is the one that does not fit.
    let run = |out: &str, batch: usize| {
        let sets = ["generator.steps=1".into(), "dual.steps=[1, 1, 1, 1]".into(), "dual.bank=512".into()];
        let sets: Vec<String> = sets.into_iter().chain([format!("generator.batch={batch}")]).collect();
        let args = ["run", "c.toml", "--out", out, "--device", "emu"].into_iter();
        let args: Vec<&str> = args.chain(sets.iter().flat_map(|s| ["--set", s.as_str()])).collect();
        let out = lab.program(&args).env("DFKA_EMU_MEMORY_MB", "8").output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (code, text) = run("small", 512);
    assert_eq!(code, Some(6), "{text}");
    assert!(text.contains("generator: ") && text.contains("more are needed"), "{text}");
    let batch = text.split("--set generator.batch=").nth(1).unwrap_or_else(|| panic!("{text}"));
    let batch: usize = batch.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
    assert!((2..512).contains(&batch), "{text}");
    let (code, text) = run("fits", batch);
    assert_eq!(code, Some(0), "a batch of {batch}: {text}");
}

/// Two frozen networks over one image, and over features that enter their second block: the loss, the
/// gradients of the image and of the features, and the plan that computed them.
fn side_by_side<R: Scalar>(
    mut engine: Engine<R>,
    block: BlockKind,
    normalisation: Option<Normalisation>,
    variant: Variant,
) -> (Vec<Vec<f64>>, Plan<R>) {
    let stem = Stem { width: 8, kernel: 3, stride: 2, max_pool: true };
    let plain = ResNetSpec::new(block, [32, 32, 3], stem, vec![16, 24], vec![2, 2]);
    let spec = ResNetSpec { normalisation, variant, ..plain };
    let store = &mut engine.store;
    let nets = [1, 2].map(|seed| {
        let name = format!("net{seed}");
        ResNet::new(store, &name, &spec, 1..=2, Some(5), Build::Folded, Source::Random(seed)).unwrap()
    });
    let wave = |len: usize, k: f32| (0..len).map(|i| (i as f32 * k).sin()).collect::<Vec<_>>();
    let [image, level] = [("image", 0), ("level", 1)].map(|(name, b)| {
        let shape = spec.feature(b, 3);
        store.add_with(name, shape, &wave(shape.elems(), 0.37))
    });
    let target = store.add_with("target", spec.feature(2, 3), &wave(spec.feature(2, 3).elems(), 0.11));
    let moments = [image, level].map(|id| {
        ["first", "second"].map(|m| store.add(&format!("{m}.{}", store.name(id).to_owned()), store.shape(id)))
    });
    let mut tape = Tape::default();
    let mut r = Recorder { tape: &mut tape, store: &engine.store };
    let [x, f] = [image, level].map(|id| r.leaf(id, Learn::Trainable));
    let target = r.leaf(target, Learn::Frozen);
    let mut losses = Vec::new();
    for (first, input) in [(1, x), (2, f)] {
        for net in &nets {
            let last = (first..=2).fold(input, |x, b| net.block(&mut r, b, x, Mode::FROZEN, None).unwrap());
            losses.push(r.apply(FeatureLoss, &[last, target]).unwrap());
        }
    }
    let loss = r.apply(WeightedSum { weights: vec![0.5, 1.0, 1.5, 2.0] }, &losses).unwrap();
    tape.metric("loss", loss);
    tape.output(loss);
    // Adam's first moment is the gradient.
    let adam = Adam { lr_slot: 0, beta1: 0.0, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let tensors = [image, level].into_iter().zip(moments.map(|m| m.to_vec())).collect();
    let optimiser = Optimiser { op: adam.into(), tensors };
    let mut plan = Plan::compile(&tape, &engine.store, Some(loss), &[optimiser]).unwrap();
    plan.reserve(&mut engine).unwrap();
    plan.replay(&mut engine, &StepState { step: 0, ..StepState::default() }).unwrap();
    plan.collect(&engine).unwrap();
    engine.pull().unwrap();
    let value = plan.output(&engine, loss).unwrap();
    let mut found = vec![value.iter().map(|v| v.f64()).collect()];
    found.extend(moments.map(|m| engine.store.get(m[0]).iter().map(|v| v.f64()).collect::<Vec<_>>()));
    (found, plan)
}

/// Networks side by side share launches, and the last writer of a gradient that flows into a ReLU applies
/// the ReLU's mask. Neither changes a result.
#[test]
fn networks_side_by_side_share_launches_and_have_the_oracles_gradients() {
    let Some(choice) = machine() else { return };
    let imagenet = Some(Normalisation::imagenet());
    let wide = Variant { inner_widths: vec![8, 12], ..Variant::default() };
    let shortcut = Shortcut::AveragePool;
    let deep = Variant { deep_stem: Some([4, 6]), shortcut, ..Variant::default() };
    for (block, normalisation, variant) in [
        (BlockKind::Basic, None, Variant::default()),
        (BlockKind::Bottleneck, None, Variant::default()),
        (BlockKind::Basic, imagenet, Variant::default()),
        (BlockKind::Bottleneck, None, wide),
        (BlockKind::Basic, None, deep.clone()),
        (BlockKind::Bottleneck, None, deep),
    ] {
        let oracle = Engine::<f64>::default();
        let (expected, _) = side_by_side(oracle, block, normalisation.clone(), variant.clone());
        let engine = Engine::<f32>::on(choice.machine(Elem::F32).unwrap().unwrap());
        let (found, plan) = side_by_side(engine, block, normalisation.clone(), variant.clone());
        for (found, expected) in found.iter().zip(&expected) {
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
            let off = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
            let size = norm(&mut expected.iter().copied());
            assert!(size > 0.0 && off <= 2e-5 * size, "{block:?}: off by {off} of {size}");
        }
        let launches = |kernel: &str| {
            let of_kernel = plan.launches().filter(|(l, _)| l.kernel.name.starts_with(kernel));
            of_kernel.map(|(l, _)| l.group_size()).collect::<Vec<_>>()
        };
        // Block 1 runs for two networks at once, block 2 for both and both inputs.
        let is_deep = variant.deep_stem.is_some();
        let two = if block == BlockKind::Basic { 5 } else { 7 };
        let one = two + if is_deep { 3 } else { 1 };
        assert_eq!(launches("conv2d_fwd"), [vec![2; one], vec![4; two]].concat(), "{block:?}");
        // A launch that adds to a gradient set by another cannot be grouped: at the level's features, and at
        // the image. A normalisation gives each network its own copy of the image.
        let stems = if normalisation.is_some() { vec![2] } else { vec![1, 1] };
        // A pool lies between the shortcut's convolution of a deep network and the features.
        let entry = match (is_deep, block) {
            (false, _) => vec![3, 1, 3, 1],
            (true, BlockKind::Basic) => vec![3, 1, 4],
            (true, BlockKind::Bottleneck) => vec![4, 3, 1],
        };
        let backward = [vec![4; two - 2], entry, vec![2; one - 1], stems].concat();
        assert_eq!(launches("conv2d_dgrad"), backward, "{block:?}");
        // Only the output of the last block feeds a loss that cannot apply masks.
        assert_eq!(launches("activation_step_bwd"), [4], "{block:?}");
        assert_eq!(launches("avg_pool_bwd").len(), if is_deep { 4 } else { 0 }, "{block:?}");
    }
}

/// A trained convolution with its batch norm, then two frozen residual units whose convolutions have a
/// statistics loss, with some means far from zero: the loss, the gradient of the trained filter, the running
/// estimates, and the plan that computed them.
fn watched<R: Scalar>(mut engine: Engine<R>) -> (Vec<Vec<f64>>, Plan<R>) {
    let mut names = 0;
    let mut add = |store: &mut Store<R>, s: Shape, k: f32, size: f32, about: f32| {
        names += 1;
        let wave: Vec<f32> = (0..s.elems()).map(|i| about + size * (i as f32 * k).sin()).collect();
        store.add_with(&format!("tensor {names}"), s, &wave)
    };
    let (v, store) = (Shape::vector, &mut engine.store);
    let w = Shape::new(40, 3, 3, 16);
    let x = add(store, Shape::new(5, 9, 8, 16), 0.37, 1.0, 0.0);
    let ids = [(w, 0.71, 0.2, 0.0), (v(40), 0.3, 1.0, 1.5), (v(40), 0.2, 1.0, 0.0)]
        .map(|(s, k, size, about)| add(store, s, k, size, about));
    let running = [0.5, 2.0].map(|about| add(store, v(40), 0.0, 0.0, about));
    let target = add(store, Shape::new(5, 5, 4, 72), 0.23, 1.0, 0.0);
    // Filter, bias, target mean and target standard deviation, for a shortcut and two convolutions.
    let frozen = [(40, 5.0), (40, 50.0), (72, -0.5)].map(|(c, mean)| {
        let vectors = [(0.9, 0.4, mean), (0.4, 0.4, mean - 1.0), (0.6, 1.0, 2.0)];
        let [bias, m, s] = vectors.map(|(k, size, about)| add(store, v(72), k, size, about));
        [add(store, Shape::new(72, 1, 1, c), 0.53, 0.3, 0.0), bias, m, s]
    });
    let moments = ["first", "second"].map(|m| store.add(m, w));
    let mut tape = Tape::default();
    let mut r = Recorder { tape: &mut tape, store: &engine.store };
    let [x, mean, var, target] = [x, running[0], running[1], target].map(|id| r.leaf(id, Learn::Frozen));
    let [w, gamma, beta] = ids.map(|id| r.leaf(id, Learn::Trainable));
    let mut losses = Vec::new();
    let mut conv = |r: &mut Recorder<R>, x, i: usize, stride| {
        let [w, bias, mean, std] = frozen[i].map(|id| r.leaf(id, Learn::Frozen));
        let u = r.apply(Conv2d { bias: true, ..Conv2d::new(stride, 0) }, &[x, w, bias]).unwrap();
        losses.push(r.apply(StatisticsLoss { eps: 1e-5 }, &[u, mean, std]).unwrap());
        u
    };
    let a = r.apply(Conv2d::new(1, 1), &[x, w]).unwrap();
    let norm = BatchNorm { stats: Stats::Batch, act: Act::Relu, momentum: 0.1, eps: 1e-5 };
    let b = r.apply(norm, &[a, gamma, beta, mean, var]).unwrap();
    let skip = conv(&mut r, b, 0, 2);
    let u = conv(&mut r, b, 1, 2);
    let y = r.apply(Activation(Act::Relu), &[u, skip]).unwrap();
    let u = conv(&mut r, y, 2, 1);
    let z = r.apply(Activation(Act::LeakyRelu(0.2)), &[u, y]).unwrap();
    losses.push(r.apply(FeatureLoss, &[z, target]).unwrap());
    let loss = r.apply(WeightedSum { weights: vec![1.0, 0.5, 0.7, 3.0] }, &losses).unwrap();
    tape.output(loss);
    let adam = Adam { lr_slot: 0, beta1: 0.0, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let optimiser = Optimiser { op: adam.into(), tensors: vec![(ids[0], moments.to_vec())] };
    let mut plan = Plan::compile(&tape, &engine.store, Some(loss), &[optimiser]).unwrap();
    plan.reserve(&mut engine).unwrap();
    plan.replay(&mut engine, &StepState::default()).unwrap();
    plan.collect(&engine).unwrap();
    engine.pull().unwrap();
    let value = plan.output(&engine, loss).unwrap().iter().map(|v| v.f64()).collect();
    let stored = [moments[0], running[0], running[1]]
        .map(|id| engine.store.get(id).iter().map(|v| v.f64()).collect::<Vec<_>>());
    ([vec![value], stored.to_vec()].concat(), plan)
}

/// A convolution also computes its output's channel statistics and the activation after it, and a residual
/// unit's gradient is read in place. So no launch reads a feature map again for any of these, and no result
/// changes.
#[test]
fn channel_statistics_of_a_convolution_need_no_extra_pass() {
    let Some(choice) = machine() else { return };
    let (expected, _) = watched(Engine::<f64>::default());
    let (found, plan) = watched(Engine::<f32>::on(choice.machine(Elem::F32).unwrap().unwrap()));
    for (found, expected) in found.iter().zip(&expected) {
        let size = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= 3e-5 * size, "expected {e}, found {f}, of {size}");
        }
    }
    let launches = |part: &str| plan.launches().filter(|(l, _)| l.kernel.name.contains(part)).count();
    assert_eq!((launches("batch_norm_fwd_merge"), launches("fwd_sums")), (1, 1), "one is the feature loss's");
    // Three statistics losses on 40, 40 and 72 channels share their launches.
    let of_losses = plan.launches().filter(|(l, _)| l.kernel.name.starts_with("statistics_loss_fwd"));
    let of_losses: Vec<_> = of_losses.map(|(l, _)| (l.kernel.name, l.grid, l.group_size())).collect();
    let expected = [("statistics_loss_fwd_merge", [9, 3, 1], 3), ("statistics_loss_fwd", [1, 3, 1], 3)];
    assert_eq!(of_losses, expected);
    // Only the last activation feeds a loss that cannot apply masks, and add the statistics loss's gradient. The
    // other unit's is added by the convolution after it; the skip's lies behind no activation of its own.
    assert_eq!((launches("activation_step_fwd"), launches("activation_step_bwd")), (0, 1));
    assert_eq!(launches("statistics_loss_bwd"), 2);
}
