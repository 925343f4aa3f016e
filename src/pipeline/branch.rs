//! Where the TargetNet leaves the trunk (docs/method.md 4).

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
}

/// The block (1-based) after which all tasks leave the trunk. There is one branch for all tasks, because the blocks
/// before it are trained together.
///
/// Automatically: of the students whose kappa is at most [`LEAST_OF_BEST`] below the best one's, the one with the fewest
/// parameters. The dual losses of two blocks cannot be compared where the later block's training changes the earlier
/// blocks too; only where the agreement was not measured, the block with the lowest sum of the tasks' losses is chosen.
pub fn choose(branch: Branch, evidence: &Evidence) -> usize {
    let Evidence { losses, kappa, parameters } = evidence;
    let blocks = losses.iter().map(Vec::len).min().unwrap_or(0);
    let least = match branch {
        Branch::Block(b) => return b.min(blocks),
        Branch::Auto { least } => least.clamp(1, blocks.max(1)),
    };
    let measured = |b: usize| kappa.get(b - 1).copied().flatten().filter(|k| k.is_finite());
    let total = |b: usize| losses.iter().map(|task| task[b - 1]).sum::<f64>();
    let best = (least..=blocks).filter_map(measured).max_by(f64::total_cmp);
    let chosen = match best {
        Some(best) => (least..=blocks)
            .filter(|b| measured(*b).is_some_and(|k| k >= best - LEAST_OF_BEST))
            .min_by_key(|b| parameters.get(b - 1).copied().unwrap_or(usize::MAX)),
        None => (least..=blocks).min_by(|a, b| total(*a).total_cmp(&total(*b))),
    };
    chosen.unwrap_or(blocks)
}

/// Each task's converged losses, from the results of the blocks' stages, first block first.
pub fn losses(teachers: &Teachers, tasks: &[TaskLabels], blocks: &[StageResult]) -> Vec<Vec<f64>> {
    let of_task = |task: &TaskLabels| {
        let name = format!("dual.{}", teachers.all[task.teacher].name);
        blocks.iter().map(|o| o.converged.get(&name).copied().unwrap_or(f64::INFINITY)).collect()
    };
    tasks.iter().map(of_task).collect()
}

/// The tasks as the summary describes them, with the block that was chosen.
pub fn describe(
    teachers: &Teachers,
    tasks: &[TaskLabels],
    losses: Vec<Vec<f64>>,
    block: usize,
) -> Vec<TaskBranch> {
    let of_task = |(t, loss_by_block): (&TaskLabels, Vec<f64>)| TaskBranch {
        teacher: teachers.all[t.teacher].name.clone(),
        labels: t.labels.clone(),
        block,
        loss_by_block,
    };
    tasks.iter().zip(losses).map(of_task).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMETERS: [usize; 4] = [90, 80, 60, 40];

    #[test]
    fn the_smallest_student_that_agrees_about_as_well_as_the_best_one_wins() {
        let losses = [vec![1.0; 4]];
        let choose = |kappa: [f64; 4], least| {
            let kappa = kappa.map(Some);
            choose(
                Branch::Auto { least },
                &Evidence { losses: &losses, kappa: &kappa, parameters: &PARAMETERS },
            )
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
            choose(branch, &Evidence { losses, kappa: &[], parameters: &PARAMETERS })
        };
        assert_eq!(choose(Branch::Auto { least: 1 }, &losses), 1);
        assert_eq!(choose(Branch::Auto { least: 2 }, &losses), 3);
        assert_eq!(choose(Branch::Auto { least: 4 }, &losses), 4);
        assert_eq!(choose(Branch::Block(2), &losses), 2);
        // A tie goes to the earlier block.
        assert_eq!(choose(Branch::Auto { least: 1 }, &[vec![1.0, 1.0]]), 1);
    }
}
