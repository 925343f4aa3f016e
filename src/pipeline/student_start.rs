//! The values that the student's trunk starts from.

use super::spec::{RunSpec, StudentInit};
use super::teacher_file::Backbone;
use super::teachers::Teachers;
use crate::error::{Error, Result};
use crate::weights::Tensors;

/// The tensors that the trunk starts from. `None` means random values, which also replace a teacher's where
/// that teacher's weights are random themselves.
///
/// Errors: a backbone file that does not open or does not fit the teachers; teachers whose tensors differ in
/// shape.
pub(super) fn initial_tensors(spec: &RunSpec, teachers: &Teachers) -> Result<Option<Tensors>> {
    match &spec.student.init {
        StudentInit::Scratch => Ok(None),
        StudentInit::Teacher(m) => Ok(teachers.all[*m].tensors.as_deref().cloned()),
        StudentInit::Weights(path) => Backbone::open(path)?.fitting(&teachers.network).map(Some),
        StudentInit::Mean => {
            let all: Option<Vec<&Tensors>> = teachers.all.iter().map(|t| t.tensors.as_deref()).collect();
            all.as_deref().map(mean).transpose()
        }
    }
}

/// The mean of each tensor over all teachers, heads left out.
fn mean(all: &[&Tensors]) -> Result<Tensors> {
    let mut mean = all[0].empty_like();
    for (name, first) in all[0].iter().filter(|(n, _)| !n.starts_with("fc.")) {
        let mut sum = vec![0.0f64; first.data.len()];
        for t in all {
            let part = t.get(name).filter(|p| p.shape == first.shape);
            let part =
                part.ok_or_else(|| Error::data(t.file(), format!("{name}: the teachers differ in it")))?;
            sum.iter_mut().zip(&part.data).for_each(|(s, v)| *s += f64::from(*v));
        }
        mean.insert(name, &first.shape, sum.iter().map(|s| (s / all.len() as f64) as f32).collect())?;
    }
    Ok(mean)
}
