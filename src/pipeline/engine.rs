//! The engine that a command's steps run on.

use crate::autograd::Engine;
use crate::device::Choice;
use crate::error::Result;
use crate::tensor::Elem;
use std::ops::Range;

/// Where the steps of a command run, and which of them a profiler records.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// The CPU, or which GPU.
    pub choice: Choice,
    /// Steps of every stage that a profiler records; none on the CPU.
    pub profile: Range<u64>,
}

/// An engine whose steps run on `device`. On a GPU, feature maps are stored as `precision`; the CPU ignores
/// it.
///
/// Errors: no such device.
pub fn engine_on(device: &Device, precision: Elem) -> Result<Engine<f32>> {
    let Some(mut machine) = device.choice.machine(precision)? else { return Ok(Engine::default()) };
    machine.profile(device.profile.clone());
    Ok(Engine::on(machine))
}
