//! A stage of a run: one compiled step, and what is needed to repeat it.

use super::schedule::Schedule;
use crate::autograd::plan::Cost;
use crate::autograd::{Engine, Optimiser, Plan, Store, TensorId};
use crate::error::{Error, Result};
use crate::machine::available_memory;
use crate::ops::Op;
use crate::tensor::{Elem, Real};

/// Names of the parts of a step, whose costs forecasts tell apart. Losses, optimisers and random draws are in
/// none of them.
pub(crate) mod part {
    /// The teachers.
    pub const TEACHERS: &str = "teachers";
    /// The generator, and the filters that stage one trains.
    pub const GENERATOR: &str = "generator";
    /// The student and its filters.
    pub const STUDENT: &str = "student";
}

/// The step of a stage, ready to be repeated.
pub struct Stage {
    /// Unique within a run.
    pub name: String,
    /// The compiled step.
    pub plan: Plan<f32>,
    /// How often the step is repeated.
    pub steps: usize,
    /// How the learning rates change over the stage.
    pub schedule: Schedule,
    /// Peak learning rate by optimiser slot.
    pub learning_rates: [f32; 4],
    /// Seed of the stage's random draws, independent of other stages.
    pub seed: u64,
    /// Images per step, and the config's key for that number.
    pub batch: (usize, &'static str),
    /// How many of how many teachers keep their activations at a time, where that is a choice.
    pub teachers_at_once: Option<(usize, usize)>,
    /// Tensors that only one of several ranks trains, with that rank.
    pub owned: Vec<(usize, TensorId)>,
}

/// Writes the data of the step of this number into the store before the step runs.
pub type Feed = Box<dyn FnMut(u64, &mut Store<f32>) -> Result<()> + Send>;

impl Stage {
    /// That the teachers take turns, if they do.
    pub(crate) fn turns_in_words(&self) -> Option<String> {
        let (at_once, all) = self.teachers_at_once.filter(|(n, all)| n < all)?;
        Some(format!(
            "{}: {at_once} of {all} teachers at a time, to save memory; each runs forward twice a step",
            self.name
        ))
    }

    /// A line with the cost of a step.
    pub(crate) fn cost_in_words(&self) -> String {
        let Cost { instructions, arena_bytes, macs, bytes_moved, launches, .. } = *self.plan.cost();
        // A plan of the CPU has no launches.
        let work = match launches {
            0 => format!("{instructions} instructions"),
            launches => format!("{launches} kernel launches"),
        };
        format!(
            "{}: a step of {} images takes {work}, {:.2} GFLOP and {:.1} MB of memory traffic, and needs {:.1} MB beside the \
             tensors that it keeps",
            self.name,
            self.batch.0,
            2e-9 * macs as f64,
            bytes_moved as f64 / 1e6,
            arena_bytes as f64 / 1e6
        )
    }

    /// Reserves the memory of a step.
    ///
    /// Errors: a device without that much memory; the message says how much is needed and which batch would
    /// fit.
    pub(crate) fn reserve(&self, engine: &mut Engine<f32>) -> Result<()> {
        self.plan.reserve(engine).map_err(|e| {
            let Error::OutOfMemory(message) = &e else { return e };
            let (needed, (batch, key)) = (self.plan.cost().arena_bytes, self.batch);
            // Memory that does not depend on the batch: the store, and on a bf16 GPU copies of at most all of
            // it.
            let (fixed, room) = match engine.machine() {
                Some(machine) => {
                    let is_bf16 = machine.target.map_dtype == Elem::Bf16;
                    let copies = if is_bf16 { engine.store.bytes() / 2 } else { 0 };
                    let fixed = engine.store.bytes() + copies;
                    let free = machine.gpu.memory().map_or(0, |(free, _)| free) + machine.held_bytes();
                    (fixed, free.saturating_sub(fixed))
                }
                // On the CPU the store is allocated already.
                None => (engine.store.bytes(), available_memory().unwrap_or(0)),
            };
            // The step's memory is proportional to the batch; 2 % are left free.
            let fits = (batch as f64 * room as f64 / needed.max(1) as f64 * 0.98) as usize;
            let way_out = if fits > 0 {
                format!("a batch of about {fits} would fit: --set {key}={fits}")
            } else {
                "not even a batch of 1 would fit".into()
            };
            let way_out = match self.teachers_at_once {
                Some((2.., _)) => {
                    format!("{way_out}, or one teacher at a time: --set generator.teachers_at_once=1")
                }
                _ => way_out,
            };
            let mb = |bytes: usize| bytes as f64 / 1e6;
            Error::OutOfMemory(format!(
                "{}: {message}; a step of {batch} images needs {:.0} MB beside {:.0} MB of weights, \
                 moments and images; {way_out}",
                self.name,
                mb(needed),
                mb(fixed)
            ))
        })
    }
}

/// An optimiser with two moments per tensor, such as Adam, for `tensors`. The moments are added to the store,
/// zero, under the names `stage.moments.*`.
pub fn with_moments<R: Real>(
    store: &mut Store<R>,
    stage: &str,
    op: impl Into<Op>,
    tensors: &[TensorId],
) -> Optimiser {
    let mut owned = Vec::new();
    for id in tensors {
        let (name, shape) = (store.name(*id).to_string(), store.shape(*id));
        let moments = ["first", "second"].map(|m| store.add(&format!("{stage}.moments.{m}.{name}"), shape));
        owned.push((*id, moments.to_vec()));
    }
    Optimiser { op: op.into(), tensors: owned }
}

/// Whether memory could be reserved.
///
/// Errors: a failure that has another reason.
pub(crate) fn fits(reserved: Result<()>) -> Result<bool> {
    match reserved {
        Ok(()) => Ok(true),
        Err(Error::OutOfMemory(_)) => Ok(false),
        Err(e) => Err(e),
    }
}
