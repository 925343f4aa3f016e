//! An experiment's table: our figures over seeds beside the published ones, as text, Markdown, JSON and a
//! page.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use super::chart::{Frame, Markers, Series, framed_chart};
use super::html::{STYLE, escape};
use super::table;
use crate::error::{Error, Result};
use crate::summary::{Score, StudentScore, Summary};
use crate::weights::write_atomic;

const PARAMETERS: &str = "M parameters";
const MAP: &str = "mAP";
const MAP_ALL_POINTS: &str = "mAP, all points";
const OF_TEACHERS: &str = "% of teachers";
/// Columns of a table that are not labels.
pub const COLUMNS: [&str; 4] = [PARAMETERS, MAP, OF_TEACHERS, MAP_ALL_POINTS];

/// One model's figures at one seed. The table shows VOC 2007's 11-point AP, which the paper uses.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Figures {
    pub seed: Option<u64>,
    /// In millions.
    pub parameters: Option<f64>,
    #[serde(flatten)]
    pub score: Score,
    pub by_block: Vec<Score>,
    /// 11-point mAP divided by the teachers' on the same labels, if the run has their score.
    pub share_of_teachers: Option<f64>,
}

impl Figures {
    /// The student of a run.
    pub fn of_student(seed: u64, s: &Summary) -> Figures {
        let StudentScore { score, by_block } = s.student.clone().unwrap_or_default();
        let teachers = s.teachers.get("mean").map(|t| t.map_11_point);
        let share_of_teachers =
            teachers.filter(|t| *t > 0.0).map(|t| score.map_11_point / t).filter(|share| share.is_finite());
        let parameters = Some(s.parameters.student as f64 / 1e6);
        Figures { seed: Some(seed), parameters, score, by_block, share_of_teachers }
    }

    /// A run's teachers on its student's labels, as one model.
    pub fn of_teachers(s: &Summary) -> Figures {
        let score = s.teachers.get("mean").cloned().unwrap_or_default();
        Figures { parameters: Some(s.parameters.teachers as f64 / 1e6), ..Figures::of_score(&score) }
    }

    pub fn of_score(score: &Score) -> Figures {
        let score = score.clone();
        Figures { seed: None, parameters: None, score, by_block: Vec::new(), share_of_teachers: None }
    }
}

/// One row of an experiment's table: a model, its figures at every seed, and the published ones.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ExperimentRow {
    pub name: String,
    /// One for each seed; a single one for teachers.
    pub figures: Vec<Figures>,
    /// Published figures by column: in percent, parameters in millions.
    pub published: BTreeMap<String, f64>,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct ExperimentTable {
    pub title: String,
    pub source: String,
    pub command: String,
    pub by_block: bool,
    /// The JSON calls them `outcomes`, as in the committed results.
    #[serde(rename = "outcomes")]
    pub rows: Vec<ExperimentRow>,
}

/// Writes `stem.md`, `stem.json` and `stem.html` into `folder`.
pub fn write(folder: &Path, stem: &str, table: &ExperimentTable) -> Result<()> {
    let json = serde_json::to_string_pretty(table)
        .map_err(|e| Error::Run(format!("cannot write the experiment as JSON: {e}")))?;
    for (extension, text) in [("md", table.markdown()), ("json", json + "\n"), ("html", table.html())] {
        write_atomic(folder.join(format!("{stem}.{extension}")), |w| w.write_all(text.as_bytes()))?;
    }
    Ok(())
}

impl ExperimentTable {
    /// The table for a terminal.
    pub fn text(&self) -> String {
        let tables =
            self.tables().iter().map(|t| format!("\n{}\n{}", t.title, table::plain(t))).collect::<String>();
        format!("{}\npublished: {}\n{tables}", self.title, self.source)
    }

    pub fn markdown(&self) -> String {
        let mut out = format!(
            "# {}\n\nPublished: {}. Ours: `{}`, {}.\n",
            self.title,
            self.source,
            self.command,
            seeds(self)
        );
        for t in self.tables() {
            let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
            out +=
                &format!("\n{}\n\n{}{}", t.title, line(&t.header), line(&vec!["---".into(); t.header.len()]));
            out += &t.rows.iter().map(|r| line(r)).collect::<String>();
        }
        out
    }

    pub fn html(&self) -> String {
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title>\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><style>{STYLE}</style></head>\n\
             <body><header><h1>{0}</h1><p>Published: {1}. Ours: <code>{2}</code>, {3}.</p></header>\n",
            escape(&self.title),
            escape(&self.source),
            escape(&self.command),
            escape(&seeds(self))
        );
        if self.by_block {
            out += &format!("<div class=\"charts\">{}</div>\n", self.charts());
        }
        for t in self.tables() {
            out += &super::html::html_table(&t);
        }
        out + "</body></html>\n"
    }

    fn tables(&self) -> Vec<table::Table> {
        if self.by_block {
            self.labels().iter().map(String::as_str).chain([MAP]).map(|c| self.block_table(c)).collect()
        } else {
            vec![self.row_table()]
        }
    }

    /// One row per model, one column per label.
    fn row_table(&self) -> table::Table {
        let labels = self.labels();
        let figure = |f: &Figures, column: &str| match column {
            PARAMETERS => f.parameters,
            MAP => Some(f.score.map_11_point),
            MAP_ALL_POINTS => Some(f.score.map),
            OF_TEACHERS => f.share_of_teachers.map(|s| 100.0 * s),
            label => f.score.ap_11_point.get(label).copied(),
        };
        // A score that could not be measured is not a number.
        let value = |f: &Figures, column: &str| figure(f, column).filter(|v| v.is_finite());
        let mut columns = vec![PARAMETERS];
        columns.extend(labels.iter().map(String::as_str));
        columns.extend([MAP, OF_TEACHERS, MAP_ALL_POINTS]);
        columns.retain(|c| self.rows.iter().any(|o| o.figures.iter().any(|f| value(f, c).is_some())));
        let mut rows = Vec::new();
        for o in &self.rows {
            let ours = columns.iter().map(|c| {
                let digits = if *c == PARAMETERS { 2 } else { 1 };
                spread(o.figures.iter().filter_map(|f| value(f, c)), digits)
            });
            rows.push([o.name.clone()].into_iter().chain(ours).collect());
            if !o.published.is_empty() {
                let theirs =
                    columns.iter().map(|c| o.published.get(*c).map_or(String::new(), |v| format!("{v:.1}")));
                rows.push(["  published".into()].into_iter().chain(theirs).collect());
            }
        }
        let header = ["model"].into_iter().chain(columns).map(String::from).collect();
        table::Table { title: "11-point AP, %".into(), header, rows, totals: 0 }
    }

    /// One row per model, one column per block.
    fn block_table(&self, column: &str) -> table::Table {
        let blocks = self.blocks();
        let row = |o: &ExperimentRow| {
            let cells = (0..blocks).map(|b| spread(self.at_block(o, column, b), 1));
            [o.name.clone()].into_iter().chain(cells).collect()
        };
        let header =
            ["branched after block".into()].into_iter().chain((1..=blocks).map(|b| b.to_string())).collect();
        let title =
            if column == MAP { "mAP, 11 points, %".into() } else { format!("{column}: 11-point AP, %") };
        table::Table { title, header, rows: self.rows.iter().map(row).collect(), totals: 0 }
    }

    fn charts(&self) -> String {
        let labels = self.labels();
        let columns = labels.iter().map(String::as_str).chain([MAP]);
        let chart = |column: &str| {
            let line = |(i, o): (usize, &'_ ExperimentRow)| {
                let mean = |b: usize| Stats::of(self.at_block(o, column, b)).map_or(f64::NAN, |s| s.mean);
                let points = (0..self.blocks()).map(|b| ((b + 1) as f64, mean(b))).collect();
                (i, points)
            };
            let points: Vec<(usize, Vec<(f64, f64)>)> = self.rows.iter().enumerate().map(line).collect();
            let series: Vec<Series> = points
                .into_iter()
                .map(|(i, points)| Series {
                    name: &self.rows[i].name,
                    class: ["a", "b", "c", "d"][i % 4],
                    points,
                    markers: Markers::Dots,
                })
                .collect();
            framed_chart(
                &format!("{column}, % by block"),
                &series,
                Frame { x_name: "block", ..Frame::default() },
            )
        };
        columns.map(chart).collect()
    }

    fn at_block<'a>(
        &self,
        o: &'a ExperimentRow,
        column: &'a str,
        b: usize,
    ) -> impl Iterator<Item = f64> + 'a {
        let value = move |s: &Score| {
            if column == MAP { Some(s.map_11_point) } else { s.ap_11_point.get(column).copied() }
        };
        o.figures.iter().filter_map(move |f| f.by_block.get(b).and_then(value)).filter(|v| v.is_finite())
    }

    fn blocks(&self) -> usize {
        self.rows.iter().flat_map(|o| &o.figures).map(|f| f.by_block.len()).max().unwrap_or(0)
    }

    /// Labels of all rows, in the order of their first occurrence.
    fn labels(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for label in self.rows.iter().flat_map(|o| &o.figures).flat_map(|f| f.score.ap_11_point.keys()) {
            if !all.contains(label) {
                all.push(label.clone());
            }
        }
        all
    }
}

struct Stats {
    mean: f64,
    /// Sample standard deviation (n - 1); `None` for a single figure.
    deviation: Option<f64>,
}

impl Stats {
    fn of(values: impl Iterator<Item = f64>) -> Option<Stats> {
        let all: Vec<f64> = values.collect();
        let n = all.len() as f64;
        let mean = (!all.is_empty()).then(|| all.iter().sum::<f64>() / n)?;
        let squares = || all.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>();
        Some(Stats { mean, deviation: (all.len() > 1).then(|| (squares() / (n - 1.0)).sqrt()) })
    }
}

/// `mean ± deviation`, or the mean alone.
fn spread(values: impl Iterator<Item = f64>, digits: usize) -> String {
    match Stats::of(values) {
        None => "-".into(),
        Some(Stats { mean, deviation: Some(d) }) if d >= 0.005 => format!("{mean:.digits$} ± {d:.digits$}"),
        Some(Stats { mean, .. }) => format!("{mean:.digits$}"),
    }
}

fn seeds(table: &ExperimentTable) -> String {
    let mut seeds: Vec<u64> = table.rows.iter().flat_map(|o| &o.figures).filter_map(|f| f.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    match &seeds[..] {
        [] => "no seeds".into(),
        [one] => format!("seed {one}"),
        all => {
            let all: Vec<String> = all.iter().map(u64::to_string).collect();
            format!("mean ± sample standard deviation over seeds {}", all.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(bus: f64, cat: f64) -> Score {
        let ap = BTreeMap::from([("bus".to_string(), bus), ("cat".to_string(), cat)]);
        let map = (bus + cat) / 2.0;
        Score { map: map + 1.0, map_11_point: map, ap_11_point: ap, ..Score::default() }
    }

    fn sample(by_block: bool) -> ExperimentTable {
        let run = |seed: u64, d: f64| {
            let mut s = Summary { seed, ..Summary::default() };
            s.teachers.insert("mean".into(), score(80.0, 60.0));
            let blocks = vec![score(70.0 + d, 50.0 + d), score(60.0 + d, 40.0)];
            s.student = Some(StudentScore { score: blocks[0].clone(), by_block: blocks });
            (s.parameters.student, s.parameters.teachers) = (59_800_000, 88_700_000);
            s
        };
        let runs = [run(0, 0.0), run(1, 2.0)];
        let row = |name: &str, figures: Vec<Figures>, published: &[(&str, f64)]| ExperimentRow {
            name: name.into(),
            figures,
            published: published.iter().map(|(k, v)| (k.to_string(), *v)).collect(),
        };
        let students = runs.iter().map(|s| Figures::of_student(s.seed, s)).collect();
        let rows = vec![
            row("teachers", vec![Figures::of_teachers(&runs[0])], &[("mAP", 74.8), ("bus", 76.3)]),
            row("ours <b>", students, &[]),
        ];
        ExperimentTable { title: "T".into(), source: "S".into(), command: "c".into(), by_block, rows }
    }

    #[test]
    fn rows_show_mean_and_deviation_and_the_published_figures() {
        let text = sample(false).markdown();
        for line in [
            "Published: S. Ours: `c`, mean ± sample standard deviation over seeds 0, 1.",
            "| model | M parameters | bus | cat | mAP | % of teachers | mAP, all points |",
            "| teachers | 88.70 | 80.0 | 60.0 | 70.0 | - | 71.0 |",
            "|   published |  | 76.3 |  | 74.8 |  |  |",
            "| ours <b> | 59.80 | 71.0 ± 1.4 | 51.0 ± 1.4 | 61.0 ± 1.4 | 87.1 ± 2.0 | 62.0 ± 1.4 |",
        ] {
            assert!(text.lines().any(|l| l == line), "missing {line:?} in\n{text}");
        }
        assert!(sample(false).text().contains("published: S\n"));
    }

    #[test]
    fn a_figure_has_a_table_and_a_curve_for_each_label() {
        let table = sample(true);
        let text = table.markdown();
        assert!(text.contains("bus: 11-point AP, %\n\n| branched after block | 1 | 2 |"), "{text}");
        assert!(text.contains("| ours <b> | 71.0 ± 1.4 | 61.0 ± 1.4 |"), "{text}");
        let page = table.html();
        assert_eq!(page.matches("<svg").count(), 3, "two labels and their mean");
        assert!(!page.contains("<b>\"") && page.contains("ours &lt;b&gt;"), "{page}");
    }

    #[test]
    fn files_are_written_with_every_seed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "t", &sample(true)).unwrap();
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("t.json")).unwrap()).unwrap();
        assert_eq!(json["outcomes"][1]["figures"][1]["seed"], 1);
        assert!(dir.path().join("t.md").exists() && dir.path().join("t.html").exists());
    }
}
