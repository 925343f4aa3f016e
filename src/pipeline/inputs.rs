//! The files that a run reads: each teacher's is opened once and hashed once, and what was learned is passed
//! on. All files are checked before the run begins, because an error then costs a second and later twenty
//! minutes.

use super::images::check_images;
use super::spec::{ImageSource, RunSpec, StudentInit};
use super::stage_two::StageTwo;
use super::tasks;
use super::teachers::{Absent, OpenedTeacher, Teachers};
use crate::autograd::Store;
use crate::error::Result;
use crate::report::origin::WeightsFile;
use crate::weights;

/// What is known of a run's files before it begins.
pub struct RunInputs {
    /// In the order of the config.
    pub teachers: Vec<OpenedTeacher>,
    /// See [`hashes`].
    pub hashes: Vec<WeightsFile>,
}

impl RunInputs {
    /// Opens the teachers and hashes the files.
    ///
    /// Errors: a teacher's file that does not open, or that its config contradicts.
    pub fn open(spec: &RunSpec) -> Result<RunInputs> {
        let teachers = OpenedTeacher::open_all(&spec.teachers, Absent::Fails)?;
        Ok(RunInputs { teachers, hashes: hashes(spec) })
    }
}

/// Name, length and SHA-256 of every file that the student's bits depend on. Where the weights are an index,
/// the files that it lists follow it. Folders are left out, and so is
/// a file that cannot be read: the run reports it.
pub fn hashes(spec: &RunSpec) -> Vec<WeightsFile> {
    let teachers = spec.teachers.iter().map(|t| (format!("teacher {}", t.name), &t.weights));
    let init = match &spec.student.init {
        StudentInit::Weights(file) => Some(("the student's start".to_owned(), file)),
        StudentInit::Scratch | StudentInit::Mean | StudentInit::Teacher(_) => None,
    };
    let images = [&spec.dual.images].into_iter().chain(&spec.baselines).filter_map(|source| match source {
        ImageSource::Real(file) => Some(("images without labels".to_owned(), file)),
        ImageSource::Generator | ImageSource::Noise => None,
    });
    let weights = teachers
        .chain(init)
        .flat_map(|(name, file)| weights::files(file).into_iter().map(move |file| (name.clone(), file)));
    let all = weights.chain(images.map(|(name, file)| (name, file.clone())));
    all.filter_map(|(name, file)| WeightsFile::of(&name, &file).ok()).collect()
}

/// What a run's evaluation data must have.
pub struct Needed {
    /// Height, width and channels of an image, unless the data is resized.
    pub image: [usize; 3],
    /// The student's labels.
    pub labels: Vec<String>,
}

/// Checks that a config fits its teachers and that its other files can be used. Teachers and student are
/// built in a store without memory; of images, only the headers are read.
///
/// Errors: the first file or value that does not fit.
pub fn check(spec: &RunSpec, opened: &[OpenedTeacher]) -> Result<Needed> {
    let mut store = Store::<f32>::planned(None);
    let teachers = Teachers::build(&mut store, opened, &spec.student)?;
    let tasks = tasks::tasks(&teachers, &spec.student)?;
    let labels = tasks.iter().flat_map(|t| t.labels.clone()).collect();
    let mut without_images = spec.clone();
    without_images.dual.images = ImageSource::Noise;
    StageTwo::new(&mut store, &without_images, &teachers, tasks, None)?;
    for source in spec.baselines.iter().chain([&spec.dual.images]) {
        if let ImageSource::Real(path) = source {
            check_images(path, &teachers.network)?;
        }
    }
    Ok(Needed { image: teachers.network.image, labels })
}
