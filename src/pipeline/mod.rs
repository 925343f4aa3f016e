//! A run, as a few readable lines: teachers, generator, dual blocks, branch, evaluation.

pub mod branch;
pub mod checkpoint;
pub mod dual;
pub mod evaluate;
pub mod forecast;
pub mod generator;
pub mod inputs;
pub mod observer;
pub mod run;
pub mod schedule;
pub mod session;
pub mod spec;

pub mod teach;
pub mod teachers;
