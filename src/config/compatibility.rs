//! Checks of a run's config against its teachers, once their files are open. Errors name the config's line.

use std::collections::BTreeSet;

use super::source::Source;
use super::suggest::nearest;
use crate::error::Result;
use crate::models::resnet::ResNetSpec;
use crate::pipeline::spec::{Branch, ImageSource, RunSpec, StudentNorm};
use crate::pipeline::student_network::{Misfit, student_network};
use crate::pipeline::teachers::OpenedTeacher;

/// Checks that every label of the student is a teacher's. `teacher_labels` has a list for each teacher.
pub fn check_labels(spec: &RunSpec, teacher_labels: &[Vec<String>], source: &Source) -> Result<()> {
    let known: BTreeSet<&str> = teacher_labels.iter().flatten().map(String::as_str).collect();
    for (i, label) in spec.student.labels.iter().enumerate() {
        if known.contains(label.as_str()) {
            continue;
        }
        let hint = match nearest(label, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the teachers predict: {}", shortened(&known)),
        };
        let message = format!("no teacher predicts the label `{label}`; {hint}");
        return Err(source.fail(&format!("student.labels.{i}"), message));
    }
    for (label, name) in &spec.student.teachers_of {
        let of_teacher = spec.teachers.iter().zip(teacher_labels).find(|(t, _)| t.name == *name);
        let Some((_, labels)) = of_teacher.filter(|(_, labels)| !labels.contains(label)) else { continue };
        let known: BTreeSet<&str> = labels.iter().map(String::as_str).collect();
        let message = format!(
            "`student.teachers_of` gives the label `{label}` to the teacher {name}, which predicts: {}",
            shortened(&known)
        );
        return Err(source.fail(&format!("student.teachers_of.{label}"), message));
    }
    Ok(())
}

/// Checks that each teacher has a probability for each label. `suspicions` has, for each teacher, why it may not.
pub fn check_heads(spec: &RunSpec, suspicions: &[Option<String>], source: &Source) -> Result<()> {
    for (i, (teacher, suspicion)) in spec.teachers.iter().zip(suspicions).enumerate() {
        if let Some(reason) = suspicion {
            let message = format!("teacher `{}`: {} {reason}", teacher.name, teacher.weights.display());
            return Err(source.fail(&format!("teachers.{i}.weights"), message));
        }
    }
    Ok(())
}

/// Checks that the student has an architecture, beside which every teacher fits.
pub fn check_student(spec: &RunSpec, teachers: &[OpenedTeacher], source: &Source) -> Result<()> {
    student_network(&spec.student, teachers).map(|_| ()).map_err(|misfit| match misfit {
        Misfit::Config { key, message } => source.fail(key, message),
        Misfit::File(e) => e,
    })
}

/// Checks that the values that count blocks or divide channels fit the teachers. `channels` has the output
/// channels of each block.
pub fn check_network(spec: &RunSpec, channels: &[usize], source: &Source) -> Result<()> {
    let blocks = channels.len();
    let r = spec.student.filter_reduction;
    if let Some((i, c)) = channels.iter().enumerate().find(|(_, c)| *c % r != 0) {
        let message = format!(
            "`student.filter_reduction` is {r}, which does not divide the {c} channels after block {}",
            i + 1
        );
        return Err(source.fail("student.filter_reduction", message));
    }
    let most = [
        ("generator.groups", spec.generator.groups),
        match spec.student.branch {
            Branch::Auto { least } => ("student.branch_least", least),
            Branch::Block(block) => ("student.branch", block),
        },
    ];
    for (path, value) in most {
        if value > blocks {
            let message = format!("`{path}` is {value}; the teachers have {blocks} blocks");
            return Err(source.fail(path, message));
        }
    }
    if spec.dual.steps.len() != blocks {
        let message = format!(
            "`dual.steps` has {} entries; expected {blocks}, one for each of the teachers' blocks",
            spec.dual.steps.len()
        );
        return Err(source.fail("dual.steps", message));
    }
    Ok(())
}

/// Checks that the values that depend on the size of images and maps fit the network: shifts, and a batch of one image.
pub fn check_sizes(spec: &RunSpec, network: &ResNetSpec, source: &Source) -> Result<()> {
    let [h, w, _] = network.image;
    let of_generator = ("generator.shift", spec.generator.shift);
    let shifts = [("dual.augment.shift", spec.dual.augment.shift)];
    let shifts =
        shifts.into_iter().chain((spec.dual.images == ImageSource::Generator).then_some(of_generator));
    for (path, shift) in shifts {
        if shift >= h.min(w) {
            let message = format!(
                "`{path}` is {shift}; expected fewer pixels than the images have, which are {h} x {w}"
            );
            return Err(source.fail(path, message));
        }
    }
    let maps = network.feature(network.blocks(), spec.dual.batch);
    if spec.student.norm == StudentNorm::Batch && maps.n() * maps.h() * maps.w() == 1 {
        let message = "`dual.batch` is 1; expected at least 2, because the last block's maps have one pixel, and \
                       `student.norm` = \"batch\" normalises each channel by its statistics over the batch";
        return Err(source.fail("dual.batch", message));
    }
    Ok(())
}

/// The first 20 of `names`, separated by commas, and the number of the others.
fn shortened(names: &BTreeSet<&str>) -> String {
    const SHOWN: usize = 20;
    let mut text = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}
