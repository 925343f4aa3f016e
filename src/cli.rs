//! The command line: what a person types, and what is printed back.

mod device;
mod doctor;
mod engine;
mod eval;
mod experiment;
mod export;
mod folder;
mod forecast;
mod page;
mod progress;
mod sample;
mod signals;

use std::ffi::OsString;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

use crate::config::{self, Loaded, Override};
use crate::data::scenes::{self, Sources, Split};
use crate::device::Choice;
use crate::device::gpu::card::Card;
use crate::error::{Error, Result};
use crate::pipeline::Device;
use crate::pipeline::inputs::{self, RunInputs};
use crate::pipeline::spec::RunSpec;
use crate::pipeline::teachers::{Absent, OpenedTeacher};
use crate::report;
use crate::summary::Summary;
use crate::weights;
use device::DeviceChoice;
use engine::{Engine, TeacherFacts};
use folder::{Existing, Folder};
use page::{PageArgs, Record};
use progress::{Audience, Progress};
use signals::Signals;

/// Data-free knowledge amalgamation: several trained multi-label classifiers in, one small student out, no data.
///
/// Exit codes: 0 done, 1 run failed, 2 usage, 3 bad config, 4 bad or missing weights or data, 5 no usable device,
/// 6 out of memory, 7 diverged or collapsed; 129, 130 or 143 stopped by SIGHUP, SIGINT or SIGTERM, to be resumed.
#[derive(Parser)]
#[command(name = "dfka-engine", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train the student that a config describes
    Run(RunArgs),
    /// Run one of the paper's tables or figures over seeds, and print our figures beside the published ones
    Experiment(experiment::ExperimentArgs),
    /// Train a teacher from labelled data
    Teach(TeachArgs),
    /// Average precision of trained weights on labelled images
    Eval(eval::EvalArgs),
    /// Open everything a run needs and forecast its cost, without running it
    Check(CheckArgs),
    /// Compose a set of demonstration scenes from the raw archives
    Scenes(ScenesArgs),
    /// Trained weights in another format: npz, safetensors or ONNX
    Export(export::ExportArgs),
    /// Images from a run's generator
    Sample(sample::SampleArgs),
    /// Write a run's report.html again, also of a run that has not finished
    Report(PageArgs),
    /// What this machine offers
    Doctor,
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    out: OutArgs,
    /// Go on from the last checkpoint in the output folder
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Have a profiler record these steps of every stage (a CUDA device; see docs/profiling.md)
    #[arg(long, value_name = "FROM..TO", value_parser = device::parse_steps)]
    profile: Option<Range<u64>>,
}

#[derive(Args)]
struct TeachArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    out: OutArgs,
    /// Go on from the last checkpoint in the output folder
    #[arg(long, conflicts_with = "force")]
    resume: bool,
}

#[derive(Args)]
struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Forecast for this card (h200, h100, a100 or a100-40gb) from plans alone, and time nothing here
    #[arg(long, value_name = "NAME", value_parser = device::parse_card)]
    card: Option<&'static Card>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ScenesArgs {
    /// Folder of the archives that scripts/fetch_demo_data.sh obtains
    archives: PathBuf,
    /// The npz to write
    out: PathBuf,
    /// Which source images to use; the two splits share none
    #[arg(long, value_enum)]
    split: SplitArg,
    #[arg(long)]
    count: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Leave the labels out: images for KA
    #[arg(long)]
    unlabelled: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum SplitArg {
    Train,
    Eval,
}

#[derive(Args)]
struct ConfigArgs {
    /// A TOML file; the paths in it are relative to its folder
    config: PathBuf,
    /// Replace or add one value: a dotted path and TOML, such as generator.steps=200 or teachers.0.name=left
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Replace the config's seed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seed: Option<u64>,
}

#[derive(Args)]
struct DeviceArgs {
    /// auto, cpu, cuda, cuda:N or emu
    #[arg(long, default_value = "auto", value_parser = device::parse)]
    device: DeviceChoice,
}

#[derive(Args)]
struct OutArgs {
    /// Output folder [default: runs/NAME-seedN]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write into an output folder that holds files already, replacing what an earlier run left
    #[arg(long)]
    force: bool,
    /// No progress, only the result
    #[arg(long)]
    quiet: bool,
}

/// Parses `args` and does what they ask. Printing is over when this returns, save for an error's one line.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Result<ExitCode> {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version come this way too, with exit code 0. A closed pipe has nobody to tell.
            let _ = e.print();
            return Ok(ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2)));
        }
    };
    say(&answer(&cli.command, &engine::PIPELINE)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Does what a command asks; what is left to print.
fn answer(command: &Command, engine: &Engine) -> Result<String> {
    match command {
        Command::Run(args) => run_student(args, engine),
        Command::Experiment(args) => experiment::experiment(args, engine),
        Command::Teach(args) => teach(args, engine),
        Command::Eval(args) => eval::eval(args, engine),
        Command::Check(args) => check(args, engine),
        Command::Scenes(args) => scenes(args),
        Command::Export(args) => export::answer(args),
        Command::Sample(args) => sample::answer(args),
        Command::Report(args) => page::rebuild(args),
        Command::Doctor => Ok(doctor::report()),
    }
}

fn run_student(args: &RunArgs, engine: &Engine) -> Result<String> {
    let Loaded { mut spec, resolved, source } =
        config::load_run(&args.config.config, &args.config.overrides()?)?;
    let (choice, device) = args.device.device.open()?;
    spec.device = device_of(choice, &args.profile)?;
    let mut folder = args.out.folder(&spec.name, spec.seed, args.resume, &resolved)?;
    let loaded = Loaded { spec, resolved, source };
    let greeting = format!("{device}; output in {}", folder.path().display());
    let summary = execute(&loaded, &mut folder, args.resume, Some(&greeting), args.out.audience(), engine)?;
    Ok(report::final_table(&summary))
}

/// Runs what was loaded into a folder, and leaves the report there. The greeting waits until its teachers are known to fit:
/// what is refused takes one line.
fn execute(
    loaded: &Loaded<RunSpec>,
    folder: &mut Folder,
    is_resumed: bool,
    greeting: Option<&str>,
    audience: Audience,
    engine: &Engine,
) -> Result<Summary> {
    let teachers = check_against_teachers(&loaded.spec, &loaded.source, engine, Absent::Fails)?;
    folder.spare(&loaded.spec.inputs())?;
    folder.prepare(&loaded.resolved)?;
    let inputs = RunInputs { teachers, hashes: inputs::hashes(&loaded.spec) };
    let record = Record::begin(folder.path(), &loaded.spec, &inputs.hashes, is_resumed)?;
    let signals = Signals::listen()?;
    let mut progress = Progress::start(folder.path(), is_resumed, audience)?.stopping_on(signals);
    if let Some(line) = greeting {
        progress.say(line);
    }
    if let Some(note) = &record.note {
        progress.say(note);
    }
    let summary = (engine.run)(&loaded.spec, &inputs, folder.path(), is_resumed, &mut progress);
    let logged = progress.finish();
    let summary = record.end(summary.and_then(|s| logged.map(|()| s)))?;
    report::write(folder.path(), &summary)?;
    Ok(summary)
}

/// The device with what it is to record.
fn device_of(choice: Choice, profile: &Option<Range<u64>>) -> Result<Device> {
    if profile.is_some() && !matches!(choice, Choice::Cuda(_)) {
        return Err(Error::Usage("--profile records CUDA kernels; it needs --device cuda".into()));
    }
    Ok(Device { choice, profile: profile.clone().unwrap_or_default() })
}

fn teach(args: &TeachArgs, engine: &Engine) -> Result<String> {
    let Loaded { mut spec, resolved, source: _ } =
        config::load_teach(&args.config.config, &args.config.overrides()?)?;
    let (choice, device) = args.device.device.open()?;
    spec.device.choice = choice;
    let mut folder = args.out.folder(&spec.name, spec.seed, args.resume, &resolved)?;
    folder.spare(&spec.inputs())?;
    (engine.check_teach)(&spec)?;
    folder.prepare(&resolved)?;

    let signals = Signals::listen()?;
    let progress = Progress::start(folder.path(), args.resume, args.out.audience())?;
    let mut progress = progress.stopping_on(signals);
    progress.say(&format!("{device}; output in {}", folder.path().display()));
    let summary = (engine.teach)(&spec, folder.path(), args.resume, &mut progress);
    let logged = progress.finish();
    let summary = summary?;
    logged?;
    Ok(lines(&summary))
}

fn scenes(args: &ScenesArgs) -> Result<String> {
    let split = match args.split {
        SplitArg::Train => Split::Train,
        SplitArg::Eval => Split::Eval,
    };
    let (sources, spec) = (Sources::open(&args.archives)?, DEMO_SCENES);
    if args.unlabelled {
        sources.unlabelled(split, args.count, args.seed, &spec)?.save(&args.out)?;
    } else {
        sources.labelled(split, args.count, args.seed, &spec)?.save(&args.out)?;
    }
    Ok(format!("{}: {} scenes, sha256 {}\n", args.out.display(), args.count, weights::sha256(&args.out)?))
}

/// One to three objects of 11 to 15 pixels that keep clear of each other where they can: teachers reach about 90 mAP.
/// (With 14 to 20 pixels anywhere, objects hide each other and teachers stay near 71.)
const DEMO_SCENES: scenes::Spec = scenes::Spec { objects: 1..=3, side: 11..=15, tries: 10 };

fn check(args: &CheckArgs, engine: &Engine) -> Result<String> {
    let Loaded { mut spec, source, resolved: _ } =
        config::load_run(&args.config.config, &args.config.overrides()?)?;
    let (choice, device) = args.device.device.open()?;
    spec.device.choice = choice;
    let opened = check_against_teachers(&spec, &source, engine, Absent::IsDrawn)?;
    let forecast = (engine.forecast)(&spec, &opened, args.card)?;
    let teachers: Vec<TeacherFacts> = opened.iter().map(TeacherFacts::of).collect();
    if args.json {
        return pretty(
            &json!({ "config": spec, "device": device, "teachers": teachers, "forecast": forecast }),
        );
    }
    let mut text = format!("{}: fits its teachers\n{device}\n", args.config.config.display());
    for (spec, facts) in spec.teachers.iter().zip(&teachers) {
        text +=
            &format!("teacher {}: {} labels, channels {:?}\n", spec.name, facts.labels.len(), facts.channels);
        if facts.is_drawn {
            text += &format!("{}: not there; forecast with random weights\n", spec.weights.display());
        }
    }
    Ok(text + &forecast::text(&forecast))
}

/// Checks that a config fits its teachers and that every file it names can be used. Returns the opened teachers.
fn check_against_teachers(
    spec: &RunSpec,
    source: &config::Source,
    engine: &Engine,
    absent: Absent,
) -> Result<Vec<OpenedTeacher>> {
    let teachers = (engine.open_teachers)(spec, absent)?;
    let labels: Vec<_> = teachers.iter().map(|t| t.known.labels.clone()).collect();
    config::check_labels(spec, &labels, source)?;
    for teacher in &teachers {
        config::check_network(spec, &teacher.known.network.widths, source)?;
    }
    (engine.check)(spec, &teachers)?;
    Ok(teachers)
}

impl ConfigArgs {
    fn overrides(&self) -> Result<Vec<Override>> {
        let sets: Result<Vec<_>> = self.sets.iter().map(|s| Override::set(s)).collect();
        Ok(sets?.into_iter().chain(self.seed.map(Override::seed)).collect())
    }
}

impl OutArgs {
    fn folder(&self, name: &str, seed: u64, resume: bool, resolved: &str) -> Result<Folder> {
        let path = self.out.clone().unwrap_or_else(|| Path::new("runs").join(format!("{name}-seed{seed}")));
        let existing = match (resume, self.force) {
            (true, _) => Existing::Resume,
            (false, true) => Existing::Replace,
            (false, false) => Existing::Refuse,
        };
        Folder::choose(path, existing, resolved)
    }

    fn audience(&self) -> Audience {
        if self.quiet { Audience::Nobody } else { Audience::of_stderr() }
    }
}

/// Prints a result. Whoever closed the pipe has read enough.
fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Run(format!("cannot write to standard output: {e}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn pretty(value: &Value) -> Result<String> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Run(format!("cannot print the result as JSON: {e}")))?;
    Ok(text + "\n")
}

/// A JSON object as one `path  value` a line.
fn lines(value: &Value) -> String {
    fn walk(path: &str, value: &Value, out: &mut Vec<(String, String)>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(&path, value, out);
                }
            }
            Value::String(text) => out.push((path.into(), text.clone())),
            other => out.push((path.into(), other.to_string())), // lists in one line, and scalars
        }
    }
    let mut out = Vec::new();
    walk("", value, &mut out);
    let width = out.iter().map(|(path, _)| path.chars().count()).max().unwrap_or(0);
    out.iter().map(|(path, value)| format!("{path:<width$}  {value}\n")).collect()
}

#[cfg(test)]
mod tests;
