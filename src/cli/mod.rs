//! The command line: what a person types, and what is printed back.

mod args;
mod check;
mod commands;
mod device;
mod disk;
mod doctor;
mod eval;
mod event_log;
mod experiment;
mod export;
mod folder;
mod forecast;
mod init;
mod metrics_log;
mod outlook;
mod output;
mod page;
mod pages;
mod predict;
mod preset;
mod probe;
mod progress;
mod ranks;
mod record;
mod run;
mod sample;
mod scenes;
mod signals;
mod teach;
mod time_left;
mod units;
mod version;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::error::Result;
use commands::Commands;
use output::print;
use version::{NAME, VERSION};

/// Data-free knowledge amalgamation: several trained multi-label classifiers in, one small student out, no
/// data.
///
/// Exit codes: 0 done, 1 run failed, 2 usage, 3 bad config, 4 bad or missing weights or data, 5 no usable
/// device, 6 out of memory, 7 diverged, collapsed or a failed student, 8 another rank no longer answers; 129, 130
/// or 143 stopped by SIGHUP, SIGINT or SIGTERM (--resume continues).
#[derive(Parser)]
#[command(name = NAME, version = VERSION, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a config for teachers' files: dfka-engine init left.safetensors right.safetensors > my.toml
    Init(init::InitArgs),
    /// Train the student that a config describes
    Run(run::RunArgs),
    /// Run one of the paper's tables or figures over several seeds, and print the results beside the
    /// published ones
    Experiment(experiment::ExperimentArgs),
    /// Train a teacher from labelled data
    Teach(teach::TeachArgs),
    /// Measure the average precision of trained weights on labelled images
    Eval(eval::EvalArgs),
    /// Predict the labels of images
    Predict(predict::PredictArgs),
    /// Check that weights compute the logits that the network gave in PyTorch, on the CPU
    Probe(probe::ProbeArgs),
    /// Check a config against its files and forecast the cost of the run, without running it
    Check(check::CheckArgs),
    /// Compose a set of the demo's images from the downloaded archives
    Scenes(scenes::ScenesArgs),
    /// Convert trained weights to another format: npz, safetensors or ONNX
    Export(export::ExportArgs),
    /// Draw images from a run's generator
    Sample(sample::SampleArgs),
    /// Write report.html again from a run's folder, even if the run has not finished
    Report(page::PageArgs),
    /// Show the devices, libraries and processor features of this machine
    Doctor(doctor::DoctorArgs),
    /// Print a script that completes arguments in a shell: dfka-engine completions bash
    Completions(pages::CompletionsArgs),
    /// Print the manual page of the program or of one command: dfka-engine man run | man -l -
    Man(pages::ManArgs),
}

/// Parses the arguments and executes the command. Everything is printed when this returns, except the line of
/// an error.
///
/// Errors: those of the command; [`Error::exit_code`](crate::error::Error::exit_code) is the code to exit
/// with.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Result<ExitCode> {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are such errors too, with exit code 0. If the pipe is closed, printing fails
            // silently.
            let _ = e.print();
            return Ok(ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2)));
        }
    };
    signals::survive_file_limit()?;
    print(&dispatch(&cli.command, &commands::PIPELINE)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Executes a command; returns the text to print.
fn dispatch(command: &Command, commands: &Commands) -> Result<String> {
    match command {
        Command::Init(args) => init::init(args),
        Command::Run(args) => run::run_student(args, commands),
        Command::Experiment(args) => experiment::experiment(args, commands),
        Command::Teach(args) => teach::teach(args, commands),
        Command::Eval(args) => eval::eval(args, commands),
        Command::Predict(args) => predict::predict(args),
        Command::Probe(args) => probe::probe_weights(args),
        Command::Check(args) => check::check(args, commands),
        Command::Scenes(args) => scenes::scenes(args),
        Command::Export(args) => export::export(args),
        Command::Sample(args) => sample::sample(args),
        Command::Report(args) => page::rebuild(args),
        Command::Doctor(args) => doctor::doctor(args),
        Command::Completions(args) => pages::completions(args, Cli::command()),
        Command::Man(args) => pages::man(args, Cli::command()),
    }
}

#[cfg(test)]
mod tests;
