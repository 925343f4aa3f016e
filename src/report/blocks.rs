//! The page's section about the branch point: dual losses and average precision by block, and the chosen
//! block.

use super::chart::{Frame, Mark, Markers, Series, framed_chart};
use super::html::{marked_table, prose};
use super::metrics::converged;
use super::run_folder::RunFolder;
use super::table::{Table, percent, teachers_map};
use crate::summary::{Score, Summary, mean_of_known};

/// CSS classes of the tasks' lines. A task has the same one, and so the same colour, in every chart.
const CLASSES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

struct Task {
    name: String,
    labels: Vec<String>,
    /// Converged dual loss by block; NaN for a block that is not trained yet.
    losses: Vec<f64>,
}

fn tasks(run: &RunFolder) -> Vec<Task> {
    let s = &run.summary;
    if !s.branch.is_empty() {
        let task = |t: &crate::summary::TaskBranch| Task {
            name: t.teacher.clone(),
            labels: t.labels.clone(),
            losses: t.loss_by_block.clone(),
        };
        return s.branch.iter().map(task).collect();
    }
    // An unfinished run has no branch points yet; use the converged end of each finished block's curve.
    let of = |b: usize| run.stages.iter().find(|s| s.name == format!("block{b}"));
    let is_done =
        |b: usize, steps: usize| run.config.stage(&format!("block{b}")).is_none_or(|p| steps >= p.steps);
    let blocks = (1..=64).take_while(|b| of(*b).is_some()).count();
    let names: Vec<String> = of(1)
        .iter()
        .flat_map(|s| s.curves.keys().filter_map(|k| k.strip_prefix("dual.")).map(String::from))
        .collect();
    let loss = |name: &str, b: usize| {
        let stage = of(b).filter(|s| is_done(b, s.steps))?;
        converged(stage.curves.get(&format!("dual.{name}"))?)
    };
    let task = |name: String| Task {
        losses: (1..=blocks).map(|b| loss(&name, b).unwrap_or(f64::NAN)).collect(),
        name,
        labels: Vec::new(),
    };
    names.into_iter().map(task).filter(|t| t.losses.iter().any(|l| l.is_finite())).collect()
}

/// Mean average precision over a task's labels; NaN if none of them has a score.
fn task_ap(score: &Score, task: &Task) -> f64 {
    mean_of_known(task.labels.iter().filter_map(|l| score.ap.get(l).copied()))
}

fn line<'a>(name: &'a str, class: &'a str, values: Vec<f64>) -> Series<'a> {
    let points = values.into_iter().enumerate().map(|(b, v)| ((b + 1) as f64, v)).collect();
    Series { name, class, points, markers: Markers::Dots }
}

pub(super) fn branching(run: &RunFolder) -> String {
    let (s, tasks) = (&run.summary, tasks(run));
    let blocks = tasks.iter().map(|t| t.losses.len()).max().unwrap_or(0);
    if blocks == 0 {
        return String::new();
    }
    let chosen = s.common_block();
    let mark = chosen.map(|b| Mark { x: b as f64, text: "chosen" });
    let class = |i: usize| CLASSES[i % CLASSES.len()];
    let mut out = format!("<h2>Where to branch</h2><p>{}</p>\n", prose(&in_words(run)));

    let losses: Vec<Series> =
        tasks.iter().enumerate().map(|(i, t)| line(&t.name, class(i), t.losses.clone())).collect();
    let mut charts =
        framed_chart("dual loss by block", &losses, Frame { mark, include_y: None, x_name: "block" });
    if let Some(student) = s.student.as_ref().filter(|x| !x.by_block.is_empty()) {
        let of_task = |t: &Task| student.by_block.iter().map(|score| task_ap(score, t)).collect();
        let by_task: Vec<Series> =
            tasks.iter().enumerate().map(|(i, t)| line(&t.name, class(i), of_task(t))).collect();
        if tasks.len() > 1 {
            charts += &framed_chart(
                "the student's AP by block, mean over a task's labels, %",
                &by_task,
                Frame { mark, include_y: None, x_name: "block" },
            );
        }
        charts += &all_students(s, mark);
    }
    charts += &trade_off(s, chosen);
    out += &format!("<div class=\"charts large\">{charts}</div>\n");
    out += &marked_table(&table(s, &tasks, blocks), chosen.map(|b| b - 1));
    if blocks > 1 && !s.branch.is_empty() {
        let other = if chosen == Some(1) { 2 } else { chosen.unwrap_or(blocks) - 1 };
        let text = format!(
            "Each of these students is in the folder, with its own thresholds: `student-block{other}.npz` is the one that \
             branches after block {other}. `dfka-engine predict student-block{other}.npz IMAGE...` uses it, and \
             `dfka-engine export student-block{other}.npz --to block{other}.onnx` converts it."
        );
        out += &format!("<p>{}</p>\n", prose(&text));
    }
    out
}

/// Chart of quality against size: one dot for each block after which the student may branch.
fn trade_off(s: &Summary, chosen: Option<usize>) -> String {
    let Some(student) = s.student.as_ref().filter(|x| x.by_block.len() == s.parameters.by_block.len()) else {
        return String::new();
    };
    let percent_of = |n: usize| 100.0 * n as f64 / s.parameters.teachers.max(1) as f64;
    let mut points: Vec<(f64, f64)> = s
        .parameters
        .by_block
        .iter()
        .zip(&student.by_block)
        .map(|(n, score)| (percent_of(*n), score.map))
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let at = chosen.and_then(|b| s.parameters.by_block.get(b - 1));
    let mark = at.map(|n| Mark { x: percent_of(*n), text: "chosen" });
    let mut series = vec![Series { name: "student, by block", class: "a", points, markers: Markers::Dots }];
    if chosen.is_none() {
        // Its tasks leave the trunk after different blocks, so it is none of the dots.
        let points = vec![(percent_of(s.parameters.student), student.score.map)];
        series.push(Series { name: "the student", class: "b", points, markers: Markers::Dots });
    }
    if let Some(map) = teachers_map(s) {
        let ends =
            series[0].points.first().zip(series[0].points.last()).map_or((0.0, 0.0), |(a, b)| (a.0, b.0));
        let points = vec![(ends.0, map), (ends.1, map)];
        series.push(Series { name: "teachers", class: "ref", points, markers: Markers::None });
    }
    framed_chart(
        "mAP against size, %",
        &series,
        Frame { mark, include_y: None, x_name: "parameters, % of the teachers'" },
    )
}

/// Chart of the mAP by block of the student, KA and noise, with the teachers' mAP as reference.
fn all_students(s: &Summary, mark: Option<Mark>) -> String {
    let maps = |scores: &[Score]| scores.iter().map(|x| x.map).collect::<Vec<_>>();
    let mut series: Vec<Series> =
        [("student", "a", &s.student), ("KA", "d", &s.ka), ("noise", "b", &s.noise)]
            .into_iter()
            .filter_map(|(name, class, x)| Some(line(name, class, maps(&x.as_ref()?.by_block))))
            .filter(|s| !s.points.is_empty())
            .collect();
    let blocks = series.iter().map(|s| s.points.len()).max().unwrap_or(0);
    if let Some(map) = teachers_map(s) {
        let points = vec![(1.0, map), (blocks as f64, map)];
        series.push(Series { name: "teachers", class: "ref", points, markers: Markers::None });
    }
    framed_chart("mAP by block, %", &series, Frame { mark, include_y: None, x_name: "block" })
}

/// Where the tasks leave the trunk, why there, and what the measured scores say of the choice.
fn in_words(run: &RunFolder) -> String {
    let s = &run.summary;
    if s.branch.is_empty() {
        return "No block is chosen yet; these are the blocks trained so far.".into();
    }
    let chosen = s.common_block();
    let of_tasks = || {
        let all = s.branch.iter().map(|t| format!("{} after block {}", t.teacher, t.block));
        all.collect::<Vec<_>>().join(", ")
    };
    let place = match chosen {
        Some(block) => format!("The tasks branch from the shared trunk after block {block}. "),
        None => format!("The tasks leave the shared trunk after different blocks: {}. ", of_tasks()),
    };
    let of_block = chosen.and_then(|b| s.kappa_by_block.get(b - 1).copied().flatten());
    let agreement = match of_block.or_else(|| s.agreement.as_ref()?.kappa()) {
        Some(kappa) => {
            let all = s.kappa_by_block.iter().map(|k| k.map_or("-".to_owned(), |k| format!("{k:.2}")));
            let all = all.collect::<Vec<_>>().join(", ");
            format!(
                "That student agrees with its teachers on generated images with a kappa of {kappa:.2} (by block: {all}). "
            )
        }
        None => String::new(),
    };
    let why = if run.config.branch.is_some() {
        "The config names that block."
    } else if run.config.is_frozen {
        "Each block was frozen before the next one was trained, so each task leaves the trunk after the block where its own \
         dual loss is lowest (the paper's rule). No label is used for the choice."
    } else if !agreement.is_empty() {
        "By itself the program chooses the smallest student whose kappa is at most 0.02 below the best one's. No label is \
         used for the choice."
    } else {
        "By itself the program chooses the block where the sum of the dual losses is lowest. No label is used for the choice."
    };
    let mut text = place + &agreement + why;
    let Some(student) = &s.student else { return text };
    let (here, maps) = (student.score.map, student.by_block.iter().map(|score| score.map).enumerate());
    if let Some((best, map)) = maps.filter(|m| m.1.is_finite()).max_by(|a, b| a.1.total_cmp(&b.1)) {
        let best = best + 1;
        // A difference that the shown digit hides (0.05) does not count as better.
        text += &if chosen == Some(best) || map < here + 0.05 {
            " Measured afterwards, no student that branches after one block has a higher mAP.".to_owned()
        } else {
            format!(
                " Measured afterwards, block {best} would have been better: {map:.1} % against {here:.1} %."
            )
        };
    }
    text
}

/// One row per block: dual loss and average precision of every task, and mAP of every student.
fn table(s: &Summary, tasks: &[Task], blocks: usize) -> Table {
    let mut header = vec!["branch after".to_owned()];
    header.extend(tasks.iter().map(|t| format!("dual loss {}", t.name)));
    let students: Vec<(&str, &Vec<Score>)> = [("student", &s.student), ("KA", &s.ka), ("noise", &s.noise)]
        .into_iter()
        .filter_map(|(name, x)| Some((name, &x.as_ref()?.by_block)))
        .collect();
    if s.student.is_some() && tasks.len() > 1 {
        header.extend(tasks.iter().map(|t| format!("AP {}, %", t.name)));
    }
    header.extend(students.iter().map(|(name, _)| format!("{name} mAP, %")));
    let row = |b: usize| {
        let mut cells = vec![format!("block {}", b + 1)];
        cells.extend(tasks.iter().map(|t| match t.losses.get(b) {
            Some(loss) if loss.is_finite() => format!("{loss:.4}"),
            Some(_) | None => "-".into(),
        }));
        if let Some(student) = s.student.as_ref().filter(|_| tasks.len() > 1) {
            cells.extend(tasks.iter().map(|t| percent(student.by_block.get(b).map(|x| task_ap(x, t)))));
        }
        cells.extend(students.iter().map(|(_, scores)| percent(scores.get(b).map(|x| x.map))));
        cells
    };
    Table { title: String::new(), header, rows: (0..blocks).map(row).collect(), totals: 0 }
}
