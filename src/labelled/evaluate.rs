//! The evaluation of weights files and of whole runs on labelled images.

use super::scores::score;
use crate::data::dataset::Dataset;
use crate::data::labelled::LabelledSet;
use crate::data::transform::Transform;
use crate::error::{Error, Result};
use crate::pipeline::Device;
use crate::pipeline::predictor::Predictor;
use crate::pipeline::run::Amalgamated;
use crate::pipeline::session::Session;
use crate::pipeline::spec::{EvaluationData, ImageSource, RunSpec};
use crate::pipeline::student_files::{baseline_prefix, block_file};
use crate::pipeline::teachers::OpenedTeacher;
use crate::summary::{Score, StudentScore};
use crate::text;
use std::path::Path;
use std::sync::Arc;

/// The score of a weights file.
pub struct Evaluated {
    /// Average precisions.
    pub score: Score,
    /// What the user should know of how the weights and the data were read.
    pub notes: Vec<String>,
}

/// Average precision of the model in the file `weights` on `data`.
///
/// Errors: a file that is no model; those of [`check`], but for damaged images, and of [`score`].
pub fn evaluate(weights: &Path, data: &EvaluationData, device: &Device) -> Result<Score> {
    Ok(evaluate_with_notes(weights, data, device)?.score)
}

/// As [`evaluate`], with what the user should know beside the score.
pub fn evaluate_with_notes(weights: &Path, data: &EvaluationData, device: &Device) -> Result<Evaluated> {
    let mut model = Predictor::open(weights, device)?;
    let set = open_fitting(data, model.image(), &model.labels)?;
    let of_data = unscored(&set, &model.labels)?;
    let score = score(&mut model, &set, &[])?;
    let notes = model.notes.into_iter().chain(of_data).collect();
    Ok(Evaluated { score, notes })
}

/// Average precision of the teacher of this index (from 0) on the run's evaluation data, over all of its own
/// labels.
///
/// Errors: a run without evaluation data, or without such a teacher.
pub fn score_teacher(spec: &RunSpec, index: usize) -> Result<Score> {
    let (Some(data), Some(teacher)) = (&spec.evaluation, spec.teachers.get(index)) else {
        let n = spec.teachers.len();
        return Err(Error::Usage(format!(
            "teacher {} of {n}: expected a teacher of the config, and a config with [evaluation]",
            index + 1
        )));
    };
    score(&mut Predictor::open_teacher(teacher, &spec.device)?, &open(data)?, &[])
}

/// Scores the teachers, the student and the baselines of a trained run, and adds the scores to its summary.
///
/// Errors: data that does not open, a stop that the observer asks for.
pub(super) fn score_run(
    spec: &RunSpec,
    data: &EvaluationData,
    teachers: &[OpenedTeacher],
    run: &mut Amalgamated,
) -> Result<()> {
    run.session.stop_if_asked("before the evaluation")?;
    let data = open(data)?;
    let of_student = run.blocks + usize::from(run.summary.common_block().is_none());
    let models = run.summary.branch.len() + of_student * (1 + spec.baselines.len());
    let mut count = Count { done: 0, all: models * data.len() };
    score_teachers(spec, &data, teachers, run, &mut count)?;
    run.summary.student = Some(score_student(spec, run, "", &data, &mut count)?);
    for source in &spec.baselines {
        let score = score_student(spec, run, &baseline_prefix(source), &data, &mut count)?;
        match source {
            ImageSource::Noise => run.summary.noise = Some(score),
            ImageSource::Real(_) => run.summary.ka = Some(score),
            ImageSource::Generator => {}
        }
    }
    Ok(())
}

/// Images that a run's evaluation has scored, over all models.
struct Count {
    done: usize,
    all: usize,
}

impl Count {
    /// Scores a model, and tells the session of every batch.
    fn score(
        &mut self,
        model: Predictor,
        data: &Arc<Dataset>,
        labels: &[String],
        session: &mut Session,
    ) -> Result<Score> {
        let mut model = model.watched(|images| {
            self.done += images;
            session.evaluated(self.done, self.all);
        });
        score(&mut model, data, labels)
    }
}

/// Each teacher on the labels that the student predicts through it, and the mean over all of these labels.
fn score_teachers(
    spec: &RunSpec,
    data: &Arc<Dataset>,
    teachers: &[OpenedTeacher],
    run: &mut Amalgamated,
    count: &mut Count,
) -> Result<()> {
    let mut mean = Score::default();
    let Amalgamated { summary, session, .. } = run;
    for (t, task) in
        teachers.iter().filter_map(|t| Some((t, summary.branch.iter().find(|b| b.teacher == t.name)?)))
    {
        let score = count.score(Predictor::of_opened(t, &spec.device)?, data, &task.labels, session)?;
        mean.ap.extend(score.ap.clone());
        mean.ap_11_point.extend(score.ap_11_point.clone());
        summary.teachers.insert(t.name.clone(), score);
    }
    mean.take_means();
    summary.teachers.insert("mean".into(), mean);
    Ok(())
}

/// The student with this file prefix, branched after each block in turn; and with the branches of the run's student, which
/// baselines share.
fn score_student(
    spec: &RunSpec,
    run: &mut Amalgamated,
    prefix: &str,
    data: &Arc<Dataset>,
    count: &mut Count,
) -> Result<StudentScore> {
    let mut score = |run: &mut Amalgamated, file: &Path| {
        run.session.stop_if_asked("in the evaluation")?;
        count.score(Predictor::open(file, &spec.device)?, data, &[], &mut run.session)
    };
    let mut by_block = Vec::new();
    for b in 1..=run.blocks {
        let file = block_file(run.session.out(), prefix, b);
        by_block.push(score(run, &file)?);
    }
    let score = match run.summary.common_block() {
        Some(block) => by_block[block - 1].clone(),
        None => {
            let file = run.session.out().join(format!("{prefix}student.npz"));
            score(run, &file)?
        }
    };
    Ok(StudentScore { score, by_block })
}

/// Opens labelled images. Names and targets are read, and of an npz the pixels too.
///
/// Errors: see [`Dataset::npz`], [`Dataset::voc`] and [`Dataset::coco`].
pub fn open(data: &EvaluationData) -> Result<Arc<Dataset>> {
    let set = match data {
        EvaluationData::Npz(file) => Dataset::npz(file)?,
        EvaluationData::Voc { folder, split } => Dataset::voc(folder, split)?,
        EvaluationData::Coco { images, annotations } => Dataset::coco(images, annotations)?,
        EvaluationData::Csv { folder, table } => Dataset::csv(folder, table)?,
    };
    Ok(Arc::new(set))
}

/// Checks that `data` has the labels `wanted`, images of the size `image` or files of any size, and targets
/// by which at least one label can be scored, and decodes the files. Nothing of the data is kept, so this may
/// run before the training, which must not see labels. Returns what the user should know of the data.
///
/// Errors: data that does not open, images of another size, a damaged image, a missing label, no label that
/// can be scored.
pub fn check(data: &EvaluationData, image: [usize; 3], wanted: &[String]) -> Result<Vec<String>> {
    let set = open_fitting(data, image, wanted)?;
    let mut notes = unscored(&set, wanted)?;
    let (decoded, total) = (set.decode_files()?, set.len());
    if (1..total).contains(&decoded) {
        notes.push(format!(
            "{}: {decoded} of {total} images were decoded to see whether they are whole; the others are read when they are scored",
            set.file.display()
        ));
    }
    Ok(notes)
}

/// Opens data that has the labels `wanted` and images of the size `image`, or files of any size.
///
/// Errors: data that does not open, images of another size, a missing label.
fn open_fitting(data: &EvaluationData, image: [usize; 3], wanted: &[String]) -> Result<Arc<Dataset>> {
    match data {
        EvaluationData::Npz(file) => {
            // Size and labels are compared before the pixels are read.
            let (labels, [_, h, w, c]) = LabelledSet::describe(file)?;
            if [h, w, c] != image {
                let message = format!("images: the networks expect {image:?}, found {:?}", [h, w, c]);
                return Err(Error::data(file, message));
            }
            if let Some(missing) = wanted.iter().find(|w| !labels.contains(w)) {
                let message = format!("expected a label {missing:?}, found only {}", labels.join(", "));
                return Err(Error::data(file, message));
            }
        }
        EvaluationData::Voc { .. } | EvaluationData::Coco { .. } | EvaluationData::Csv { .. } => {
            Transform::eval(image).check()?;
        }
    }
    let set = open(data)?;
    set.columns(wanted)?;
    Ok(set)
}

/// A sentence for the labels that no image has, and one for those that no image lacks: they get no score.
///
/// Errors: no label that can be scored.
fn unscored(set: &Dataset, wanted: &[String]) -> Result<Vec<String>> {
    let columns = set.columns(wanted)?;
    let without = |target: u8| {
        let labels = wanted.iter().zip(&columns).filter(|(_, c)| !set.has_target(**c, target));
        labels.map(|(label, _)| text::label(label)).collect::<Vec<_>>().join(", ")
    };
    let reasons = [("has", without(1)), ("lacks", without(0))];
    let sentences: Vec<String> = reasons
        .into_iter()
        .filter(|(_, labels)| !labels.is_empty())
        .map(|(verb, labels)| format!("no image {verb} {labels}"))
        .collect();
    if !columns.iter().any(|column| set.is_rankable(*column)) {
        let message = format!("no label can be scored: {}", sentences.join(", and "));
        return Err(Error::data(&set.file, message));
    }
    let file = set.file.display();
    Ok(sentences.iter().map(|s| format!("{file}: {s}; such a label gets no score")).collect())
}
