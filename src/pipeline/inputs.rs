//! Opens every file that a run will read, so that what is wrong with one is said before the run begins: wrong here costs
//! a second, later twenty minutes.

use super::dual::{self, StageTwo};
use super::evaluate;
use super::spec::{ImageSource, RunSpec};
use super::teachers::{Absent, Teachers};
use crate::autograd::Store;
use crate::error::Result;

/// Builds the teachers and the student's initial values and drops them again; of images, only the headers are read.
pub fn check(spec: &RunSpec, absent: Absent) -> Result<()> {
    let mut store = Store::<f32>::planned(None);
    let teachers = Teachers::load_or(&mut store, &spec.teachers, absent)?;
    let tasks = dual::tasks(&teachers, &spec.student.labels)?;
    let wanted: Vec<String> = tasks.iter().flat_map(|t| t.labels.clone()).collect();
    let mut without_images = spec.clone();
    without_images.dual.images = ImageSource::Noise;
    StageTwo::new(&mut store, &without_images, &teachers, tasks, None)?;
    for source in spec.baselines.iter().chain([&spec.dual.images]) {
        if let ImageSource::Real(path) = source {
            dual::check_images(path, &teachers.network)?;
        }
    }
    match &spec.evaluation {
        Some(data) => evaluate::check(data, teachers.network.image, &wanted),
        None => Ok(()),
    }
}
