//! Where the TargetNet leaves the trunk: after the block whose dual loss is lowest (docs/method.md 4).

use super::checkpoint::StageResult;
use super::spec::Branch;
use super::tasks::TaskLabels;
use super::teachers::Teachers;
use crate::summary::TaskBranch;

/// The block (1-based) after which all tasks leave the trunk. `losses` are by task, then by block. There is
/// one branch for all tasks, because the blocks before it are trained together: the block with the lowest sum
/// of the tasks' losses.
pub fn choose(branch: Branch, losses: &[Vec<f64>]) -> usize {
    let blocks = losses.iter().map(Vec::len).min().unwrap_or(0);
    let total = |b: usize| losses.iter().map(|task| task[b - 1]).sum::<f64>();
    match branch {
        Branch::Block(b) => b.min(blocks),
        Branch::Auto { least } => {
            let allowed = least.clamp(1, blocks.max(1))..=blocks;
            allowed.min_by(|a, b| total(*a).total_cmp(&total(*b))).unwrap_or(blocks)
        }
    }
}

/// Chooses the branch from the results of the blocks' stages, first block first. Returns it with each task's
/// converged losses.
pub fn decide(
    branch: Branch,
    teachers: &Teachers,
    tasks: &[TaskLabels],
    blocks: &[StageResult],
) -> (usize, Vec<TaskBranch>) {
    let losses: Vec<Vec<f64>> = tasks
        .iter()
        .map(|task| {
            let name = format!("dual.{}", teachers.all[task.teacher].name);
            blocks.iter().map(|o| o.converged.get(&name).copied().unwrap_or(f64::INFINITY)).collect()
        })
        .collect();
    let block = choose(branch, &losses);
    let tasks = tasks.iter().zip(losses).map(|(t, loss_by_block)| TaskBranch {
        teacher: teachers.all[t.teacher].name.clone(),
        labels: t.labels.clone(),
        block,
        loss_by_block,
    });
    (block, tasks.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_total_among_the_allowed_blocks_wins() {
        // Totals 5, 9, 8, 10: block 1, or 3 when at least 2 must be shared.
        let losses = [vec![2.0, 4.0, 1.0, 5.0], vec![3.0, 5.0, 7.0, 5.0]];
        assert_eq!(choose(Branch::Auto { least: 1 }, &losses), 1);
        assert_eq!(choose(Branch::Auto { least: 2 }, &losses), 3);
        assert_eq!(choose(Branch::Auto { least: 4 }, &losses), 4);
        assert_eq!(choose(Branch::Block(2), &losses), 2);
        // A tie goes to the earlier block.
        assert_eq!(choose(Branch::Auto { least: 1 }, &[vec![1.0, 1.0]]), 1);
    }
}
