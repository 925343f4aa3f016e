//! Steps on a GPU, compared with the least time that the card allows.
//!
//! A step is replayed as its captured graph. `ms` is the time between CUDA events after successive replays,
//! without any wait of the host in between: median, tenth and ninetieth percentile. `host` is the host's
//! time to start a replay, with its copy of the step's state. `roof` is the forecast's layer-wise roofline:
//! the sum over all instructions of the longer of moving the minimal bytes and multiplying, by the card's
//! data sheet. `held` is the card's memory that the engine holds, `driver` the decrease of the card's free
//! memory since before the step's tensors were made, including the kernels' code, and `forecast` the plan's
//! number. Then every launch is timed alone, after the device has overwritten its caches: one row per kernel,
//! op and set of shapes, sorted by the time above their own roof. Those times are longer than in the graph by
//! about half a microsecond each, which an event takes.

use crate::report::{self, read};
use crate::{Args, On, Row, build, engine, rows};
use dfka_engine::autograd::plan::Timing;
use dfka_engine::autograd::{Engine, Plan};
use dfka_engine::device::gpu::card::Card;
use dfka_engine::device::gpu::room::Room;
use dfka_engine::device::{Choice, StepState};
use dfka_engine::error::{Error, Result};
use dfka_engine::pipeline::spec::RunSpec;
use serde_json::json;
use std::time::Instant;

/// The number of rows of launches printed per step; the file has all.
const SHOWN: usize = 12;

/// Replays before those that are measured: the first loads modules, the second captures the graph.
const WARM_UPS: u64 = 5;

/// Replays between two reads of the metrics, for which the host waits.
const CHUNK: usize = 20;

/// The report of a step.
#[derive(Default, serde::Serialize)]
pub struct Found {
    pub row: String,
    pub batch: usize,
    pub launches: usize,
    pub bytes_moved: u64,
    pub minimal_bytes: u64,
    /// Bytes moved over minimal bytes of the teachers' part.
    pub teachers_ratio: Option<f64>,
    pub roofline_ms: f64,
    /// The sum of the launches' least times.
    pub planned_ms: f64,
    /// The forecast of the launches' times, at each rate of the L2.
    pub modelled_ms: [f64; 2],
    pub forecast_bytes: usize,
    #[serde(flatten)]
    pub times: Option<Times>,
}

/// What was measured.
#[derive(serde::Serialize)]
pub struct Times {
    pub ms: f64,
    pub p10: f64,
    pub p90: f64,
    pub n: usize,
    pub images_s: f64,
    pub host_ms: f64,
    pub host_percent: f64,
    pub roof_percent: f64,
    pub held_bytes: usize,
    pub driver_bytes: usize,
    /// The sum of the launches timed alone.
    pub kernels_ms: f64,
    pub ops: Vec<Op>,
}

/// All launches of one kernel for one op and one set of shapes.
#[derive(Default, serde::Serialize)]
pub struct Op {
    pub kernel: &'static str,
    pub label: String,
    pub launches: usize,
    /// Microseconds of one launch: the median, and the least by the card's data sheet.
    pub us: f64,
    pub least_us: f64,
    /// Milliseconds per step above the least.
    pub lost_ms: f64,
}

/// Measures the rows, or only plans them; prints as it goes.
pub fn measure(args: &Args, spec: &RunSpec) -> Result<()> {
    let mut found = Vec::new();
    let mut device = String::from("a plan");
    println!("{}", header());
    for row in rows(args) {
        let mut engine = engine(args, spec)?;
        if let Some(machine) = engine.machine() {
            device = machine.gpu.name();
        }
        let known = Card::of_device(&device);
        let card = known.unwrap_or_default();
        let free = |engine: &Engine<f32>| engine.machine().map_or(Ok((0, 0)), |m| m.gpu.memory());
        let (before, _) = free(&engine)?;
        let mut stage = build(spec, row, &mut engine)?;
        let mut one = planned(row, &stage.plan, &engine, stage.batch.0, card);
        if let On::Machine(choice) = args.device {
            stage.plan.reserve(&mut engine)?;
            let mut times = times(&mut stage.plan, &mut engine, args, choice, stage.batch.0)?;
            (times.roof_percent, times.driver_bytes) = (
                if known.is_some() { 100.0 * one.roofline_ms / times.ms } else { f64::NAN },
                before.saturating_sub(free(&engine)?.0),
            );
            times.held_bytes = engine.machine().map_or(0, |m| m.held_bytes());
            // Between two launches the device writes five times its L2, while the host prepares the next.
            let l2_bytes = engine.machine().map_or(0, |m| m.gpu.l2_bytes());
            let flush = if args.is_tiny { 1 << 16 } else { 5 * l2_bytes };
            let timings =
                stage.plan.time_launches(&mut engine, &state(0), if args.is_tiny { 1 } else { 5 }, flush)?;
            times.ops = ops(&timings, card);
            times.kernels_ms = times.ops.iter().map(|o| o.us * o.launches as f64).sum::<f64>() / 1e3;
            one.times = Some(times);
        }
        println!("{}", line(&one));
        found.push(one);
        if let Some(path) = &args.json {
            let all = json!({
                "device": device, "card": card, "config": args.config, "set": args.sets, "tiny": args.is_tiny,
                "rows": found,
            });
            let text = serde_json::to_string_pretty(&all).map_err(|e| Error::Run(e.to_string()))?;
            std::fs::write(path, text).map_err(|e| Error::Run(format!("{}: {e}", path.display())))?;
        }
    }
    found.iter().for_each(losses);
    if let Some(path) = &args.torch {
        let ours = serde_json::to_value(&found).map_err(|e| Error::Run(e.to_string()))?;
        report::ratios(&ours, &read(path)?);
    }
    Ok(())
}

/// A learning rate of 0: hundreds of replays must not change the weights.
fn state(step: u64) -> StepState {
    StepState { seed: 1, step, lr: [0.0; 4] }
}

fn planned(row: Row, plan: &Plan<f32>, engine: &Engine<f32>, batch: usize, card: &Card) -> Found {
    let traffic = plan.traffic(card);
    let total = |of: &dyn Fn(&dfka_engine::autograd::plan::Sum) -> f64| {
        traffic.iter().map(|t| of(&t.sum)).sum::<f64>()
    };
    let teachers = traffic.iter().filter(|t| t.part == "teachers").map(|t| &t.sum);
    let (moved, minimal) = teachers.fold((0, 0), |(m, n), sum| (m + sum.bytes_moved, n + sum.minimal_bytes));
    Found {
        row: row.name(),
        batch,
        launches: plan.cost().launches,
        bytes_moved: traffic.iter().map(|t| t.sum.bytes_moved).sum(),
        minimal_bytes: traffic.iter().map(|t| t.sum.minimal_bytes).sum(),
        teachers_ratio: (minimal > 0).then(|| moved as f64 / minimal as f64),
        roofline_ms: total(&|s| s.roofline_ms),
        planned_ms: total(&|s| s.planned_ms),
        modelled_ms: [0, 1].map(|i| total(&|s| s.modelled_ms[i])),
        forecast_bytes: plan.held(&engine.store, &mut Room::default()).total(),
        times: None,
    }
}

fn times(
    plan: &mut Plan<f32>,
    engine: &mut Engine<f32>,
    args: &Args,
    choice: Choice,
    batch: usize,
) -> Result<Times> {
    let mut once = 0.0;
    for step in 0..if choice == Choice::Emu { 1 } else { WARM_UPS } {
        let start = Instant::now();
        plan.replay(engine, &state(step))?;
        plan.collect(engine)?;
        once = start.elapsed().as_secs_f64();
    }
    let wanted = if args.is_tiny { 2 } else { ((args.seconds / once) as usize).clamp(10, 200) };
    let chunk = plan.most_pending().min(CHUNK).min(wanted);
    let (mut ms, mut host, mut step) = (Vec::new(), Vec::new(), WARM_UPS);
    let lost = || Error::Run("the engine has no machine".into());
    while ms.len() < wanted {
        let mut marks = vec![engine.machine().ok_or_else(lost)?.gpu.mark()?];
        for _ in 0..chunk {
            let start = Instant::now();
            plan.replay(engine, &state(step))?;
            host.push(start.elapsed().as_secs_f64() * 1e3);
            marks.push(engine.machine().ok_or_else(lost)?.gpu.mark()?);
            step += 1;
        }
        // The first replay of a chunk finds an idle device, so that its time includes the host's work.
        let skipped = usize::from(chunk > 2);
        for pair in marks.windows(2).skip(skipped) {
            ms.push(f64::from(pair[1].ms_since(&pair[0])?));
        }
        plan.collect(engine)?;
    }
    let at = |of: &mut Vec<f64>, share: f64| {
        of.sort_by(f64::total_cmp);
        of[((of.len() - 1) as f64 * share).round() as usize]
    };
    let (median, host_ms) = (at(&mut ms, 0.5), at(&mut host, 0.5));
    Ok(Times {
        ms: median,
        p10: at(&mut ms, 0.1),
        p90: at(&mut ms, 0.9),
        n: ms.len(),
        images_s: 1e3 * batch as f64 / median,
        host_ms,
        host_percent: 100.0 * host_ms / median,
        roof_percent: 0.0,
        held_bytes: 0,
        driver_bytes: 0,
        kernels_ms: 0.0,
        ops: Vec::new(),
    })
}

/// Pools equal launches, sorted by the time above their roof.
fn ops(timings: &[Timing], card: &Card) -> Vec<Op> {
    let mut pooled: Vec<(Op, u64, Vec<f64>)> = Vec::new();
    for t in timings {
        // An optimiser's label has the shapes of all its tensors.
        let label: String = t.label.chars().take(300).collect();
        let us = t.ms.iter().map(|ms| f64::from(*ms) * 1e3);
        let same = |(o, bytes, _): &&mut (Op, u64, Vec<f64>)| {
            o.kernel == t.kernel && o.label == label && *bytes == t.bytes
        };
        if let Some((op, _, all)) = pooled.iter_mut().find(same) {
            op.launches += 1;
            all.extend(us);
            continue;
        }
        let least_us = 1e6 * card.least_seconds(t.bytes, flops(t), is_bf16(t.kernel));
        let op = Op { kernel: t.kernel, label, launches: 1, least_us, ..Op::default() };
        pooled.push((op, t.bytes, us.collect()));
    }
    let finish = |(mut op, _, mut us): (Op, u64, Vec<f64>)| {
        us.sort_by(f64::total_cmp);
        op.us = us[us.len() / 2];
        op.lost_ms = (op.us - op.least_us) * op.launches as f64 / 1e3;
        op
    };
    let mut ops: Vec<Op> = pooled.into_iter().map(finish).collect();
    ops.sort_by(|a, b| b.lost_ms.total_cmp(&a.lost_ms));
    ops
}

/// Whether a kernel multiplies bf16; those with wgmma always do.
fn is_bf16(kernel: &str) -> bool {
    kernel.contains("bf16") || kernel.contains("wgmma")
}

/// Additions and multiplications of a convolution's three products; 0 for all other kernels, which are bound
/// by memory.
fn flops(t: &Timing) -> u64 {
    let is_product = ["conv2d_fwd", "conv2d_dgrad", "conv2d_wgrad"].iter().any(|p| t.kernel.starts_with(p));
    match (&t.input_shapes[..], &t.output_shapes[..]) {
        ([_, filter, ..], [y, ..]) if is_product => 2 * (t.members * y.elems() * filter.per_sample()) as u64,
        _ => 0,
    }
}

fn header() -> String {
    format!(
        "{:20} {:>8} {:>8} {:>8} {:>12} {:>8} {:>7} {:>6} {:>8} {:>7} {:>9} {:>7} {:>7} {:>8}",
        "step",
        "launches",
        "roof ms",
        "plan ms",
        "model ms",
        "ms",
        "p90",
        "% roof",
        "images/s",
        "host ms",
        "teachers",
        "held GB",
        "driver",
        "forecast"
    )
}

fn line(f: &Found) -> String {
    let (giga, dash) = (|bytes: usize| format!("{:.2}", bytes as f64 / 1e9), || "-".to_string());
    let of = |text: &dyn Fn(&Times) -> String| f.times.as_ref().map_or_else(dash, text);
    format!(
        "{:20} {:>8} {:>8.2} {:>8.2} {:>12} {:>8} {:>7} {:>6} {:>8} {:>7} {:>9} {:>7} {:>7} {:>8}",
        f.row,
        f.launches,
        f.roofline_ms,
        f.planned_ms,
        f.modelled_ms.map(|ms| format!("{ms:.2}")).join("-"),
        of(&|t| format!("{:.3}", t.ms)),
        of(&|t| format!("{:.2}", t.p90)),
        of(&|t| format!("{:.1}", t.roof_percent)),
        of(&|t| format!("{:.0}", t.images_s)),
        of(&|t| format!("{:.4}", t.host_ms)),
        f.teachers_ratio.map_or_else(dash, |r| format!("{r:.3}")),
        of(&|t| giga(t.held_bytes)),
        of(&|t| giga(t.driver_bytes)),
        giga(f.forecast_bytes),
    )
}

/// Prints which launches take more time than their bytes and products need.
fn losses(f: &Found) {
    let Some(t) = &f.times else { return };
    println!(
        "\n{}: {:.3} ms, launches alone {:.3} ms, roof {:.3} ms",
        f.row, t.ms, t.kernels_ms, f.roofline_ms
    );
    println!("{:>8} {:>8} {:>9} {:>9} {:>6}  kernel: op", "lost ms", "launches", "us", "least us", "% roof");
    for o in t.ops.iter().take(SHOWN) {
        println!(
            "{:>8.3} {:>8} {:>9.1} {:>9.1} {:>6.1}  {}: {:.100}",
            o.lost_ms,
            o.launches,
            o.us,
            o.least_us,
            100.0 * o.least_us / o.us.max(1e-6),
            o.kernel,
            o.label
        );
    }
    let rest: f64 = t.ops.iter().skip(SHOWN).map(|o| o.lost_ms).sum();
    println!("{rest:>8.3} in {} rows more", t.ops.len().saturating_sub(SHOWN));
}
