//! Whether the tensors that outlive a step fit in memory, before the first of them is allocated: a process that asks for
//! more than there is ends without a message.

use super::spec::{ImageSource, RunSpec, StudentInit};
use super::stage_one::StageOne;
use super::stage_two::StageTwo;
use super::tasks::tasks;
use super::teachers::{OpenedTeacher, Teachers};
use crate::autograd::Store;
use crate::device::memory;
use crate::error::{Error, Result};
use std::cmp::Reverse;

/// Checks that this machine has room for the teachers, the generator, the bank of images, the student and all moments of
/// the student that `spec` describes. They are counted in a store without memory.
///
/// Errors: out of memory, with the config's keys that lower it; teachers that do not fit each other or the spec.
pub fn expect_room(spec: &RunSpec, opened: &[OpenedTeacher]) -> Result<()> {
    // No tensor's values are needed, and so no file.
    let mut bare = spec.clone();
    bare.student.init = StudentInit::Scratch;
    let opened: Vec<_> = opened.iter().map(|t| OpenedTeacher { tensors: None, ..t.clone() }).collect();
    let mut store = Store::planned(None);
    let teachers = Teachers::build(&mut store, &opened, &bare.student)?;
    let tasks = tasks(&teachers, &bare.student)?;
    let mut one = None;
    if bare.dual.images == ImageSource::Generator {
        StageOne::expect_room(&bare, &teachers.network)?;
        let made = one.insert(StageOne::new(&mut store, &bare, &teachers));
        made.optimiser(&mut store, &bare);
    }
    let two = StageTwo::new(&mut store, &bare, &teachers, tasks, one.as_ref())?;
    for b in 1..=teachers.network.blocks() {
        two.optimiser(&mut store, &bare, b);
    }
    expect_room_for(&store, "generator.widths, generator.latent or dual.bank")
}

/// Checks that this machine has room for the tensors of a store without memory, and for a copy of the largest, which is
/// drawn before it is stored. `keys` are those of the config that lower it.
///
/// Errors: out of memory.
pub fn expect_room_for(store: &Store<f32>, keys: &str) -> Result<()> {
    // Of equal ones the first, which is a weight and not its moment.
    let Some(largest) = store.ids().min_by_key(|id| Reverse(store.slot(*id).bytes)) else { return Ok(()) };
    let what = format!(
        "weights, moments and images, of which {} {} is the largest",
        store.name(largest),
        store.shape(largest)
    );
    let bytes = store.bytes() + store.slot(largest).bytes;
    memory::expect_room(&what, bytes).map_err(|e| match e {
        Error::OutOfMemory(message) => Error::OutOfMemory(format!("{message}; lower {keys}")),
        e => e,
    })
}
