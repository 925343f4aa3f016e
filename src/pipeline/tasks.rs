//! Which labels the student predicts through which teacher: the task-level filters `g_m` (docs/method.md 3).

use super::teachers::{OpenedTeacher, Teachers};
use crate::error::{Error, Result};
use crate::text;
use std::collections::BTreeMap;

/// The labels that the student predicts through one teacher.
#[derive(Clone, Debug)]
pub struct TaskLabels {
    /// Index of the teacher.
    pub teacher: usize,
    /// The wanted labels among the teacher's.
    pub labels: Vec<String>,
    /// The column of each of them in the teacher's predictions.
    pub columns: Vec<u32>,
}

/// A sentence for each wanted label that several teachers predict: it names them, and the one whose
/// predictions the student learns. No `wanted` means all labels of all teachers.
pub fn shared_labels(teachers: &[OpenedTeacher], wanted: &[String]) -> Vec<String> {
    let mut owners: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for teacher in teachers {
        for label in teacher.known.labels.iter().filter(|l| wanted.is_empty() || wanted.contains(l)) {
            owners.entry(label).or_default().push(&teacher.name);
        }
    }
    let shared = owners.into_iter().filter(|(_, owners)| owners.len() > 1);
    let sentence = |(label, owners): (&str, Vec<&str>)| {
        format!(
            "the teachers {} all predict the label {}; the student learns it from {}, which the config names first",
            owners.join(", "),
            text::label(label),
            owners[0]
        )
    };
    shared.map(sentence).collect()
}

/// Splits the wanted labels into tasks; each label goes to the first teacher that has it. No `wanted` means
/// all labels of all teachers.
///
/// Errors: a label that no teacher has.
pub fn tasks(teachers: &Teachers, wanted: &[String]) -> Result<Vec<TaskLabels>> {
    let all: Vec<String> =
        if wanted.is_empty() { teachers.labels().cloned().collect() } else { wanted.to_vec() };
    let mut tasks: Vec<TaskLabels> = (0..teachers.all.len())
        .map(|teacher| TaskLabels { teacher, labels: vec![], columns: vec![] })
        .collect();
    for label in all {
        let owner = teachers
            .all
            .iter()
            .enumerate()
            .find_map(|(m, t)| Some((m, t.labels.iter().position(|l| *l == label)?)));
        let (m, column) = owner.ok_or_else(|| Error::Usage(format!("label {label:?} is in no teacher")))?;
        if !tasks[m].labels.contains(&label) {
            tasks[m].columns.push(column as u32);
            tasks[m].labels.push(label);
        }
    }
    tasks.retain(|t| !t.labels.is_empty());
    Ok(tasks)
}
