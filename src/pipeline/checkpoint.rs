//! Progress that survives a kill: which stages are done, and the tensors of the one under way.
//!
//! Random draws and learning rates are functions of the step, and optimiser moments are tensors, so these tensors and
//! the step number are all of a run's state: a resumed run computes the same bits.

use crate::autograd::Store;
use crate::error::{Error, Result};
use crate::weights::Meta;
use crate::weights::npz::{self, Array, CompressionMethod, Elems};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a finished stage leaves for the rest of the run to know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub seconds: f64,
    /// Each metric's mean over the last tenth of the stage.
    pub converged: BTreeMap<String, f64>,
}

/// Sums of the metrics over the steps that count towards `converged`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tail {
    pub sums: Vec<f64>,
    pub count: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Hash of everything the result depends on; a checkpoint of another configuration is refused.
    pub fingerprint: String,
    pub done: BTreeMap<String, Outcome>,
    /// Whose tensors these are: the student's file prefix.
    pub student: String,
    /// Stage under way and its next step.
    pub stage: String,
    pub step: u64,
    pub tail: Tail,
    /// Seconds already spent in the stage under way.
    pub seconds: f64,
}

/// Its name in the output folder.
pub const FILE: &str = "checkpoint.npz";

pub fn path(out: &Path) -> PathBuf {
    out.join(FILE)
}

/// Whether a tensor is state: not a teacher's (reloaded from its file) and not data.
fn is_state(name: &str) -> bool {
    !name.starts_with("teacher.") && !name.starts_with("data.")
}

/// The first state tensor that holds a NaN or an infinity.
pub fn not_finite(store: &Store<f32>) -> Option<&str> {
    let mut state = store.ids().filter(|id| is_state(store.name(*id)));
    state.find(|id| store.get(*id).iter().any(|v| !v.is_finite())).map(|id| store.name(id))
}

/// Writes the checkpoint, whole or not at all.
pub fn save(out: &Path, progress: &Progress, store: &Store<f32>) -> Result<()> {
    let ids: Vec<_> = store.ids().filter(|id| is_state(store.name(*id))).collect();
    let shapes: Vec<[usize; 4]> = ids.iter().map(|id| store.shape(*id).0).collect();
    let arrays: Vec<Array> = ids
        .iter()
        .zip(&shapes)
        .map(|(id, shape)| Array { name: store.name(*id), shape, elems: Elems::F32(store.get(*id)) })
        .collect();
    let text = serde_json::to_value(progress).map_err(|e| Error::Run(format!("checkpoint: {e}")))?;
    let meta: Meta = [("progress".to_string(), text)].into_iter().collect();
    npz::write(path(out), &arrays, &meta, CompressionMethod::Stored)
}

/// The progress alone; `None` when there is no checkpoint.
pub fn progress(out: &Path) -> Result<Option<Progress>> {
    let file = path(out);
    if !file.exists() {
        return Ok(None);
    }
    let meta = npz::Archive::open(&file)?.meta()?;
    crate::weights::meta_as(&file, &meta, "progress").map(Some)
}

/// Puts the checkpoint's tensors back. Every one of them must have its place; tensors that are not in the checkpoint
/// keep their initial values (the stage that owns them had not begun).
pub fn restore(out: &Path, store: &mut Store<f32>) -> Result<()> {
    let file = path(out);
    for (name, t) in npz::load(&file)?.iter() {
        let id = store
            .id(name)
            .ok_or_else(|| Error::data(&file, format!("{name}: this run has no such tensor")))?;
        if t.shape != store.shape(id).0 {
            return Err(Error::data(
                &file,
                format!("{name}: expected shape {}, found {:?}", store.shape(id), t.shape),
            ));
        }
        store.set(id, &t.data);
    }
    Ok(())
}
