//! `check`: opens everything that a run reads and forecasts its cost, without running it.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::{DeviceArgs, RunConfigArgs, output_path};
use super::commands::{Commands, TeacherFacts};
use super::outlook::Outlook;
use super::output::{self, pretty};
use super::{device, disk, forecast};
use crate::config::{self, Loaded};
use crate::device::gpu::card::Card;
use crate::error::Result;
use crate::pipeline::spec::{RunSpec, TeacherSpec};
use crate::pipeline::teachers::{Absent, OpenedTeacher};
use crate::pipeline::{likeness, tasks};

#[derive(Args)]
pub struct CheckArgs {
    #[command(flatten)]
    config: RunConfigArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Forecast for this card (h200, h100, a100 or a100-40gb) from its data sheet, without timing steps on
    /// this machine
    #[arg(long, value_name = "NAME", value_parser = device::parse_card)]
    card: Option<&'static Card>,
    /// Also forecast the training on this many cards, which divide what parallel.split says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=1024))]
    ranks: Option<u16>,
    /// Folder that the run will write to, for its free space [default: runs/NAME-seedN]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the cost of every stage, part and op
    #[arg(long, conflicts_with = "json")]
    detail: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Returns about a dozen lines, the verdict first; or everything.
pub fn check(args: &CheckArgs, commands: &Commands) -> Result<String> {
    let Loaded { mut spec, source, resolved: _ } = args.config.load()?;
    let (choice, device) = args.device.open()?;
    spec.device.choice = choice;
    let (opened, notes) = check_against_teachers(&spec, &source, commands, Absent::IsDrawn)?;
    let cost = (commands.forecast)(&spec, &opened, args.card)?;
    let on_ranks = |ranks| {
        let card = args.card.unwrap_or_default();
        (commands.forecast_ranks)(&spec, &opened, usize::from(ranks), card).map(|cost| (cost, card))
    };
    let on_ranks = args.ranks.map(on_ranks).transpose()?;
    let of_ranks = on_ranks.as_ref().map_or(String::new(), |(cost, card)| forecast::of_ranks(cost, card));
    let teachers: Vec<TeacherFacts> = opened.iter().map(TeacherFacts::of).collect();
    output::notes(&notes);
    let out = output_path(args.out.as_deref(), &spec.name, spec.seed);
    let free = disk::free_bytes(&out);
    if args.json {
        let space = json!({ "folder": out.display().to_string(), "free_bytes": free });
        let all = json!({
            "config": spec, "device": device, "teachers": teachers, "forecast": cost, "output": space,
            "ranks": on_ranks.map(|(cost, _)| cost),
        });
        return pretty(&all);
    }
    if !args.detail {
        let (config, teachers) = (args.config.file(), &teachers[..]);
        let outlook =
            Outlook { config, spec: &spec, device: &device, teachers, forecast: &cost, out: &out, free };
        return Ok(outlook.text() + &of_ranks);
    }
    let text = format!("{}: matches its teachers\n{device}\n", args.config.file().display());
    Ok(text + &TeacherFacts::lines(&spec.teachers, &teachers) + &forecast::text(&cost) + &of_ranks)
}

/// Checks that the teachers have the labels, the network and the heads that the config expects, and that every
/// file it names is usable. Returns the opened teachers, and what the user should know of the files.
///
/// Errors: the first mismatch, with its place in the config; a file that cannot be used.
pub fn check_against_teachers(
    spec: &RunSpec,
    source: &config::Source,
    commands: &Commands,
    absent: Absent,
) -> Result<(Vec<OpenedTeacher>, Vec<String>)> {
    let teachers = (commands.open_teachers)(spec, absent)?;
    let labels: Vec<_> = teachers.iter().map(|t| t.known.labels.clone()).collect();
    config::check_labels(spec, &labels, source)?;
    config::check_student(spec, &teachers, source)?;
    for teacher in &teachers {
        config::check_network(spec, &teacher.known.network.widths, source)?;
        config::check_sizes(spec, &teacher.known.network, source)?;
    }
    let suspicion = |(teacher, said): (&OpenedTeacher, &TeacherSpec)| match said.stated.is_sigmoid {
        true => Ok(None),
        false => (commands.suspicion)(teacher),
    };
    let suspicions = teachers.iter().zip(&spec.teachers).map(suspicion).collect::<Result<Vec<_>>>()?;
    config::check_heads(spec, &suspicions, source)?;
    let of_files = teachers.iter().flat_map(OpenedTeacher::notes).cloned();
    let mut notes: Vec<String> = of_files.chain(tasks::shared_labels(&teachers, &spec.student)).collect();
    notes.extend(likeness::warning(&spec.student, &teachers));
    notes.extend((commands.check)(spec, &teachers)?);
    Ok((teachers, notes))
}
