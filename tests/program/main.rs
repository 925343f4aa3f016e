//! Tests of the program as its users see it: files read and written, error messages, forecasts, reports, and
//! runs that are killed.

#[path = "../common/mod.rs"]
mod common;

mod about;
mod bad_input;
mod bad_weights;
mod browser;
mod cards;
mod checkpoints;
mod contrast;
mod data;
mod deployment;
mod export;
mod fake_driver;
mod forecast;
mod fuzz_corpus;
mod heads;
mod kill;
#[cfg(target_os = "linux")]
mod limits;
mod newcomer;
#[cfg(unix)]
mod ranks;
mod report;
mod samples;
mod scores;
mod sweeps;
mod tutorial;
mod verdicts;
