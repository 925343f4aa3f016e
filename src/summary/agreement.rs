//! How often a student decides as its teachers do.

use super::limits::MOST;
use super::mean::mean_of_known;

/// Decisions of a student and of its teachers on images that none of them was trained on. Nobody knows what these
/// images show, so the teachers' decisions (probability 0.5 or more, eq. 5) take the place of labels.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Agreement {
    /// Number of images.
    pub images: usize,
    /// The student's labels, in the order of its predictions.
    pub labels: Vec<LabelAgreement>,
}

/// Decisions on one label.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LabelAgreement {
    /// The label.
    pub label: String,
    /// The probability above which the student predicts it.
    pub threshold: f32,
    /// Images for which the teacher predicts it.
    pub teacher: usize,
    /// Images for which the student predicts it.
    pub student: usize,
    /// Images for which both do.
    pub both: usize,
}

impl LabelAgreement {
    /// Images on which the two decide alike.
    fn alike(&self, images: usize) -> usize {
        images + 2 * self.both - self.teacher - self.student
    }

    /// Cohen's kappa: `(p - e) / (1 - e)`, with the share `p` of images on which the two decide alike, and the share
    /// `e` that two deciders with the same rates would reach by chance. 1 is perfect, 0 is chance. Absent if the
    /// teacher predicts the label for all images or for none.
    pub fn kappa(&self, images: usize) -> Option<f64> {
        if self.teacher == 0 || self.teacher == images {
            return None;
        }
        let share = |n: usize| n as f64 / images as f64;
        let (t, s) = (share(self.teacher), share(self.student));
        let by_chance = t * s + (1.0 - t) * (1.0 - s);
        Some((share(self.alike(images)) - by_chance) / (1.0 - by_chance))
    }
}

impl Agreement {
    /// The thresholds, by label.
    pub fn thresholds(&self) -> Vec<f32> {
        self.labels.iter().map(|l| l.threshold).collect()
    }

    /// The share of all decisions in which the two decide alike.
    pub fn share(&self) -> f64 {
        let alike: usize = self.labels.iter().map(|l| l.alike(self.images)).sum();
        alike as f64 / (self.images * self.labels.len()).max(1) as f64
    }

    /// Mean of [`LabelAgreement::kappa`] over the labels that have one; absent where none has.
    pub fn kappa(&self) -> Option<f64> {
        let mean = mean_of_known(self.labels.iter().filter_map(|l| l.kappa(self.images)));
        Some(mean).filter(|mean| mean.is_finite())
    }

    /// Checks counts that were read from a file.
    ///
    /// Errors: a count that does not fit the number of images.
    pub fn validate(&self) -> Result<(), String> {
        if self.images > MOST {
            return Err(format!("agreement: more than {MOST} images"));
        }
        let fits = |l: &&LabelAgreement| {
            let most = l.teacher.max(l.student);
            most <= self.images
                && l.both <= l.teacher.min(l.student)
                && l.teacher + l.student - l.both <= self.images
        };
        match self.labels.iter().find(|l| !fits(l)) {
            Some(l) => Err(format!("agreement on {:?}: counts do not fit {} images", l.label, self.images)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(teacher: usize, student: usize, both: usize) -> LabelAgreement {
        LabelAgreement { label: "bus".into(), threshold: 0.5, teacher, student, both }
    }

    #[test]
    fn kappa_is_one_for_equal_decisions_and_zero_for_independent_ones() {
        assert_eq!(label(30, 30, 30).kappa(100), Some(1.0));
        // Half of the teacher's 40 are among the student's 50, as by chance.
        assert_eq!(label(40, 50, 20).kappa(100), Some(0.0));
        // 30 of 100 alike where 0.3 * 0.5 + 0.7 * 0.5 = 0.5 is chance.
        assert!((label(30, 50, 5).kappa(100).unwrap() - (0.3 - 0.5) / 0.5).abs() < 1e-12);
        assert_eq!((label(0, 3, 0).kappa(100), label(100, 3, 3).kappa(100)), (None, None));
        // A student that never predicts the label learned nothing of it.
        assert_eq!(label(30, 0, 0).kappa(100), Some(0.0));
    }

    #[test]
    fn the_share_counts_all_decisions_and_the_mean_leaves_out_labels_that_cannot_be_judged() {
        let all = Agreement { images: 10, labels: vec![label(5, 5, 5), label(4, 5, 2), label(0, 0, 0)] };
        assert_eq!(all.share(), (10.0 + 5.0 + 10.0) / 30.0);
        assert_eq!(all.kappa(), Some(0.5));
        assert_eq!(Agreement { images: 10, labels: vec![label(0, 0, 0)] }.kappa(), None);
        assert_eq!(all.validate(), Ok(()));
        for wrong in [label(11, 0, 0), label(3, 2, 3), label(8, 8, 4)] {
            assert!(Agreement { images: 10, labels: vec![wrong] }.validate().is_err());
        }
    }
}
