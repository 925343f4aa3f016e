//! `teach`: trains a teacher from labelled images.

use clap::Args;

use super::args::{ConfigArgs, DeviceArgs, OutputArgs};
use super::commands::Commands;
use super::device;
use super::doctor;
use super::output::lines;
use super::progress::Progress;
use super::signals::Signals;
use crate::config::{self, Loaded};
use crate::error::Result;
use crate::report;
use crate::report::origin::Call;

#[derive(Args)]
pub struct TeachArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    out: OutputArgs,
    /// Continue from the last checkpoint in the output folder
    #[arg(long, conflicts_with = "force")]
    resume: bool,
}

/// Trains the teacher; returns its summary as lines.
pub fn teach(args: &TeachArgs, commands: &Commands) -> Result<String> {
    let Loaded { mut spec, resolved, source: _ } =
        config::load_teach(&args.config.config, &args.config.overrides()?)?;
    let (choice, described) = args.device.open()?;
    spec.device.choice = choice;
    let mut folder = args.out.folder(&spec.name, spec.seed, args.resume, &resolved)?;
    folder.protect(&spec.inputs())?;
    let notes = (commands.check_teach)(&spec)?;
    folder.prepare(&resolved)?;

    let signals = Signals::listen()?;
    let progress = Progress::start(folder.path(), args.resume, args.out.progress_mode())?;
    let mut progress = progress.stopping_on(signals).with_costs(args.out.verbose);
    progress.print(&format!("{described}; output in {}", folder.path().display()));
    notes.iter().for_each(|note| progress.print(&format!("note: {note}")));
    if args.out.verbose {
        doctor::of_device(choice).iter().for_each(|line| progress.print(line));
    }
    let summary = (commands.teach)(&spec, folder.path(), args.resume, &mut progress);
    let logged = progress.finish();
    let summary = summary?;
    logged?;
    report::write_teacher_card(folder.path(), &spec.name, &summary, &Call::now(&device::name(choice)))?;
    Ok(lines(&summary))
}
