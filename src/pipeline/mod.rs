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

use crate::autograd::Engine;
use crate::device::Choice;
use crate::error::Result;
use crate::tensor::Elem;

/// An engine whose steps run on `device`, feature maps stored as `precision` says where that is a GPU.
///
/// Errors: no such device.
pub fn engine_on(device: Choice, precision: Elem) -> Result<Engine<f32>> {
    Ok(device.machine(precision)?.map_or_else(Engine::default, Engine::on))
}
