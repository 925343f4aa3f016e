//! `experiment NAME`: the runs of one of the paper's tables over several seeds, and the results beside the
//! published ones.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use super::args::DeviceArgs;
use super::check::check_against_teachers;
use super::commands::Commands;
use super::folder::{Existing, OutputFolder};
use super::output::{self, print};
use super::progress::ProgressMode;
use super::run::{Printing, run_in_folder};
use super::units::{self, Part, State, Unit};
use crate::config::experiment::{Experiment, RowKind, load_experiment};
use crate::config::{self, Loaded, Override};
use crate::device::Choice;
use crate::error::{Error, Result};
use crate::pipeline::spec::{EvaluationData, RunSpec};
use crate::pipeline::teachers::Absent;
use crate::pipeline::{Device, export, inputs};
use crate::report;
use crate::report::experiment::{ExperimentRow, ExperimentTable, Figures};
use crate::report::origin::{EVALUATION, Origin, WeightsFile};
use crate::summary::Summary;

#[derive(Args)]
pub struct ExperimentArgs {
    /// table3, table4, table5, fig3, all-labels (configs/experiments), or a TOML file
    name: String,
    /// One of the file's [scales]: `paper`, or `demo` for the committed teachers on a CPU
    #[arg(long, default_value = "paper")]
    scale: String,
    /// Replace the experiment's seeds, for example 0,1,2
    #[arg(long, value_delimiter = ',', value_name = "N,N,...")]
    seeds: Option<Vec<u32>>,
    /// Set one value in the config of every run
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Folder for runs and tables; runs that have finished there are not repeated
    #[arg(long, value_name = "DIR", default_value = "runs/experiments")]
    out: PathBuf,
    /// Print the experiment's units instead of running them: each run at each seed, one command each
    #[arg(long, conflicts_with_all = ["only", "collect"])]
    list: bool,
    /// With --list: as JSON, with each unit's folder and state
    #[arg(long, requires = "list")]
    json: bool,
    /// Run every N-th unit from the K-th on, and print no table
    #[arg(long, value_name = "K/N", value_parser = units::parse_part, conflicts_with = "collect")]
    only: Option<Part>,
    /// Train nothing: make the table of units that have all finished
    #[arg(long)]
    collect: bool,
    /// Print only the result, no progress
    #[arg(long)]
    quiet: bool,
}

/// Executes the units that have not finished yet, writes NAME.{md,json,html} and returns the table as text. With `--list`,
/// `--only` or `--collect`: only that part of the work.
///
/// Errors: an experiment, a config or a file that cannot be read; the first error of a unit; units that have not finished.
pub(super) fn experiment(args: &ExperimentArgs, commands: &Commands) -> Result<String> {
    let file = find(&args.name)?;
    let mut experiment = load_experiment(&file, &args.scale)?;
    if let Some(seeds) = &args.seeds {
        if let Some((_, twice)) = seeds.iter().enumerate().find(|(i, s)| seeds[..*i].contains(s)) {
            return Err(Error::Usage(format!("--seeds: seed {twice} is listed more than once")));
        }
        experiment.seeds = seeds.iter().map(|s| u64::from(*s)).collect();
    }
    let sets: Vec<Override> = args.sets.iter().map(|s| Override::set(s)).collect::<Result<_>>()?;
    // A list needs no device.
    let choice = if args.list { Choice::Cpu } else { args.device.open()?.0 };
    let mode = if args.quiet { ProgressMode::Silent } else { ProgressMode::of_stderr() };
    let out = args.out.join(&args.scale);
    let runner = Runner { experiment: &experiment, sets, out, choice, mode, commands };
    let notes = runner.check_rows()?;
    if !args.quiet {
        output::notes(&notes);
    }
    let units = units::all(&experiment);
    if args.list {
        return units::list(&units, &runner.out, args.json);
    }
    fs::create_dir_all(&runner.out).map_err(|e| Error::io("make the output folder", &runner.out, e))?;
    if let Some(part) = args.only {
        let wanted = units.iter().enumerate().filter(|(i, _)| part.has(*i)).map(|(_, unit)| unit);
        return runner.run_part(wanted).map(|()| String::new());
    }
    if !args.collect {
        for unit in &units {
            runner.run(unit)?;
        }
    }
    runner.expect_finished(&units)?;
    runner.table(args, &file)
}

impl ExperimentArgs {
    /// The command line that gives the same figures.
    fn line(&self) -> String {
        let mut line = format!("dfka-engine experiment {} --scale {}", self.name, self.scale);
        if let Some(seeds) = &self.seeds {
            let seeds: Vec<String> = seeds.iter().map(u32::to_string).collect();
            line += &format!(" --seeds {}", seeds.join(","));
        }
        for set in &self.sets {
            line += &format!(" --set '{}'", set.replace('\'', "'\\''"));
        }
        line
    }
}

/// Checks that the files which a finished run read have the same contents now. Folders of images are not compared.
///
/// Errors: a file that has changed since, or that cannot be read; no `run.json` that says which files they were.
fn expect_same_files(folder: &Path, spec: &RunSpec) -> Result<()> {
    let origin = Origin::read(folder)?.ok_or_else(|| {
        let message = "missing, or not as a run writes it, so the files that the run read are not known";
        Error::data(folder.join(report::ORIGIN), format!("{message}; {}", remove(folder)))
    })?;
    let evaluation = spec.evaluation.as_ref().and_then(EvaluationData::file);
    let evaluation = evaluation.map(|file| WeightsFile::of(EVALUATION, file)).transpose()?;
    // Several files may have one name, such as the shards of a teacher: they are in the order of the config.
    let mut then: Vec<&WeightsFile> = origin.weights.iter().collect();
    let mut is_same = |f: &WeightsFile| {
        let at = then.iter().position(|o| o.name == f.name);
        at.is_some_and(|at| then.remove(at).sha256 == f.sha256)
    };
    let mut now = inputs::hashes(spec).into_iter().chain(evaluation);
    let differs = now.find(|f| !is_same(f));
    match differs {
        None => Ok(()),
        Some(f) => Err(Error::Usage(format!(
            "{}: this run read a different {}: {} has changed since; choose another folder with --out, or remove this one",
            folder.display(),
            f.name,
            f.file.display()
        ))),
    }
}

/// Checks that a finished unit's folder has its student, and that the summary is that of a scored run of this config.
///
/// Errors: no student; another name or seed; no score where the config asks for one.
fn expect_result(folder: &Path, spec: &RunSpec, summary: &Summary) -> Result<()> {
    export::student_file(folder).map_err(|e| match e {
        Error::Data { file, message } => {
            Error::Data { file, message: format!("{message}; {}", remove(folder)) }
        }
        other => other,
    })?;
    let wrong =
        |what: String| Err(Error::data(folder.join(report::SUMMARY), format!("{what}; {}", remove(folder))));
    if summary.name != spec.name {
        return wrong(format!("`name` is {}; expected that of the config, {}", summary.name, spec.name));
    }
    if summary.seed != spec.seed {
        return wrong(format!(
            "`seed` is {}; expected {}, as the folder's name says",
            summary.seed, spec.seed
        ));
    }
    let Some(student) = &summary.student else {
        return wrong("`student` is null; expected scores, because the config has [evaluation]".into());
    };
    for (key, score) in [("map", student.score.map), ("map_11_point", student.score.map_11_point)] {
        if !score.is_finite() {
            return wrong(format!("`student.{key}` is null; expected a number"));
        }
    }
    match summary.teachers.contains_key("mean") {
        true => Ok(()),
        false => wrong("`teachers` has no `mean`; expected the teachers' scores".into()),
    }
}

/// What to do about a unit that cannot be used.
fn remove(folder: &Path) -> String {
    format!("remove {} to train the unit again", folder.display())
}

/// The file of an experiment: a name in `configs/experiments`, or a path.
///
/// Errors: an unknown name; the message lists the known ones.
fn find(name: &str) -> Result<PathBuf> {
    let file = PathBuf::from(name);
    if file.extension().is_some() {
        return Ok(file);
    }
    let folder = Path::new("configs/experiments");
    let known = folder.join(format!("{name}.toml"));
    if known.exists() {
        return Ok(known);
    }
    let mut found: Vec<String> = fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|e| e.path()))
        .into_iter()
        .flatten()
        .filter_map(|p| Some(p.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    found.sort();
    let found = if found.is_empty() { "none".into() } else { found.join(", ") };
    Err(Error::Usage(format!(
        "no experiment {name:?}: {} has {found}; or give the path of a TOML file",
        folder.display()
    )))
}

/// The settings that all rows of one experiment share.
struct Runner<'a> {
    experiment: &'a Experiment,
    /// Overrides of the command line, which replace those of the experiment.
    sets: Vec<Override>,
    out: PathBuf,
    choice: Choice,
    mode: ProgressMode,
    commands: &'a Commands,
}

impl Runner<'_> {
    /// Checks every row's config and files, and the published figures, so that an error shows before hours of training.
    /// Returns what the user should know of the experiment.
    fn check_rows(&self) -> Result<Vec<String>> {
        let mut labels = BTreeSet::new();
        for row in &self.experiment.rows {
            let teachers = match &row.kind {
                RowKind::Student { overrides, .. } => {
                    let loaded = self.load(overrides, self.experiment.seeds[0])?;
                    if loaded.spec.evaluation.is_none() {
                        let message = "an experiment compares scores, so the run's config needs [evaluation]";
                        return Err(loaded.source.fail("name", message));
                    }
                    check_against_teachers(&loaded.spec, &loaded.source, self.commands, Absent::Fails)?.0
                }
                RowKind::Teacher(index) => {
                    let spec = self.load(&[], self.experiment.seeds[0])?.spec;
                    if *index >= spec.teachers.len() {
                        return Err(Error::Usage(format!(
                            "row {:?}: expected a teacher from 1 to {2}, found {1}",
                            row.name,
                            index + 1,
                            spec.teachers.len()
                        )));
                    }
                    (self.commands.open_teachers)(&spec, Absent::Fails)?
                }
                RowKind::TeachersOf(_) => continue,
            };
            labels.extend(teachers.into_iter().flat_map(|t| t.known.labels));
        }
        let note = self.experiment.check_published(&labels, !self.sets.is_empty())?;
        Ok(note.into_iter().collect())
    }

    fn load(&self, overrides: &[Override], seed: u64) -> Result<Loaded<RunSpec>> {
        let all = [&self.experiment.overrides[..], overrides, &self.sets, &[Override::seed(seed)]].concat();
        config::load_run(&self.experiment.config, &all)
    }

    /// Executes units one after the other, and prints a line of each when it ends. A unit's own failure does not keep the
    /// others from being tried.
    ///
    /// Errors: a stop; the first failure of a unit, once all were tried.
    fn run_part<'u>(&self, units: impl Iterator<Item = &'u Unit<'u>>) -> Result<()> {
        let mut failure = None;
        for unit in units {
            match self.run(unit) {
                Ok(summary) => print(&self.line(unit, summary.as_ref()))?,
                Err(e @ Error::Stopped { .. }) => return Err(e),
                Err(e) => {
                    print(&format!("{}: failed: {e}\n", unit.name()))?;
                    failure.get_or_insert(e);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// The summary of a unit, which is read, resumed or executed as needed; `None` if another process works on it.
    ///
    /// Errors: those of [`run_in_folder`] and [`Runner::finished`].
    fn run(&self, unit: &Unit) -> Result<Option<Summary>> {
        if let Some(summary) = self.finished(unit)? {
            return Ok(Some(summary));
        }
        // Locked before anything of the folder is looked at: another process may be about to finish the unit.
        let Some(_lock) = unit.lock(&self.out)? else { return Ok(None) };
        if let Some(summary) = self.finished(unit)? {
            return Ok(Some(summary));
        }
        let (loaded, mut folder, is_started) = self.open(unit)?;
        let printing = Printing { greeting: None, mode: self.mode, is_verbose: false };
        let checked = check_against_teachers(&loaded.spec, &loaded.source, self.commands, Absent::Fails)?;
        let summary = run_in_folder(&loaded, checked, &mut folder, is_started, printing, self.commands);
        summary.map(Some).map_err(|e| match e {
            Error::Stopped { exit_code, message } => Error::Stopped {
                exit_code,
                message: message.replace("the same command with --resume", "the same command"),
            },
            other => other,
        })
    }

    /// The config of a unit, its folder, and whether it has begun.
    ///
    /// Errors: a folder with something else, or with another config.
    fn open(&self, unit: &Unit) -> Result<(Loaded<RunSpec>, OutputFolder, bool)> {
        let mut loaded = self.load(unit.overrides, unit.seed)?;
        loaded.spec.device = Device { choice: self.choice, ..Device::default() };
        let path = self.out.join(unit.name());
        let is_started = path.join(report::CONFIG).exists();
        let existing = if is_started { Existing::Resume } else { Existing::Refuse };
        let folder = OutputFolder::choose(path.clone(), existing, &loaded.resolved).map_err(|e| match e {
            Error::Usage(message) => {
                let message = message.trim_start_matches("--resume: ");
                Error::Usage(format!(
                    "{message}; choose another folder with --out, or remove {}",
                    path.display()
                ))
            }
            other => other,
        })?;
        Ok((loaded, folder, is_started))
    }

    /// The summary of a finished unit.
    ///
    /// Errors: a unit of another config, or of files with other contents; one without its student or its scores.
    fn finished(&self, unit: &Unit) -> Result<Option<Summary>> {
        let path = self.out.join(unit.name());
        if !units::is_finished(&path)? {
            return Ok(None);
        }
        let Some(summary) = report::read_summary(&path)? else { return Ok(None) };
        let (loaded, ..) = self.open(unit)?;
        expect_same_files(&path, &loaded.spec)?;
        expect_result(&path, &loaded.spec, &summary)?;
        Ok(Some(summary))
    }

    /// What `--only` prints of a unit.
    fn line(&self, unit: &Unit, summary: Option<&Summary>) -> String {
        let score = summary.map(|s| s.student.as_ref().map_or(f64::NAN, |student| student.score.map));
        let what = match score {
            Some(map) if map.is_finite() => format!("finished, {map:.1} mAP"),
            Some(_) => "finished".into(),
            None => "another dfka-engine is working on it".into(),
        };
        format!("{}: {what}\n", unit.name())
    }

    /// Errors: units that have not finished; the message names them.
    fn expect_finished(&self, units: &[Unit]) -> Result<()> {
        let mut missing = Vec::new();
        for unit in units {
            let state = match unit.state(&self.out)? {
                State::Finished => continue,
                State::Running => "another dfka-engine is working on it",
                State::Started => "it began and has not finished",
                State::Absent => "it has not begun",
            };
            missing.push(format!("{} ({state})", unit.name()));
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "{} of {} units have not finished: {}; --list prints the command of each, and --collect makes the table once they \
             have finished",
            missing.len(),
            units.len(),
            missing.join(", ")
        )))
    }

    /// Writes the table of finished units, and returns it as text.
    ///
    /// Errors: a unit that has not finished; a teacher that cannot be scored; a file that cannot be written.
    fn table(&self, args: &ExperimentArgs, file: &Path) -> Result<String> {
        let experiment = self.experiment;
        let of = |run: &str, seed: u64| {
            let missing = || Error::Run(format!("no unit {run} at seed {seed}"));
            let unit = units::unit(experiment, run, seed).ok_or_else(missing)?;
            self.finished(&unit)?.ok_or_else(missing)
        };
        let rows = experiment.rows.iter().map(|row| {
            let figures = match &row.kind {
                RowKind::Student { run, .. } => {
                    let of_seed = |seed: &u64| Ok(Figures::of_student(*seed, &of(run, *seed)?));
                    experiment.seeds.iter().map(of_seed).collect::<Result<Vec<_>>>()?
                }
                RowKind::TeachersOf(run) => vec![Figures::of_teachers(&of(run, experiment.seeds[0])?)],
                RowKind::Teacher(index) => vec![self.teacher(*index)?],
            };
            Ok(ExperimentRow { name: row.name.clone(), figures, published: row.published.clone() })
        });
        let table = ExperimentTable {
            title: experiment.title.clone(),
            source: experiment.source.clone(),
            command: args.line(),
            by_block: experiment.by_block,
            rows: rows.collect::<Result<_>>()?,
        };
        let stem = file.file_stem().map_or("experiment".into(), |s| s.to_string_lossy().into_owned());
        report::experiment::write(&self.out, &stem, &table)?;
        Ok(table.text() + &format!("\n{} and .json, .html\n", self.out.join(format!("{stem}.md")).display()))
    }

    fn teacher(&self, index: usize) -> Result<Figures> {
        let mut spec = self.load(&[], self.experiment.seeds[0])?.spec;
        spec.device = Device { choice: self.choice, ..Device::default() };
        Ok(Figures::of_score(&(self.commands.score_teacher)(&spec, index)?))
    }
}
