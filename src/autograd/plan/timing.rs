//! How long each launch of a step takes by itself.

use super::Plan;
use super::traffic::launch_bytes;
use crate::autograd::Engine;
use crate::device::StepState;
use crate::error::{Error, Result};
use crate::tensor::{Real, Shape};

/// One launch of a step, timed alone.
#[derive(Clone, Debug)]
pub struct Timing {
    /// What it is for: op, phase and shapes.
    pub label: String,
    pub kernel: &'static str,
    /// Instructions that share the launch.
    pub members: usize,
    /// Of the op, of each member; empty for what a plan adds itself (the loss's gradient, the metrics).
    pub input_shapes: Vec<Shape>,
    pub output_shapes: Vec<Shape>,
    /// Bytes of its operands, each counted once, and twice what is read before it is overwritten (an optimiser's state,
    /// a gradient that is added to). A lower bound of the traffic.
    pub bytes: u64,
    /// Milliseconds, one number a repeat.
    pub ms: Vec<f32>,
}

impl<R: Real> Plan<R> {
    /// Runs the step `1 + repeats` times, launch by launch, and times each launch of all but the first run. Before each
    /// launch `flush_bytes` are written, so that it finds nothing in a cache that is smaller; with 0 it finds what the
    /// launch before it left. On a CUDA device a time is that between two events, the emulator's is the clock's. The
    /// store ends as after so many replays of this one step.
    ///
    /// Errors: a plan of the CPU's, a kernel that fails, no memory for `flush_bytes`.
    pub fn time_launches(
        &mut self,
        engine: &mut Engine<R>,
        step: &StepState,
        repeats: usize,
        flush_bytes: usize,
    ) -> Result<Vec<Timing>> {
        let Engine { store, machine, .. } = engine;
        let (Some(machine), Some(program)) = (machine, &mut self.program) else {
            return Err(Error::Run("only a plan that was compiled for a GPU has launches to time".into()));
        };
        machine.push(&store.buffers, &mut store.changed)?;
        let flush = machine.gpu.allocate(flush_bytes)?;
        let ready = program.ready(machine)?;
        machine.time(ready, step, &flush)?;
        let runs: Vec<Vec<f32>> =
            (0..repeats).map(|_| machine.time(ready, step, &flush)).collect::<Result<_>>()?;
        program.updates.iter().for_each(|b| store.stale[*b as usize] = true);
        let timing = |(i, (launch, label)): (usize, (&crate::device::gpu::launch::Launch, &String))| {
            let owners = program.owners[i].iter().map(|o| &self.instructions[*o]);
            let owner = owners.clone().next();
            Timing {
                label: label.clone(),
                kernel: launch.kernel.name,
                members: program.owners[i].len(),
                input_shapes: owner.map(|o| o.operands.input_shapes.clone()).unwrap_or_default(),
                output_shapes: owner.map(|o| o.operands.output_shapes.clone()).unwrap_or_default(),
                bytes: launch_bytes(launch, owners),
                ms: runs.iter().map(|run| run[i]).collect(),
            }
        };
        Ok(program.launches.iter().zip(&program.labels).enumerate().map(timing).collect())
    }
}
