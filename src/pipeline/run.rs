//! A run from teachers to student.

use super::branch;
use super::dual::{self, StageTwo};
use super::engine_on;
use super::evaluate::{self, Predictor};
use super::export;
use super::fingerprint;
use super::generator::StageOne;
use super::observer::Observer;
use super::sample;
use super::session::Session;
use super::snapshots::{self, Snapshots};
use super::spec::{ImageSource, RunSpec};
use super::teachers::Teachers;
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};
use crate::models::targetnet::TargetNetSpec;
use crate::summary::{Parameters, Score, StudentScore, Summary};
use crate::weights;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Runs everything that `spec` asks for; files go to `out`.
pub fn run(spec: &RunSpec, out: &Path, resume: bool, observer: &mut dyn Observer) -> Result<Summary> {
    let began = Instant::now();
    let mut session =
        Session::open(out, resume, fingerprint::of_run(spec)?, spec.checkpoint_seconds, observer)?;
    let mut summary = Summary {
        name: spec.name.clone(),
        seed: spec.seed,
        version: env!("CARGO_PKG_VERSION").into(),
        ..Default::default()
    };

    let student = amalgamate(spec, &mut session, "", &mut summary)?;
    for source in &spec.baselines {
        let mut other = spec.clone();
        other.dual.images = source.clone();
        amalgamate(&other, &mut session, &baseline_prefix(source), &mut Summary::default())?;
    }

    // Everything is trained and stored; only now does anybody look at labels.
    if let Some(data) = &spec.evaluation {
        session.stop_if_asked("before the evaluation")?;
        let data = evaluate::open(data)?;
        score_teachers(spec, &data, &mut summary)?;
        summary.student = Some(score_student(spec, &session, "", &student, &data)?);
        for source in &spec.baselines {
            let score = score_student(spec, &session, &baseline_prefix(source), &student, &data)?;
            match source {
                ImageSource::Noise => summary.noise = Some(score),
                ImageSource::Real(_) => summary.ka = Some(score),
                ImageSource::Generator => {}
            }
        }
    }
    for (stage, outcome) in session.outcomes() {
        summary.seconds.insert(stage.clone(), outcome.seconds);
    }
    session.finish()?;
    summary.seconds.insert("total".into(), began.elapsed().as_secs_f64());
    Ok(summary)
}

/// What the rest of the run needs to know about a trained student.
struct Trained {
    blocks: usize,
    chosen: usize,
}

pub(super) fn baseline_prefix(source: &ImageSource) -> String {
    match source {
        ImageSource::Generator => String::new(),
        ImageSource::Noise => "noise.".into(),
        ImageSource::Real(_) => "ka.".into(),
    }
}

/// File of the student that branches after block `b`.
pub fn block_file(out: &Path, prefix: &str, b: usize) -> PathBuf {
    out.join(format!("{prefix}student-block{b}.npz"))
}

/// Trains one student: stage one (if its images are generated), stage two, branch.
fn amalgamate(spec: &RunSpec, session: &mut Session, prefix: &str, summary: &mut Summary) -> Result<Trained> {
    session.turn_to(prefix);
    let mut engine = engine_on(&spec.device, spec.precision)?;
    let teachers = Teachers::load(&mut engine.store, &spec.teachers)?;
    let tasks = dual::tasks(&teachers, &spec.student.labels)?;
    summary.parameters.teachers = teachers.parameters();

    let stage_one = match spec.dual.images {
        ImageSource::Generator => {
            StageOne::expect_room(spec, &teachers.network)?;
            let one = StageOne::new(&mut engine.store, spec, &teachers);
            let stage = one.stage(&mut engine, spec, &teachers)?;
            let (out, file) = (session.out().to_path_buf(), session.out().join(sample::GENERATOR));
            session.watch(Snapshots::new(&one, &engine, spec)?);
            let outcome = session.train(&mut engine, stage, |engine, _| {
                sample::save(&file, &one, &engine.store, spec, &teachers.network)?;
                snapshots::count_labels(&one, engine, spec, &teachers, &out)
            })?;
            summary.label_statistics = snapshots::label_statistics(&out)?;
            summary.diversity = outcome.converged.get("diversity").copied().unwrap_or(0.0);
            summary.label_entropy =
                -outcome.converged.get("entropy").copied().unwrap_or(0.0) / std::f64::consts::LN_2;
            alarm(spec, summary)?;
            Some(one)
        }
        ImageSource::Noise | ImageSource::Real(_) => None,
    };

    let two = StageTwo::new(&mut engine.store, spec, &teachers, tasks, stage_one.as_ref())?;
    let mut outcomes = Vec::new();
    for b in 1..=teachers.network.blocks() {
        let name = format!("{prefix}block{b}");
        let stage = two.stage(&mut engine, &name, spec, &teachers, stage_one.as_ref(), b)?;
        let file = block_file(session.out(), prefix, b);
        outcomes.push(session.train(&mut engine, stage, |engine, _| {
            dual::save(&file, &two.export(&engine.store, spec, &teachers, b)?)
        })?);
    }

    let (chosen, tasks) = branch::decide(spec.student.branch, &teachers, &two.tasks, &outcomes);
    summary.branch = tasks;
    let student = weights::load(block_file(session.out(), prefix, chosen))?;
    let description: TargetNetSpec = student.meta_as("student")?;
    let (parameters, filters) = description.parameters();
    let trunk = description.network.parameters(1..=chosen);
    summary.parameters = Parameters { student: parameters, filters, trunk, ..summary.parameters };
    summary.labels = description.labels;
    // A baseline's student is there to be compared, not to be taken away.
    match prefix {
        "" => export::leave_student(session.out(), student)?,
        _ => weights::save(session.out().join(format!("{prefix}student.npz")), &student)?,
    }
    Ok(Trained { blocks: teachers.network.blocks(), chosen })
}

/// Stops a run whose generator has collapsed: a student taught on its images would look converged and be useless.
fn alarm(spec: &RunSpec, summary: &Summary) -> Result<()> {
    let (d, e) = (summary.diversity, summary.label_entropy);
    let (least_d, least_e) = (spec.loss.least_diversity, spec.loss.least_entropy);
    if d >= f64::from(least_d) && e >= f64::from(least_e) {
        return Ok(());
    }
    let key = if d >= f64::from(least_d) { "least_entropy" } else { "least_diversity" };
    Err(Error::Diverged(format!(
        "generator: collapsed: diversity of its images {d:.4} (at least {least_d} expected), label entropy {e:.3} (at least \
         {least_e} expected); try loss.recipe = \"conditional\" or a lower loss.gamma, or go on all the same with --resume \
         --set loss.{key}=0"
    )))
}

/// The teacher of this index, on the run's evaluation data and all of its own labels.
///
/// Errors: no evaluation data, or no such teacher.
pub fn score_teacher(spec: &RunSpec, index: usize) -> Result<Score> {
    let (Some(data), Some(teacher)) = (&spec.evaluation, spec.teachers.get(index)) else {
        let n = spec.teachers.len();
        return Err(Error::Usage(format!(
            "teacher {} of {n}: expected one of them, and [evaluation]",
            index + 1
        )));
    };
    Predictor::open_teacher(teacher, &spec.device)?.score(&evaluate::open(data)?, &[])
}

fn score_teachers(spec: &RunSpec, data: &Arc<Dataset>, summary: &mut Summary) -> Result<()> {
    let mut mean = Score::default();
    for (t, task) in
        spec.teachers.iter().filter_map(|t| Some((t, summary.branch.iter().find(|b| b.teacher == t.name)?)))
    {
        let score = Predictor::open_teacher(t, &spec.device)?.score(data, &task.labels)?;
        mean.ap.extend(score.ap.clone());
        mean.ap_11_point.extend(score.ap_11_point.clone());
        summary.teachers.insert(t.name.clone(), score);
    }
    mean.take_means();
    summary.teachers.insert("mean".into(), mean);
    Ok(())
}

fn score_student(
    spec: &RunSpec,
    session: &Session,
    prefix: &str,
    student: &Trained,
    data: &Arc<Dataset>,
) -> Result<StudentScore> {
    let mut by_block = Vec::new();
    for b in 1..=student.blocks {
        let file = block_file(session.out(), prefix, b);
        session.stop_if_asked("in the evaluation")?;
        by_block.push(Predictor::open(&file, &spec.device)?.score(data, &[])?);
    }
    Ok(StudentScore { score: by_block[student.chosen - 1].clone(), by_block })
}
