//! The arguments that several commands share.

use std::path::{Path, PathBuf};

use clap::Args;

use super::device::{self, DeviceChoice};
use super::folder::{Existing, OutputFolder};
use super::progress::ProgressMode;
use crate::config::Override;
use crate::error::Result;

#[derive(Args)]
pub struct ConfigArgs {
    /// A TOML file; the paths in it are relative to its folder
    pub config: PathBuf,
    /// Replace or add one value: a dotted path and TOML, such as generator.steps=200 or teachers.0.name=left
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Replace the config's seed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: Option<u64>,
}

#[derive(Args)]
pub struct DeviceArgs {
    /// auto, cpu, cuda, cuda:N or emu
    #[arg(long, default_value = "auto", value_parser = device::parse)]
    pub device: DeviceChoice,
}

#[derive(Args)]
pub struct OutputArgs {
    /// Output folder [default: runs/NAME-seedN]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write into an output folder that holds files already, replacing what an earlier run left
    #[arg(long)]
    pub force: bool,
    /// No progress, only the result
    #[arg(long)]
    pub quiet: bool,
}

impl ConfigArgs {
    pub fn overrides(&self) -> Result<Vec<Override>> {
        let sets: Result<Vec<_>> = self.sets.iter().map(|s| Override::set(s)).collect();
        Ok(sets?.into_iter().chain(self.seed.map(Override::seed)).collect())
    }
}

impl OutputArgs {
    pub fn folder(&self, name: &str, seed: u64, resume: bool, resolved: &str) -> Result<OutputFolder> {
        let path = self.out.clone().unwrap_or_else(|| Path::new("runs").join(format!("{name}-seed{seed}")));
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
