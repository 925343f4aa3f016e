//! Teachers' files, opened: network, labels and tensors, before they are in a store.

use super::spec::TeacherSpec;
use super::teacher_file::{Known, TeacherFile};
use crate::error::Result;
use crate::weights::Tensors;
use std::path::PathBuf;
use std::sync::Arc;

/// What to do where a teacher's file does not exist but its config states network and labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// Report an error.
    Fails,
    /// Draw weights from a fixed seed, which is enough to forecast the cost of a step.
    IsDrawn,
}

impl Absent {
    /// The stated network and labels, where weights may be drawn in place of the file's.
    fn stand_in(self, spec: &TeacherSpec) -> Option<Known> {
        let network = spec.stated.network.clone()?;
        let labels = spec.stated.labels.clone();
        let may = self == Absent::IsDrawn && !labels.is_empty() && !spec.weights.exists();
        may.then_some(Known { network, labels })
    }
}

/// A teacher whose file has been read. A run opens each file once and keeps its tensors for all that need
/// them: the check of the config, the stores of all students, their initial values, and the evaluation.
#[derive(Clone)]
pub struct OpenedTeacher {
    /// As in the config.
    pub name: String,
    /// The weights file.
    pub file: PathBuf,
    /// Network and labels.
    pub known: Known,
    /// The file's tensors; `None` where the file does not exist and weights are drawn.
    pub tensors: Option<Arc<Tensors>>,
}

impl OpenedTeacher {
    /// Opens one teacher's file.
    ///
    /// Errors: a file that does not open, or that its config contradicts.
    pub fn open(spec: &TeacherSpec, absent: Absent) -> Result<OpenedTeacher> {
        let (known, tensors) = match absent.stand_in(spec) {
            Some(known) => (known, None),
            None => {
                let TeacherFile { known, tensors } = TeacherFile::open(spec)?;
                (known, Some(Arc::new(tensors)))
            }
        };
        Ok(OpenedTeacher { name: spec.name.clone(), file: spec.weights.clone(), known, tensors })
    }

    /// Opens the files of all teachers.
    pub fn open_all(specs: &[TeacherSpec], absent: Absent) -> Result<Vec<OpenedTeacher>> {
        specs.iter().map(|spec| OpenedTeacher::open(spec, absent)).collect()
    }

    /// Whether the file does not exist and weights are drawn.
    pub fn is_drawn(&self) -> bool {
        self.tensors.is_none()
    }

    /// What the user should know of how the file was read.
    pub fn notes(&self) -> &[String] {
        self.tensors.as_ref().map_or(&[], |t| &t.notes)
    }
}
