//! A run from teachers to student.

use super::agreement;
use super::branch;
use super::checkpoint::StageResult;
use super::engine_on;
use super::export;
use super::fingerprint;
use super::generated;
use super::inputs::RunInputs;
use super::observer::Observer;
use super::room::expect_room;
use super::sample;
use super::session::{Extras, Session};
use super::share::Share;
use super::snapshots::Snapshots;
use super::spec::{ImageSource, RunSpec};
use super::stage::fits;
use super::stage_one::{self, StageOne};
use super::stage_two::StageTwo;
use super::student_files::{self, baseline_prefix, block_file};
use super::tasks::tasks;
use super::teachers::Teachers;
use crate::autograd::Engine;
use crate::device::collective;
use crate::error::{Error, Result};
use crate::models::targetnet::TargetNetSpec;
use crate::report::LABEL_STATISTICS;
use crate::summary::{Agreement, Parameters, Summary};
use crate::weights;
use std::path::{Path, PathBuf};

/// A run whose students are trained and stored, but not yet scored. [`Amalgamated::finish`] ends the run.
pub struct Amalgamated<'o> {
    /// Everything that the run found out so far.
    pub summary: Summary,
    /// The run's session, which the evaluation asks whether to stop.
    pub session: Session<'o>,
    /// Number of blocks of a student.
    pub blocks: usize,
}

impl Amalgamated<'_> {
    /// Ends the run: no checkpoint holds tensors any more. Returns the summary, with the time of each stage.
    pub fn finish(mut self) -> Result<Summary> {
        for (stage, result) in self.session.results() {
            self.summary.seconds.insert(stage.clone(), result.seconds);
        }
        self.session.finish()?;
        self.summary.seconds.insert("total".into(), self.session.seconds());
        Ok(self.summary)
    }
}

/// Trains everything that `spec` asks for: the student, and one more for each baseline. Files go to the
/// folder `out`, which is made if it is not there.
///
/// Errors: see [`Session::open`] and [`Session::train`]; a collapsed generator.
pub fn run<'o>(
    spec: &RunSpec,
    inputs: &RunInputs,
    out: &Path,
    resume: bool,
    observer: &'o mut dyn Observer,
) -> Result<Amalgamated<'o>> {
    let fingerprint = fingerprint::of_run(spec, &inputs.hashes)?;
    let mut session = Session::open(out, resume, fingerprint, spec.checkpoint_seconds, observer)?;
    let mut summary = Summary {
        name: spec.name.clone(),
        seed: spec.seed,
        version: env!("CARGO_PKG_VERSION").into(),
        ..Default::default()
    };
    let blocks = inputs.teachers[0].known.network.blocks();
    session.plan(&stages(spec))?;
    let branches = amalgamate(spec, inputs, &mut session, "", None, &mut summary)?;
    for source in &spec.baselines {
        let mut other = spec.clone();
        other.dual.images = source.clone();
        let (prefix, mut unused) = (baseline_prefix(source), Summary::default());
        amalgamate(&other, inputs, &mut session, &prefix, Some(&branches), &mut unused)?;
    }
    // Rank 0 evaluates alone, and a rank that is stopped meanwhile keeps nobody waiting.
    if let Some(ranks) = collective::current() {
        ranks.leave();
    }
    Ok(Amalgamated { summary, session, blocks })
}

/// Names and numbers of steps of all stages, in their order.
fn stages(spec: &RunSpec) -> Vec<(String, usize)> {
    let baselines = spec.baselines.iter().map(|source| (baseline_prefix(source), source));
    let mut all = Vec::new();
    for (prefix, source) in std::iter::once((String::new(), &spec.dual.images)).chain(baselines) {
        if matches!(source, ImageSource::Generator) {
            all.push((stage_one::NAME.to_owned(), spec.generator.steps));
        }
        all.extend(spec.dual.steps.iter().enumerate().map(|(b, n)| (stage_name(&prefix, b + 1), *n)));
    }
    all
}

/// The name of the stage that trains block `b` (1-based).
fn stage_name(prefix: &str, b: usize) -> String {
    format!("{prefix}block{b}")
}

/// Trains one student: stage one where its images are generated, stage two, branch. Its tasks leave the trunk after the
/// blocks `branches`, if they are given. Returns the block of each task.
fn amalgamate(
    spec: &RunSpec,
    inputs: &RunInputs,
    session: &mut Session,
    prefix: &str,
    branches: Option<&[usize]>,
    summary: &mut Summary,
) -> Result<Vec<usize>> {
    session.begin_student(prefix);
    expect_room(spec, &inputs.teachers)?;
    let mut engine = engine_on(&spec.device, spec.precision)?;
    let teachers = Teachers::build(&mut engine.store, &inputs.teachers, &spec.student)?;
    let tasks = tasks(&teachers, &spec.student)?;
    // Before hours of training: what stage two will divide among the ranks.
    Share::of(spec.split, tasks.len(), "tasks of the student")?;
    summary.parameters.teachers = teachers.parameters();
    let stage_one = match spec.dual.images {
        ImageSource::Generator => Some(train_generator(spec, &teachers, &mut engine, session, summary)?),
        ImageSource::Noise | ImageSource::Real(_) => None,
    };
    let two = StageTwo::new(&mut engine.store, spec, &teachers, tasks, stage_one.as_ref())?;
    let results = train_blocks(spec, &teachers, &two, stage_one.as_ref(), &mut engine, session, prefix)?;
    summary.branch = branch::tasks(&teachers, &two.tasks, &results);
    // The models below take the memory of the training.
    drop(engine);
    if !collective::leads() {
        return Ok(Vec::new());
    }
    branch_out(spec, inputs, session, prefix, branches, summary)
}

/// Puts the student together whose tasks leave the trunk after the blocks `branches`, or else after those that the
/// config names or the rule chooses, and writes its file. Returns the block of each task.
///
/// Errors: files of the blocks' students that cannot be read, a file that cannot be written; those of
/// [`agreement::measure`]; a stop.
fn branch_out(
    spec: &RunSpec,
    inputs: &RunInputs,
    session: &mut Session,
    prefix: &str,
    branches: Option<&[usize]>,
    summary: &mut Summary,
) -> Result<Vec<usize>> {
    let (out, has_generator) = (session.out().to_path_buf(), spec.dual.images == ImageSource::Generator);
    let blocks = inputs.teachers[0].known.network.blocks();
    let first: TargetNetSpec = weights::load(block_file(&out, prefix, 1))?.meta_as("student")?;
    let by_block: Vec<usize> = (1..=blocks).map(|b| first.branching_after(b).parameters().0).collect();
    let mut found = Vec::new();
    if has_generator {
        session.stop_if_asked("before student and teachers are compared")?;
        let files: Vec<PathBuf> = (1..=blocks).map(|b| block_file(&out, prefix, b)).collect();
        found = set_thresholds(spec, inputs, &out, &first.labels, &files)?;
    }
    summary.kappa_by_block = found.iter().map(Agreement::kappa).collect();
    let losses: Vec<Vec<f64>> = summary.branch.iter().map(|task| task.loss_by_block.clone()).collect();
    let evidence = branch::Evidence {
        losses: &losses,
        kappa: &summary.kappa_by_block,
        parameters: &by_block,
        is_frozen: spec.dual.freeze_earlier,
    };
    let chosen = || branch::choose(spec.student.branch, &evidence);
    let branches = branches.map_or_else(chosen, <[usize]>::to_vec);

    summary.branch.iter_mut().zip(&branches).for_each(|(task, block)| task.block = *block);
    let mut student = student_files::branched(&out, prefix, &branches)?;
    if let Some(block) = summary.common_block() {
        summary.agreement = found.get(block - 1).cloned();
    } else if has_generator {
        // No file of one block has this student, so it is compared with its teachers by itself.
        let file = out.join(format!("{prefix}student.npz"));
        weights::save(&file, &student)?;
        summary.agreement =
            set_thresholds(spec, inputs, &out, &first.labels, std::slice::from_ref(&file))?.pop();
        student = weights::load(&file)?;
    }
    let description: TargetNetSpec = student.meta_as("student")?;
    let (parameters, filters) = description.parameters();
    let trunk = description.network.parameters(1..=branches.iter().copied().max().unwrap_or(1));
    summary.parameters = Parameters { student: parameters, filters, trunk, by_block, ..summary.parameters };
    summary.labels = description.labels;
    // A baseline's student is for comparison only, so it is not exported in every format.
    match prefix {
        "" => export::write_student(&out, student)?,
        _ => weights::save(out.join(format!("{prefix}student.npz")), &student)?,
    }
    Ok(branches)
}

/// Compares the students in `files` with their teachers, and writes the thresholds that follow to the files. Returns the
/// comparisons, file by file.
///
/// Errors: those of [`agreement::measure`]; a file that cannot be read or written.
fn set_thresholds(
    spec: &RunSpec,
    inputs: &RunInputs,
    out: &Path,
    labels: &[String],
    files: &[PathBuf],
) -> Result<Vec<Agreement>> {
    let found = agreement::measure(spec, &inputs.teachers, labels, &out.join(sample::GENERATOR), files)?;
    for (file, agreement) in files.iter().zip(&found) {
        let mut student = weights::load(file)?;
        student.meta.insert("thresholds".into(), agreement.thresholds().into());
        student.meta = reread(&student.meta)?;
        weights::save(file, &student)?;
    }
    Ok(found)
}

/// Stage one: trains the generator and stores it, its pictures and its label statistics.
fn train_generator(
    spec: &RunSpec,
    teachers: &Teachers,
    engine: &mut Engine<f32>,
    session: &mut Session,
    summary: &mut Summary,
) -> Result<StageOne> {
    let one = StageOne::new(&mut engine.store, spec, teachers);
    let stage = one.stage_that(engine, spec, teachers, |engine, plan| fits(plan.reserve(engine)))?;
    let (out, file) = (session.out().to_path_buf(), session.out().join(sample::GENERATOR));
    let extras = Extras { snapshots: Some(Snapshots::new(&one, engine, spec)?), ..Extras::default() };
    session.train_with(engine, stage, extras, |engine, _| {
        sample::save(&file, &one, &engine.store, spec, teachers)?;
        generated::measure(&one, engine, spec, teachers, &out)?;
        generated::caption(&one, engine, spec, teachers, &out)?;
        Ok(vec![file, out.join(LABEL_STATISTICS)])
    })?;
    if !collective::leads() {
        return Ok(one);
    }
    if let Some(found) = generated::statistics(&out)? {
        generated::expect_no_collapse(&spec.loss, &found)?;
        summary.label_statistics = Some(found);
    }
    Ok(one)
}

/// Stage two: trains block after block, and stores the student that branches after each of them. Returns the results by
/// block.
fn train_blocks(
    spec: &RunSpec,
    teachers: &Teachers,
    two: &StageTwo,
    stage_one: Option<&StageOne>,
    engine: &mut Engine<f32>,
    session: &mut Session,
    prefix: &str,
) -> Result<Vec<StageResult>> {
    let train = |b: usize| {
        let name = stage_name(prefix, b);
        let stage = two.stage(engine, &name, spec, teachers, stage_one, b)?;
        let file = block_file(session.out(), prefix, b);
        session.train(engine, stage, |engine, _| {
            weights::save(&file, &two.export(&engine.store, spec, teachers, b)?)?;
            Ok(vec![file])
        })
    };
    (1..=teachers.network.blocks()).map(train).collect()
}

/// Metadata as a file gives it back: its numbers have gone through text, so that the student has the same
/// bytes whether or not the run was resumed after the block.
fn reread(meta: &weights::Meta) -> Result<weights::Meta> {
    let text = serde_json::to_string(meta).and_then(|text| serde_json::from_str(&text));
    text.map_err(|e| Error::Run(format!("student metadata: {e}")))
}
