//! Where the TargetNet leaves the trunk: the block whose dual loss is lowest (METHOD 4), no labels involved.

use super::checkpoint::Outcome;
use super::dual::TaskLabels;
use super::spec::{Branch, RunSpec};
use super::teachers::Teachers;
use crate::summary::TaskBranch;

/// The chosen block, and each task's losses by which it was chosen. Blocks up to the branch are trained together, so all tasks
/// leave at the same one: the block whose loss, summed over the tasks, is lowest among those allowed.
pub fn choose(
    spec: &RunSpec,
    teachers: &Teachers,
    tasks: &[TaskLabels],
    blocks: &[Outcome],
) -> (usize, Vec<TaskBranch>) {
    let loss = |b: usize, task: &TaskLabels| {
        let kind = if matches!(spec.student.branch, Branch::HeldOut { .. }) { "held_out" } else { "dual" };
        let name = format!("{kind}.{}", teachers.all[task.teacher].name);
        blocks[b - 1].converged.get(&name).copied().unwrap_or(f64::INFINITY)
    };
    let total = |b: usize| tasks.iter().map(|t| loss(b, t)).sum::<f64>();
    let block = match spec.student.branch {
        Branch::Block(b) => b.min(blocks.len()),
        Branch::Auto { least } | Branch::HeldOut { least } => {
            let allowed = least.clamp(1, blocks.len())..=blocks.len();
            allowed.min_by(|a, b| total(*a).total_cmp(&total(*b))).unwrap_or(blocks.len())
        }
    };
    let tasks = tasks.iter().map(|t| TaskBranch {
        teacher: teachers.all[t.teacher].name.clone(),
        labels: t.labels.clone(),
        block,
        loss_by_block: (1..=blocks.len()).map(|b| loss(b, t)).collect(),
    });
    (block, tasks.collect())
}
