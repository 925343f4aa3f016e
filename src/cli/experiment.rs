//! `experiment NAME`: the runs of one of the paper's tables over several seeds, and the results beside the
//! published ones.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use super::args::DeviceArgs;
use super::check::check_against_teachers;
use super::commands::Commands;
use super::folder::{Existing, OutputFolder};
use super::progress::ProgressMode;
use super::run::{Printing, run_in_folder};
use crate::config::experiment::{Experiment, RowKind, load_experiment};
use crate::config::{self, Loaded, Override};
use crate::device::Choice;
use crate::error::{Error, Result};
use crate::pipeline::spec::RunSpec;
use crate::pipeline::teachers::Absent;
use crate::pipeline::{Device, inputs};
use crate::report;
use crate::report::experiment::{ExperimentRow, ExperimentTable, Figures};
use crate::report::origin::Origin;
use crate::summary::Summary;

#[derive(Args)]
pub struct ExperimentArgs {
    /// table3, table4, table5, fig3 (configs/experiments), or a TOML file
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
    /// Print only the result, no progress
    #[arg(long)]
    quiet: bool,
}

/// Executes the runs that have not finished yet, writes NAME.{md,json,html} and returns the table as text.
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
    let (choice, _) = args.device.open()?;
    let mode = if args.quiet { ProgressMode::Silent } else { ProgressMode::of_stderr() };
    let out = args.out.join(&args.scale);
    let runner = Runner { experiment: &experiment, sets, out, choice, mode, commands };
    runner.check_rows()?;
    fs::create_dir_all(&runner.out).map_err(|e| Error::io("make the output folder", &runner.out, e))?;

    let rows = experiment.rows.iter().map(|row| {
        let figures = match &row.kind {
            RowKind::Student { run, overrides } => {
                let of_seed = |seed| Ok(Figures::of_student(seed, &runner.run(run, overrides, seed)?));
                experiment.seeds.iter().map(|seed| of_seed(*seed)).collect::<Result<Vec<_>>>()?
            }
            RowKind::TeachersOf(run) => {
                vec![Figures::of_teachers(&runner.run(run, runner.overrides_of(run), experiment.seeds[0])?)]
            }
            RowKind::Teacher(index) => vec![runner.teacher(*index)?],
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
    report::experiment::write(&runner.out, &stem, &table)?;
    Ok(table.text() + &format!("\n{} and .json, .html\n", runner.out.join(format!("{stem}.md")).display()))
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

/// Checks that the weights a finished run read are still those of the files.
///
/// Errors: a file that has changed since.
fn expect_same_files(folder: &Path, spec: &RunSpec) -> Result<()> {
    let Some(origin) = Origin::read(folder)? else { return Ok(()) };
    let now = inputs::hashes(spec);
    let differs =
        now.iter().find(|f| !origin.weights.iter().any(|o| o.file == f.file && o.sha256 == f.sha256));
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
    /// Checks every row's config and files, so that an error shows before hours of training.
    fn check_rows(&self) -> Result<()> {
        for row in &self.experiment.rows {
            match &row.kind {
                RowKind::Student { overrides, .. } => {
                    let loaded = self.load(overrides, self.experiment.seeds[0])?;
                    if loaded.spec.evaluation.is_none() {
                        let message = "an experiment compares scores, so the run's config needs [evaluation]";
                        return Err(loaded.source.fail("name", message));
                    }
                    check_against_teachers(&loaded.spec, &loaded.source, self.commands, Absent::Fails)?;
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
                }
                RowKind::TeachersOf(_) => {}
            }
        }
        Ok(())
    }

    fn load(&self, overrides: &[Override], seed: u64) -> Result<Loaded<RunSpec>> {
        let all = [&self.experiment.overrides[..], overrides, &self.sets, &[Override::seed(seed)]].concat();
        config::load_run(&self.experiment.config, &all)
    }

    /// The overrides of the row that defines this run.
    fn overrides_of(&self, run: &str) -> &[Override] {
        let of = |what: &'_ RowKind| matches!(what, RowKind::Student { run: r, .. } if r == run);
        match self.experiment.rows.iter().find(|r| of(&r.kind)).map(|r| &r.kind) {
            Some(RowKind::Student { overrides, .. }) => overrides,
            _ => &[],
        }
    }

    /// The summary of the run with that name and seed, which is read, resumed or executed as needed.
    fn run(&self, name: &str, overrides: &[Override], seed: u64) -> Result<Summary> {
        let mut loaded = self.load(overrides, seed)?;
        loaded.spec.device = Device { choice: self.choice, ..Device::default() };
        let path = self.out.join(format!("{name}-seed{seed}"));
        let is_started = path.join(report::CONFIG).exists();
        let existing = if is_started { Existing::Resume } else { Existing::Refuse };
        let mut folder =
            OutputFolder::choose(path.clone(), existing, &loaded.resolved).map_err(|e| match e {
                Error::Usage(message) => {
                    let message = message.trim_start_matches("--resume: ");
                    Error::Usage(format!(
                        "{message}; choose another folder with --out, or remove {}",
                        path.display()
                    ))
                }
                other => other,
            })?;
        if let Some(summary) = report::read_summary(&path)? {
            expect_same_files(&path, &loaded.spec)?;
            return Ok(summary);
        }
        let printing = Printing { greeting: None, mode: self.mode, is_verbose: false };
        run_in_folder(&loaded, &mut folder, is_started, printing, self.commands).map_err(|e| match e {
            Error::Stopped { exit_code, message } => Error::Stopped {
                exit_code,
                message: message.replace("the same command with --resume", "the same command"),
            },
            other => other,
        })
    }

    fn teacher(&self, index: usize) -> Result<Figures> {
        let mut spec = self.load(&[], self.experiment.seeds[0])?.spec;
        spec.device = Device { choice: self.choice, ..Device::default() };
        Ok(Figures::of_score(&(self.commands.score_teacher)(&spec, index)?))
    }
}
