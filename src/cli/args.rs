//! The arguments that several commands share.

use std::path::{Path, PathBuf};

use clap::Args;

use super::device::{self, DeviceChoice};
use super::folder::{Existing, OutputFolder};
use super::preset::Preset;
use super::progress::ProgressMode;
use crate::config::{self, Loaded, Override};
use crate::device::Choice;
use crate::device::collective::launched;
use crate::error::{Error, Result};
use crate::pipeline::spec::RunSpec;

#[derive(Args)]
pub struct ConfigArgs {
    /// Config file (TOML); paths in it are relative to its folder
    pub config: PathBuf,
    /// Set one value of the config: a dotted path and a TOML value, such as generator.steps=200 or
    /// teachers.0.name=left. Paths are relative to the config's folder
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Replace the config's seed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: Option<u64>,
}

/// The config of a run.
#[derive(Args)]
pub struct RunConfigArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// How long the training is: quick (a quarter of the config's steps), balanced (the config's) or best (three times
    /// as many). `--set` has the last word
    #[arg(long)]
    preset: Option<Preset>,
}

#[derive(Args)]
pub struct DeviceArgs {
    /// Device to run on: auto, cpu, cuda, cuda:N or emu
    #[arg(long, default_value = "auto", value_parser = device::parse)]
    pub device: DeviceChoice,
    #[command(flatten)]
    pub threads: ThreadArgs,
}

#[derive(Args)]
pub struct ThreadArgs {
    /// Threads for work on the CPU; results do not depend on their number [default: one for each processor, of several ranks
    /// on one machine a part of them]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

#[derive(Args)]
pub struct OutputArgs {
    /// Output folder [default: runs/NAME-seedN]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Use an output folder that is not empty, and replace the results of an earlier run in it
    #[arg(long)]
    pub force: bool,
    /// Print only the result, no progress
    #[arg(long)]
    pub quiet: bool,
    /// Also print where the kernels come from, what the device is, and the cost of a step of each stage
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,
}

impl ConfigArgs {
    /// The values of `--set`, then that of `--seed`.
    ///
    /// Errors: as [`Override::set`].
    pub fn overrides(&self) -> Result<Vec<Override>> {
        let sets: Result<Vec<_>> = self.sets.iter().map(|s| Override::set(s)).collect();
        Ok(sets?.into_iter().chain(self.seed.map(Override::seed)).collect())
    }
}

impl RunConfigArgs {
    /// The config's file.
    pub fn file(&self) -> &Path {
        &self.config.config
    }

    /// Reads the config, with the preset's numbers of steps and then the other values of the command line in place of
    /// its own.
    ///
    /// Errors: as [`config::load_run`].
    pub fn load(&self) -> Result<Loaded<RunSpec>> {
        let overrides = self.config.overrides()?;
        let loaded = config::load_run(self.file(), &overrides)?;
        let Some(preset) = self.preset else { return Ok(loaded) };
        if !self.file().is_file() {
            return Err(Error::Usage(format!(
                "--preset reads the config twice, and {} is a pipe, which can be read once; save it to a file",
                self.file().display()
            )));
        }
        let all: Vec<Override> = preset.overrides(&loaded.spec)?.into_iter().chain(overrides).collect();
        config::load_run(self.file(), &all)
    }
}

/// The folder that `--out` names, or the one that a run of this name and seed writes to.
pub fn output_path(out: Option<&Path>, name: &str, seed: u64) -> PathBuf {
    out.map_or_else(|| Path::new("runs").join(format!("{name}-seed{seed}")), PathBuf::from)
}

impl DeviceArgs {
    /// Starts the threads (see [`ThreadArgs::start`]), then opens the device. Each of several ranks on this machine opens a
    /// device of its own; see [`DeviceChoice::of_rank`] and [`DeviceChoice::open`].
    ///
    /// Errors: threads that cannot be started; a device that is not available.
    pub fn open(&self) -> Result<(Choice, String)> {
        self.threads.start()?;
        let (launched, named) = (launched(), self.device);
        let own = named.of_rank(launched);
        own.open().map_err(|e| match (launched, e) {
            (Some(l), Error::NoDevice(why)) if own != named => {
                Error::NoDevice(format!("rank {} of {} has a card of its own: {why}", l.rank, l.size))
            }
            (_, e) => e,
        })
    }
}

/// Starts the threads that all work on the CPU is divided among: so many, or one for each processor.
///
/// Errors: the system starts no more threads; a process that works with another number already.
pub fn start_threads(threads: Option<usize>) -> Result<()> {
    let started = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build_global();
    // The builder's only other error is that the threads were started before.
    if let Some(why) = started.as_ref().err().and_then(std::error::Error::source) {
        let number = threads.map_or("a thread for each processor".into(), |n| format!("{n} threads"));
        return Err(Error::Run(format!(
            "cannot start {number} for work on the CPU: {why}; lower --threads, or raise the limits on processes and on \
             memory (ulimit -u and -v)"
        )));
    }
    match (threads, rayon::current_num_threads()) {
        (Some(expected), found) if expected != found => Err(Error::Usage(format!(
            "--threads {expected}: this process works with {found} threads already"
        ))),
        _ => Ok(()),
    }
}

impl ThreadArgs {
    /// Starts the threads. To be called before any other work on the CPU, which would start one thread for each processor.
    ///
    /// Errors: threads that cannot be started.
    pub fn start(&self) -> Result<()> {
        start_threads(self.threads.map(usize::from).or_else(part_of_the_processors))
    }
}

/// The processors of one of several ranks on this machine; `None` for a process that is alone.
fn part_of_the_processors() -> Option<usize> {
    let launched = launched().filter(|l| l.local_size > 1)?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Some((processors / launched.local_size).max(1))
}

impl OutputArgs {
    /// The path of the folder to write to.
    pub fn path(&self, name: &str, seed: u64) -> PathBuf {
        output_path(self.out.as_deref(), name, seed)
    }

    /// The folder to write to, by default `runs/NAME-seedN`. Nothing is created yet.
    ///
    /// Errors: as [`OutputFolder::choose`].
    pub fn folder(&self, name: &str, seed: u64, resume: bool, resolved: &str) -> Result<OutputFolder> {
        let path = self.path(name, seed);
        let existing = match (resume, self.force) {
            (true, _) => Existing::Resume,
            (false, true) => Existing::Replace,
            (false, false) => Existing::Refuse,
        };
        OutputFolder::choose(path, existing, resolved)
    }

    pub fn progress_mode(&self) -> ProgressMode {
        if self.quiet { ProgressMode::Silent } else { ProgressMode::of_stderr() }
    }
}
