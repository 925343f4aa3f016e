//! A run, as a few readable lines: teachers, generator, dual blocks, branch, evaluation.

pub mod branch;
pub mod checkpoint;
pub mod dual;
pub mod evaluate;
pub mod export;
pub mod fingerprint;
pub mod forecast;
pub mod generator;
pub mod inputs;
pub mod observer;
pub mod run;
pub mod sample;
pub mod schedule;
pub mod session;
pub mod snapshots;
pub mod spec;
pub mod teach;
pub mod teachers;

use crate::autograd::Engine;
use crate::device::Choice;
use crate::error::Result;
use crate::tensor::Elem;
use std::ops::Range;

/// Where a command's steps run, and how.
#[derive(Clone, Debug, Default)]
pub struct Device {
    pub choice: Choice,
    /// Steps of every stage for a profiler to record; none of the CPU's.
    pub profile: Range<u64>,
}

/// An engine whose steps run on `device`, feature maps stored as `precision` says where that is a GPU.
///
/// Errors: no such device.
pub fn engine_on(device: &Device, precision: Elem) -> Result<Engine<f32>> {
    let Some(mut machine) = device.choice.machine(precision)? else { return Ok(Engine::default()) };
    machine.profile(device.profile.clone());
    Ok(Engine::on(machine))
}
