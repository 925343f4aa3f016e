//! The config of an experiment: a table or figure of the paper as a set of runs over seeds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::keys::{folder_name, only_with, seed};
use super::overrides::Override;
use super::run::load_run;
use super::source::Source;
use super::suggest::{nearest, suggest};
use super::teacher::MOST_TEACHERS;
use crate::error::Result;
use crate::report::experiment::COLUMNS;

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
    source_file: Source,
    /// The labels that the configs of the other scales state; `None` where one leaves them to its teachers' files.
    labels_elsewhere: Option<BTreeSet<String>>,
}

#[derive(Debug)]
pub struct Row {
    pub name: String,
    pub kind: RowKind,
    /// The published figures by column: one of [`COLUMNS`], or a label.
    pub published: BTreeMap<String, f64>,
    /// Its place in the file, such as `rows.0`.
    path: String,
}

#[derive(Debug)]
pub enum RowKind {
    /// The student of the run of this name, with these changes to the config. Rows and tables that name the same run
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
/// of no kind or of several, or that has a key without meaning, two rows that change one run differently, a malformed
/// override.
pub fn load_experiment(file: &Path, scale: &str) -> Result<Experiment> {
    let (source, raw) = Source::open::<RawExperiment>(file, &[])?;
    if !raw.scales.contains_key(scale) {
        let known: Vec<&str> = raw.scales.keys().map(String::as_str).collect();
        let hint = nearest(scale, known.iter().copied());
        let hint = hint.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        return Err(source.fail("scales", format!("no scale `{scale}`, found {}{hint}", known.join(", "))));
    }
    check_keys(&source, &raw)?;
    let (config, overrides, rows) = raw.at(&source, scale)?;
    let seeds = seeds(&source, &raw.seeds)?;
    if rows.is_empty() || seeds.is_empty() {
        return Err(source.fail("seeds", "expected at least one row and one seed"));
    }
    Ok(Experiment {
        title: raw.title.clone(),
        source: raw.source.clone(),
        seeds,
        by_block: raw.by_block.unwrap_or(false),
        config,
        overrides,
        rows,
        labels_elsewhere: raw.labels_elsewhere(&source, scale),
        source_file: source,
    })
}

/// Refuses keys of rows that would be ignored at every scale.
fn check_keys(source: &Source, raw: &RawExperiment) -> Result<()> {
    let scales: Vec<&str> = raw.scales.keys().map(String::as_str).collect();
    for (i, row) in raw.rows.iter().enumerate() {
        let at = |key: &str| format!("rows.{i}.{key}");
        if let Some(only) = row.only.as_deref().filter(|only| !scales.contains(only)) {
            let (path, hint) = (at("only"), suggest(only, &scales));
            return Err(
                source.fail(&path, format!("`{path}` is {only:?}, which [scales] does not have; {hint}"))
            );
        }
        for (key, scale, set) in [
            ("set", None, &row.set),
            ("set_demo", Some("demo"), &row.set_demo),
            ("set_paper", Some("paper"), &row.set_paper),
        ] {
            only_with(source, &at(key), row.run.is_none() && !set.is_empty(), "a row with `run`")?;
            if let Some(scale) = scale.filter(|scale| !scales.contains(scale)) {
                only_with(source, &at(key), !set.is_empty(), &format!("a file with [scales.{scale}]"))?;
            }
        }
        let is_unseen = raw.by_block == Some(true) && !row.published.is_empty();
        only_with(source, &at("published"), is_unseen, "`by_block = false`")?;
    }
    Ok(())
}

impl RawExperiment {
    /// The config, its changes and the rows at a scale that the file has.
    fn at(&self, source: &Source, scale: &str) -> Result<(PathBuf, Vec<Override>, Vec<Row>)> {
        let RawScale { config, set } = &self.scales[scale];
        Ok((
            source.file(&format!("scales.{scale}.config"), &mut config.clone())?,
            source.overrides(&format!("scales.{scale}.set"), set)?,
            rows(source, &self.rows, scale)?,
        ))
    }

    /// See [`Experiment::labels_elsewhere`]. A scale whose config does not load is one of unknown labels: it is not
    /// the one that was asked for.
    fn labels_elsewhere(&self, source: &Source, scale: &str) -> Option<BTreeSet<String>> {
        let mut labels = BTreeSet::new();
        for other in self.scales.keys().filter(|other| *other != scale) {
            let (config, overrides, rows) = self.at(source, other).ok()?;
            for row in &rows {
                let changes: &[Override] = match &row.kind {
                    RowKind::Student { overrides, .. } => overrides,
                    RowKind::Teacher(_) | RowKind::TeachersOf(_) => &[],
                };
                let spec = load_run(&config, &[&overrides[..], changes].concat()).ok()?.spec;
                if spec.teachers.iter().any(|t| t.stated.labels.is_empty()) {
                    return None;
                }
                labels.extend(spec.teachers.into_iter().flat_map(|t| t.stated.labels));
            }
        }
        Some(labels)
    }
}

impl Experiment {
    /// Checks that each published figure is one of [`COLUMNS`] or of a label that a teacher has, at this scale or at
    /// another one. `labels` are those at this scale. If the labels of another scale are not known, or if the command
    /// line `is_changing` the config, it returns a note instead of an error.
    ///
    /// Errors: a published figure that no scale can show.
    pub fn check_published(&self, labels: &BTreeSet<String>, is_changing: bool) -> Result<Option<String>> {
        let elsewhere = self.labels_elsewhere.iter().flatten();
        let known: Vec<&str> =
            COLUMNS.into_iter().chain(labels.iter().chain(elsewhere).map(String::as_str)).collect();
        let columns = self.rows.iter().flat_map(|row| row.published.keys().map(move |column| (row, column)));
        let unknown: Vec<_> = columns.filter(|(_, column)| !known.contains(&column.as_str())).collect();
        let Some((row, column)) = unknown.first() else { return Ok(None) };
        let at = |message| self.source_file.fail(&format!("{}.published.{column}", row.path), message);
        if self.labels_elsewhere.is_some() && !is_changing {
            let message = format!(
                "`{}.published` has `{column}`, which is neither a label of the teachers nor one of {}{}",
                row.path,
                COLUMNS.join(", "),
                nearest(column, known).map_or(String::new(), |near| format!("; did you mean `{near}`?"))
            );
            return Err(at(message));
        }
        let names: BTreeSet<&str> = unknown.iter().map(|(_, column)| column.as_str()).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let message =
            format!("published figures that no teacher of this scale has a label for are not shown: {names}");
        Ok(Some(at(message).to_string()))
    }
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

/// The rows at `scale`. A `teachers_of` must name the run of one of them, and rows of one run must agree in its changes.
fn rows(source: &Source, raw: &[RawRow], scale: &str) -> Result<Vec<Row>> {
    let rows: Vec<Row> = raw
        .iter()
        .enumerate()
        .filter(|(_, row)| row.only.as_deref().is_none_or(|only| only == scale))
        .map(|(i, raw)| row(source, format!("rows.{i}"), raw, scale))
        .collect::<Result<_>>()?;
    let runs: Vec<&str> = rows.iter().filter_map(Row::run).collect();
    for (i, row) in rows.iter().enumerate() {
        match &row.kind {
            RowKind::TeachersOf(run) if !runs.contains(&run.as_str()) => {
                let message =
                    format!("`teachers_of` is {run:?}; expected the run of another row: {}", runs.join(", "));
                return Err(source.fail(&row.path, message));
            }
            RowKind::Student { run, overrides } => {
                for earlier in rows[..i].iter().filter(|earlier| earlier.run() == Some(run)) {
                    expect_same_changes(source, earlier, row, overrides)?;
                }
            }
            RowKind::TeachersOf(_) | RowKind::Teacher(_) => {}
        }
    }
    Ok(rows)
}

/// Errors: the row `earlier` is of the same run as `row`, whose changes are `here`, and changes something else.
fn expect_same_changes(source: &Source, earlier: &Row, row: &Row, here: &[Override]) -> Result<()> {
    let RowKind::Student { run, overrides: there } = &earlier.kind else { return Ok(()) };
    let at = |all: &[Override], i: usize| all.get(i).map(|o| o.assignment());
    let Some(i) = (0..here.len().max(there.len())).find(|i| at(here, *i) != at(there, *i)) else {
        return Ok(());
    };
    let shown = |all| at(all, i).map_or("nothing".into(), |assignment| format!("`{assignment}`"));
    let message = format!(
        "`{0}` and `{1}` name the same run, {run:?}, but `{0}` sets {2} where `{1}` sets {3}; expected another name for the \
         run, or the same changes in the same order",
        row.path,
        earlier.path,
        shown(here),
        shown(there)
    );
    Err(source.fail(&format!("{}.run", row.path), message))
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

fn row(source: &Source, path: String, raw: &RawRow, scale: &str) -> Result<Row> {
    let at_scale = match scale {
        "demo" => &raw.set_demo,
        "paper" => &raw.set_paper,
        _ => &Vec::new(),
    };
    let kind = match (&raw.run, raw.teacher, &raw.teachers_of) {
        (Some(run), None, None) => RowKind::Student {
            run: folder_name(source, &format!("{path}.run"), run)?,
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
        (None, None, Some(run)) => RowKind::TeachersOf(run.clone()),
        _ => {
            let message = format!("`{path}` takes exactly one of `run`, `teacher` and `teachers_of`");
            return Err(source.fail(&path, message));
        }
    };
    Ok(Row { name: raw.name.clone(), kind, published: raw.published.clone(), path })
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
            (
                "teacher = 1",
                "run = \"two\"\nset = [\"seed=3\", \"seed=5\"]",
                "demo",
                "e.toml:21: `rows.2` and `rows.0` name the same run, \"two\", but `rows.2` sets `seed=5` where `rows.0` sets \
                 `seed=4`",
            ),
            ("teacher = 1", "run = \"two\"", "paper", "`rows.2` sets nothing where `rows.0` sets `seed=3`"),
            (
                "only = \"paper\"",
                "only = \"papr\"",
                "demo",
                "e.toml:18: `rows.1.only` is \"papr\", which [scales] does not have; did you mean `paper`?",
            ),
            (
                "scales.demo",
                "scales.other",
                "paper",
                "e.toml:13: `rows.0.set_demo` applies to a file with [scales.demo] only",
            ),
            (
                "teacher = 1",
                "teacher = 1\nset = [\"seed=1\"]",
                "demo",
                "e.toml:22: `rows.2.set` applies to a row with `run` only",
            ),
            (
                "source = \"s\"",
                "source = \"s\"\nby_block = true",
                "demo",
                "e.toml:15: `rows.0.published` applies to `by_block = false` only",
            ),
        ] {
            let text = GOOD.replacen(from, to, 1);
            let e = load(&text, scale).unwrap_err();
            assert_eq!(e.exit_code(), 3, "{e}");
            assert!(e.to_string().contains(expected), "{e}");
        }
    }

    #[test]
    fn rows_of_one_run_with_the_same_changes_share_it() {
        let text = GOOD.replace("teacher = 1", "run = \"two\"\nset = [\"seed = 3\"]");
        assert_eq!(load(&text, "paper").unwrap().rows.len(), 3);
        assert!(load(&text, "demo").unwrap_err().to_string().contains("sets nothing where"));
    }

    #[test]
    fn a_published_figure_has_a_label_of_some_scale() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let experiment = |text: &str, scale: &str| {
            std::fs::write(at("e.toml"), text).unwrap();
            load_experiment(&at("e.toml"), scale).unwrap()
        };
        let here: BTreeSet<String> = ["cat".to_string(), "dog".into()].into();
        let text =
            GOOD.replace("/p.toml", "p.toml").replace("mAP = 71.7", "mAP = 71.7, cat = 1, bus = 2, tre = 3");
        // The labels of the paper's scale are not known, because its config is missing.
        let note = experiment(&text, "demo").check_published(&here, false).unwrap().unwrap();
        assert!(
            note.contains("e.toml:14: published figures") && note.ends_with("not shown: bus, tre"),
            "{note}"
        );
        let config = "name = \"p\"\ndual.steps = [1]\n\
                      teachers = [{ name = \"a\", weights = \"w.npz\", labels = [\"bus\", \"tree\"] }]\n";
        std::fs::write(at("p.toml"), config).unwrap();
        let known = experiment(&text, "demo");
        let e = known.check_published(&here, false).unwrap_err();
        let expected = "e.toml:14: `rows.0.published` has `tre`, which is neither a label of the teachers nor one of \
                        M parameters, mAP, % of teachers, mAP, all points; did you mean `tree`?";
        assert!(e.exit_code() == 3 && e.to_string().contains(expected), "{e}");
        // Another config, by the command line, may have other labels.
        assert!(known.check_published(&here, true).unwrap().unwrap().ends_with("not shown: tre"));
        let right = experiment(&text.replace("tre =", "tree ="), "demo");
        assert_eq!(right.check_published(&here, false).unwrap(), None);
        std::fs::write(at("p.toml"), config.replace(", labels = [\"bus\", \"tree\"]", "")).unwrap();
        let open = experiment(&text, "demo").check_published(&here, false).unwrap().unwrap();
        assert!(open.ends_with("not shown: bus, tre"), "{open}");
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
                let is_note_free = e.labels_elsewhere.is_some() || scale == "paper";
                assert!(is_note_free, "{}: the paper's config states its labels", e.title);
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

    #[test]
    fn the_docs_example_loads_and_every_key_is_in_their_table() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/config.md");
        let page = std::fs::read_to_string(page).unwrap();
        let section = page.split_once("\n## `experiment`\n").unwrap().1;
        let example = section.split_once("```toml\n").unwrap().1.split_once("```").unwrap().0;
        let e = load(example, "demo").unwrap();
        assert_eq!((e.rows.len(), e.seeds.len(), e.rows[2].run()), (4, 3, Some("two-labels")));
        // It would run: its config, beside which the committed experiments lie, takes the changes.
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/demo.toml");
        for row in &e.rows {
            let RowKind::Student { overrides, .. } = &row.kind else { continue };
            let spec =
                crate::config::load_run(&config, &[&e.overrides[..], overrides].concat()).unwrap().spec;
            assert_eq!(spec.student.labels, ["bag", "0"]);
        }
        let full = example.replace("name = \"ours\"", "name = \"ours\"\nonly = \"demo\"\nset_paper = []");
        let raw: RawExperiment = toml::from_str(&full).unwrap();
        let toml::Value::Table(all) = toml::Value::try_from(&raw).unwrap() else { panic!() };
        let mut keys: BTreeSet<String> = all.keys().cloned().chain(["by_block".into()]).collect();
        keys.retain(|key| key != "scales" && key != "rows");
        keys.extend(all["scales"]["demo"].as_table().unwrap().keys().map(|key| format!("scales.NAME.{key}")));
        for row in all["rows"].as_array().unwrap() {
            keys.extend(row.as_table().unwrap().keys().map(|key| format!("rows.{key}")));
        }
        assert_eq!(keys.len(), 15, "{keys:?}");
        let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
        for key in keys {
            let has =
                |line: &&str| line.split(" | ").next().is_some_and(|cell| cell.contains(&format!("`{key}`")));
            assert!(rows.iter().any(has), "{key} is not in the table");
        }
    }
}
