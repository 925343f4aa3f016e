//! What a run will cost, before it starts: memory, work and time, stage by stage.

use super::dual::{self, StageTwo};
use super::engine_on;
use super::generator::StageOne;
use super::session::Stage;
use super::spec::{ImageSource, RunSpec, TeacherSpec};
use super::teachers::{Absent, Teachers};
use crate::autograd::Engine;
use crate::autograd::plan::Cost;
use crate::device::StepState;
use crate::device::gpu::card::Card;
use crate::error::Result;
use crate::models::targetnet::{StudentSpec, TaskSpec};
use crate::summary::Parameters;
use crate::tensor::Elem;
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
    pub gpu: Cost,
    /// Measured here, on the stage's own step and the run's device; where nothing is run, the least that the card needs
    /// for what the GPU's step moves and multiplies.
    pub step_ms: f64,
    pub seconds: f64,
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
    let is_drawn = |t: &TeacherSpec| Ok(Absent::IsDrawn.facts(t)?.1);
    let any_drawn = spec.teachers.iter().map(is_drawn).collect::<Result<Vec<bool>>>()?.contains(&true);
    let (measures, card) = (card.is_none() && !any_drawn, card.unwrap_or_default());
    let mut stages = Vec::new();
    let mut peak = (0, 0);
    let mut parameters = Parameters::default();
    let students = std::iter::once((String::new(), &spec.dual.images))
        .chain(spec.baselines.iter().map(|source| (super::run::baseline_prefix(source), source)));
    for (prefix, images) in students {
        let mut spec = spec.clone();
        spec.dual.images = images.clone();
        // The same stages for a GPU: compiled, never run.
        let mut gpu = Vec::new();
        every_stage(&spec, &prefix, &mut Engine::planning(spec.precision), |_, stage| {
            gpu.push(stage.plan.cost().clone());
            Ok(())
        })?;
        let mut engine =
            if measures { engine_on(&spec.device, spec.precision)? } else { Engine::planning(None) };
        let (mut gpu, mut arena) = (gpu.into_iter(), 0);
        let found = every_stage(&spec, &prefix, &mut engine, |engine, mut stage| {
            let gpu = gpu.next().unwrap_or_default();
            let cost = stage.plan.cost().clone();
            let seconds = match measures {
                true => measure(engine, &mut stage)?,
                false => card.least_seconds(gpu.bytes_moved, 2 * gpu.macs, spec.precision == Elem::Bf16),
            };
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
        card: card.clone(),
        is_measured: measures,
        seconds: stages.iter().map(|s| s.seconds).sum(),
        stages,
        store_bytes: peak.0,
        arena_bytes: peak.1,
        peak_bytes: peak.0 + peak.1 + PROCESS_BYTES,
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
    Parameters { teachers: teachers.parameters(), student: parameters, filters }
}
