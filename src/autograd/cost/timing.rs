//! How long each launch of a step takes by itself.

use super::bytes::{launch_bytes, owners};
use crate::autograd::Engine;
use crate::autograd::plan::Plan;
use crate::device::StepState;
use crate::device::gpu::launch::Launch;
use crate::error::{Error, Result};
use crate::tensor::{Real, Shape};

/// One launch of a step, timed alone.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Op, phase, scope and shapes, or the purpose of a launch that the plan itself adds.
    pub label: String,
    /// The kernel's name.
    pub kernel: &'static str,
    /// Instructions that share the launch.
    pub members: usize,
    /// Shapes of the op's inputs, which are the same for all members. Empty for a launch that the plan
    /// itself adds (the gradient of the loss, the metrics).
    pub input_shapes: Vec<Shape>,
    /// The same for the op's outputs.
    pub output_shapes: Vec<Shape>,
    /// Bytes of the operands, each counted once, and twice if it is read before it is overwritten (an
    /// optimiser's state, a gradient that is added to). A lower bound of the traffic.
    pub bytes: u64,
    /// Milliseconds, one number for each repeat.
    pub ms: Vec<f32>,
}

impl<R: Real> Plan<R> {
    /// Runs the step `1 + repeats` times, launch by launch, and times each launch of all runs but the first.
    /// Before each launch `flush_bytes` are written, so that the launch finds none of its operands in a
    /// cache of fewer bytes; with 0 it finds in the cache what the launch before it left there. A CUDA
    /// device's time is that between two events, the emulator's that of the clock. The store ends as after
    /// `1 + repeats` replays of this step.
    ///
    /// Errors: a plan of the CPU, a kernel that fails, no memory for `flush_bytes`.
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
        machine.push(&store.buffers, &mut store.mirrored)?;
        let flush = machine.gpu.allocate(flush_bytes)?;
        let ready = program.ready(machine)?;
        machine.time(ready, step, &flush)?;
        let runs: Vec<Vec<f32>> =
            (0..repeats).map(|_| machine.time(ready, step, &flush)).collect::<Result<_>>()?;
        program.updates.iter().for_each(|b| store.mirrored[*b as usize].is_stale = true);
        let timing = |(i, launch): (usize, &Launch)| {
            let owners = owners(&self.instructions, program, i);
            let operands = owners.first().map(|o| &o.operands);
            Timing {
                label: program.labels[i].clone(),
                kernel: launch.kernel.name,
                members: owners.len(),
                input_shapes: operands.map(|o| o.input_shapes.clone()).unwrap_or_default(),
                output_shapes: operands.map(|o| o.output_shapes.clone()).unwrap_or_default(),
                bytes: launch_bytes(&self.instructions, program, i),
                ms: runs.iter().map(|run| run[i]).collect(),
            }
        };
        Ok(program.launches.iter().enumerate().map(timing).collect())
    }
}
