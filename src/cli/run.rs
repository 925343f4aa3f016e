//! `run`: trains the student that a config describes.

use std::ops::Range;

use clap::Args;

use super::args::{DeviceArgs, OutputArgs, RunConfigArgs};
use super::check::check_against_teachers;
use super::commands::Commands;
use super::device;
use super::doctor;
use super::folder::OutputFolder;
use super::output::print;
use super::progress::{Progress, ProgressMode};
use super::ranks;
use super::record::Record;
use super::signals::Signals;
use crate::config::Loaded;
use crate::device::Choice;
use crate::error::{Error, Result};
use crate::pipeline::Device;
use crate::pipeline::inputs::{self, RunInputs};
use crate::pipeline::spec::{EvaluationData, RunSpec};
use crate::pipeline::teachers::{Absent, OpenedTeacher};
use crate::report;
use crate::report::origin::{EVALUATION, WeightsFile};
use crate::summary::{Summary, Verdict, Word};

#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    config: RunConfigArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    out: OutputArgs,
    /// Continue from the last checkpoint in the output folder
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Mark these steps of every stage for a profiler (CUDA only; see docs/profiling.md)
    #[arg(long, value_name = "FROM..TO", value_parser = device::parse_steps)]
    profile: Option<Range<u64>>,
}

/// Trains the student; returns the final table and the verdict. Of several ranks, only rank 0 returns a text.
///
/// Errors: those of [`run_in_folder`]; a student that the verdict calls failed, after the table is printed; ranks that
/// divide the batch on something else than the CPU.
pub fn run_student(args: &RunArgs, commands: &Commands) -> Result<String> {
    ranks::run(|| lead(args, commands), || follow(args, commands))
}

fn load(args: &RunArgs) -> Result<(Loaded<RunSpec>, String)> {
    let mut loaded = args.config.load()?;
    let (choice, device) = args.device.open()?;
    ranks::expect_split(choice, loaded.spec.split)?;
    loaded.spec.device = device_of(choice, &args.profile)?;
    Ok((loaded, device))
}

/// Helps rank 0 with the training, and prints and writes nothing.
fn follow(args: &RunArgs, commands: &Commands) -> Result<()> {
    let (Loaded { spec, source, .. }, _) = load(args)?;
    let path = args.out.path(&spec.name, spec.seed);
    let (teachers, _) = check_against_teachers(&spec, &source, commands, Absent::Fails)?;
    let inputs = RunInputs { teachers, hashes: inputs::hashes(&spec) };
    ranks::join(spec.device.choice)?;
    let mut helper = ranks::Helper(Signals::listen()?);
    (commands.run)(&spec, &inputs, &path, args.resume, &mut helper).map(drop)
}

fn lead(args: &RunArgs, commands: &Commands) -> Result<String> {
    let (Loaded { spec, resolved, source }, device) = load(args)?;
    let mut folder = args.out.folder(&spec.name, spec.seed, args.resume, &resolved)?;
    let loaded = Loaded { spec, resolved, source };
    // Before the other ranks are waited for: they check the same.
    let checked = check_against_teachers(&loaded.spec, &loaded.source, commands, Absent::Fails)?;
    let ranks = ranks::join(loaded.spec.device.choice)?;
    let ranks = ranks.map_or(String::new(), |r| format!(", {} ranks with {}", r.size(), r.library()));
    let greeting = format!("{device}{ranks}; output in {}", folder.path().display());
    let printing =
        Printing { greeting: Some(&greeting), mode: args.out.progress_mode(), is_verbose: args.out.verbose };
    let summary = run_in_folder(&loaded, checked, &mut folder, args.resume, printing, commands)?;
    let (table, lines) = (report::final_table(&summary), report::closing_lines(&summary, folder.path()));
    let text = format!("{table}\n{lines}");
    let Verdict { word, reason } = summary.verdict();
    if word != Word::Failed {
        return Ok(text);
    }
    print(&text)?;
    Err(Error::Diverged(format!("the student is written, and is not to be used: {reason}")))
}

/// What a run prints while it works.
#[derive(Clone, Copy)]
pub struct Printing<'a> {
    /// The first line.
    pub greeting: Option<&'a str>,
    pub mode: ProgressMode,
    /// Whether lines about the device and the cost of each stage are printed too.
    pub is_verbose: bool,
}

/// Trains the student of a loaded config into a folder and writes the report there. `teachers` and `notes` are those of
/// [`check_against_teachers`], which comes before the greeting, so that a refused config prints nothing but its error.
pub fn run_in_folder(
    loaded: &Loaded<RunSpec>,
    (teachers, notes): (Vec<OpenedTeacher>, Vec<String>),
    folder: &mut OutputFolder,
    is_resumed: bool,
    printing: Printing,
    commands: &Commands,
) -> Result<Summary> {
    folder.protect(&loaded.spec.inputs())?;
    folder.prepare(&loaded.resolved)?;
    let inputs = RunInputs { teachers, hashes: inputs::hashes(&loaded.spec) };
    let evaluation = loaded.spec.evaluation.as_ref().and_then(EvaluationData::file);
    let evaluation = evaluation.and_then(|file| WeightsFile::of(EVALUATION, file).ok());
    let files: Vec<WeightsFile> = inputs.hashes.iter().cloned().chain(evaluation).collect();
    let record = Record::begin(folder.path(), &loaded.spec, &files, is_resumed)?;
    let signals = Signals::listen()?;
    let progress = Progress::start(folder.path(), is_resumed, printing.mode)?.stopping_on(signals);
    let mut progress = progress.with_costs(printing.is_verbose);
    if let Some(line) = printing.greeting {
        progress.print(line);
    }
    if printing.is_verbose {
        doctor::of_device(loaded.spec.device.choice).iter().for_each(|line| progress.print(line));
    }
    if let Some(note) = &record.note {
        progress.print(note);
    }
    for note in notes {
        progress.print(&format!("note: {note}"));
    }
    let summary = (commands.run)(&loaded.spec, &inputs, folder.path(), is_resumed, &mut progress);
    let logged = progress.finish();
    let summary = record.end(summary.and_then(|s| logged.map(|()| s)))?;
    report::write(folder.path(), &summary)?;
    Ok(summary)
}

/// The device, with the steps that a profiler records.
///
/// Errors: `--profile` without a CUDA device.
fn device_of(choice: Choice, profile: &Option<Range<u64>>) -> Result<Device> {
    if profile.is_some() && !matches!(choice, Choice::Cuda(_)) {
        return Err(Error::Usage("--profile is for CUDA kernels; add --device cuda".into()));
    }
    Ok(Device { choice, profile: profile.clone().unwrap_or_default() })
}
