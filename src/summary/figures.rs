//! The figures of a run's summary.

use super::agreement::Agreement;
use super::limits::MOST;
use super::mean::mean_of_known;
use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// Average precisions of one model, in percent. One that cannot be measured, because every ranking of the
/// images would be equally good, is not a number here and `null` in JSON.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Score {
    /// Mean of the all-point AP over the labels that have one.
    #[serde(deserialize_with = "number_or_null")]
    pub map: f64,
    /// Mean of the 11-point AP of VOC 2007 over the labels that have one.
    #[serde(deserialize_with = "number_or_null")]
    pub map_11_point: f64,
    /// All-point AP by label.
    #[serde(deserialize_with = "numbers_or_null")]
    pub ap: BTreeMap<String, f64>,
    /// 11-point AP by label.
    #[serde(deserialize_with = "numbers_or_null")]
    pub ap_11_point: BTreeMap<String, f64>,
    /// What a random ranking would have, by label: the share of images with the label.
    #[serde(default)]
    pub chance: BTreeMap<String, f64>,
    /// Images on which the model was scored.
    #[serde(default)]
    pub images: usize,
    /// Decisions at the model's thresholds.
    #[serde(default)]
    pub decisions: Option<Decisions>,
}

/// How a model decides at its thresholds, in percent. The first three are means over labels; one that no label has is not
/// a number, and `null` in JSON.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Decisions {
    /// Of the images for which it predicts a label, those that have it.
    #[serde(deserialize_with = "number_or_null")]
    pub precision: f64,
    /// Of the images that have a label, those for which it predicts it.
    #[serde(deserialize_with = "number_or_null")]
    pub recall: f64,
    /// Harmonic mean of a label's precision and recall.
    #[serde(deserialize_with = "number_or_null")]
    pub f1: f64,
    /// Images for which it predicts exactly the labels that are there.
    pub exact: f64,
}

fn number_or_null<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or(f64::NAN))
}

fn numbers_or_null<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let numbers = BTreeMap::<String, Option<f64>>::deserialize(d)?;
    Ok(numbers.into_iter().map(|(label, ap)| (label, ap.unwrap_or(f64::NAN))).collect())
}

impl Default for Score {
    /// The score of a model that nothing was measured of.
    fn default() -> Score {
        Score {
            map: f64::NAN,
            map_11_point: f64::NAN,
            ap: BTreeMap::new(),
            ap_11_point: BTreeMap::new(),
            chance: BTreeMap::new(),
            images: 0,
            decisions: None,
        }
    }
}

/// Two figures that cannot be measured are equal.
fn same(a: f64, b: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan())
}

impl PartialEq for Decisions {
    fn eq(&self, other: &Decisions) -> bool {
        let all = |d: &Decisions| [d.precision, d.recall, d.f1, d.exact];
        all(self).into_iter().zip(all(other)).all(|(a, b)| same(a, b))
    }
}

impl PartialEq for Score {
    fn eq(&self, other: &Score) -> bool {
        let all_same = |a: &BTreeMap<String, f64>, b: &BTreeMap<String, f64>| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && same(*a.1, *b.1))
        };
        same(self.map, other.map)
            && same(self.map_11_point, other.map_11_point)
            && all_same(&self.ap, &other.ap)
            && all_same(&self.ap_11_point, &other.ap_11_point)
            && all_same(&self.chance, &other.chance)
            && (self.images, &self.decisions) == (other.images, &other.decisions)
    }
}

impl Score {
    /// Computes the means from the labels' values.
    pub fn take_means(&mut self) {
        let mean = |m: &BTreeMap<String, f64>| mean_of_known(m.values().copied());
        self.map = mean(&self.ap);
        self.map_11_point = mean(&self.ap_11_point);
    }

    /// Checks a score that was read from a file. `key` is its place there.
    ///
    /// Errors: a figure that is no percentage; a mean that is missing although a label has a value.
    fn validate(&self, key: &str) -> Result<(), String> {
        let each = |name: &'static str, all: &BTreeMap<String, f64>| {
            all.iter().map(|(label, v)| (format!("{key}.{name}.{label}"), *v)).collect::<Vec<_>>()
        };
        let mut all =
            vec![(format!("{key}.map"), self.map), (format!("{key}.map_11_point"), self.map_11_point)];
        all.extend(
            [each("ap", &self.ap), each("ap_11_point", &self.ap_11_point), each("chance", &self.chance)]
                .concat(),
        );
        if let Some(Decisions { precision, recall, f1, exact }) = self.decisions {
            let decisions = [("precision", precision), ("recall", recall), ("f1", f1), ("exact", exact)];
            all.extend(decisions.map(|(name, v)| (format!("{key}.decisions.{name}"), v)));
        }
        if let Some((key, v)) = all.iter().find(|(_, v)| !v.is_nan() && !(0.0..=100.0).contains(v)) {
            return Err(format!("`{key}` is {v}; expected a percentage from 0 to 100"));
        }
        for (name, mean, of) in
            [("map", self.map, &self.ap), ("map_11_point", self.map_11_point, &self.ap_11_point)]
        {
            if mean.is_nan() && of.values().any(|v| v.is_finite()) {
                return Err(format!("`{key}.{name}` is null; expected the mean of the labels' values"));
            }
        }
        Ok(())
    }
}

/// The scores of a student.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct StudentScore {
    /// At the branch that was chosen.
    #[serde(flatten)]
    pub score: Score,
    /// With all tasks branching after block 1, 2, ...
    pub by_block: Vec<Score>,
}

impl StudentScore {
    /// See [`Score::validate`].
    fn validate(&self, key: &str) -> Result<(), String> {
        self.score.validate(key)?;
        self.by_block.iter().enumerate().try_for_each(|(b, s)| s.validate(&format!("{key}.by_block.{b}")))
    }
}

/// Numbers of parameters, as PyTorch counts them.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Parameters {
    /// All teachers together.
    pub teachers: usize,
    /// The whole student.
    pub student: usize,
    /// The part of `student` in the teacher-level filters.
    pub filters: usize,
    /// The part of `student` in the blocks that all tasks share. The rest is in branches and heads.
    #[serde(default)]
    pub trunk: usize,
    /// The student's, if all tasks branched after block 1, 2, ...
    #[serde(default)]
    pub by_block: Vec<usize>,
}

/// The labels that generated images were to show, and those that the teachers predict for them (eq. 5:
/// probability 0.5 or more).
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LabelStatistics {
    /// Number of images that were counted.
    pub images: usize,
    /// Every label of every teacher, in their order.
    pub labels: Vec<LabelShare>,
    /// Diversity of the images' features before the teachers' heads: 0 if all images are alike, larger if they differ
    /// (see [`Diversity`](crate::ops::losses::diversity::Diversity)). Absent for a batch of one image, and in files of
    /// versions that did not measure it; so are the next two.
    #[serde(default)]
    pub diversity: Option<f64>,
    /// Entropy of a label's mean probability, in bits, as a mean over labels: from 0 to 1.
    #[serde(default)]
    pub entropy: Option<f64>,
    /// What a label's prediction tells about the image, in bits, as a mean over labels: the entropy of the mean
    /// probability less the mean entropy of the probabilities. From 0, where all images have the same predictions, to 1,
    /// where every label is certainly present in half of them and certainly absent from the others.
    #[serde(default)]
    pub information: Option<f64>,
}

impl LabelStatistics {
    /// The number of labels that are predicted for any image, of those that any image was asked for, and the number of
    /// the latter: all labels, if the generator is unconditional.
    pub fn labels_found(&self) -> (usize, usize) {
        let asked = || self.labels.iter().filter(|l| l.drawn != Some(0));
        (asked().filter(|l| l.predicted > 0).count(), asked().count())
    }
    /// The same as a share; absent where nothing was counted.
    pub fn found(&self) -> Option<f64> {
        let (found, asked) = self.labels_found();
        (self.images > 0 && asked > 0).then(|| found as f64 / asked as f64)
    }
    /// The share of the labels asked for that the images show; absent for an unconditional generator.
    pub fn shown(&self) -> Option<f64> {
        let drawn: usize = self.labels.iter().filter_map(|l| l.drawn).sum();
        let shown: usize = self.labels.iter().map(|l| l.shown).sum();
        (drawn > 0).then(|| shown as f64 / drawn as f64)
    }
}

/// Counts of one label.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LabelShare {
    /// The teacher that has the label.
    pub teacher: String,
    /// The label.
    pub label: String,
    /// Images that were to show the label; absent for an unconditional generator.
    pub drawn: Option<usize>,
    /// Images for which the teacher predicts the label.
    pub predicted: usize,
    /// Images that were to show the label and for which it is predicted.
    pub shown: usize,
}

impl LabelShare {
    /// No image counted yet. `is_drawn` tells whether the generator is conditional.
    pub fn new(teacher: &str, label: &str, is_drawn: bool) -> LabelShare {
        LabelShare {
            teacher: teacher.into(),
            label: label.into(),
            drawn: is_drawn.then_some(0),
            ..LabelShare::default()
        }
    }

    /// Counts one image. `is_drawn` tells whether it was to show the label; `None` for an unconditional
    /// generator.
    pub fn count(&mut self, is_drawn: Option<bool>, is_predicted: bool) {
        let is_drawn = is_drawn.unwrap_or(false);
        self.drawn.iter_mut().for_each(|d| *d += usize::from(is_drawn));
        self.predicted += usize::from(is_predicted);
        self.shown += usize::from(is_drawn && is_predicted);
    }
}

/// The branch of one task.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TaskBranch {
    /// The task's teacher.
    pub teacher: String,
    /// The task's labels.
    pub labels: Vec<String>,
    /// The block (1-based) after which the task leaves the trunk.
    pub block: usize,
    /// Converged dual loss after each block, first block first.
    pub loss_by_block: Vec<f64>,
}

/// The results of a run.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// The run's name.
    pub name: String,
    /// The run's seed.
    pub seed: u64,
    /// The student's labels, in the order of its predictions.
    pub labels: Vec<String>,
    /// Scores on the student's labels: by teacher, and `mean` over all of the labels. Empty without evaluation
    /// data.
    pub teachers: BTreeMap<String, Score>,
    /// The student's scores; absent without evaluation data.
    pub student: Option<StudentScore>,
    /// Scores of the student that was trained on noise images.
    pub noise: Option<StudentScore>,
    /// Scores of the student that was trained on real images without labels.
    pub ka: Option<StudentScore>,
    /// Numbers of parameters.
    pub parameters: Parameters,
    /// Where each task branches.
    pub branch: Vec<TaskBranch>,
    /// What the generated images show; absent if no generator was trained.
    #[serde(default)]
    pub label_statistics: Option<LabelStatistics>,
    /// Decisions of student and teachers on generated images; absent if no generator was trained.
    #[serde(default)]
    pub agreement: Option<Agreement>,
    /// [`Agreement::kappa`] of the students that branch after block 1, 2, ...; empty if no generator was trained.
    #[serde(default)]
    pub kappa_by_block: Vec<Option<f64>>,
    /// Wall clock by stage, and `total`.
    pub seconds: BTreeMap<String, f64>,
    /// Version of the program.
    pub version: String,
}

impl Summary {
    /// The block after which all tasks leave the trunk, if it is the same one.
    pub fn common_block(&self) -> Option<usize> {
        let block = self.branch.first()?.block;
        self.branch.iter().all(|task| task.block == block).then_some(block)
    }

    /// Checks a summary that was read from a file, which may have been edited.
    ///
    /// Errors: values that no run can have.
    pub fn validate(&self) -> Result<(), String> {
        let p = &self.parameters;
        if p.teachers > MOST || p.student > MOST {
            return Err(format!("parameters: more than {MOST}"));
        }
        if p.trunk.checked_add(p.filters).is_none_or(|part| part > p.student) {
            return Err(format!("parameters: trunk {} and filters {} of {}", p.trunk, p.filters, p.student));
        }
        if let Some(i) = self.branch.iter().position(|task| task.block == 0) {
            return Err(format!("branch {i}: expected a block from 1 on, found 0"));
        }
        self.teachers.iter().try_for_each(|(name, s)| s.validate(&format!("teachers.{name}")))?;
        for (key, student) in [("student", &self.student), ("noise", &self.noise), ("ka", &self.ka)] {
            student.as_ref().map_or(Ok(()), |s| s.validate(key))?;
        }
        self.agreement.as_ref().map_or(Ok(()), Agreement::validate)?;
        self.label_statistics.as_ref().map_or(Ok(()), LabelStatistics::validate)
    }
}

impl LabelStatistics {
    /// Checks counts that were read from a file.
    ///
    /// Errors: more than [`MOST`] images; a label with more counted images than there are.
    pub fn validate(&self) -> Result<(), String> {
        if self.images > MOST {
            return Err(format!("images: more than {MOST}"));
        }
        let exceeds = |l: &&LabelShare| {
            l.predicted.max(l.drawn.unwrap_or(0)) > self.images || l.shown > l.drawn.unwrap_or(0)
        };
        match self.labels.iter().find(exceeds) {
            Some(l) => Err(format!("label {:?}: counts do not fit {} images", l.label, self.images)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_measured_is_null_and_counts_in_no_mean() {
        let ap = BTreeMap::from([("bus".to_owned(), 40.0), ("car".into(), f64::NAN), ("dog".into(), 60.0)]);
        let mut score = Score { ap: ap.clone(), ap_11_point: ap, ..Score::default() };
        score.take_means();
        assert_eq!((score.map, score.map_11_point), (50.0, 50.0));
        score.ap_11_point.clear();
        score.take_means();
        let text = serde_json::to_string(&score).unwrap();
        assert!(text.contains(r#""map":50.0,"map_11_point":null"#), "{text}");
        assert!(text.contains(r#""car":null"#), "{text}");
        let back: Score = serde_json::from_str(&text).unwrap();
        assert!(back.map == 50.0 && back.map_11_point.is_nan() && back.ap["car"].is_nan());
        assert_eq!(back, score);
        score.ap.insert("car".into(), 1.0);
        assert_ne!(back, score);
    }

    #[test]
    fn a_summary_that_no_run_can_have_is_refused() {
        let statistics = |images, drawn, predicted, shown| {
            let label = LabelShare { label: "bus".into(), drawn, predicted, shown, ..LabelShare::default() };
            LabelStatistics { images, labels: vec![label], ..LabelStatistics::default() }
        };
        let summary = |p: Parameters, block: usize, statistics| Summary {
            parameters: p,
            branch: vec![TaskBranch { block, ..TaskBranch::default() }],
            label_statistics: Some(statistics),
            ..Summary::default()
        };
        let p = Parameters { teachers: 9, student: 6, filters: 2, trunk: 4, by_block: vec![6] };
        assert_eq!(Summary::default().validate(), Ok(()));
        assert_eq!(summary(p.clone(), 4, statistics(5, Some(3), 5, 3)).validate(), Ok(()));
        assert_eq!(summary(p.clone(), 4, statistics(5, None, 5, 0)).validate(), Ok(()));
        for (p, block, statistics, expected) in [
            (
                Parameters { teachers: MOST + 1, ..p.clone() },
                1,
                statistics(0, None, 0, 0),
                "parameters: more",
            ),
            (
                Parameters { trunk: usize::MAX, ..p.clone() },
                1,
                statistics(0, None, 0, 0),
                "parameters: trunk",
            ),
            (Parameters { trunk: 5, ..p.clone() }, 1, statistics(0, None, 0, 0), "parameters: trunk 5"),
            (p.clone(), 0, statistics(0, None, 0, 0), "branch 0: expected a block from 1 on"),
            (p.clone(), 1, statistics(MOST + 1, None, 0, 0), "images: more"),
            (p.clone(), 1, statistics(5, None, 6, 0), "label \"bus\": counts do not fit 5 images"),
            (p.clone(), 1, statistics(5, Some(1), 0, 2), "label \"bus\""),
        ] {
            let e = summary(p, block, statistics).validate().unwrap_err();
            assert!(e.starts_with(expected), "{e}");
        }
    }

    #[test]
    fn a_score_that_nobody_can_have_is_refused_with_its_key() {
        let good = || {
            let ap = BTreeMap::from([("bus".to_owned(), 40.0), ("car".into(), f64::NAN)]);
            let mut score = Score { ap: ap.clone(), ap_11_point: ap, ..Score::default() };
            score.take_means();
            let student = StudentScore { by_block: vec![score.clone(), score.clone()], score };
            let teachers = BTreeMap::from([("mean".to_owned(), student.score.clone())]);
            Summary { teachers, noise: Some(student.clone()), student: Some(student), ..Summary::default() }
        };
        assert_eq!(good().validate(), Ok(()));
        type Spoil = fn(&mut Summary);
        let cases: [(Spoil, &str); 6] = [
            (
                |s| s.student.iter_mut().for_each(|s| s.score.map = 900.0),
                "`student.map` is 900; expected a percentage",
            ),
            (
                |s| s.student.iter_mut().for_each(|s| s.score.map = f64::NAN),
                "`student.map` is null; expected the mean",
            ),
            (
                |s| s.student.iter_mut().for_each(|s| s.by_block[1].map_11_point = -1.0),
                "`student.by_block.1.map_11_point`",
            ),
            (
                |s| s.teachers.get_mut("mean").unwrap().ap.extend([("bus".into(), 100.5)]),
                "`teachers.mean.ap.bus` is 100.5",
            ),
            (
                |s| s.noise.as_mut().unwrap().score.chance.extend([("bus".into(), -3.0)]),
                "`noise.chance.bus` is -3",
            ),
            (
                |s| {
                    s.noise.as_mut().unwrap().score.decisions =
                        Some(Decisions { exact: 101.0, ..Decisions::default() })
                },
                "`noise.decisions.exact` is 101",
            ),
        ];
        for (spoil, expected) in cases {
            let mut summary = good();
            spoil(&mut summary);
            let e = summary.validate().unwrap_err();
            assert!(e.starts_with(expected), "{e}");
        }
    }
}
