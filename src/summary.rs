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
    /// Wall clock by stage, and `total`.
    pub seconds: BTreeMap<String, f64>,
    pub version: String,
}
