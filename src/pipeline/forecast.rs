//! What a run will cost, before it starts: memory, work and time, stage by stage.

use super::checkpoint;
use super::engine_on;
use super::room::expect_room;
use super::spec::{Branch, ImageSource, RunSpec};
use super::stage::{Stage, fits};
use super::stage_one::StageOne;
use super::stage_two::StageTwo;
use super::student_files::baseline_prefix;
use super::tasks::tasks;
use super::teachers::{OpenedTeacher, Teachers};
use crate::autograd::plan::{Cost, Sum, Traffic};
use crate::autograd::{Engine, Plan};
use crate::device::gpu::card::Card;
use crate::device::gpu::room::{Held, Room};
use crate::device::gpu::target::Target;
use crate::device::{StepState, memory};
use crate::error::Result;
use crate::summary::Parameters;
use rayon::current_num_threads;
use std::time::Instant;

/// The cost of one stage.
#[derive(Clone, Debug, serde::Serialize)]
pub struct StageForecast {
    /// The stage's name.
    pub name: String,
    /// Its number of steps.
    pub steps: usize,
    /// How many teachers keep their activations at a time on this machine, where that is a choice.
    pub teachers_at_once: Option<usize>,
    /// Cost of one step.
    #[serde(flatten)]
    pub cost: Cost,
    /// Cost of the same step on a GPU, whether or not this machine has one.
    pub gpu: GpuForecast,
    /// Time of a step: measured here on the run's device, or, where nothing is run, the GPU's `planned_ms`.
    pub step_ms: f64,
    /// Time of the stage.
    pub seconds: f64,
}

/// The cost of a stage's step on a GPU.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct GpuForecast {
    /// How many teachers keep their activations at a time on the GPU, where that is a choice.
    pub teachers_at_once: Option<usize>,
    /// Cost of one step.
    #[serde(flatten)]
    pub cost: Cost,
    /// Bytes that a schedule fused layer by layer would move.
    pub minimal_bytes: u64,
    /// Bytes moved over `minimal_bytes`.
    pub ratio: Option<f64>,
    /// Least time that the card's data sheet allows for `minimal_bytes` and the step's arithmetic.
    pub roofline_ms: f64,
    /// Least time that the data sheet allows for the bytes that the launches do move.
    pub planned_ms: f64,
    /// Forecast time of the launches, at each rate of the L2: see [`Sum`].
    pub modelled_ms: [f64; 2],
    /// Memory of the GPU while the stage runs.
    pub memory: Held,
    /// Cost of the teachers, the generator, the student and the rest, where the step has them.
    pub parts: Vec<PartForecast>,
}

/// The cost of a step of the generator in which the teachers take turns.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct ByTurns {
    /// Multiply-adds.
    pub macs: u64,
    /// Working memory on the CPU.
    pub arena_bytes: usize,
    /// Memory of the GPU.
    pub gpu_bytes: usize,
    /// As in [`GpuForecast`].
    pub planned_ms: f64,
}

/// The cost of a part of a step.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct PartForecast {
    /// Name of the part.
    pub part: &'static str,
    /// Cost of all its ops.
    #[serde(flatten)]
    pub sum: Sum,
    /// Cost by op and phase.
    pub ops: Vec<Traffic>,
}

/// Space on the disk that a run takes at most.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Disk {
    /// Two checkpoints, and a third while it is written.
    pub checkpoint_bytes: u64,
    /// The student in three formats, and the students of every block.
    pub student_bytes: u64,
    /// The generator, pictures, curves and the page.
    pub other_bytes: u64,
    /// The sum.
    pub bytes: u64,
}

/// The cost of a run.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Forecast {
    /// The card that the GPU's figures are for.
    pub card: Card,
    /// Whether `step_ms` was measured.
    pub is_measured: bool,
    /// In the order of the run.
    pub stages: Vec<StageForecast>,
    /// What the generator's step would cost with `generator.teachers_at_once = 1`; none with one teacher, or without a
    /// generator.
    pub one_teacher_at_a_time: Option<ByTurns>,
    /// Bytes of all tensors that outlive a step, for the largest student.
    pub store_bytes: usize,
    /// Working memory of the largest step.
    pub arena_bytes: usize,
    /// Memory of the process at its peak: `store_bytes` and `arena_bytes` as far as they are held at the same time, what
    /// teachers' files hold, a student or generator while it is written, and the program.
    pub peak_bytes: usize,
    /// Memory of a GPU in the stage that needs most of it.
    pub gpu_peak: Held,
    /// Its total.
    pub gpu_peak_bytes: usize,
    /// Space in the output folder.
    pub disk: Disk,
    /// Time of all stages.
    pub seconds: f64,
    /// Of a student that branches after the block that `student.branch` names, or after the last one where it
    /// is automatic.
    pub parameters: Parameters,
}

/// Memory of the process beside tensors, measured on Linux (`benches/growth`): 11 MB of code; the config, plans, curves,
/// and what the allocator keeps for later.
const PROCESS_BYTES: usize = 14_100_000;

/// For each element of the student's largest tensor while a copy of the student is made: its batch norm is folded in f64,
/// and the result is rounded before it is rearranged.
const FOLDING_BYTES: usize = 16;

/// For each thread: its stack, its part of the allocator, and the buffers of the ops that it runs. Measured likewise.
const THREAD_BYTES: usize = 300_000;

/// Bytes of pictures and of the page, and of the curves for each step. The demo leaves 1.5 MB and 380 bytes.
const PICTURE_BYTES: u64 = 2 << 20;
const STEP_BYTES: u64 = 500;

/// Checkpoints that exist at once: two are kept while the next one is written.
const CHECKPOINTS: u64 = 3;

/// Files that hold the student of the run: one in each format.
const FORMATS: u64 = 3;

/// Timed replays of a stage's step, after one that is not timed.
const TIMED: usize = 3;

/// Builds every stage as the run would, and times a few steps of each on values that are thrown away. With a
/// `card`, or where a teacher's file does not exist, nothing is timed: the figures come from the plans, which
/// need no tensor's values.
///
/// Errors: teachers that do not fit each other or the spec, no such device, too little memory.
pub fn forecast(spec: &RunSpec, teachers: &[OpenedTeacher], card: Option<&'static Card>) -> Result<Forecast> {
    let measures = card.is_none() && !teachers.iter().any(OpenedTeacher::is_drawn);
    let (mut card, mut gpu_peak, mut by_turns) = (card, Held::default(), None);
    let mut stages = Vec::new();
    let (mut held, mut peak) = ((0, 0), 0);
    let (mut parameters, mut disk) = (Parameters::default(), Disk::default());
    let students = std::iter::once((String::new(), &spec.dual.images))
        .chain(spec.baselines.iter().map(|source| (baseline_prefix(source), source)));
    for (prefix, images) in students {
        let mut spec = spec.clone();
        spec.dual.images = images.clone();
        let mut engine = engine_for(&spec, teachers, measures)?;
        let card: &Card = card.get_or_insert_with(|| {
            let device = engine.machine().map(|m| m.gpu.name()).unwrap_or_default();
            Card::of_device(&device).unwrap_or_default()
        });
        // The same stages are compiled for a GPU, and not run.
        let (mut gpu, mut room) = (Vec::new(), Room::default());
        let target = engine.machine().map_or_else(|| Target::of_card(card, spec.precision), |m| m.target);
        let fits_card = |engine: &mut Engine<f32>, plan: &Plan<f32>| {
            Ok(plan.held(&engine.store, &mut Room::default()).total() as f64 <= card.memory_bytes)
        };
        let mut planning = Engine::planning(target);
        every_stage(&spec, teachers, &prefix, &mut planning, fits_card, |engine, stage, _| {
            gpu.push(on_card(engine, &stage, card, &mut room));
            Ok(())
        })?;
        if prefix.is_empty() {
            by_turns = one_at_a_time(&spec, teachers, card, target)?;
        }
        gpu_peak = gpu.iter().map(|g| g.memory).fold(gpu_peak, Held::larger);
        let (mut gpu, mut arena) = (gpu.into_iter(), 0);
        let fits_here = |engine: &mut Engine<f32>, plan: &Plan<f32>| {
            fits(if measures {
                plan.reserve(engine)
            } else {
                memory::expect_room("the step", plan.cost().arena_bytes)
            })
        };
        let found =
            every_stage(&spec, teachers, &prefix, &mut engine, fits_here, |engine, mut stage, more| {
                let gpu = gpu.next().unwrap_or_default();
                let seconds = if measures { measure(engine, &mut stage)? } else { gpu.planned_ms / 1e3 };
                let cost = stage.plan.cost().clone();
                arena = engine.arena_bytes().max(cost.arena_bytes).max(arena);
                peak = peak.max(engine.store.bytes() + arena + more);
                let Stage { name, steps, teachers_at_once, .. } = stage;
                let teachers_at_once = teachers_at_once.map(|(n, _)| n);
                let (step_ms, seconds) = (1e3 * seconds, seconds * steps as f64);
                stages.push(StageForecast { name, steps, teachers_at_once, cost, gpu, step_ms, seconds });
                Ok(())
            })?;
        held = [held, (engine.store.bytes(), arena)].into_iter().max_by_key(|h| h.0 + h.1).unwrap_or(held);
        let (of_students, state) = (found.bytes(prefix.is_empty()), checkpoint::state_bytes(&engine.store));
        disk.student_bytes += of_students;
        disk.checkpoint_bytes = disk.checkpoint_bytes.max(CHECKPOINTS * state);
        disk.other_bytes += found.generator_bytes;
        if prefix.is_empty() {
            parameters = found.parameters;
        }
    }
    let steps: usize = stages.iter().map(|s| s.steps).sum();
    disk.other_bytes += PICTURE_BYTES + STEP_BYTES * steps as u64;
    disk.bytes = disk.checkpoint_bytes + disk.student_bytes + disk.other_bytes;
    Ok(Forecast {
        card: card.unwrap_or_default().clone(),
        is_measured: measures,
        seconds: stages.iter().map(|s| s.seconds).sum(),
        stages,
        one_teacher_at_a_time: by_turns,
        store_bytes: held.0,
        arena_bytes: held.1,
        peak_bytes: peak + files_bytes(teachers) + PROCESS_BYTES + THREAD_BYTES * current_num_threads(),
        gpu_peak_bytes: gpu_peak.total(),
        gpu_peak,
        disk,
        parameters,
    })
}

/// The engine of one student: the run's device where steps are measured, or else one for plans alone.
///
/// Errors: no such device, too little memory.
fn engine_for(spec: &RunSpec, teachers: &[OpenedTeacher], measures: bool) -> Result<Engine<f32>> {
    if !measures {
        return Ok(Engine::planning(None));
    }
    expect_room(spec, teachers)?;
    engine_on(&spec.device, spec.precision)
}

/// Bytes of the tensors of teachers' files, which a run keeps. A file that does not exist counts by its parameters.
fn files_bytes(teachers: &[OpenedTeacher]) -> usize {
    let floats = |t: &OpenedTeacher| match &t.tensors {
        Some(tensors) => tensors.iter().map(|(_, t)| t.data.len()).sum(),
        None => {
            let network = &t.known.network;
            network.parameters(1..=network.blocks()) + network.head_parameters(t.known.labels.len())
        }
    };
    size_of::<f32>() * teachers.iter().map(floats).sum::<usize>()
}

/// The cost of the generator's step with one teacher at a time. None without a generator, with a single teacher, and if
/// the config already has one at a time.
fn one_at_a_time(
    spec: &RunSpec,
    opened: &[OpenedTeacher],
    card: &Card,
    target: Target,
) -> Result<Option<ByTurns>> {
    let has_generator = spec.dual.images == ImageSource::Generator;
    if opened.len() < 2 || !has_generator || spec.generator.teachers_at_once == Some(1) {
        return Ok(None);
    }
    let mut spec = spec.clone();
    spec.generator.teachers_at_once = Some(1);
    let plan = |engine: &mut Engine<f32>| -> Result<Stage> {
        let teachers = Teachers::build(&mut engine.store, opened, &spec.student)?;
        StageOne::new(&mut engine.store, &spec, &teachers).stage(engine, &spec, &teachers)
    };
    let (mut cpu, mut gpu) = (Engine::planning(None), Engine::planning(target));
    let (here, there) = (plan(&mut cpu)?, plan(&mut gpu)?);
    let there = on_card(&gpu, &there, card, &mut Room::default());
    Ok(Some(ByTurns {
        macs: here.plan.cost().macs,
        arena_bytes: here.plan.cost().arena_bytes,
        gpu_bytes: there.memory.total(),
        planned_ms: there.planned_ms,
    }))
}

/// Compiles the stages of one student in the run's order, and passes each to `visit`, with the bytes that are needed
/// afterwards to copy what it has trained into a file. `fits`: see [`StageOne::stage_that`].
pub(super) fn every_stage(
    spec: &RunSpec,
    opened: &[OpenedTeacher],
    prefix: &str,
    engine: &mut Engine<f32>,
    fits: impl FnMut(&mut Engine<f32>, &Plan<f32>) -> Result<bool>,
    mut visit: impl FnMut(&mut Engine<f32>, Stage, usize) -> Result<()>,
) -> Result<Students> {
    let teachers = Teachers::build(&mut engine.store, opened, &spec.student)?;
    let tasks = tasks(&teachers, &spec.student)?;
    let stage_one = match spec.dual.images {
        ImageSource::Generator => {
            let one = StageOne::new(&mut engine.store, spec, &teachers);
            let stage = one.stage_that(engine, spec, &teachers, fits)?;
            let copied = generator_bytes(&one, engine);
            visit(engine, stage, copied)?;
            Some(one)
        }
        ImageSource::Noise | ImageSource::Real(_) => None,
    };
    let two = StageTwo::new(&mut engine.store, spec, &teachers, tasks, stage_one.as_ref())?;
    let blocks = teachers.network.blocks();
    let by_block: Vec<usize> =
        (1..=blocks).map(|b| student_parameters(spec, &teachers, &two, b).student).collect();
    let of_student = engine.store.ids().filter(|id| engine.store.name(*id).starts_with("student."));
    let largest = of_student.map(|id| engine.store.shape(id).elems()).max().unwrap_or(0);
    for (b, parameters) in (1..).zip(&by_block) {
        let name = format!("{prefix}block{b}");
        let stage = two.stage(engine, &name, spec, &teachers, stage_one.as_ref(), b)?;
        visit(engine, stage, size_of::<f32>() * parameters + FOLDING_BYTES * largest)?;
    }
    let chosen = match spec.student.branch {
        Branch::Block(b) => b,
        Branch::Auto { .. } => blocks,
    };
    Ok(Students {
        parameters: student_parameters(spec, &teachers, &two, chosen),
        by_block,
        generator_bytes: stage_one.map_or(0, |one| generator_bytes(&one, engine) as u64),
    })
}

/// Bytes of the generator's tensors.
fn generator_bytes(one: &StageOne, engine: &Engine<f32>) -> usize {
    let tensors = one.generator.tensors().iter();
    tensors.map(|id| size_of::<f32>() * engine.store.shape(*id).elems()).sum()
}

/// The sizes of what one student's training leaves.
pub(super) struct Students {
    /// Of the student that branches where it will.
    parameters: Parameters,
    /// Parameters of the student that branches after block 1, 2, ...
    by_block: Vec<usize>,
    generator_bytes: u64,
}

impl Students {
    /// Bytes of all files of students, of which only that of the method itself is written in every format. The largest
    /// is counted, because the branch is not known yet.
    fn bytes(&self, is_every_format: bool) -> u64 {
        let largest = self.by_block.iter().max().copied().unwrap_or(0) as u64;
        let copies = if is_every_format { FORMATS } else { 1 };
        4 * (self.by_block.iter().map(|n| *n as u64).sum::<u64>() + copies * largest)
    }
}

/// The cost on `card` of a stage that was planned for a GPU. `room` is the memory that the stages before it
/// have reserved.
pub(super) fn on_card(engine: &Engine<f32>, stage: &Stage, card: &Card, room: &mut Room) -> GpuForecast {
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
    let Sum { minimal_bytes, ratio, roofline_ms, planned_ms, modelled_ms, .. } = all;
    let memory = stage.plan.held(&engine.store, room);
    let (cost, teachers_at_once) = (stage.plan.cost().clone(), stage.teachers_at_once.map(|(n, _)| n));
    GpuForecast {
        teachers_at_once,
        cost,
        minimal_bytes,
        ratio,
        roofline_ms,
        planned_ms,
        modelled_ms,
        memory,
        parts,
    }
}

/// Name of the ops in no part of a step: losses, optimisers, random draws, and the ops that plans add.
const REST: &str = "rest";

/// The fastest of a few steps, in seconds.
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

/// Of a student whose tasks all branch after `block`.
fn student_parameters(spec: &RunSpec, teachers: &Teachers, two: &StageTwo, block: usize) -> Parameters {
    let (parameters, filters) = two.describe(spec, teachers, block).parameters();
    let trunk = teachers.network.parameters(1..=block);
    Parameters {
        teachers: teachers.parameters(),
        student: parameters,
        filters,
        trunk,
        ..Parameters::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::resnet::ResNetSpec;
    use crate::pipeline::teacher_file::Known;
    use crate::weights::Tensors;
    use std::sync::Arc;

    #[test]
    fn a_teachers_file_counts_by_its_tensors_and_a_missing_one_by_its_parameters() {
        let network = ResNetSpec::named("resnet18", 64).unwrap();
        let mut tensors = Tensors::new();
        tensors.insert("a", &[2, 3], vec![0.0; 6]).unwrap();
        tensors.insert("b", &[1], vec![0.0]).unwrap();
        let teacher = |tensors: Option<Arc<Tensors>>| OpenedTeacher {
            name: "t".into(),
            file: "t.npz".into(),
            known: Known { network: network.clone(), labels: vec!["x".into(), "y".into()] },
            tensors,
        };
        let tensors = Some(Arc::new(tensors));
        assert_eq!(files_bytes(&[teacher(tensors.clone()), teacher(tensors)]), 2 * 28);
        // torchvision's ResNet-18 has 11,689,512 parameters, of which its 1000 classes have 513,000.
        assert_eq!(files_bytes(&[teacher(None)]), 4 * (11_176_512 + 2 * 513));
    }
}
