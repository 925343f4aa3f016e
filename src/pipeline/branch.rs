//! Where the TargetNet's tasks leave the trunk (docs/method.md 4).

use super::checkpoint::StageResult;
use super::spec::Branch;
use super::tasks::TaskLabels;
use super::teachers::Teachers;
use crate::summary::TaskBranch;

/// How much less than the best block's kappa a smaller student's may be. *[ours]*
const LEAST_OF_BEST: f64 = 0.02;

/// What is known, without a label, of the students that branch after block 1, 2, ...
pub struct Evidence<'a> {
    /// Converged dual losses by task, then by block.
    pub losses: &'a [Vec<f64>],
    /// Agreement with the teachers on generated images, by block: Cohen's kappa. Empty if there is no generator.
    pub kappa: &'a [Option<f64>],
    /// Numbers of parameters, by block.
    pub parameters: &'a [usize],
    /// Whether each block was frozen before the next one was trained (`dual.freeze_earlier`).
    pub is_frozen: bool,
}

impl Evidence<'_> {
    /// Supplement 3.2 for one task: the block from `least` on whose converged loss is lowest.
    fn of_lowest_loss(&self, task: usize, least: usize) -> usize {
        let loss = |b: usize| self.losses[task][b - 1];
        (least..=self.losses[task].len()).min_by(|a, b| loss(*a).total_cmp(&loss(*b))).unwrap_or(least)
    }

    /// The block from `least` on with the fewest parameters among those whose kappa is at most [`LEAST_OF_BEST`] below
    /// the best one's; `None` if no kappa was measured.
    fn of_agreement(&self, least: usize, blocks: usize) -> Option<usize> {
        let kappa = |b: usize| self.kappa.get(b - 1).copied().flatten().filter(|k| k.is_finite());
        let best = (least..=blocks).filter_map(kappa).max_by(f64::total_cmp)?;
        (least..=blocks)
            .filter(|b| kappa(*b).is_some_and(|k| k >= best - LEAST_OF_BEST))
            .min_by_key(|b| self.parameters.get(b - 1).copied().unwrap_or(usize::MAX))
    }

    /// The block from `least` on with the lowest sum of the tasks' losses.
    fn of_lowest_total(&self, least: usize, blocks: usize) -> usize {
        let total = |b: usize| self.losses.iter().map(|task| task[b - 1]).sum::<f64>();
        (least..=blocks).min_by(|a, b| total(*a).total_cmp(&total(*b))).unwrap_or(blocks)
    }
}

/// The block (1-based) after which each task leaves the trunk.
///
/// Automatically, and if the blocks were frozen one by one: for each task the block where its own loss is lowest, as in
/// the paper. Where training a later block changes the earlier ones too, the losses of two blocks cannot be compared, and
/// a task that leaves the trunk early would get blocks that were trained for another. There, all tasks leave it after the
/// same block: that of the smallest student that agrees about as well as the best one; if the agreement was not
/// measured, the one with the lowest sum of the losses.
pub fn choose(branch: Branch, evidence: &Evidence) -> Vec<usize> {
    let tasks = evidence.losses.len();
    let blocks = evidence.losses.iter().map(Vec::len).min().unwrap_or(0);
    let least = match branch {
        Branch::Block(b) => return vec![b.min(blocks); tasks],
        Branch::Auto { least } => least.clamp(1, blocks.max(1)),
    };
    if evidence.is_frozen {
        return (0..tasks).map(|task| evidence.of_lowest_loss(task, least)).collect();
    }
    let common = evidence.of_agreement(least, blocks);
    vec![common.unwrap_or_else(|| evidence.of_lowest_total(least, blocks)); tasks]
}

/// The tasks as the summary describes them, with their converged losses by block, from the results of the blocks'
/// stages, first block first. Their branches are not known yet, and are 0.
pub fn tasks(teachers: &Teachers, tasks: &[TaskLabels], blocks: &[StageResult]) -> Vec<TaskBranch> {
    let of_task = |task: &TaskLabels| {
        let teacher = &teachers.all[task.teacher].name;
        let loss =
            |o: &StageResult| o.converged.get(&format!("dual.{teacher}")).copied().unwrap_or(f64::INFINITY);
        let loss_by_block = blocks.iter().map(loss).collect();
        TaskBranch { teacher: teacher.clone(), labels: task.labels.clone(), block: 0, loss_by_block }
    };
    tasks.iter().map(of_task).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMETERS: [usize; 4] = [90, 80, 60, 40];

    #[test]
    fn the_smallest_student_that_agrees_about_as_well_as_the_best_one_wins() {
        let losses = [vec![1.0; 4], vec![1.0; 4]];
        let choose = |kappa: [f64; 4], least| {
            let kappa = kappa.map(Some);
            let evidence =
                Evidence { losses: &losses, kappa: &kappa, parameters: &PARAMETERS, is_frozen: false };
            let chosen = choose(Branch::Auto { least }, &evidence);
            assert!(chosen.len() == 2 && chosen[0] == chosen[1], "{chosen:?}");
            chosen[0]
        };
        assert_eq!(choose([0.90, 0.88, 0.885, 0.80], 1), 3);
        assert_eq!(choose([0.90, 0.80, 0.79, 0.70], 1), 1);
        // Block 1 is not allowed, so the best of the others counts.
        assert_eq!(choose([0.90, 0.80, 0.79, 0.70], 2), 3);
        assert_eq!(choose([0.70, 0.72, 0.75, 0.75], 1), 4);
        assert_eq!(choose([f64::NAN, 0.72, 0.5, 0.5], 1), 2);
    }

    #[test]
    fn without_agreement_the_lowest_total_of_the_losses_wins() {
        // Totals 5, 9, 8, 10: block 1, or 3 when at least 2 must be shared.
        let losses = [vec![2.0, 4.0, 1.0, 5.0], vec![3.0, 5.0, 7.0, 5.0]];
        let choose = |branch, losses: &[Vec<f64>]| {
            choose(branch, &Evidence { losses, kappa: &[], parameters: &PARAMETERS, is_frozen: false })
        };
        assert_eq!(choose(Branch::Auto { least: 1 }, &losses), [1, 1]);
        assert_eq!(choose(Branch::Auto { least: 2 }, &losses), [3, 3]);
        assert_eq!(choose(Branch::Auto { least: 4 }, &losses), [4, 4]);
        assert_eq!(choose(Branch::Block(2), &losses), [2, 2]);
        // A tie goes to the earlier block.
        assert_eq!(choose(Branch::Auto { least: 1 }, &[vec![1.0, 1.0]]), [1]);
    }

    #[test]
    fn blocks_that_were_frozen_one_by_one_let_each_task_leave_where_its_own_loss_is_lowest() {
        let losses = [vec![2.0, 4.0, 1.0, 5.0], vec![3.0, 2.5, 7.0, 2.4]];
        let kappa = [Some(0.9), Some(0.5), Some(0.5), Some(0.5)];
        let evidence = Evidence { losses: &losses, kappa: &kappa, parameters: &PARAMETERS, is_frozen: true };
        assert_eq!(choose(Branch::Auto { least: 1 }, &evidence), [3, 4]);
        assert_eq!(choose(Branch::Auto { least: 4 }, &evidence), [4, 4]);
        assert_eq!(choose(Branch::Block(2), &evidence), [2, 2]);
    }
}
