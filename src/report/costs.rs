//! The page's sections about cost: training time by stage, and parameter counts.

use super::html::html_table;
use super::run_folder::RunFolder;
use super::table::{Table, duration, percent};

/// Table of the stages in the order of the run, with steps, time and images per second.
pub(super) fn timings(run: &RunFolder) -> String {
    let s = &run.summary;
    let mut names: Vec<&String> =
        run.config.stages.iter().map(|p| &p.name).filter(|n| s.seconds.contains_key(*n)).collect();
    let others = s.seconds.keys().filter(|n| *n != "total" && run.config.stage(n).is_none());
    names.extend(others);
    let sum: f64 = names.iter().map(|n| s.seconds[*n]).sum();
    if names.is_empty() || sum <= 0.0 {
        return String::new();
    }
    let mut rows: Vec<Vec<String>> = names
        .iter()
        .map(|name| {
            let seconds = s.seconds[*name];
            let planned = run.config.stage(name);
            // An unfinished stage shows the steps done so far.
            let steps =
                run.stages.iter().find(|t| t.name == **name).map(|t| t.steps).or(planned.map(|p| p.steps));
            let images = steps.zip(planned).map(|(steps, p)| steps as f64 * p.batch as f64);
            let rate = images.filter(|_| seconds > 0.0).map_or("-".into(), |i| format!("{:.0}", i / seconds));
            let shown = |n: Option<usize>| n.map_or("-".into(), |n| n.to_string());
            let share = percent(Some(100.0 * seconds / sum));
            vec![
                name.to_string(),
                shown(steps),
                shown(planned.map(|p| p.batch)),
                duration(seconds),
                share,
                rate,
            ]
        })
        .collect();
    rows.push(["all stages", "", "", &duration(sum), "100.0", ""].map(String::from).to_vec());
    let mut totals = 1;
    let calls = run.origin.as_ref().map_or(1, |o| o.calls.len());
    // Earlier versions counted the last call of a resumed run only.
    if let Some(total) = s.seconds.get("total").filter(|total| **total >= sum) {
        rows.push(
            ["whole run, with loading and scoring", "", "", &duration(*total), "", ""]
                .map(String::from)
                .to_vec(),
        );
        totals += 1;
    }
    let header = ["stage", "steps", "batch", "time", "share, %", "images/s"].map(String::from).to_vec();
    let mut out = html_table(&Table { title: "Time".into(), header, rows, totals });
    if calls > 1 {
        let times = if calls == 2 { "1 time".into() } else { format!("{} times", calls - 1) };
        let text = format!("The run was resumed {times}; the times are sums over all calls of the program.");
        out += &format!("<p class=\"soft\">{text}</p>\n");
    }
    out
}

pub(super) fn parameters(run: &RunFolder) -> String {
    let p = &run.summary.parameters;
    if p.student == 0 || p.teachers == 0 {
        return String::new();
    }
    let row = |name: String, count: usize| {
        vec![name, grouped(count), percent(Some(100.0 * count as f64 / p.teachers as f64))]
    };
    let teachers = run.config.teachers.len();
    let of =
        if teachers > 0 { format!("teachers ({teachers} together)") } else { "teachers together".into() };
    let mut rows = vec![row(of, p.teachers), row("student".into(), p.student)];
    let branch = run.summary.branch.iter().map(|t| t.block).max().unwrap_or(0);
    if p.trunk > 0 {
        let tasks = run.summary.branch.len();
        rows.push(row(format!("its shared trunk, blocks 1 to {branch}"), p.trunk));
        rows.push(row(
            format!("its {tasks} branches with their heads"),
            p.student.saturating_sub(p.trunk + p.filters),
        ));
    }
    rows.push(row("its teacher-level filters".into(), p.filters));
    let header = ["network", "parameters", "% of the teachers'"].map(String::from).to_vec();
    html_table(&Table { title: "Parameters".into(), header, rows, totals: 0 })
}

/// Digits in groups of three: `1 234 567`.
fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{2009}'); // thin space
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        let pairs =
            [(0, "0"), (999, "999"), (1000, "1\u{2009}000"), (59_800_000, "59\u{2009}800\u{2009}000")];
        for (count, expected) in pairs {
            assert_eq!(grouped(count), expected);
        }
    }
}
