//! One training step of every kind, timed: generator steps of 1, 2 and 4 groups, dual steps of every block.
//!
//! ```text
//! step [SECONDS [THREADS [ROW]]]                                 benches/step.toml on the CPU, as TSV
//! step --device cuda --config configs/voc.toml --json FILE       on a GPU: with roofline and forecast
//! step --device plan --config configs/voc.toml                   the cost of the steps, on any machine
//! step --device cuda --config configs/demo.toml --export FILE    loss and gradients, for step.py --parity
//! step --report FOLDER                                           targets and figures, from FOLDER's files
//! ```
//!
//! Further options: `--set KEY=VALUE` of the config, `--rows TEXT`, `--seconds S` of repeats per row,
//! `--threads N`, `--torch FILE` (the file that benches/torch/step.py wrote, for ratios), `--tiny` (a small
//! network and batch, to show that everything runs).
//!
//! On the CPU a line has row, `ours`, and in milliseconds the median, the minimum and the least processor
//! time of all threads together (Linux only; on a busy machine the steadiest number, above all with one
//! thread). `benches/compare.sh` runs this and `benches/torch/step.py` alternately. `step/measure.rs`
//! describes the measurements on a GPU.

#[path = "step/export.rs"]
mod export;
#[path = "step/measure.rs"]
mod measure;
#[path = "step/report.rs"]
mod report;

use dfka_engine::autograd::Engine;
use dfka_engine::config::{self, Override};
use dfka_engine::device::gpu::target::Target;
use dfka_engine::device::{Choice, StepState};
use dfka_engine::error::{Error, Result};
use dfka_engine::models::resnet::{BlockKind, ResNetSpec, Stem};
use dfka_engine::pipeline::spec::{ImageSource, RunSpec, Stated, StudentInit};
use dfka_engine::pipeline::stage::Stage;
use dfka_engine::pipeline::stage_one::StageOne;
use dfka_engine::pipeline::stage_two::StageTwo;
use dfka_engine::pipeline::tasks::tasks;
use dfka_engine::pipeline::teachers::{Absent, OpenedTeacher, Teachers};
use dfka_engine::pipeline::{Device, engine_on};
use std::path::PathBuf;
use std::time::Instant;

/// The command line.
pub struct Args {
    device: On,
    config: PathBuf,
    sets: Vec<String>,
    rows: String,
    seconds: f64,
    threads: usize,
    json: Option<PathBuf>,
    torch: Option<PathBuf>,
    is_tiny: bool,
    export: Option<PathBuf>,
    report: Option<PathBuf>,
}

/// Where the steps run.
#[derive(Clone, Copy, PartialEq)]
pub enum On {
    Machine(Choice),
    /// Nowhere: they are only planned, for a GPU.
    Plan,
}

fn arguments() -> Result<Args> {
    let mut args = Args {
        device: On::Machine(Choice::Cpu),
        config: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/step.toml")),
        sets: Vec::new(),
        rows: String::new(),
        seconds: 1.0,
        threads: 2,
        json: None,
        torch: None,
        is_tiny: false,
        export: None,
        report: None,
    };
    let mut plain = 0;
    // Cargo adds `--bench` to the arguments.
    let mut words = std::env::args().skip(1).filter(|a| a != "--bench");
    while let Some(word) = words.next() {
        let usage =
            || Error::Usage(format!("{word}: expected an option that benches/step.rs lists at its top"));
        let number = |text: &str| text.parse::<f64>().map_err(|_| usage());
        if !word.starts_with("--") {
            match plain {
                0 => args.seconds = number(&word)?,
                1 => args.threads = number(&word)? as usize,
                _ => args.rows = word.clone(),
            }
            plain += 1;
            continue;
        }
        if word == "--tiny" {
            args.is_tiny = true;
            continue;
        }
        let value = words.next().ok_or_else(usage)?;
        match (word.as_str(), value.as_str()) {
            ("--device", "cpu") => args.device = On::Machine(Choice::Cpu),
            ("--device", "cuda") => args.device = On::Machine(Choice::Cuda(0)),
            ("--device", "emu") => args.device = On::Machine(Choice::Emu),
            ("--device", "plan") => args.device = On::Plan,
            ("--config", _) => args.config = value.into(),
            ("--set", _) => args.sets.push(value),
            ("--rows", _) => args.rows = value,
            ("--seconds", _) => args.seconds = number(&value)?,
            ("--threads", _) => args.threads = number(&value)? as usize,
            ("--json", _) => args.json = Some(value.into()),
            ("--torch", _) => args.torch = Some(value.into()),
            ("--export", _) => args.export = Some(value.into()),
            ("--report", _) => args.report = Some(value.into()),
            _ => return Err(usage()),
        }
    }
    Ok(args)
}

fn main() -> Result<()> {
    let args = arguments()?;
    if let Some(folder) = &args.report {
        return report::report(folder);
    }
    let sets = args.sets.iter().map(|s| Override::set(s)).collect::<Result<Vec<_>>>()?;
    let mut spec = config::load_run(&args.config, &sets)?.spec;
    if args.is_tiny {
        shrink(&mut spec)?;
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads)
        .build_global()
        .map_err(|e| Error::Run(format!("threads: {e}")))?;
    if let Some(path) = &args.export {
        return export::export(&args, spec, path);
    }
    if args.device != On::Machine(Choice::Cpu) {
        return measure::measure(&args, &spec);
    }
    for row in rows(&args) {
        let mut engine = Engine::default();
        let stage = build(&spec, row, &mut engine)?;
        time(&row.name(), &mut engine, stage, args.seconds)?;
    }
    Ok(())
}

/// A kind of step.
#[derive(Clone, Copy)]
pub enum Row {
    Generator { groups: usize },
    Dual { block: usize },
}

impl Row {
    /// The name in benches/torch/step.py.
    fn name(self) -> String {
        match self {
            Row::Generator { groups } => format!("generator, {groups}-stack"),
            Row::Dual { block } => format!("dual block {block}"),
        }
    }
}

/// The rows that the command line chooses.
pub fn rows(args: &Args) -> Vec<Row> {
    let generators = [1, 2, 4].map(|groups| Row::Generator { groups });
    let all = generators.into_iter().chain((1..=4).map(|block| Row::Dual { block }));
    all.filter(|r| args.rows.split(';').any(|part| r.name().contains(part.trim()))).collect()
}

/// Small networks with the same kinds of layers, which run in seconds on the emulator too; the same as in
/// benches/torch/nets.py.
fn shrink(spec: &mut RunSpec) -> Result<()> {
    let stem = Stem { width: 8, kernel: 7, stride: 2, max_pool: true };
    let (widths, depths) = (vec![16, 32, 32, 32], vec![1; 4]);
    let network = ResNetSpec::new(BlockKind::Bottleneck, [32, 32, 3], stem, widths, depths);
    for t in &mut spec.teachers {
        let labels = OpenedTeacher::open(t, Absent::IsDrawn)?.known.labels;
        t.stated = Stated { network: Some(network.clone()), labels, ..Stated::default() };
        t.weights = PathBuf::from("no file: drawn");
    }
    spec.student.init = StudentInit::Scratch;
    spec.generator.widths = vec![8];
    (spec.generator.batch, spec.dual.batch, spec.dual.bank) = (2, 2, 8);
    spec.generator.shift = spec.generator.shift.min(6);
    spec.dual.augment.shift = spec.dual.augment.shift.min(6);
    Ok(())
}

/// A row's step, as a run would record it.
pub fn build(spec: &RunSpec, row: Row, engine: &mut Engine<f32>) -> Result<Stage> {
    let mut spec = spec.clone();
    if let Row::Generator { groups } = row {
        spec.generator.groups = groups;
    }
    let teachers = Teachers::load_or(&mut engine.store, &spec.teachers, Absent::IsDrawn)?;
    let one = StageOne::new(&mut engine.store, &spec, &teachers);
    let Row::Dual { block } = row else { return one.stage(engine, &spec, &teachers) };
    let is_bank = spec.dual.images == ImageSource::Generator;
    let one = is_bank.then_some(one);
    let tasks = tasks(&teachers, &spec.student)?;
    let two = StageTwo::new(&mut engine.store, &spec, &teachers, tasks, one.as_ref())?;
    if let (Some(one), true) = (&one, engine.store.holds_values()) {
        // Repeats a prime number of values, so that a bank of gigabytes is filled at the speed of memory.
        let noise: Vec<f32> = (0..1_000_003).map(|i| (i as f32 * 0.37).sin()).collect();
        let bank = engine.store.get_mut(one.bank);
        bank.chunks_mut(noise.len()).for_each(|c| c.copy_from_slice(&noise[..c.len()]));
    }
    two.stage(engine, "block", &spec, &teachers, one.as_ref(), block)
}

/// An engine for steps on a machine, or for their plans.
pub fn engine(args: &Args, spec: &RunSpec) -> Result<Engine<f32>> {
    match args.device {
        On::Plan => Ok(Engine::planning(Target::h200(spec.precision))),
        On::Machine(choice) => engine_on(&Device { choice, ..Device::default() }, spec.precision),
    }
}

fn time(row: &str, engine: &mut Engine<f32>, mut stage: Stage, seconds: f64) -> Result<()> {
    stage.plan.reserve(engine)?;
    let mut step = 0;
    let mut replay = || {
        let state = StepState { seed: 1, step, lr: stage.learning_rates };
        let (cpu, start) = (cpu_ms(), Instant::now());
        stage.plan.replay(engine, &state)?;
        step += 1;
        Ok((start.elapsed().as_secs_f64() * 1e3, cpu_ms() - cpu))
    };
    for _ in 0..3 {
        replay()?;
    }
    let (mut times, mut cpu, start) = (Vec::new(), f64::MAX, Instant::now());
    while times.is_empty() || start.elapsed().as_secs_f64() < seconds {
        let (wall, busy) = replay()?;
        times.push(wall);
        cpu = cpu.min(busy);
    }
    times.sort_by(f64::total_cmp);
    println!("{row}\tours\t{:.2}\t{:.2}\t{cpu:.2}", times[times.len() / 2], times[0]);
    Ok(())
}

/// Processor time of this process so far; 0 where `/proc` does not have it.
fn cpu_ms() -> f64 {
    let of_thread = |folder: std::io::Result<std::fs::DirEntry>| {
        let times = std::fs::read_to_string(folder.ok()?.path().join("schedstat")).ok()?;
        times.split(' ').next()?.parse::<f64>().ok()
    };
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    threads.filter_map(of_thread).sum::<f64>() * 1e-6
}
