//! The files of a run's students, and the student whose tasks leave the trunk after blocks of their own.

use super::spec::ImageSource;
use crate::error::{Error, Result};
use crate::models::targetnet::TargetNetSpec;
use crate::weights::{self, Tensors};
use std::path::{Path, PathBuf};

/// What the names of a baseline's stages and files begin with; empty for the student of the method itself.
pub fn baseline_prefix(source: &ImageSource) -> String {
    match source {
        ImageSource::Generator => String::new(),
        ImageSource::Noise => "noise.".into(),
        ImageSource::Real(_) => "ka.".into(),
    }
}

/// The file of the student that branches after block `b` (1-based).
pub fn block_file(out: &Path, prefix: &str, b: usize) -> PathBuf {
    out.join(format!("{prefix}student-block{b}.npz"))
}

/// The student whose task i leaves the trunk after block `branches[i]`, from the files of the students whose tasks all
/// leave it after the same block. If the blocks differ, each block must have been frozen before the next one was trained,
/// so that all of these students have the same trunk. Such a student has no thresholds yet.
///
/// Errors: files that cannot be read, or that have other tasks.
pub fn branched(out: &Path, prefix: &str, branches: &[usize]) -> Result<Tensors> {
    let deepest = branches.iter().copied().max().unwrap_or(1);
    let mut student = weights::load(block_file(out, prefix, deepest))?;
    let mut spec: TargetNetSpec = student.meta_as("student")?;
    if spec.tasks.len() != branches.len() {
        let (found, expected) = (spec.tasks.len(), branches.len());
        return Err(Error::data(student.file(), format!("expected {expected} tasks, found {found}")));
    }
    for (i, block) in branches.iter().enumerate().filter(|(_, b)| **b != deepest) {
        let task = format!("task{i}.");
        student = student.renamed(|name| (!name.starts_with(&task)).then(|| name.into()));
        let shallower = weights::load(block_file(out, prefix, *block))?;
        let tensors: Vec<_> = shallower.iter().filter(|(name, _)| name.starts_with(&task)).collect();
        if tensors.is_empty() {
            let message =
                format!("expected tensors of the task of teacher {}, found none", spec.tasks[i].teacher);
            return Err(Error::data(shallower.file(), message));
        }
        for (name, tensor) in tensors {
            student.insert(name, &tensor.shape, tensor.data.clone())?;
        }
        spec.tasks[i].block = *block;
        // They are of the students of single blocks.
        student.meta.remove("thresholds");
    }
    let spec = serde_json::to_value(spec).map_err(|e| Error::Run(format!("student metadata: {e}")))?;
    student.meta.insert("student".into(), spec);
    Ok(student)
}
