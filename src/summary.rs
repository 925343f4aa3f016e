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
