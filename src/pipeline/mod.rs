//! A run from teachers to student: generator, dual blocks, branch. Nothing here sees a label of an image:
//! scoring, and the training of teachers, are in [`labelled`](crate::labelled).
//!
//! The order to read it in: [`run`], then [`stage_one`] and [`stage_two`], then [`session`], which trains
//! their stages.

#![warn(missing_docs)]

pub mod agreement;
mod branch;
pub mod captions;
pub mod checkpoint;
mod engine;
pub mod export;
pub mod fingerprint;
pub mod forecast;
pub mod generated;
pub mod images;
pub mod inputs;
pub mod likeness;
mod objective;
pub mod observer;
mod opened;
pub mod predictor;
pub mod probe;
pub mod rank_forecast;
pub mod room;
pub mod run;
pub mod sample;
pub mod schedule;
pub mod seed;
pub mod session;
mod share;
pub mod snapshots;
pub mod softmax;
pub mod spec;
pub mod stage;
pub mod stage_one;
pub mod stage_two;
pub mod student_files;
pub mod student_network;
mod student_start;
pub mod tasks;
pub mod teacher_file;
pub mod teachers;
mod written;

pub use engine::{Device, engine_on};
