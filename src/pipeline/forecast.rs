//! What a run will cost, before it starts: memory, work and time, stage by stage.

use super::dual::{self, StageTwo};
use super::engine_on;
use super::generator::StageOne;
use super::session::Stage;
use super::spec::{ImageSource, RunSpec};
use super::teachers::{Absent, Teachers};
use crate::autograd::Engine;
use crate::autograd::plan::{Cost, Sum, Traffic};
use crate::device::StepState;
use crate::device::gpu::card::Card;
use crate::device::gpu::room::{Held, Room};
use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::models::targetnet::{StudentSpec, TaskSpec};
use crate::summary::Parameters;
use std::time::Instant;

/// One stage's share.
#[derive(Clone, Debug, serde::Serialize)]
pub struct StageForecast {
    pub name: String,
    pub steps: usize,
    /// Of one step.
    #[serde(flatten)]
    pub cost: Cost,
    /// What the same step costs on a GPU, whether or not there is one.
    pub gpu: GpuForecast,
    /// Measured here, on the stage's own step and the run's device; where nothing is run, the GPU's `planned_ms`.
    pub step_ms: f64,
    pub seconds: f64,
}

/// A stage's step on a card.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct GpuForecast {
    #[serde(flatten)]
    pub cost: Cost,
    pub minimal_bytes: u64,
    pub ratio: Option<f64>,
    pub roofline_ms: f64,
    pub planned_ms: f64,
    /// What the machine holds while the stage runs.
    pub memory: Held,
    /// The teachers, the generator, the student and the rest, where the step has them.
    pub parts: Vec<PartForecast>,
}

/// A part of a step.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct PartForecast {
    pub part: &'static str,
    #[serde(flatten)]
    pub sum: Sum,
    pub ops: Vec<Traffic>,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct Forecast {
    /// The card of the GPU's figures.
    pub card: Card,
    /// Whether `step_ms` was measured.
    pub is_measured: bool,
    pub stages: Vec<StageForecast>,
    /// All tensors that outlive a step, largest student.
    pub store_bytes: usize,
    /// The largest step's working memory.
    pub arena_bytes: usize,
    /// The process at its peak.
    pub peak_bytes: usize,
    /// What a GPU holds in the stage that needs most of it.
    pub gpu_peak: Held,
    pub gpu_peak_bytes: usize,
    pub seconds: f64,
    /// With every task branching after the last allowed block that `student.branch` names, or the last block.
    pub parameters: Parameters,
}

/// Code, libraries, thread stacks and what reading files takes: resident before the first tensor, and while the
/// evaluation set is open. Measured on Linux: 7 MB at start, 5 MB of transient buffers.
const PROCESS_BYTES: usize = 12 << 20;

/// Replays that a stage's time is taken from, after one that warms up.
const TIMED: usize = 3;

/// Builds every stage as the run would, and times a few steps of each on values that are thrown away. Where a card is
/// named, or a teacher's file is not there, nothing is timed: plans alone speak, which need no tensor's values.
pub fn forecast(spec: &RunSpec, card: Option<&'static Card>) -> Result<Forecast> {
    let measures = card.is_none() && !spec.teachers.iter().any(|t| Absent::IsDrawn.draws(t));
    let (mut card, mut gpu_peak) = (card, Held::default());
    let mut stages = Vec::new();
    let mut peak = (0, 0);
    let mut parameters = Parameters::default();
    let students = std::iter::once((String::new(), &spec.dual.images))
        .chain(spec.baselines.iter().map(|source| (super::run::baseline_prefix(source), source)));
    for (prefix, images) in students {
        let mut spec = spec.clone();
        spec.dual.images = images.clone();
        let mut engine =
            if measures { engine_on(&spec.device, spec.precision)? } else { Engine::planning(None) };
        let card: &Card = card.get_or_insert_with(|| {
            let device = engine.machine().map(|m| m.gpu.name()).unwrap_or_default();
            Card::of_device(&device).unwrap_or_default()
        });
        // The same stages for a GPU: compiled, never run.
        let (mut gpu, mut room) = (Vec::new(), Room::default());
        let target = engine.machine().map_or_else(|| Target::of_card(card, spec.precision), |m| m.target);
        let mut planning = Engine::planning(target);
        every_stage(&spec, &prefix, &mut planning, |engine, stage| {
            gpu.push(on_card(engine, &stage, card, &mut room));
            Ok(())
        })?;
        let held = gpu.iter().map(|g| g.memory).max_by_key(Held::total).unwrap_or_default();
        if held.total() > gpu_peak.total() {
            gpu_peak = held;
        }
        let (mut gpu, mut arena) = (gpu.into_iter(), 0);
        let found = every_stage(&spec, &prefix, &mut engine, |engine, mut stage| {
            let gpu = gpu.next().unwrap_or_default();
            let cost = stage.plan.cost().clone();
            let seconds = if measures { measure(engine, &mut stage)? } else { gpu.planned_ms / 1e3 };
            arena = arena.max(cost.arena_bytes);
            let total = seconds * stage.steps as f64;
            let (name, steps) = (stage.name, stage.steps);
            stages.push(StageForecast { name, steps, cost, gpu, step_ms: 1e3 * seconds, seconds: total });
            Ok(())
        })?;
        let here = (engine.store.bytes(), engine.arena_bytes().max(arena));
        if here.0 + here.1 > peak.0 + peak.1 {
            peak = here;
        }
        if prefix.is_empty() {
            parameters = found;
        }
    }
    Ok(Forecast {
        card: card.unwrap_or_default().clone(),
        is_measured: measures,
        seconds: stages.iter().map(|s| s.seconds).sum(),
        stages,
        store_bytes: peak.0,
        arena_bytes: peak.1,
        peak_bytes: peak.0 + peak.1 + PROCESS_BYTES,
        gpu_peak_bytes: gpu_peak.total(),
        gpu_peak,
        parameters,
    })
}

/// Compiles the stages of one student in the run's order.
fn every_stage(
    spec: &RunSpec,
    prefix: &str,
    engine: &mut Engine<f32>,
    mut visit: impl FnMut(&mut Engine<f32>, Stage) -> Result<()>,
) -> Result<Parameters> {
    let teachers = Teachers::load_or(&mut engine.store, &spec.teachers, Absent::IsDrawn)?;
    let tasks = dual::tasks(&teachers, &spec.student.labels)?;
    let stage_one = match spec.dual.images {
        ImageSource::Generator => {
            let one = StageOne::new(&mut engine.store, spec, &teachers);
            let stage = one.stage(engine, spec, &teachers)?;
            visit(engine, stage)?;
            Some(one)
        }
        ImageSource::Noise | ImageSource::Real(_) => None,
    };
    let two = StageTwo::new(&mut engine.store, spec, &teachers, tasks, stage_one.as_ref())?;
    for b in 1..=teachers.network.blocks() {
        let name = format!("{prefix}block{b}");
        let stage = two.stage(engine, &name, spec, &teachers, stage_one.as_ref(), b)?;
        visit(engine, stage)?;
    }
    Ok(student_parameters(spec, &teachers, &two))
}

/// What a stage that was planned for a GPU costs on `card`, after those that `room` was taken for before.
fn on_card(engine: &Engine<f32>, stage: &Stage, card: &Card, room: &mut Room) -> GpuForecast {
    let mut parts: Vec<PartForecast> = Vec::new();
    let mut all = Sum::default();
    for row in stage.plan.traffic(card) {
        let name = if row.part.is_empty() { REST } else { row.part };
        let at = parts.iter().position(|p| p.part == name).unwrap_or_else(|| {
            parts.push(PartForecast { part: name, ..PartForecast::default() });
            parts.len() - 1
        });
        all.add(&row.sum);
        parts[at].sum.add(&row.sum);
        parts[at].ops.push(row);
    }
    let Sum { minimal_bytes, ratio, roofline_ms, planned_ms, .. } = all;
    let memory = stage.plan.held(&engine.store, room);
    let cost = stage.plan.cost().clone();
    GpuForecast { cost, minimal_bytes, ratio, roofline_ms, planned_ms, memory, parts }
}

/// What no part of a step claims: losses, optimisers, the drawing of images, and what plans add themselves.
const REST: &str = "rest";

/// Seconds of the fastest of a few steps.
fn measure(engine: &mut Engine<f32>, stage: &mut Stage) -> Result<f64> {
    stage.reserve(engine)?;
    let mut times = Vec::new();
    for step in 0..=TIMED as u64 {
        let began = Instant::now();
        stage.plan.replay(engine, &StepState { seed: stage.seed, step, lr: [0.0; 4] })?;
        stage.plan.collect(engine)?;
        times.push(began.elapsed().as_secs_f64());
    }
    engine.pull()?;
    Ok(times[1..].iter().copied().fold(f64::INFINITY, f64::min))
}

fn student_parameters(spec: &RunSpec, teachers: &Teachers, two: &StageTwo) -> Parameters {
    let block = match spec.student.branch {
        super::spec::Branch::Block(b) => b,
        super::spec::Branch::Auto { .. } => teachers.network.blocks(),
    };
    let task = |t: &dual::TaskLabels| TaskSpec {
        teacher: teachers.all[t.teacher].name.clone(),
        labels: t.labels.clone(),
        block,
    };
    let student = StudentSpec {
        network: teachers.network.clone(),
        filter_reduction: spec.student.filter_reduction,
        tasks: two.tasks.iter().map(task).collect(),
        labels: vec![],
    };
    let (parameters, filters) = student.parameters();
    let trunk = teachers.network.parameters(1..=block);
    Parameters { teachers: teachers.parameters(), student: parameters, filters, trunk }
}
