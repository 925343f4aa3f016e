//! `experiment NAME`: the runs of one of the paper's tables over seeds, and our figures beside the published ones.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use super::engine::Engine;
use super::folder::{Existing, Folder};
use super::progress::Audience;
use super::{DeviceArgs, execute};
use crate::config::experiment::{Experiment, RowKind, load_experiment};
use crate::config::{self, Loaded, Override};
use crate::device::Choice;
use crate::error::{Error, Result};
use crate::pipeline::spec::RunSpec;
use crate::pipeline::teachers::Absent;
use crate::pipeline::{Device, inputs};
use crate::report;
use crate::report::experiment::{Figures, Outcome, Table};
use crate::report::origin::Origin;
use crate::summary::Summary;

#[derive(Args)]
pub struct ExperimentArgs {
    /// table3, table4, table5, fig3 (configs/experiments), or a TOML file
    name: String,
    /// What the file has under [scales]: `paper`, or `demo` for the committed teachers and a CPU
    #[arg(long, default_value = "paper")]
    scale: String,
    /// Replace the experiment's seeds: 0,1,2
    #[arg(long, value_delimiter = ',', value_name = "N,N,...")]
    seeds: Option<Vec<u32>>,
    /// Replace or add one value in the config of every run
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Runs and tables go below this folder; a run that is there already is not repeated
    #[arg(long, value_name = "DIR", default_value = "runs/experiments")]
    out: PathBuf,
    /// No progress, only the result
    #[arg(long)]
    quiet: bool,
}

/// Does what is not done yet, writes NAME.{md,json,html} and returns the table as text.
pub(super) fn experiment(args: &ExperimentArgs, engine: &Engine) -> Result<String> {
    let file = find(&args.name)?;
    let mut experiment = load_experiment(&file, &args.scale)?;
    if let Some(seeds) = &args.seeds {
        if let Some((_, twice)) = seeds.iter().enumerate().find(|(i, s)| seeds[..*i].contains(s)) {
            return Err(Error::Usage(format!("--seeds: seed {twice} stands twice")));
        }
        experiment.seeds = seeds.iter().map(|s| u64::from(*s)).collect();
    }
    let sets: Vec<Override> = args.sets.iter().map(|s| Override::set(s)).collect::<Result<_>>()?;
    let (choice, _) = args.device.device.open()?;
    let audience = if args.quiet { Audience::Nobody } else { Audience::of_stderr() };
    let out = args.out.join(&args.scale);
    let work = Work { experiment: &experiment, sets, out, choice, audience, engine };
    work.plan()?;
    fs::create_dir_all(&work.out).map_err(|e| Error::io("make the output folder", &work.out, e))?;

    let outcomes = experiment.rows.iter().map(|row| {
        let figures = match &row.what {
            RowKind::Student { run, overrides } => {
                let of_seed = |seed| Ok(Figures::of_student(seed, &work.run(run, overrides, seed)?));
                experiment.seeds.iter().map(|seed| of_seed(*seed)).collect::<Result<Vec<_>>>()?
            }
            RowKind::TeachersOf(run) => {
                vec![Figures::of_teachers(&work.run(run, work.overrides_of(run), experiment.seeds[0])?)]
            }
            RowKind::Teacher(index) => vec![work.teacher(*index)?],
        };
        Ok(Outcome { name: row.name.clone(), figures, published: row.published.clone() })
    });
    let table = Table {
        title: experiment.title.clone(),
        source: experiment.source.clone(),
        command: args.line(),
        by_block: experiment.by_block,
        outcomes: outcomes.collect::<Result<_>>()?,
    };
    let stem = file.file_stem().map_or("experiment".into(), |s| s.to_string_lossy().into_owned());
    report::experiment::write(&work.out, &stem, &table)?;
    Ok(table.text() + &format!("\n{} and .json, .html\n", work.out.join(format!("{stem}.md")).display()))
}

impl ExperimentArgs {
    /// What gives the same figures, as a person would type it.
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

/// A finished run counts for the weights that it was made from, and for no others of the same names.
fn expect_same_files(folder: &Path, spec: &RunSpec) -> Result<()> {
    let Some(origin) = Origin::read(folder)? else { return Ok(()) };
    let now = inputs::hashes(spec);
    let differs =
        now.iter().find(|f| !origin.weights.iter().any(|o| o.file == f.file && o.sha256 == f.sha256));
    match differs {
        None => Ok(()),
        Some(f) => Err(Error::Usage(format!(
            "{}: made from another {} than {} is now; --out names another folder, or remove this one",
            folder.display(),
            f.name,
            f.file.display()
        ))),
    }
}

/// A committed experiment by its name, or a file.
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
        "no experiment {name:?}: {} has {found}; a path to a TOML file works too",
        folder.display()
    )))
}

/// What the rows of one experiment share.
struct Work<'a> {
    experiment: &'a Experiment,
    /// Of the command line: they have the last word.
    sets: Vec<Override>,
    out: PathBuf,
    choice: Choice,
    audience: Audience,
    engine: &'a Engine,
}

impl Work<'_> {
    /// Opens everything that any row needs, so that a fault shows before the first of many hours.
    fn plan(&self) -> Result<()> {
        for row in &self.experiment.rows {
            match &row.what {
                RowKind::Student { overrides, .. } => {
                    let loaded = self.load(overrides, self.experiment.seeds[0])?;
                    if loaded.spec.evaluation.is_none() {
                        let message =
                            "an experiment compares scores: expected [evaluation] in the run's config";
                        return Err(loaded.source.fail("name", message));
                    }
                    super::check_against_teachers(&loaded.spec, &loaded.source, self.engine, Absent::Fails)?;
                }
                RowKind::Teacher(index) => {
                    let spec = self.load(&[], self.experiment.seeds[0])?.spec;
                    if *index >= spec.teachers.len() {
                        return Err(Error::Usage(format!(
                            "row {:?}: teacher {}, the config has {}",
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

    fn overrides_of(&self, run: &str) -> &[Override] {
        let of = |what: &'_ RowKind| matches!(what, RowKind::Student { run: r, .. } if r == run);
        match self.experiment.rows.iter().find(|r| of(&r.what)).map(|r| &r.what) {
            Some(RowKind::Student { overrides, .. }) => overrides,
            _ => &[],
        }
    }

    /// The run of that name and seed: read, gone on with, or done.
    fn run(&self, name: &str, overrides: &[Override], seed: u64) -> Result<Summary> {
        let mut loaded = self.load(overrides, seed)?;
        loaded.spec.device = Device { choice: self.choice, ..Device::default() };
        let path = self.out.join(format!("{name}-seed{seed}"));
        let is_begun = path.join(report::CONFIG).exists();
        let existing = if is_begun { Existing::Resume } else { Existing::Refuse };
        let mut folder = Folder::choose(path.clone(), existing, &loaded.resolved).map_err(|e| match e {
            Error::Usage(message) => {
                let message = message.trim_start_matches("--resume: ");
                Error::Usage(format!("{message}; --out names another folder, or remove {}", path.display()))
            }
            other => other,
        })?;
        if let Some(summary) = report::read_summary(&path)? {
            expect_same_files(&path, &loaded.spec)?;
            return Ok(summary);
        }
        execute(&loaded, &mut folder, is_begun, None, self.audience, self.engine).map_err(|e| match e {
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
        Ok(Figures::of_score(&(self.engine.score_teacher)(&spec, index)?))
    }
}
