//! What a run found out, as stored in `summary.json` and shown in the final table.

use std::collections::BTreeMap;

/// Average precisions of one model, in percent.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Score {
    /// Mean over labels of the all-point AP.
    pub map: f64,
    /// Mean over labels of the 11-point AP of VOC 2007.
    pub map_11_point: f64,
    /// All-point AP by label.
    pub ap: BTreeMap<String, f64>,
    pub ap_11_point: BTreeMap<String, f64>,
}

impl Score {
    /// Sets the means from the labels' figures.
    pub fn take_means(&mut self) {
        let mean = |m: &BTreeMap<String, f64>| m.values().sum::<f64>() / m.len().max(1) as f64;
        self.map = mean(&self.ap);
        self.map_11_point = mean(&self.ap_11_point);
    }
}

/// A student: its figure when branched after each block, and as finally assembled.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct StudentScore {
    #[serde(flatten)]
    pub score: Score,
    /// Score when every task branches after block 1, 2, ...
    pub by_block: Vec<Score>,
}

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Parameters {
    pub teachers: usize,
    pub student: usize,
    /// The student's teacher-level filters, counted in `student` too.
    pub filters: usize,
    /// The blocks that all tasks share, counted in `student` too; what remains are branches and heads.
    #[serde(default)]
    pub trunk: usize,
}

/// What generated images were to show and what the teachers see in them (eq. 5: probability 0.5 or more).
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LabelStatistics {
    /// Images that were counted.
    pub images: usize,
    /// Every label of every teacher, in their order.
    pub labels: Vec<LabelShare>,
}

/// Numbers of images.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LabelShare {
    pub teacher: String,
    pub label: String,
    /// That were to show the label; absent where the generator is not told what to show.
    pub drawn: Option<usize>,
    /// In which its teacher sees it.
    pub predicted: usize,
    /// That were to show it and do.
    pub shown: usize,
}

impl LabelShare {
    pub fn new(teacher: &str, label: &str, is_drawn: bool) -> LabelShare {
        LabelShare {
            teacher: teacher.into(),
            label: label.into(),
            drawn: is_drawn.then_some(0),
            ..LabelShare::default()
        }
    }

    /// Counts one image.
    pub fn count(&mut self, is_drawn: Option<bool>, is_predicted: bool) {
        let is_drawn = is_drawn.unwrap_or(false);
        self.drawn.iter_mut().for_each(|d| *d += usize::from(is_drawn));
        self.predicted += usize::from(is_predicted);
        self.shown += usize::from(is_drawn && is_predicted);
    }
}

/// Dual loss of one task after each block, and where it branched.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TaskBranch {
    pub teacher: String,
    pub labels: Vec<String>,
    /// 1-based.
    pub block: usize,
    pub loss_by_block: Vec<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    pub name: String,
    pub seed: u64,
    /// Labels the student predicts.
    pub labels: Vec<String>,
    /// On the student's labels: by teacher, and `mean` over all of the labels. Absent without evaluation data.
    pub teachers: BTreeMap<String, Score>,
    pub student: Option<StudentScore>,
    pub noise: Option<StudentScore>,
    pub ka: Option<StudentScore>,
    pub parameters: Parameters,
    pub branch: Vec<TaskBranch>,
    /// Diversity of the generated images, 0 (all alike) upwards, and the label entropy in [0, 1].
    pub diversity: f64,
    pub label_entropy: f64,
    /// Absent where no generator was trained.
    #[serde(default)]
    pub label_statistics: Option<LabelStatistics>,
    /// Wall clock by stage, and `total`.
    pub seconds: BTreeMap<String, f64>,
    pub version: String,
}

/// Of parameters, images or steps: more than any run has, and few enough to be added up.
pub const MOST: usize = 1 << 40;

impl Summary {
    /// Says what no run finds out: `summary.json` may have been changed since it was written.
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
        self.label_statistics.as_ref().map_or(Ok(()), LabelStatistics::validate)
    }
}

impl LabelStatistics {
    /// Says where more images are counted than there are.
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
    fn what_no_run_finds_out_is_told() {
        let statistics = |images, drawn, predicted, shown| {
            let label = LabelShare { label: "bus".into(), drawn, predicted, shown, ..LabelShare::default() };
            LabelStatistics { images, labels: vec![label] }
        };
        let summary = |p: Parameters, block: usize, statistics| Summary {
            parameters: p,
            branch: vec![TaskBranch { block, ..TaskBranch::default() }],
            label_statistics: Some(statistics),
            ..Summary::default()
        };
        let p = Parameters { teachers: 9, student: 6, filters: 2, trunk: 4 };
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
}
