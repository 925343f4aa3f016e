//! Every launch of real steps, timed alone:
//! `cargo bench --bench kernels -- [--device cuda|emu|plan] [--json FILE] [--seconds S] [--filter TEXT] [--tiny]`.
//!
//! Steps: a ResNet-101 in training (batch 64, 224x224; Adam over 42 M parameters), the generator's step and
//! the last dual block's with two ResNet-50 teachers at 224x224, and both at the demo's size. A step runs
//! launch by launch after a warm-up; five times the L2 is written before each launch, so that none of its operands
//! are in the L2. Times are measured between two CUDA events. A row has all launches of one kernel
//! with one op and one set of shapes: median, tenth and ninetieth percentile, number of times.
//!
//! Bytes are the sizes of the operands, each counted once (twice if it is read and overwritten), so that
//! GB/s is a lower bound of the traffic. The share of the roof is the least time that bytes and
//! multiply-adds allow by the device's data sheet over the median; a device that is not in the table has
//! none. Events resolve about half a microsecond, and a launch that does almost nothing (the `fill` of one
//! number) takes about two; times near that do not describe the kernel.
//!
//! After the rows, the whole step: the launches' medians added up, a replay of the captured graph, a replay
//! launch by launch, and the host's time to start one. Last, beside each of our products of matrices (1x1 convolutions and
//! linear layers) the median time of cuBLASLt for it, if the library is found; `kernels/yardstick.rs` says what it leaves out.
//! `--tiny` and `emu` run tiny shapes once, to show that the bench
//! itself runs; `plan` runs nothing and prints what the steps will need.

mod common;
#[path = "kernels/yardstick.rs"]
mod yardstick;

use common::{demo_network, demo_spec, write_teacher};
use dfka_engine::autograd::plan::Timing;
use dfka_engine::autograd::tape::Learn;
use dfka_engine::autograd::{Engine, Plan, Tape};
use dfka_engine::device::gpu::card::Card;
use dfka_engine::device::gpu::launch::Matmul;
use dfka_engine::device::gpu::target::Target;
use dfka_engine::device::{Choice, StepState};
use dfka_engine::error::{Error, Result};
use dfka_engine::models::Recorder;
use dfka_engine::models::resnet::{BlockKind, Build, Mode, ResNet, ResNetSpec, Source, Stem};
use dfka_engine::ops::layers::batch_norm::Stats;
use dfka_engine::ops::layers::conv2d;
use dfka_engine::ops::losses::bce::{Bce, Targets};
use dfka_engine::ops::movement::gather_images::GatherImages;
use dfka_engine::ops::optim::adam::Adam;
use dfka_engine::pipeline::stage::with_moments;
use dfka_engine::pipeline::stage_one::StageOne;
use dfka_engine::pipeline::stage_two::StageTwo;
use dfka_engine::pipeline::tasks::tasks;
use dfka_engine::pipeline::teachers::Teachers;
use dfka_engine::pipeline::{Device, engine_on};
use dfka_engine::tensor::{Elem, Shape};
use std::path::PathBuf;
use std::time::Instant;
use yardstick::Yardstick;

/// How many times the L2's size is written before each launch.
const FLUSHED_L2S: usize = 5;

/// Steps with this number or a higher one run launch by launch: the engine takes them for steps that a
/// profiler records, for which it replays no graph.
const EAGER: u64 = 1 << 32;

/// The number of rows printed per step; the file has all.
const SHOWN: usize = 40;

struct Args {
    device: Choice,
    json: Option<PathBuf>,
    /// Seconds of repeats per step.
    seconds: f64,
    /// Steps whose name, or rows whose kernel or label, contain it.
    filter: String,
    /// Whether all sizes are small, as always on the emulator.
    is_tiny: bool,
}

fn arguments() -> Result<Args> {
    let mut args =
        Args { device: Choice::Cuda(0), json: None, seconds: 5.0, filter: String::new(), is_tiny: false };
    // Cargo adds `--bench` to the arguments.
    let mut words = std::env::args().skip(1).filter(|a| a != "--bench");
    while let Some(word) = words.next() {
        let usage = || {
            Error::Usage(format!(
                "{word}: expected [--device cuda|emu|plan] [--json FILE] [--seconds S] [--filter TEXT] [--tiny]"
            ))
        };
        if word == "--tiny" {
            args.is_tiny = true;
            continue;
        }
        let value = words.next().ok_or_else(usage)?;
        match (word.as_str(), value.as_str()) {
            ("--device", "cuda") => args.device = Choice::Cuda(0),
            ("--device", "emu") => (args.device, args.is_tiny) = (Choice::Emu, true),
            ("--device", "plan") => args.device = Choice::Cpu,
            ("--json", _) => args.json = Some(value.into()),
            ("--seconds", _) => args.seconds = value.parse().map_err(|_| usage())?,
            ("--filter", _) => args.filter = value,
            _ => return Err(usage()),
        }
    }
    Ok(args)
}

fn main() -> Result<()> {
    let args = arguments()?;
    if args.device == Choice::Cpu {
        return plans();
    }
    let device = args.device.machine(Elem::Bf16)?.map(|m| m.gpu.name()).unwrap_or_default();
    let roof = Card::of_device(&device);
    println!("{device}");
    match roof {
        Some(r) => println!(
            "roof: {:.2} TB/s, {:.0} TFLOP/s bf16, {:.1} TFLOP/s f32",
            r.bytes_per_second / 1e12,
            r.bf16_flops / 1e12,
            r.f32_flops / 1e12
        ),
        None => println!("roof: not known for this device, no percentages"),
    }
    let mut reports = Vec::new();
    for (name, build) in STEPS {
        let step = build(args.device, args.is_tiny)?;
        reports.push(measure(name, step, &args, roof)?);
    }
    println!(
        "\n{:30} {:>8} {:>12} {:>10} {:>10} {:>10}",
        "step, ms", "launches", "kernels", "graph", "eager", "host"
    );
    for r in &reports {
        println!(
            "{:30} {:>8} {:>12.3} {:>10.3} {:>10.3} {:>10.3}",
            r.name, r.launches, r.kernels_ms, r.graph_ms, r.eager_ms, r.host_ms
        );
    }
    // Written before the library is tried, whose failure must not lose these.
    write(&args, &device, None, &reports)?;
    let Some(mut yardstick) = Yardstick::open(args.device)? else { return Ok(()) };
    for report in &mut reports {
        yardstick.measure(report, &args);
    }
    write(&args, &device, Some(yardstick.name()), &reports)
}

/// Writes everything that was measured to the file that `--json` names.
fn write(args: &Args, device: &str, cublaslt: Option<&str>, reports: &[Report]) -> Result<()> {
    let Some(path) = &args.json else { return Ok(()) };
    let all = serde_json::json!({
        "device": device, "filter": args.filter, "cublaslt": cublaslt, "steps": reports
    });
    let text = serde_json::to_string_pretty(&all).map_err(|e| Error::Run(e.to_string()))?;
    std::fs::write(path, text).map_err(|e| Error::Run(format!("{}: {e}", path.display())))
}

/// Prints what the steps need, on machines without a GPU.
fn plans() -> Result<()> {
    println!(
        "{:30} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "step", "launches", "GFLOP", "GB moved", "GB step", "GB store"
    );
    for (name, build) in STEPS {
        let Step { engine, plan } = build(Choice::Cpu, false)?;
        let (cost, giga) = (plan.cost(), |v: usize| v as f64 / 1e9);
        println!(
            "{name:30} {:>9} {:>9.1} {:>9.2} {:>9.2} {:>9.2}",
            cost.launches,
            2.0 * giga(cost.macs as usize),
            giga(cost.bytes_moved as usize),
            giga(cost.arena_bytes),
            giga(engine.store.bytes())
        );
    }
    Ok(())
}

/// A step to time.
struct Step {
    engine: Engine<f32>,
    plan: Plan<f32>,
}

type Setup = fn(Choice, bool) -> Result<Step>;

const STEPS: [(&str, Setup); 5] = [
    ("ResNet-101, training", classifier),
    ("ResNet-50s, generator", |choice, tiny| amalgamation(choice, tiny, true, Part::Generator)),
    ("ResNet-50s, dual block 4", |choice, tiny| amalgamation(choice, tiny, true, Part::Dual)),
    ("demo, generator", |choice, tiny| amalgamation(choice, tiny, false, Part::Generator)),
    ("demo, dual block 4", |choice, tiny| amalgamation(choice, tiny, false, Part::Dual)),
];

#[derive(PartialEq)]
enum Part {
    Generator,
    Dual,
}

/// An engine that plans for a GPU; on the CPU its plans only compute their cost.
fn engine(choice: Choice) -> Result<Engine<f32>> {
    if choice == Choice::Cpu {
        return Ok(Engine::planning(Target::h200(Elem::Bf16)));
    }
    engine_on(&Device { choice, profile: EAGER..u64::MAX }, Elem::Bf16)
}

/// torchvision's ResNet of that depth at 224x224, and a batch; or a tiny one with the same kinds of layers, which the
/// emulator runs in seconds.
fn network(is_tiny: bool, depth: usize) -> Result<(ResNetSpec, usize)> {
    if is_tiny {
        let stem = Stem { width: 8, kernel: 7, stride: 2, max_pool: true };
        let (widths, depths) = (vec![16, 32, 32, 32], vec![1; 4]);
        return Ok((ResNetSpec::new(BlockKind::Bottleneck, [32, 32, 3], stem, widths, depths), 2));
    }
    let spec = ResNetSpec::torchvision(depth, 224);
    Ok((spec.ok_or_else(|| Error::Usage(format!("no ResNet-{depth}")))?, 64))
}

/// Multi-label training of a ResNet-101, as `teach` does it.
fn classifier(choice: Choice, is_tiny: bool) -> Result<Step> {
    let ((spec, batch), labels) = (network(is_tiny, 101)?, 20);
    let mut engine = engine(choice)?;
    let [h, w, c] = spec.image;
    let images = engine.store.add("images", Shape::new(batch, h, w, c));
    let wanted = engine.store.add("targets", Shape::rows(batch, labels));
    engine.store.get_mut(images).iter_mut().enumerate().for_each(|(i, v)| *v = (i as f32 * 0.37).sin());
    engine.store.get_mut(wanted).iter_mut().step_by(3).for_each(|v| *v = 1.0);
    let blocks = 1..=spec.blocks();
    let source = Source::Random(1);
    let net =
        ResNet::new(&mut engine.store, "net", &spec, blocks.clone(), Some(labels), Build::Normed, source)?;
    let mut tape = Tape::default();
    let mut r = Recorder { tape: &mut tape, store: &engine.store };
    let draw = GatherImages { n: batch, stream: 1 };
    let (bank, answers) = (r.leaf(images, Learn::Frozen), r.leaf(wanted, Learn::Frozen));
    let mut x = r.apply(draw, &[bank])?;
    let target = r.apply(draw, &[answers])?;
    let mode = Mode { learn: Learn::Trainable, stats: Stats::Batch };
    for b in blocks.clone() {
        x = net.block(&mut r, b, x, mode, None)?;
    }
    let (_, logits) = net.head(&mut r, x, mode)?;
    let loss = r.apply(Bce::new(Targets::Probabilities), &[logits, target])?;
    tape.metric("loss", loss);
    let mut learning = net.learning(blocks);
    learning.extend(net.head.into_iter().flatten());
    let adam = Adam { lr_slot: 0, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let optimiser = with_moments(&mut engine.store, "bench", adam, &learning);
    let plan = Plan::compile(&tape, &engine.store, Some(loss), &[optimiser])?;
    Ok(Step { engine, plan })
}

/// A step of the method: two teachers, four groups; ResNet-50s, or the demo's networks.
fn amalgamation(choice: Choice, is_tiny: bool, large: bool, part: Part) -> Result<Step> {
    let folder = tempfile::tempdir().map_err(|e| Error::Run(format!("a temporary folder: {e}")))?;
    let mut spec = demo_spec(folder.path(), 4);
    spec.dual.bank = 256;
    let (network, batch) =
        if large { network(is_tiny, 50)? } else { (demo_network(), if is_tiny { 2 } else { 64 }) };
    if large {
        // Channels of the projected noise, then at a sixteenth, an eighth and so on of the image's size, up
        // to the whole.
        spec.generator.widths = if is_tiny { vec![8] } else { vec![512, 512, 256, 128, 64, 32] };
    }
    (spec.generator.batch, spec.dual.batch) = (batch, batch);
    for (name, seed) in [("a", 1), ("b", 2)] {
        write_teacher(&folder.path().join(name), name, seed, &network)?;
    }
    let mut engine = engine(choice)?;
    let teachers = Teachers::load(&mut engine.store, &spec.teachers)?;
    let one = StageOne::new(&mut engine.store, &spec, &teachers);
    if part == Part::Generator {
        let stage = one.stage(&mut engine, &spec, &teachers)?;
        return Ok(Step { engine, plan: stage.plan });
    }
    let two =
        StageTwo::new(&mut engine.store, &spec, &teachers, tasks(&teachers, &spec.student)?, Some(&one))?;
    engine.store.get_mut(one.bank).iter_mut().enumerate().for_each(|(i, v)| *v = (i as f32 * 0.37).sin());
    let stage = two.stage(&mut engine, "block", &spec, &teachers, Some(&one), 4)?;
    Ok(Step { engine, plan: stage.plan })
}

/// The measurements of a step.
#[derive(serde::Serialize)]
struct Report {
    name: &'static str,
    launches: usize,
    /// The sum of the launches' medians: the time of a step without gaps, every launch from a cold cache.
    kernels_ms: f64,
    /// A replay of the captured graph, with the host's copy of the step's state.
    graph_ms: f64,
    /// A replay launch by launch.
    eager_ms: f64,
    /// The host's time to start a replay of the graph, with its copy of the step's state.
    host_ms: f64,
    /// The same launch by launch.
    host_eager_ms: f64,
    rows: Vec<Row>,
}

/// All launches of one kernel for one op and one set of shapes.
#[derive(Clone, Default, serde::Serialize)]
struct Row {
    kernel: &'static str,
    label: String,
    /// In one step.
    launches: usize,
    bytes: u64,
    flops: u64,
    median_us: f64,
    tenth_us: f64,
    ninetieth_us: f64,
    n: usize,
    gb_s: f64,
    tflop_s: f64,
    /// Percent, and of which roof.
    share: Option<(f64, &'static str)>,
    /// What it multiplies, if that is a product of matrices.
    #[serde(skip)]
    product: Option<Matmul>,
    /// The median of cuBLASLt for this product.
    cublaslt_us: Option<f64>,
}

impl Row {
    fn total_us(&self) -> f64 {
        self.median_us * self.launches as f64
    }
}

fn measure(name: &'static str, step: Step, args: &Args, roof: Option<&Card>) -> Result<Report> {
    let Step { mut engine, mut plan } = step;
    plan.reserve(&mut engine)?;
    // A learning rate of 0: thousands of replays must not change the weights.
    let state = |step| StepState { seed: 1, step, lr: [0.0; 4] };
    let flush = flushed(args, engine.machine().map_or(0, |m| m.gpu.l2_bytes()));
    let start = Instant::now();
    let mut timings = plan.time_launches(&mut engine, &state(0), 1, flush)?;
    // Those were two runs, the first of which also loaded the kernels.
    let once = start.elapsed().as_secs_f64() / 2.0;
    let mut repeats = 1;
    if !args.is_tiny {
        repeats = (args.seconds / once) as usize;
        timings = plan.time_launches(&mut engine, &state(0), repeats.clamp(3, 100), flush)?;
    }
    let rows = rows(&timings, roof);
    let kernels_ms = rows.iter().map(Row::total_us).sum::<f64>() / 1e3;
    let (graph_ms, host_ms) = replays(&mut plan, &mut engine, state, 0, repeats)?;
    let (eager_ms, host_eager_ms) = replays(&mut plan, &mut engine, state, EAGER + 1, repeats)?;
    let launches = timings.len();
    let report = Report { name, launches, kernels_ms, graph_ms, eager_ms, host_ms, host_eager_ms, rows };
    print(&report, &args.filter);
    Ok(report)
}

/// Bytes that are written before each launch.
fn flushed(args: &Args, l2_bytes: usize) -> usize {
    if args.is_tiny { 1 << 16 } else { FLUSHED_L2S * l2_bytes }
}

/// Milliseconds of a replay, and of the host's part in starting it.
fn replays(
    plan: &mut Plan<f32>,
    engine: &mut Engine<f32>,
    state: impl Fn(u64) -> StepState,
    first: u64,
    repeats: usize,
) -> Result<(f64, f64)> {
    // The first replay loads modules, the second captures the graph.
    for step in 0..3 {
        plan.replay(engine, &state(first + step))?;
    }
    plan.collect(engine)?;
    let count = repeats.clamp(1, plan.most_pending().min(50));
    let (start, mut host) = (Instant::now(), 0.0);
    for step in 3..3 + count as u64 {
        let begin = Instant::now();
        plan.replay(engine, &state(first + step))?;
        host += begin.elapsed().as_secs_f64();
    }
    plan.collect(engine)?;
    let per_step = |seconds: f64| seconds * 1e3 / count as f64;
    Ok((per_step(start.elapsed().as_secs_f64()), per_step(host)))
}

/// Pools equal launches, sorted by their total time.
fn rows(timings: &[Timing], roof: Option<&Card>) -> Vec<Row> {
    let mut pooled: Vec<(Row, Vec<f64>)> = Vec::new();
    for t in timings {
        let at = pooled
            .iter()
            .position(|(r, _)| r.kernel == t.kernel && t.label.starts_with(&r.label) && r.bytes == t.bytes);
        let at = at.unwrap_or_else(|| {
            let (bytes, flops) = (t.bytes, flops(t));
            // An optimiser's label has the shapes of all its tensors.
            let label = t.label.chars().take(300).collect();
            let product = product_of(t);
            let row = Row { kernel: t.kernel, label, bytes, flops, product, ..Row::default() };
            pooled.push((row, Vec::new()));
            pooled.len() - 1
        });
        pooled[at].0.launches += 1;
        pooled[at].1.extend(t.ms.iter().map(|ms| f64::from(*ms) * 1e3));
    }
    let mut rows: Vec<Row> = pooled.into_iter().map(|(row, us)| finish(row, us, roof)).collect();
    rows.sort_by(|a, b| b.total_us().total_cmp(&a.total_us()));
    rows
}

fn finish(mut row: Row, mut us: Vec<f64>, roof: Option<&Card>) -> Row {
    us.sort_by(f64::total_cmp);
    let at = |share: f64| us[((us.len() - 1) as f64 * share).round() as usize];
    (row.tenth_us, row.median_us, row.ninetieth_us, row.n) = (at(0.1), at(0.5), at(0.9), us.len());
    let seconds = row.median_us.max(1e-3) * 1e-6;
    row.gb_s = row.bytes as f64 / seconds / 1e9;
    row.tflop_s = row.flops as f64 / seconds / 1e12;
    row.share = roof.map(|roof| {
        let is_bf16 = row.kernel.contains("bf16") || row.kernel.contains("wgmma");
        let (bytes, flops) =
            (roof.least_seconds(row.bytes, 0, is_bf16), roof.least_seconds(0, row.flops, is_bf16));
        let name = if is_bf16 { "bf16" } else { "f32" };
        let (least, name) = if bytes > flops { (bytes, "memory") } else { (flops, name) };
        (100.0 * least / seconds, name)
    });
    row
}

/// What a launch multiplies, if that is a product of matrices.
fn product_of(t: &Timing) -> Option<Matmul> {
    let ([x, w, ..], [y, ..]) = (&t.input_shapes[..], &t.output_shapes[..]) else { return None };
    conv2d::product_of(t.kernel, *x, *w, *y, t.members)
}

/// Additions and multiplications of a convolution's three products; 0 for all other kernels, which are bound
/// by memory.
fn flops(t: &Timing) -> u64 {
    let is_product = ["conv2d_fwd", "conv2d_dgrad", "conv2d_wgrad"].iter().any(|p| t.kernel.starts_with(p));
    match (&t.input_shapes[..], &t.output_shapes[..]) {
        ([_, filter, ..], [y, ..]) if is_product => (2 * t.members * y.elems() * filter.per_sample()) as u64,
        _ => 0,
    }
}

fn print(report: &Report, filter: &str) {
    let fits = |text: &str| text.contains(filter);
    let shown = report.rows.iter().filter(|r| fits(report.name) || fits(r.kernel) || fits(&r.label));
    let shown: Vec<&Row> = shown.collect();
    if shown.is_empty() {
        return;
    }
    println!("\n{}: {} launches, {:.3} ms", report.name, report.launches, report.kernels_ms);
    println!(
        "{:>6} {:>9} {:>9} {:>9} {:>5} {:>9} {:>8} {:>8} {:>12}  kernel: op",
        "times", "us", "p10", "p90", "n", "MB", "GB/s", "TFLOP/s", "% of roof"
    );
    for r in shown.iter().take(SHOWN) {
        let share = r.share.map_or("-".into(), |(share, name)| format!("{share:.0} {name}"));
        println!(
            "{:>6} {:>9.1} {:>9.1} {:>9.1} {:>5} {:>9.2} {:>8.0} {:>8.1} {share:>12}  {}: {:.110}",
            r.launches,
            r.median_us,
            r.tenth_us,
            r.ninetieth_us,
            r.n,
            r.bytes as f64 / 1e6,
            r.gb_s,
            r.tflop_s,
            r.kernel,
            r.label
        );
    }
    if shown.len() > SHOWN {
        let rest: f64 = shown[SHOWN..].iter().map(|r| r.total_us()).sum();
        println!("{:>6} rows more, {:.3} ms together", shown.len() - SHOWN, rest / 1e3);
    }
}
