//! How a step's time and a run's memory grow with the batch, teachers, groups, side of the images, and threads.
//!
//! ```text
//! growth [--only time|memory] [--vary NAME] [--rounds N] [--seconds S] [--plots FOLDER] [--from FILE]
//! ```
//!
//! One thing varies at a time; the rest is that of benches/step.toml (batch 64, two teachers, 2 groups, 32x32, two
//! threads), with the demo's network and random weights. `growth/time.rs` and `growth/memory.rs` describe how time and
//! memory are measured. The output is TSV. A line of time has the step, what varies, its value, in milliseconds the
//! median and the least, the time over that of the base, and the time over that of the value before, over what it would
//! be if time grew linearly (in pixels for the side; at most 1 is linear or better; two threads would take half as long).
//! A line of memory has, in MB, the tensors that outlive a step, the largest step's, the forecast of `dfka-engine check`,
//! the most that a short run had, and the forecast over it.
//!
//! `--plots` draws both as SVG. `--from` takes the lines from a file, whose times and memory may have been measured one
//! after the other, and measures nothing.

// Other benches use the rest of it.
#[allow(dead_code)]
mod common;
#[path = "growth/memory.rs"]
mod memory;
#[path = "growth/plots.rs"]
mod plots;
#[path = "growth/row.rs"]
mod row;
#[path = "growth/table.rs"]
mod table;
#[path = "growth/time.rs"]
mod time;

use dfka_engine::error::{Error, Result};
use row::{Step, Vary, named, write_teachers};
use std::path::PathBuf;
use table::Line;

/// The command line.
struct Args {
    /// `time`, `memory` or nothing for both.
    only: String,
    vary: Option<Vary>,
    rounds: usize,
    seconds: f64,
    plots: Option<PathBuf>,
    from: Option<PathBuf>,
}

fn main() -> Result<()> {
    // Cargo adds `--bench` to the arguments.
    let words: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let Some(("--worker", words)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return time::work(words);
    }
    let args = arguments(words)?;
    let lines = match &args.from {
        Some(file) => table::read(file)?,
        None => measure(&args)?,
    };
    args.plots.as_deref().map_or(Ok(()), |folder| plots::write(folder, &lines))
}

fn arguments(words: Vec<String>) -> Result<Args> {
    let mut args =
        Args { only: String::new(), vary: None, rounds: 12, seconds: 0.25, plots: None, from: None };
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let usage =
            || Error::Usage(format!("{word}: expected an option that benches/growth.rs lists at its top"));
        let value = words.next().ok_or_else(usage)?;
        match word.as_str() {
            "--only" => args.only = value,
            "--vary" => args.vary = Some(named(&Vary::ALL, Vary::name, &value)?),
            "--rounds" => args.rounds = value.parse::<usize>().map_err(|_| usage())?.max(1),
            "--seconds" => args.seconds = value.parse().map_err(|_| usage())?,
            "--plots" => args.plots = Some(value.into()),
            "--from" => args.from = Some(value.into()),
            _ => return Err(usage()),
        }
    }
    Ok(args)
}

/// Measures, and prints line by line.
fn measure(args: &Args) -> Result<Vec<Line>> {
    let folder = tempfile::tempdir().map_err(|e| Error::Run(format!("no folder for teachers: {e}")))?;
    write_teachers(folder.path())?;
    let mut lines = Vec::new();
    let mut add = |line: Line| {
        println!("{}", line.text());
        lines.push(line);
    };
    let varied = || Vary::ALL.into_iter().filter(|v| args.vary.is_none_or(|only| only == *v));
    if args.only != "memory" {
        println!("{}", table::OF_TIME);
        for (step, vary) in Step::ALL.into_iter().flat_map(|s| varied().map(move |v| (s, v))) {
            let times = time::measure(step, vary, folder.path(), args.rounds, args.seconds)?;
            times.into_iter().for_each(|t| add(Line::Time(step, vary, t)));
        }
    }
    if args.only != "time" {
        println!("{}", table::OF_MEMORY);
        for (vary, value) in varied().flat_map(|v| v.values().iter().map(move |value| (v, *value))) {
            add(Line::Memory(vary, memory::measure(vary, value, folder.path())?));
        }
    }
    Ok(lines)
}
