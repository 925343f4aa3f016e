//! One training step of every kind at the demo's size, in milliseconds: `cargo bench --bench step [-- SECONDS [THREADS [ROW]]]`.
//!
//! Median and minimum of the repeats that fit the seconds a row, after three warm-up steps, then the least processor time
//! of all threads together (Linux; on a busy machine the steadiest number, with one thread above all). One tab-separated
//! line a row.
//! `benches/torch/step.py` times the same steps in PyTorch, `benches/compare.sh` runs both in turn.

mod common;

use common::{demo_network, demo_spec, write_teacher};
use dfka_engine::autograd::Engine;
use dfka_engine::device::StepState;
use dfka_engine::error::Result;
use dfka_engine::pipeline::dual::{StageTwo, tasks};
use dfka_engine::pipeline::generator::StageOne;
use dfka_engine::pipeline::session::Stage;
use dfka_engine::pipeline::teachers::Teachers;
use std::time::Instant;

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
        write_teacher(&folder.path().join(name), name, seed, &demo_network())?;
    }
    for groups in [1, 2, 4] {
        let row = format!("generator, {groups}-stack");
        if row.contains(only) {
            let spec = demo_spec(folder.path(), groups);
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
            let spec = demo_spec(folder.path(), 2);
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
