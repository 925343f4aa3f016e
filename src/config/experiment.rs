//! The config of an experiment: a table or figure of the paper as a set of runs over seeds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::keys::{folder_name, seed};
use super::overrides::Override;
use super::source::Source;
use super::suggest::nearest;
use super::teacher::MOST_TEACHERS;
use crate::error::Result;

/// A table or figure of the paper, at one scale.
#[derive(Debug)]
pub struct Experiment {
    pub title: String,
    /// The place of the published figures in the paper.
    pub source: String,
    /// At least one, each once.
    pub seeds: Vec<u64>,
    /// Whether the students' figures are given for a branch after each block, instead of for their own
    /// branch only.
    pub by_block: bool,
    /// The run config that all rows share.
    pub config: PathBuf,
    /// This scale's changes to `config`.
    pub overrides: Vec<Override>,
    pub rows: Vec<Row>,
}

#[derive(Debug)]
pub struct Row {
    pub name: String,
    pub kind: RowKind,
    /// The published figures by column: `mAP`, `M parameters`, or a label.
    pub published: BTreeMap<String, f64>,
}

#[derive(Debug)]
pub enum RowKind {
    /// The student of the run of this name, with these changes to the config. Tables that name the same run
    /// share its folder.
    Student { run: String, overrides: Vec<Override> },
    /// The teacher of this index, from 0, on all of its labels.
    Teacher(usize),
    /// All teachers, on the labels of this run's student.
    TeachersOf(String),
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawExperiment {
    title: String,
    source: String,
    seeds: Vec<i64>,
    by_block: Option<bool>,
    scales: BTreeMap<String, RawScale>,
    rows: Vec<RawRow>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawScale {
    config: String,
    #[serde(default)]
    set: Vec<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawRow {
    name: String,
    run: Option<String>,
    teacher: Option<i64>,
    teachers_of: Option<String>,
    /// The only scale that has this row; none: every scale.
    only: Option<String>,
    #[serde(default)]
    set: Vec<String>,
    #[serde(default)]
    set_demo: Vec<String>,
    #[serde(default)]
    set_paper: Vec<String>,
    #[serde(default)]
    published: BTreeMap<String, f64>,
}

/// Reads an experiment at the scale of that name.
///
/// Errors: [`Source::open`]'s, no such scale, no row or no seed, a seed listed more than once, a row that is
/// of no kind or of several, a malformed override.
pub fn load_experiment(file: &Path, scale: &str) -> Result<Experiment> {
    let (source, mut raw) = Source::open::<RawExperiment>(file, &[])?;
    let source = &source;
    let Some(mut at_scale) = raw.scales.remove(scale) else {
        let known: Vec<&str> = raw.scales.keys().map(String::as_str).collect();
        let hint = nearest(scale, known.iter().copied());
        let hint = hint.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        return Err(source.fail("scales", format!("no scale `{scale}`, found {}{hint}", known.join(", "))));
    };
    let rows = rows(source, raw.rows, scale)?;
    let seeds = seeds(source, &raw.seeds)?;
    if rows.is_empty() || seeds.is_empty() {
        return Err(source.fail("seeds", "expected at least one row and one seed"));
    }
    Ok(Experiment {
        title: raw.title,
        source: raw.source,
        seeds,
        by_block: raw.by_block.unwrap_or(false),
        config: source.file(&format!("scales.{scale}.config"), &mut at_scale.config)?,
        overrides: source.overrides(&format!("scales.{scale}.set"), &at_scale.set)?,
        rows,
    })
}

/// The seeds, each listed once.
fn seeds(source: &Source, raw: &[i64]) -> Result<Vec<u64>> {
    let (mut seeds, mut seen) = (Vec::new(), BTreeSet::new());
    for (i, value) in raw.iter().enumerate() {
        let path = format!("seeds.{i}");
        let seed = seed(source, &path, *value)?;
        if !seen.insert(seed) {
            return Err(source.fail(&path, format!("seed {seed} is listed more than once")));
        }
        seeds.push(seed);
    }
    Ok(seeds)
}

/// The rows at `scale`. A `teachers_of` must name the run of one of them.
fn rows(source: &Source, raw: Vec<RawRow>, scale: &str) -> Result<Vec<Row>> {
    let rows: Vec<Row> = raw
        .into_iter()
        .enumerate()
        .filter(|(_, row)| row.only.as_deref().is_none_or(|only| only == scale))
        .map(|(i, raw)| row(source, &format!("rows.{i}"), raw, scale))
        .collect::<Result<_>>()?;
    let runs: Vec<&str> = rows.iter().filter_map(Row::run).collect();
    for (i, row) in rows.iter().enumerate() {
        if let RowKind::TeachersOf(run) = &row.kind
            && !runs.contains(&run.as_str())
        {
            let message =
                format!("`teachers_of` is {run:?}; expected the run of another row: {}", runs.join(", "));
            return Err(source.fail(&format!("rows.{i}"), message));
        }
    }
    Ok(rows)
}

impl Row {
    /// The name of the run whose student the row shows, if it shows one.
    pub fn run(&self) -> Option<&str> {
        match &self.kind {
            RowKind::Student { run, .. } => Some(run),
            RowKind::Teacher(_) | RowKind::TeachersOf(_) => None,
        }
    }
}

fn row(source: &Source, path: &str, raw: RawRow, scale: &str) -> Result<Row> {
    let at_scale = match scale {
        "demo" => &raw.set_demo,
        "paper" => &raw.set_paper,
        _ => &Vec::new(),
    };
    let kind = match (raw.run, raw.teacher, raw.teachers_of) {
        (Some(run), None, None) => RowKind::Student {
            run: folder_name(source, &format!("{path}.run"), &run)?,
            overrides: [
                source.overrides(&format!("{path}.set"), &raw.set)?,
                source.overrides(&format!("{path}.set_{scale}"), at_scale)?,
            ]
            .concat(),
        },
        (None, Some(n), None) => {
            let range = 1..=MOST_TEACHERS as i64;
            RowKind::Teacher(source.count(&format!("{path}.teacher"), n, range)? - 1)
        }
        (None, None, Some(run)) => RowKind::TeachersOf(run),
        _ => {
            let message = format!("`{path}` takes exactly one of `run`, `teacher` and `teachers_of`");
            return Err(source.fail(path, message));
        }
    };
    Ok(Row { name: raw.name, kind, published: raw.published })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::spec::StudentInit;

    fn load(text: &str, scale: &str) -> Result<Experiment> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.toml");
        std::fs::write(&path, text).unwrap();
        load_experiment(&path, scale)
    }

    const GOOD: &str = r#"title = "t"
source = "s"
seeds = [0, 2]
[scales.demo]
config = "d.toml"
[scales.paper]
config = "/p.toml"
set = ["dual.batch=4"]
[[rows]]
name = "ours"
run = "two"
set = ["seed=3"]
set_demo = ["seed=4"]
published = { mAP = 71.7 }
[[rows]]
name = "teachers"
teachers_of = "two"
only = "paper"
[[rows]]
name = "A"
teacher = 1
"#;

    #[test]
    fn each_scale_has_its_config_and_its_rows() {
        let paper = load(GOOD, "paper").unwrap();
        assert_eq!((paper.config.as_path(), paper.overrides.len()), (Path::new("/p.toml"), 1));
        assert_eq!((paper.rows.len(), paper.seeds.as_slice(), paper.by_block), (3, &[0, 2][..], false));
        let demo = load(GOOD, "demo").unwrap();
        assert!(demo.config.ends_with("d.toml") && demo.config != Path::new("d.toml"));
        assert_eq!(demo.rows.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["ours", "A"]);
        let RowKind::Student { run, overrides } = &demo.rows[0].kind else { panic!("{:?}", demo.rows[0]) };
        assert_eq!((run.as_str(), overrides.len()), ("two", 2));
        assert_eq!(demo.rows[0].published["mAP"], 71.7);
    }

    #[test]
    fn an_error_names_its_line() {
        for (from, to, scale, expected) in [
            ("", "", "papr", "did you mean `paper`?"),
            ("teacher = 1", "teacher = 0", "demo", "e.toml:21: `rows.2.teacher` is 0; expected at least 1"),
            ("teacher = 1", "", "demo", "exactly one of `run`, `teacher` and `teachers_of`"),
            ("teacher = 1", "teacher = 1\nrun = \"x\"", "demo", "exactly one of"),
            (
                "teachers_of = \"two\"",
                "teachers_of = \"too\"",
                "paper",
                "expected the run of another row: two",
            ),
            ("[0, 2]", "[]", "demo", "at least one row and one seed"),
            ("[0, 2]", "[-1]", "demo", "e.toml:3: `seeds.0` is -1"),
            ("run = \"two\"", "run = \"a/b\"", "demo", "names the output folder"),
            ("title = \"t\"", "titel = \"t\"", "demo", "did you mean `title`?"),
            (
                "\"seed=3\"",
                "\"seed=1\", \"seed\"",
                "demo",
                "e.toml:12: `rows.0.set.1` is \"seed\"; expected KEY=VALUE, such as generator.steps=200",
            ),
            ("[\"dual.batch=4\"]", "[\"a..b=4\"]", "paper", "e.toml:8: `scales.paper.set.0` is \"a..b=4\""),
            ("[0, 2]", "[0, 2, 0]", "demo", "e.toml:3: seed 0 is listed more than once"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            let e = load(&text, scale).unwrap_err();
            assert_eq!(e.exit_code(), 3, "{e}");
            assert!(e.to_string().contains(expected), "{e}");
        }
    }

    #[test]
    fn the_committed_experiments_load_at_both_scales_with_their_configs() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/experiments");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            for scale in ["demo", "paper"] {
                let path = entry.as_ref().unwrap().path();
                // The paper has no such table.
                if scale == "paper" && path.ends_with("all-labels.toml") {
                    continue;
                }
                let e = load_experiment(&path, scale).unwrap();
                for row in &e.rows {
                    if let RowKind::Student { overrides, .. } = &row.kind {
                        let all = [e.overrides.clone(), overrides.clone(), vec![Override::seed(e.seeds[0])]];
                        let spec = crate::config::load_run(&e.config, &all.concat()).unwrap().spec;
                        // The mean of one teacher is that teacher: such a student would show nothing.
                        let is_mean = matches!(spec.student.init, StudentInit::Mean);
                        assert!(!is_mean || spec.teachers.len() > 1, "{}, {scale}: {}", e.title, row.name);
                    }
                }
                count += 1;
            }
        }
        assert_eq!(count, 9, "three tables and a figure at two scales, and one table at the demo's");
    }

    #[test]
    fn the_configs_for_photographs_load() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/photos");
        let labels = ["backbone.toml", "teacher_a.toml", "teacher_b.toml"]
            .map(|file| crate::config::load_teach(&folder.join(file), &[]).unwrap().spec.labels);
        let e = load_experiment(&folder.join("table5.toml"), "photos").unwrap();
        let mut students = 0;
        for row in &e.rows {
            if let RowKind::Student { overrides, .. } = &row.kind {
                let spec = crate::config::load_run(&e.config, overrides).unwrap().spec;
                assert_eq!((spec.teachers.len(), spec.dual.steps.len()), (2, 4), "{}", row.name);
                students += 1;
            }
        }
        assert_eq!((students, e.seeds.len()), (6, 3));
        assert!(format!("{labels:?}").contains("diningtable"), "{labels:?}");
    }
}
