//! The figures of a run as tables of text, for the terminal and for the page.

use std::collections::BTreeMap;

use crate::summary::{Decisions, LabelStatistics, Score, Summary, chance};
use crate::text::label;

/// A table of text: each row is a name followed by figures.
pub(super) struct Table {
    pub title: String,
    /// One heading per column; the first is that of the names.
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
    /// Number of rows at the end that summarise the others.
    pub totals: usize,
}

const WIDTH: usize = 100;
const NAME_WIDTH: usize = 28;
const COLUMN_WIDTH: usize = 14;
/// The key of the teachers' mean in `Summary::teachers`.
const MEAN: &str = "mean";

/// The figures of a run as plain text, at most 100 columns wide.
pub fn final_table(summary: &Summary) -> String {
    let mut text = format!("{}\n", clipped(&format!("{}: {}", summary.name, headline(summary)), WIDTH));
    for table in tables(summary) {
        text += &format!("\n{}\n", table.title);
        text += &plain(&table);
    }
    for (name, facts) in facts(summary) {
        text += &format!("\n{name}\n");
        text += &wrapped(&facts);
    }
    text
}

/// The scores of one model as text, as `eval` prints them.
pub fn score_table(name: &str, score: &Score) -> String {
    let row = |name: &str, figures: [f64; 3]| {
        std::iter::once(name.to_owned()).chain(figures.map(|v| percent(Some(v)))).collect::<Vec<_>>()
    };
    let of = |figures: &BTreeMap<String, f64>, label: &str| figures.get(label).copied().unwrap_or(f64::NAN);
    let by_label = |(name, ap): (&String, &f64)| {
        row(&label(name), [*ap, of(&score.ap_11_point, name), of(&score.chance, name)])
    };
    let mut rows: Vec<_> = score.ap.iter().map(by_label).collect();
    rows.push(row("mAP", [score.map, score.map_11_point, chance(score).unwrap_or(f64::NAN)]));
    let header = ["label", "AP", "AP, 11 points", "chance"].map(String::from).to_vec();
    let table = Table { title: String::new(), header, rows, totals: 1 };
    let mut text = format!("{}\naverage precision, %\n{}", clipped(name, WIDTH), plain(&table));
    if score.images > 0 {
        text += &format!("\non {} images; chance is a random ranking's\n", score.images);
    }
    if let Some(decisions) = &score.decisions {
        text += &wrapped(&in_words(decisions));
    }
    text
}

/// Decisions at a model's thresholds.
fn in_words(d: &Decisions) -> Vec<String> {
    let figure = |v: f64| percent(Some(v));
    vec![
        format!("at the thresholds, means over labels: precision {} %", figure(d.precision)),
        format!("recall {} %", figure(d.recall)),
        format!("F1 {} %", figure(d.f1)),
        format!("exactly the right labels on {} % of the images", figure(d.exact)),
    ]
}

/// Seed, labels, time and version in one line.
pub(super) fn headline(s: &Summary) -> String {
    let mut line = format!("seed {}, {} labels", s.seed, s.labels.len());
    if let Some(total) = s.seconds.get("total") {
        line += &format!(", {}", duration(*total));
    }
    if !s.version.is_empty() {
        line += &format!(", dfka-engine {}", s.version);
    }
    line
}

/// All models that have a score, with the names to show.
pub(super) fn models(s: &Summary) -> Vec<(String, &Score)> {
    let teachers = s.teachers.iter().filter(|(name, _)| *name != MEAN).map(|(n, score)| (n.clone(), score));
    let mean = s.teachers.get(MEAN).map(|score| ("teachers".into(), score));
    let students = [("student", &s.student), ("KA", &s.ka), ("noise", &s.noise)];
    let students = students.into_iter().filter_map(|(name, x)| x.as_ref().map(|x| (name.into(), &x.score)));
    teachers.chain(mean).chain(students).collect()
}

/// mAP of all teachers on the student's labels, if evaluated.
pub(super) fn teachers_map(s: &Summary) -> Option<f64> {
    s.teachers.get(MEAN).map(|m| m.map)
}

pub(super) fn tables(s: &Summary) -> Vec<Table> {
    [precision(s), by_block(s), branches(s)].into_iter().flatten().collect()
}

/// Parameter counts, measures of the generated images and seconds: a name each, with short facts.
pub(super) fn facts(s: &Summary) -> Vec<(&'static str, Vec<String>)> {
    let p = &s.parameters;
    let mut parameters =
        vec![format!("teachers {}", millions(p.teachers)), format!("student {}", millions(p.student))];
    if p.teachers > 0 {
        let share = 100.0 * p.student as f64 / p.teachers as f64;
        parameters[1] += &format!(" ({share:.1} % of the teachers)");
    }
    parameters.push(format!("of which filters {}", millions(p.filters)));
    let images = s.label_statistics.as_ref().map_or(vec![], images);
    let seconds = s.seconds.iter().map(|(stage, seconds)| format!("{stage} {seconds:.1}")).collect();
    let mut all = vec![("parameters", parameters), ("generated images", images), ("seconds", seconds)];
    all.retain(|(_, facts): &(_, Vec<String>)| !facts.is_empty());
    if let Some(decisions) = s.student.as_ref().and_then(|x| x.score.decisions.as_ref()) {
        all.insert(0, ("the student's decisions", in_words(decisions)));
    }
    all
}

/// What the generated images show.
fn images(found: &LabelStatistics) -> Vec<String> {
    let measured = [("diversity", found.diversity), ("bits about the image", found.information)];
    let mut all: Vec<String> =
        measured.into_iter().filter_map(|(name, v)| v.map(|v| format!("{name} {v:.3}"))).collect();
    let (number, of) = found.labels_found();
    all.push(format!("labels found {number} of {of}"));
    all.extend(found.shown().map(|share| format!("labels asked for that are shown {:.0} %", 100.0 * share)));
    all
}

fn precision(s: &Summary) -> Option<Table> {
    let models = models(s);
    if models.is_empty() {
        return None;
    }
    let row = |name: &str, value: &dyn Fn(&Score) -> Option<f64>| {
        let figures = models.iter().map(|(_, score)| percent(value(score)));
        std::iter::once(name.to_owned()).chain(figures).collect::<Vec<_>>()
    };
    let mut rows: Vec<_> =
        s.labels.iter().map(|l| row(&label(l), &|score| score.ap.get(l).copied())).collect();
    rows.push(row("mAP", &|score| Some(score.map)));
    rows.push(row("mAP, 11 points", &|score| Some(score.map_11_point)));
    Some(Table {
        title: "average precision, %".into(),
        header: std::iter::once("label".into()).chain(models.iter().map(|(n, _)| n.clone())).collect(),
        rows,
        totals: 2,
    })
}

fn by_block(s: &Summary) -> Option<Table> {
    let students: Vec<_> = [("student", &s.student), ("KA", &s.ka), ("noise", &s.noise)]
        .into_iter()
        .filter_map(|(name, x)| x.as_ref().map(|x| (name, &x.by_block)))
        .collect();
    let blocks = students.iter().map(|(_, b)| b.len()).max().filter(|&b| b > 0)?;
    let rows = (0..blocks).map(|b| {
        let figures = students.iter().map(|(_, scores)| percent(scores.get(b).map(|x| x.map)));
        std::iter::once(format!("after block {}", b + 1)).chain(figures).collect()
    });
    Some(Table {
        title: "mAP when every task branches after the same block, %".into(),
        header: std::iter::once("branch".into()).chain(students.iter().map(|(n, _)| (*n).into())).collect(),
        rows: rows.collect(),
        totals: 0,
    })
}

fn branches(s: &Summary) -> Option<Table> {
    let blocks = s.branch.iter().map(|t| t.loss_by_block.len()).max()?;
    let losses = (1..=blocks).map(|b| format!("loss at {b}"));
    let rows = s.branch.iter().map(|task| {
        let labels = if task.labels.len() == 1 { "label" } else { "labels" };
        let name = format!("{} ({} {labels})", task.teacher, task.labels.len());
        let loss = |b: usize| task.loss_by_block.get(b).map_or("-".into(), |v| format!("{v:.4}"));
        [name, task.block.to_string()].into_iter().chain((0..blocks).map(loss)).collect()
    });
    Some(Table {
        title: "chosen block and dual loss, by task".into(),
        header: ["task".to_owned(), "block".into()].into_iter().chain(losses).collect(),
        rows: rows.collect(),
        totals: 0,
    })
}

/// Aligned columns. Columns beyond the width of the terminal continue in a second block below.
pub(super) fn plain(table: &Table) -> String {
    let columns = table.header.len();
    let width = |i: usize, most: usize| {
        let cells = table.rows.iter().map(|r| &r[i]).chain([&table.header[i]]);
        cells.map(|c| c.chars().count()).max().unwrap_or(0).min(most)
    };
    let names = width(0, NAME_WIDTH);
    let mut text = String::new();
    let mut from = 1;
    while from < columns {
        let mut to = from;
        let mut used = names;
        while to < columns && (to == from || used + 2 + width(to, COLUMN_WIDTH) <= WIDTH) {
            used += 2 + width(to, COLUMN_WIDTH);
            to += 1;
        }
        let line = |cells: &[String]| {
            let mut line = format!("{:<names$}", clipped(&cells[0], names));
            for (i, cell) in cells.iter().enumerate().take(to).skip(from) {
                let w = width(i, COLUMN_WIDTH);
                line += &format!("  {:>w$}", clipped(cell, w));
            }
            line.trim_end().to_owned() + "\n"
        };
        let rule = "-".repeat(used) + "\n";
        text += &line(&table.header);
        text += &rule;
        for (i, row) in table.rows.iter().enumerate() {
            if table.totals > 0 && i == table.rows.len() - table.totals {
                text += &rule;
            }
            text += &line(row);
        }
        if to < columns {
            text += "\n";
        }
        from = to;
    }
    text
}

fn wrapped(facts: &[String]) -> String {
    let mut lines = vec![String::new()];
    for fact in facts {
        let fact = clipped(fact, WIDTH - 2);
        let needed = fact.chars().count();
        let last = lines.len() - 1;
        if lines[last].is_empty() {
            lines[last] = format!("  {fact}");
        } else if lines[last].chars().count() + 3 + needed <= WIDTH {
            lines[last] += &format!("   {fact}");
        } else {
            lines.push(format!("  {fact}"));
        }
    }
    lines.join("\n") + "\n"
}

fn clipped(text: &str, most: usize) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() <= most {
        return text;
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

pub(super) fn percent(value: Option<f64>) -> String {
    value.filter(|v| v.is_finite()).map_or("-".into(), |v| format!("{v:.1}"))
}

pub(super) fn millions(count: usize) -> String {
    if count < 100_000 { count.to_string() } else { format!("{:.2} M", count as f64 / 1e6) }
}

/// A duration for people, such as `1 h 2 min 3 s`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".into();
    }
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    let s = seconds.round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, s) => format!("{h} h {m} min {s} s"),
    }
}

/// The decisions of a made-up summary.
#[cfg(test)]
fn agreement(labels: &[String]) -> crate::summary::Agreement {
    let of = |label: &String| crate::summary::LabelAgreement {
        label: label.clone(),
        threshold: 0.37,
        teacher: 30,
        student: 30,
        both: 27,
    };
    crate::summary::Agreement { images: 100, labels: labels.iter().map(of).collect() }
}

/// A made-up summary with every figure, for the tests of this module.
#[cfg(test)]
pub(super) fn example(teachers: usize) -> Summary {
    use std::collections::BTreeMap;

    use crate::summary::{Decisions, LabelShare, Parameters, StudentScore, TaskBranch};
    let labels = ["<b>bus</b>", "dining table"].map(String::from);
    let score = |v: f64| Score {
        map: v,
        map_11_point: v + 0.5,
        ap: BTreeMap::from([(labels[0].clone(), v - 1.0), (labels[1].clone(), v + 1.0)]),
        ap_11_point: BTreeMap::new(),
        chance: labels.iter().map(|l| (l.clone(), 7.5)).collect(),
        images: 4952,
        decisions: Some(Decisions { precision: 81.0, recall: 64.0, f1: 71.5, exact: 63.5 }),
    };
    let student = |v: f64| {
        Some(StudentScore { score: score(v), by_block: [1.5, 1.0, 0.5, -3.0].map(|d| score(v + d)).to_vec() })
    };
    let names = (0..teachers).map(|i| format!("teacher-{i}"));
    Summary {
        name: "two labels".into(),
        seed: 7,
        labels: labels.to_vec(),
        teachers: names.clone().chain([MEAN.into()]).map(|n| (n, score(74.8))).collect(),
        student: student(71.7),
        noise: student(5.0),
        ka: student(f64::NAN),
        parameters: Parameters {
            teachers: 88_700_000,
            student: 59_800_000,
            filters: 84_000,
            trunk: 27_500_000,
            by_block: vec![88_000_000, 80_000_000, 59_800_000, 50_000_000],
        },
        branch: names
            .enumerate()
            .map(|(i, n)| TaskBranch {
                teacher: n,
                labels: labels.get(i).cloned().into_iter().collect(),
                block: 3,
                loss_by_block: vec![0.4, 0.3, 0.2, 0.25],
            })
            .collect(),
        label_statistics: Some(LabelStatistics {
            diversity: Some(0.42),
            entropy: Some(0.9),
            information: Some(0.25),
            images: 100,
            labels: labels
                .iter()
                .map(|l| LabelShare {
                    teacher: "teacher-0".into(),
                    label: l.clone(),
                    drawn: Some(40),
                    predicted: 30,
                    shown: if l.contains("bus") { 10 } else { 29 },
                })
                .collect(),
        }),
        agreement: Some(agreement(&labels)),
        kappa_by_block: vec![Some(0.9), Some(0.8), Some(0.75), None],
        seconds: BTreeMap::from([
            ("generator".into(), 61.25),
            ("dual 1".into(), 3.0),
            ("total".into(), 3725.0),
        ]),
        version: "0.1.0".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_final_table_shows_every_figure_in_aligned_columns() {
        let text = final_table(&example(2));
        for expected in [
            "two labels: seed 7, 2 labels, 1 h 2 min 5 s, dfka-engine 0.1.0",
            "label           teacher-0  teacher-1  teachers  student  KA  noise",
            "dining table         75.8       75.8      75.8     72.7   -    6.0",
            "mAP                  74.8       74.8      74.8     71.7   -    5.0",
            "mAP, 11 points       75.3       75.3      75.3     72.2   -    5.5",
            "after block 4     68.7   -    2.0",
            "teacher-1 (1 label)      3     0.4000     0.3000     0.2000     0.2500",
            "  teachers 88.70 M   student 59.80 M (67.4 % of the teachers)   of which filters 84000",
            "  diversity 0.420   bits about the image 0.250   labels found 2 of 2",
            "  labels asked for that are shown 49 %",
            "  dual 1 3.0   generator 61.2   total 3725.0",
        ] {
            assert!(text.lines().any(|l| l == expected), "missing {expected:?} in\n{text}");
        }
    }

    #[test]
    fn the_final_table_fits_a_hundred_columns() {
        let mut s = example(23);
        s.name = "x".repeat(200);
        s.labels.push("ß".repeat(90));
        s.seconds.extend((0..40).map(|i| (format!("stage {i}"), 1.0)));
        let text = final_table(&s);
        assert!(text.lines().all(|l| l.chars().count() <= WIDTH), "{text}");
        assert!((0..23).all(|i| text.contains(&format!("teacher-{i}"))));
    }

    #[test]
    fn a_score_table_shows_both_kinds_of_average_precision() {
        let text = score_table("a.npz", &example(1).teachers["mean"]);
        assert!(
            text.contains("dining table  75.8              -     7.5\n")
                && text.contains("mAP           74.8           75.3     7.5\n")
                && text.contains("on 4952 images")
                && text.contains("F1 71.5 %"),
            "{text}"
        );
    }

    #[test]
    fn without_evaluation_data_there_is_no_precision_table() {
        let s = Summary { name: "n".into(), ..Summary::default() };
        let text = final_table(&s);
        assert!(!text.contains("precision") && text.starts_with("n: seed 0"), "{text}");
    }
}
