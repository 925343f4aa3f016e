//! One step of every stage in f64, whose batch two ranks divide: its gradients are those of one process.
//!
//! The test starts its own binary on two ranks, which write their gradients to a file. A process that divides its batch in the
//! same way has the same bits. One that does not adds in another order, which in f64 shows in the last digits only; a loss or a
//! batch norm over a part of the batch would be off by 1e-4 or more.

use crate::common::Lab;
use crate::common::mpi::Mpi;
use dfka_engine::autograd::{Engine, Optimiser, Plan, Tape};
use dfka_engine::config::{self, Override};
use dfka_engine::device::StepState;
use dfka_engine::device::collective::{self, launched};
use dfka_engine::device::philox::Draws;
use dfka_engine::models::Recorder;
use dfka_engine::ops::optim::sgd::Sgd;
use dfka_engine::pipeline::spec::RunSpec;
use dfka_engine::pipeline::stage_one::StageOne;
use dfka_engine::pipeline::stage_two::StageTwo;
use dfka_engine::pipeline::tasks::tasks;
use dfka_engine::pipeline::teachers::Teachers;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Names the config to a process that a launcher has started, and the file for its gradients.
const FOLDER: &str = "DFKA_TEST_FOLDER";

/// Every term of the losses, and every op that looks at the whole batch: batch norms of the student, statistics losses, feature
/// losses, the recipes' terms.
const CASES: [&[&str]; 3] = [
    &["loss.recipe=conditional", "loss.statistics=2.0", "student.norm=batch"],
    &["loss.recipe=published", "loss.statistics=2.0", "student.init=scratch", "student.norm=batch"],
    &["loss.recipe=balanced", "student.filter=stitch"],
];

/// 0 is the generator's stage, `b` that of block b.
const STAGES: RangeInclusive<usize> = 0..=4;

fn spec(folder: &Path, case: usize, split: &str) -> RunSpec {
    let split = format!("parallel.split={split}");
    let sets = CASES[case].iter().copied().chain([split.as_str()]);
    let overrides: Vec<Override> = sets.map(|s| Override::set(s).unwrap()).collect();
    config::load_run(&folder.join("c.toml"), &overrides).unwrap().spec
}

/// The gradients of all tensors of a stage, one after the other. A step of gradient descent at a learning rate of zero
/// changes nothing but the optimiser's memory, which then holds the gradient.
fn gradients(spec: &RunSpec, stage: usize) -> Vec<f64> {
    let mut engine = Engine::<f64>::default();
    let teachers = Teachers::load(&mut engine.store, &spec.teachers).unwrap();
    let tasks = tasks(&teachers, &spec.student).unwrap();
    let one = StageOne::new(&mut engine.store, spec, &teachers);
    let two = StageTwo::new(&mut engine.store, spec, &teachers, tasks, Some(&one)).unwrap();
    let bank = engine.store.id("generator.bank").unwrap();
    let draws = Draws::new(7, 0, 0);
    let pixel = |i: usize| f64::from(draws.words(i as u32, 0)[0]) / f64::from(u32::MAX) * 2.0 - 1.0;
    let pixels: Vec<f64> = (0..engine.store.shape(bank).elems()).map(pixel).collect();
    engine.store.set(bank, &pixels);

    let mut tape = Tape::default();
    let mut r = Recorder { tape: &mut tape, store: &engine.store };
    let loss = match stage {
        0 => one.record_loss(&mut r, spec, &teachers).unwrap().0,
        b => two.record_loss(&mut r, spec, &teachers, Some(&one), b).unwrap(),
    };
    let mut tensors = Vec::new();
    for id in engine.store.ids().collect::<Vec<_>>() {
        let (name, shape) = (format!("gradient.{}", engine.store.name(id)), engine.store.shape(id));
        tensors.push((id, vec![engine.store.add(&name, shape)]));
    }
    let memories: Vec<_> = tensors.iter().map(|(_, m)| m[0]).collect();
    let sgd = Sgd { lr_slot: 0, momentum: 0.0, weight_decay: 0.0 };
    let optimiser = Optimiser { op: sgd.into(), tensors };
    let mut plan = Plan::compile(&tape, &engine.store, Some(loss), &[optimiser]).unwrap();
    plan.reserve(&mut engine).unwrap();
    plan.replay(&mut engine, &StepState { seed: 3, step: 1, lr: [0.0; 4] }).unwrap();
    memories.into_iter().flat_map(|m| engine.store.get(m).to_vec()).collect()
}

fn file(folder: &Path, case: usize, stage: usize) -> PathBuf {
    folder.join(format!("gradients-{case}-{stage}"))
}

/// What a rank does.
fn write_gradients(folder: &Path) {
    fn lost(why: &str) -> ! {
        eprintln!("{why}");
        std::process::exit(8)
    }
    let ranks = collective::join(None, lost).unwrap().expect("a launcher has started this process");
    for case in 0..CASES.len() {
        for stage in STAGES {
            let found = gradients(&spec(folder, case, "batch"), stage);
            if collective::leads() {
                std::fs::write(file(folder, case, stage), bytemuck::cast_slice(&found)).unwrap();
            }
        }
    }
    ranks.leave();
}

#[test]
fn a_batch_on_two_ranks_has_the_gradients_of_one_process_in_f64() {
    if let (Some(_), Some(folder)) = (launched(), std::env::var_os(FOLDER)) {
        return write_gradients(Path::new(&folder));
    }
    let Some(mpi) = Mpi::first() else { return };
    let lab = Lab::new();
    let folder = lab.path("");
    let name = "ranks::a_batch_on_two_ranks_has_the_gradients_of_one_process_in_f64";
    let mut ranks = mpi.command(std::env::current_exe().unwrap(), 2, &["--exact", name]);
    let done = ranks.env(FOLDER, &folder).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    for (case, sets) in CASES.iter().enumerate() {
        for stage in STAGES {
            let alone = gradients(&spec(&folder, case, "teachers"), stage);
            let in_shares = gradients(&spec(&folder, case, "batch"), stage);
            let bytes = std::fs::read(file(&folder, case, stage)).unwrap();
            let divided: Vec<f64> = bytes.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
            assert!(in_shares == divided, "{sets:?}, stage {stage}: one process has other bits");
            assert_eq!(alone.len(), divided.len());
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
            let away = norm(&mut alone.iter().zip(&divided).map(|(a, b)| a - b));
            let found = away / norm(&mut alone.iter().copied());
            println!("case {case}, stage {stage}: {found:.1e}");
            assert!(found <= 1e-14, "{sets:?}, stage {stage}: {found:.1e}");
        }
    }
}
