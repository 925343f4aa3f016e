//! What a person meets: files read and written, answers to wrong input, forecasts, reports, and a program that is killed.

#[path = "../common/mod.rs"]
mod common;

mod bad_input;
mod bad_weights;
mod browser;
mod data;
mod export;
mod forecast;
mod fuzz_corpus;
mod kill;
mod report;
