//! One training step of every kind at the demo's size, in milliseconds: `cargo bench --bench step [-- SECONDS [THREADS [ROW]]]`.
//!
//! Median and minimum of the repeats that fit the seconds a row, after three warm-up steps, then the least processor time
//! of all threads together (Linux; on a busy machine the steadiest number, with one thread above all). One tab-separated
//! line a row.
//! `benches/torch/step.py` times the same steps in PyTorch, `benches/compare.sh` runs both in turn.

use dfka_engine::autograd::{Engine, Store};
use dfka_engine::device::StepState;
use dfka_engine::error::Result;
use dfka_engine::models::resnet::{BlockKind, Build, ResNet, ResNetSpec, Source, Stem};
use dfka_engine::pipeline::Device;
use dfka_engine::pipeline::dual::{StageTwo, tasks};
use dfka_engine::pipeline::generator::StageOne;
use dfka_engine::pipeline::session::Stage;
use dfka_engine::pipeline::spec::*;
use dfka_engine::pipeline::teachers::Teachers;
use dfka_engine::tensor::Elem;
use dfka_engine::weights::{Tensors, npz};
use std::path::Path;
use std::time::Instant;

const LABELS: usize = 10;
const BATCH: usize = 64;

fn main() -> Result<()> {
    // Cargo adds `--bench` to what the caller asks for.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let seconds = args.first().and_then(|s| s.parse().ok()).unwrap_or(1.0);
    let threads = args.get(1).and_then(|s| s.parse().ok()).unwrap_or(2);
    let only = args.get(2).map_or("", String::as_str);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .expect("the first pool of the process");
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, seed) in [("a", 1), ("b", 2)] {
        write_teacher(&folder.path().join(name), name, seed)?;
    }
    for groups in [1, 2, 4] {
        let row = format!("generator, {groups}-stack");
        if row.contains(only) {
            let spec = run_spec(folder.path(), groups);
            let mut engine = Engine::default();
            let teachers = Teachers::load(&mut engine.store, &spec.teachers)?;
            let one = StageOne::new(&mut engine.store, &spec, &teachers);
            let stage = one.stage(&mut engine, &spec, &teachers)?;
            time(&row, &mut engine, stage, seconds);
        }
    }
    for b in 1..=4 {
        let row = format!("dual block {b}");
        if row.contains(only) {
            let spec = run_spec(folder.path(), 2);
            let mut engine = Engine::default();
            let teachers = Teachers::load(&mut engine.store, &spec.teachers)?;
            let one = StageOne::new(&mut engine.store, &spec, &teachers);
            let tasks = tasks(&teachers, &[])?;
            let two = StageTwo::new(&mut engine.store, &spec, &teachers, tasks, Some(&one))?;
            let noise = |i: usize| (i as f32 * 0.37).sin();
            engine.store.get_mut(one.bank).iter_mut().enumerate().for_each(|(i, v)| *v = noise(i));
            let stage = two.stage(&mut engine, "block", &spec, &teachers, Some(&one), b)?;
            time(&row, &mut engine, stage, seconds);
        }
    }
    Ok(())
}

fn time(row: &str, engine: &mut Engine<f32>, mut stage: Stage, seconds: f64) {
    stage.plan.reserve(engine).unwrap();
    let mut step = 0;
    let mut replay = || {
        let state = StepState { seed: 1, step, lr: stage.learning_rates };
        let (cpu, start) = (cpu_ms(), Instant::now());
        stage.plan.replay(engine, &state).unwrap();
        step += 1;
        (start.elapsed().as_secs_f64() * 1e3, cpu_ms() - cpu)
    };
    for _ in 0..3 {
        replay();
    }
    let (mut times, mut cpu, start) = (Vec::new(), f64::MAX, Instant::now());
    while start.elapsed().as_secs_f64() < seconds {
        let (wall, busy) = replay();
        times.push(wall);
        cpu = cpu.min(busy);
    }
    times.sort_by(f64::total_cmp);
    println!("{row}\tours\t{:.2}\t{:.2}\t{cpu:.2}", times[times.len() / 2], times[0]);
}

/// Processor time of this process so far; 0 where `/proc` does not say.
fn cpu_ms() -> f64 {
    let of_thread = |folder: std::io::Result<std::fs::DirEntry>| {
        let times = std::fs::read_to_string(folder.ok()?.path().join("schedstat")).ok()?;
        times.split(' ').next()?.parse::<f64>().ok()
    };
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    threads.filter_map(of_thread).sum::<f64>() * 1e-6
}

/// The demo's network with random weights, as a file.
fn write_teacher(path: &Path, name: &str, seed: u64) -> Result<()> {
    let stem = Stem { width: 16, kernel: 3, stride: 2, max_pool: false };
    let network = ResNetSpec {
        block: BlockKind::Basic,
        image: [32, 32, 1],
        stem,
        widths: vec![16, 32, 64, 128],
        depths: vec![1; 4],
    };
    let mut store = Store::<f32>::default();
    let net =
        ResNet::new(&mut store, "t", &network, 1..=4, Some(LABELS), Build::Normed, Source::Random(seed))?;
    let mut out = Tensors::new();
    net.export(&store, 1..=4, "", Build::Normed, &mut out)?;
    let [weight, bias] = net.head.expect("built with a head");
    out.insert("fc.weight", &[LABELS, 128], store.to_f32(weight))?;
    out.insert("fc.bias", &[LABELS], store.to_f32(bias))?;
    let labels: Vec<String> = (0..LABELS).map(|i| format!("{name}{i}")).collect();
    out.meta.insert("labels".into(), labels.into());
    out.meta.insert("network".into(), serde_json::to_value(&network).expect("a network is plain data"));
    npz::save(path, &out)
}

/// The conditional recipe, with everything that costs time switched on.
fn run_spec(teachers: &Path, groups: usize) -> RunSpec {
    RunSpec {
        name: "bench".into(),
        seed: 1,
        checkpoint_seconds: 1e6,
        precision: Elem::Bf16,
        device: Device::default(),
        teachers: ["a", "b"]
            .map(|t| TeacherSpec { name: t.into(), weights: teachers.join(t) })
            .into_iter()
            .collect(),
        student: StudentSpec {
            labels: vec![],
            init: StudentInit::Scratch,
            norm: StudentNorm::Stored,
            branch: Branch::Block(4),
            filter_reduction: 4,
        },
        generator: GeneratorSpec {
            groups,
            latent: 108,
            widths: vec![128, 64, 32, 32, 16],
            steps: 400,
            batch: BATCH,
            learning_rate: 1e-3,
            betas: [0.5, 0.999],
            shift: 6,
        },
        loss: LossSpec {
            recipe: Recipe::Conditional { max_labels: 3 },
            alpha: 0.1,
            beta: 0.0,
            gamma: 0.0,
            statistics: 5.0,
            least_diversity: 0.05,
            least_entropy: 0.15,
        },
        dual: DualSpec {
            images: ImageSource::Generator,
            steps: vec![400; 4],
            batch: BATCH,
            learning_rate: 1e-3,
            feature: 1.0,
            late_features: 1.0,
            freeze_earlier: false,
            lambda_in: [1.0, 0.3],
            augment: AugmentSpec { shift: 6, flip: 0.0, mix_max: 0.3, cutmix: 0.0 },
            bank: 4096,
        },
        evaluation: None,
        baselines: vec![],
    }
}
