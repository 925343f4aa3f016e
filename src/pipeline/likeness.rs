//! Whether teachers were fine-tuned from one backbone, by their weights alone.

use super::opened::OpenedTeacher;
use super::spec::{StudentInit, StudentOptions};
use crate::weights::Tensors;

/// Mean cosine from which on teachers count as fine-tuned from one backbone. The demo's teachers, which were, have 0.82;
/// teachers of the same architecture that were trained apart have less than 0.05.
pub const SHARED: f64 = 0.3;

/// Mean cosine between the convolutions of the first teacher and those of each other one that have the same name and
/// shape: near 0 for networks that were trained apart, near 1 for networks that were fine-tuned from one backbone. `None`
/// for a single teacher, and for teachers without a convolution in common.
pub fn likeness(teachers: &[&Tensors]) -> Option<f64> {
    let (first, others) = teachers.split_first()?;
    let mut cosines = Vec::new();
    for other in others {
        for (name, a) in first.iter().filter(|(_, t)| t.shape.len() == 4) {
            let Some(b) = other.get(name).filter(|b| b.shape == a.shape) else { continue };
            let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(x * y)).sum::<f64>();
            let norms = (dot(&a.data, &a.data) * dot(&b.data, &b.data)).sqrt();
            if norms > 0.0 {
                cosines.push(dot(&a.data, &b.data) / norms);
            }
        }
    }
    (!cosines.is_empty()).then(|| cosines.iter().sum::<f64>() / cosines.len() as f64)
}

/// A warning where a student starts from the mean of blocks that have nothing in common.
pub fn warning(student: &StudentOptions, teachers: &[OpenedTeacher]) -> Option<String> {
    let all: Option<Vec<&Tensors>> = teachers.iter().map(|t| t.tensors.as_deref()).collect();
    let found = likeness(&all?).filter(|l| student.init == StudentInit::Mean && *l < SHARED)?;
    Some(format!(
        "`student.init` is \"mean\", but the teachers seem to have been trained apart: the mean cosine of their convolutions \
         is {found:.2} ({SHARED} or more is expected of teachers from one backbone), and the mean of such blocks is no good \
         start; use student.init = \"scratch\""
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn teacher(filter: &[f32], other: &[f32]) -> Tensors {
        let mut t = Tensors::new();
        t.insert("conv1.weight", &[filter.len(), 1, 1, 1], filter.to_vec()).unwrap();
        t.insert("layer1.0.conv1.weight", &[other.len(), 1, 1, 1], other.to_vec()).unwrap();
        t.insert("bn1.weight", &[1], vec![1.0]).unwrap();
        t
    }

    #[test]
    fn the_mean_cosine_is_that_of_the_convolutions_that_teachers_share() {
        let (a, b) = (teacher(&[3.0, 4.0], &[1.0, 0.0]), teacher(&[4.0, 3.0], &[0.0, 2.0]));
        assert_eq!(likeness(&[&a]), None);
        assert_eq!(likeness(&[&a, &a]), Some(1.0));
        // Cosines 24 / 25 and 0.
        assert!((likeness(&[&a, &b]).unwrap() - 0.48).abs() < 1e-12);
        let wider = teacher(&[4.0, 3.0], &[1.0, 0.0, 0.0]);
        assert!((likeness(&[&a, &wider]).unwrap() - 0.96).abs() < 1e-12, "another shape counts for nothing");
    }
}
