//! Replaying a step allocates no memory, neither on the calling thread nor on any worker.

use dfka_engine::autograd::Engine;
use dfka_engine::device::StepState;
use dfka_engine::device::cpu::par::on_a_worker;
use dfka_engine::models::filter::FilterKind;
use dfka_engine::models::resnet::{BlockKind, Build, Normalisation, ResNet, ResNetSpec, Source, Stem};
use dfka_engine::pipeline::Device;
use dfka_engine::pipeline::spec::*;
use dfka_engine::pipeline::stage::Stage;
use dfka_engine::pipeline::stage_one::StageOne;
use dfka_engine::pipeline::stage_two::StageTwo;
use dfka_engine::pipeline::tasks::tasks;
use dfka_engine::pipeline::teachers::Teachers;
use dfka_engine::tensor::Elem;
use dfka_engine::weights::{Tensors, npz};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// The system's allocator, which counts its allocations.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A random network of the teachers' architecture, written as a teacher file.
fn teacher(folder: &Path, name: &str, labels: &[&str], network: &ResNetSpec, seed: u64) -> TeacherSpec {
    let mut engine = Engine::<f32>::default();
    let blocks = 1..=network.blocks();
    let source = Source::Random(seed);
    let net = ResNet::new(
        &mut engine.store,
        name,
        network,
        blocks.clone(),
        Some(labels.len()),
        Build::Normed,
        source,
    )
    .unwrap();
    let mut tensors = Tensors::new();
    net.export(&engine.store, blocks, "", Build::Normed, &mut tensors).unwrap();
    let [weight, bias] = net.head.unwrap().map(|id| engine.store.to_f32(id));
    tensors.insert("fc.weight", &[labels.len(), *network.widths.last().unwrap()], weight).unwrap();
    tensors.insert("fc.bias", &[labels.len()], bias).unwrap();
    tensors.meta.insert("network".into(), serde_json::to_value(network).unwrap());
    tensors.meta.insert("labels".into(), serde_json::to_value(labels).unwrap());
    let weights = folder.join(format!("{name}.npz"));
    npz::save(&weights, &tensors).unwrap();
    TeacherSpec::new(name, weights)
}

/// A run that uses as many different ops as a run can.
fn run_spec(teachers: Vec<TeacherSpec>) -> RunSpec {
    RunSpec {
        name: "tiny".into(),
        seed: 3,
        checkpoint_seconds: 1e6,
        precision: Elem::Bf16,
        split: Default::default(),
        device: Device::default(),
        teachers,
        student: StudentOptions {
            labels: vec![],
            init: StudentInit::Mean,
            norm: StudentNorm::Batch,
            branch: Branch::Block(2),
            network: None,
            filter: FilterKind::Gain,
            teachers_of: BTreeMap::new(),
            filter_reduction: 4,
        },
        generator: GeneratorOptions {
            groups: 3,
            latent: 6,
            widths: vec![12, 10, 8],
            steps: 10,
            batch: 6,
            learning_rate: 1e-3,
            betas: [0.5, 0.999],
            shift: 1,
            teachers_at_once: None,
        },
        loss: LossSpec {
            recipe: Recipe::Balanced { share: 0.3 },
            alpha: 0.1,
            mean_activation: true,
            beta: 1.0,
            gamma: 1.0,
            statistics: 1.0,
            least_diversity: 0.0,
            least_entropy: 0.0,
            least_information: 0.0,
            least_found: 0.0,
        },
        dual: DualSpec {
            images: ImageSource::Generator,
            steps: vec![4, 4, 4],
            batch: 6,
            learning_rate: 1e-3,
            feature: 1.0,
            late_features: 1.0,
            freeze_earlier: false,
            lambda_in: [1.0, 0.5],
            augment: AugmentSpec { shift: 1, flip: 0.5, mix_max: 0.3, cutmix: 0.3 },
            bank: 32,
        },
        evaluation: None,
        baselines: vec![],
    }
}

fn replay(engine: &mut Engine<f32>, stage: &mut Stage, steps: std::ops::Range<u64>) {
    for step in steps {
        stage.plan.replay(engine, &StepState { seed: stage.seed, step, lr: stage.learning_rates }).unwrap();
    }
}

/// The number of allocations in the twenty replays after the first, on a worker thread, where runs train
/// their stages.
fn allocations(engine: &mut Engine<f32>, mut stage: Stage) -> usize {
    stage.plan.reserve(engine).unwrap();
    on_a_worker(|| {
        replay(engine, &mut stage, 0..1);
        let before = ALLOCATIONS.load(SeqCst);
        replay(engine, &mut stage, 1..21);
        let count = ALLOCATIONS.load(SeqCst) - before;
        assert!(stage.plan.metrics().all(|(_, v)| v.is_finite()));
        count
    })
}

/// Set in the process that counts. The test runs itself in a process of its own, because the allocations of
/// other tests' threads would be counted too.
const ALONE: &str = "DFKA_TEST_ALONE";

#[test]
fn replays_allocate_nothing() {
    if std::env::var_os(ALONE).is_some() {
        return count_in_every_stage();
    }
    let mut alone = Command::new(std::env::current_exe().unwrap());
    alone.args(["--exact", "no_alloc::replays_allocate_nothing"]).env(ALONE, "1");
    let out = alone.output().unwrap();
    let text = [out.stdout, out.stderr].map(|t| String::from_utf8_lossy(&t).into_owned()).concat();
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
}

fn count_in_every_stage() {
    let stem = Stem { width: 8, kernel: 3, stride: 1, max_pool: false };
    let basic = ResNetSpec::new(BlockKind::Basic, [16, 16, 3], stem, vec![8, 16, 24], vec![1, 2, 1]);
    let pooled = ResNetSpec {
        block: BlockKind::Bottleneck,
        image: [32, 32, 1],
        normalisation: Some(Normalisation { mean: vec![0.3], std: vec![0.2] }),
        stem: Stem { kernel: 7, stride: 2, max_pool: true, ..stem },
        ..basic.clone()
    };
    for network in [basic, pooled] {
        let folder = tempfile::tempdir().unwrap();
        let spec = run_spec(vec![
            teacher(folder.path(), "left", &["bus", "car", "dog"], &network, 1),
            teacher(folder.path(), "right", &["sofa", "table"], &network, 2),
        ]);
        let mut engine = Engine::<f32>::default();
        let teachers = Teachers::load(&mut engine.store, &spec.teachers).unwrap();
        let one = StageOne::new(&mut engine.store, &spec, &teachers);
        let wanted = tasks(&teachers, &spec.student).unwrap();
        let two = StageTwo::new(&mut engine.store, &spec, &teachers, wanted, Some(&one)).unwrap();

        let stage = one.stage(&mut engine, &spec, &teachers).unwrap();
        assert_eq!(allocations(&mut engine, stage), 0, "stage one, {:?}", network.block);
        for b in [2, 3] {
            let stage = two.stage(&mut engine, "block", &spec, &teachers, Some(&one), b).unwrap();
            assert_eq!(allocations(&mut engine, stage), 0, "stage two, block {b}, {:?}", network.block);
        }
    }
}
