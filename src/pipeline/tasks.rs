//! Which labels the student predicts through which teacher: the task-level filters `g_m` (docs/method.md 3).

use super::opened::OpenedTeacher;
use super::spec::StudentOptions;
use super::teachers::Teachers;
use crate::error::{Error, Result};
use crate::text;

/// The labels that the student predicts through one teacher.
#[derive(Clone, Debug)]
pub struct TaskLabels {
    /// Index of the teacher.
    pub teacher: usize,
    /// The wanted labels among the teacher's.
    pub labels: Vec<String>,
    /// The column of each of them in the teacher's predictions.
    pub columns: Vec<u32>,
    /// For each of them the teachers whose predictions the student learns, and the column of each; the teacher of the
    /// task is the first.
    pub sources: Vec<Vec<Source>>,
}

/// The place of a label's predictions: the index of a teacher, and a column of its predictions.
pub type Source = (usize, u32);

impl TaskLabels {
    /// Whether the student learns the mean of several teachers for one of the labels.
    pub fn is_averaged(&self) -> bool {
        self.sources.iter().any(|s| s.len() > 1)
    }
}

/// The teachers whose predictions the student learns for `label`: the one that the options name, or else all that have
/// the label. `teachers` gives the name and the labels of each teacher, in the order of the config.
pub fn sources<'t>(
    student: &StudentOptions,
    label: &str,
    teachers: impl Iterator<Item = (&'t str, &'t [String])>,
) -> Vec<Source> {
    let chosen = student.teachers_of.get(label);
    let of_teacher = |(m, (name, labels)): (usize, (&str, &[String]))| {
        let column = labels.iter().position(|l| l == label)?;
        chosen.is_none_or(|chosen| chosen == name).then_some((m, column as u32))
    };
    teachers.enumerate().filter_map(of_teacher).collect()
}

/// A sentence for each wanted label that several teachers predict: it names them, and what the student learns.
pub fn shared_labels(teachers: &[OpenedTeacher], student: &StudentOptions) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut labels: Vec<&String> = teachers.iter().flat_map(|t| &t.known.labels).collect();
    labels.sort();
    labels.dedup();
    for label in labels.into_iter().filter(|l| student.labels.is_empty() || student.labels.contains(l)) {
        let owners: Vec<&str> =
            teachers.iter().filter(|t| t.known.labels.contains(label)).map(|t| t.name.as_str()).collect();
        if owners.len() < 2 {
            continue;
        }
        let learns = match student.teachers_of.get(label) {
            Some(chosen) => format!("learns it from {chosen}, which student.teachers_of names"),
            None => format!(
                "learns the mean of their probabilities, through the blocks of {}; student.teachers_of chooses one of them",
                owners[0]
            ),
        };
        sentences.push(format!(
            "the teachers {} all predict the label {}; the student {learns}",
            owners.join(", "),
            text::label(label)
        ));
    }
    sentences
}

/// Splits the wanted labels into tasks; each label goes to the first teacher that it is learnt from.
///
/// Errors: a label that no teacher has.
pub fn tasks(teachers: &Teachers, student: &StudentOptions) -> Result<Vec<TaskLabels>> {
    let all: Vec<String> =
        if student.labels.is_empty() { teachers.labels().cloned().collect() } else { student.labels.clone() };
    let mut tasks: Vec<TaskLabels> = (0..teachers.all.len())
        .map(|teacher| TaskLabels { teacher, labels: vec![], columns: vec![], sources: vec![] })
        .collect();
    for label in all {
        let found = sources(student, &label, teachers.all.iter().map(|t| (t.name.as_str(), &t.labels[..])));
        let &(m, column) =
            found.first().ok_or_else(|| Error::Usage(format!("label {label:?} is in no teacher")))?;
        if !tasks[m].labels.contains(&label) {
            tasks[m].columns.push(column);
            tasks[m].labels.push(label);
            tasks[m].sources.push(found);
        }
    }
    tasks.retain(|t| !t.labels.is_empty());
    Ok(tasks)
}
