//! Progress that survives a kill: which stages are finished, and the tensors of the current one.
//!
//! Random draws and learning rates are functions of the step, and optimiser moments are tensors, so the
//! tensors and the step number are all of a run's state: a resumed run computes the same bits.
//!
//! The last two checkpoints are kept, each sealed by a checksum. If the newest one is damaged, the run
//! resumes from the one before it and repeats some steps.

use crate::autograd::Store;
use crate::error::{Error, Result};
use crate::weights::npz::{self, Array, Elems};
use crate::weights::{Meta, seal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the rest of a run needs of a finished stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageResult {
    /// Wall clock.
    pub seconds: f64,
    /// Each metric's mean over the last tenth of the stage.
    pub converged: BTreeMap<String, f64>,
}

/// Sums of the metrics over the steps that count towards `converged`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tail {
    /// By metric.
    pub sums: Vec<f64>,
    /// Steps that were added.
    pub count: u64,
}

/// How far a run has come; a checkpoint's metadata.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Hash of everything that the result depends on; a checkpoint of another configuration is refused.
    pub fingerprint: String,
    /// The finished stages, by name.
    pub done: BTreeMap<String, StageResult>,
    /// The files of the finished stages on which the rest of the run builds, by name, each with the hash of its contents;
    /// empty in checkpoints of versions that did not write them, whose files are used unseen.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// File prefix of the student that the checkpoint's tensors belong to.
    pub student: String,
    /// The current stage; empty between stages.
    pub stage: String,
    /// The current stage's next step.
    pub step: u64,
    /// The current stage's metrics so far.
    pub tail: Tail,
    /// Seconds already spent in the current stage.
    pub seconds: f64,
    /// Seconds already spent in the whole run, over all calls of the program; 0 in checkpoints of versions that
    /// did not count them.
    #[serde(default)]
    pub total: f64,
}

impl Progress {
    /// A line that says where a run resumes.
    pub fn place(&self) -> String {
        match (self.stage.as_str(), self.done.len()) {
            ("", 1) => "resumed after the first stage".into(),
            ("", n) => format!("resumed after {n} finished stages"),
            (stage, _) => format!("resumed at step {} of {stage}", self.step),
        }
    }

    /// Whether step `step` of `stage` was done when this was written.
    pub fn covers(&self, stage: &str, step: usize) -> bool {
        self.done.contains_key(stage) || (self.stage == stage && (step as u64) < self.step)
    }
}

/// Name of the newest checkpoint in the output folder.
pub const FILE: &str = "checkpoint.npz";
/// Name of the one before it.
pub const PREVIOUS: &str = "checkpoint-previous.npz";

/// Whether a tensor is part of the run's state. Teachers' tensors are not: they never change. Nor is data.
fn is_state(name: &str) -> bool {
    !name.starts_with("teacher.") && !name.starts_with("data.")
}

/// Bytes of the tensors that a checkpoint holds.
pub fn state_bytes(store: &Store<f32>) -> u64 {
    let state = store.ids().filter(|id| is_state(store.name(*id)));
    state.map(|id| (store.shape(id).elems() * size_of::<f32>()) as u64).sum()
}

/// The first state tensor that holds a NaN or an infinity.
pub fn not_finite(store: &Store<f32>) -> Option<&str> {
    let mut state = store.ids().filter(|id| is_state(store.name(*id)));
    state.find(|id| store.get(*id).iter().any(|v| !v.is_finite())).map(|id| store.name(id))
}

/// A hash of the run's state, for the comparison of ranks: FNV-1a over the bits of every element.
pub fn hash(store: &Store<f32>) -> u64 {
    let state = store.ids().filter(|id| is_state(store.name(*id)));
    let bits = state.flat_map(|id| store.get(id)).map(|v| u64::from(v.to_bits()));
    bits.fold(0xcbf2_9ce4_8422_2325, |hash, bits| (hash ^ bits).wrapping_mul(0x100_0000_01b3))
}

/// Writes a checkpoint, whole or not at all. What was the newest one becomes the previous one.
///
/// Errors: a file that cannot be written.
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
    npz::write_sealed(&out.join(FILE), &out.join(PREVIOUS), &arrays, &meta)
}

/// A checkpoint whose checksum is right.
pub struct Found {
    /// Its path.
    pub file: PathBuf,
    /// Its metadata.
    pub progress: Progress,
    /// What is wrong with the newest checkpoint, if this is the one before it.
    pub fell_back: Option<String>,
}

/// The newest checkpoint in `out` that is not damaged; `None` where there is no checkpoint.
///
/// Errors: every checkpoint that exists is damaged.
pub fn find(out: &Path) -> Result<Option<Found>> {
    let mut damaged: Vec<String> = Vec::new();
    let files = [FILE, PREVIOUS].map(|name| out.join(name)).into_iter().filter(|file| file.exists());
    for file in files {
        match seal::check(&file) {
            Ok(()) => {
                let meta = open(&file)?.meta()?;
                let progress = crate::weights::meta_as(&file, &meta, "progress")?;
                let fell_back = damaged.pop();
                return Ok(Some(Found { file, progress, fell_back }));
            }
            Err(why) => damaged.push(format!("{} is damaged: {why}", file.display())),
        }
    }
    if damaged.is_empty() {
        return Ok(None);
    }
    Err(Error::data(out, format!("no checkpoint to resume from: {}", damaged.join("; "))))
}

/// Opens a checkpoint without a limit on its size: no more is read of it than tensors of the store hold.
fn open(file: &Path) -> Result<npz::Archive> {
    npz::Archive::open_up_to(file, u64::MAX)
}

/// Restores the tensors of the checkpoint `file`. Tensors of the store that it does not hold keep their
/// initial values: the stage that they belong to had not begun.
///
/// Errors: a tensor that the store does not have, or has in another shape.
pub fn restore(file: &Path, store: &mut Store<f32>) -> Result<()> {
    let mut archive = open(file)?;
    let names: Vec<String> = archive.names().map(str::to_owned).collect();
    for name in names {
        let id = store
            .id(&name)
            .ok_or_else(|| Error::data(file, format!("{name}: this run has no such tensor")))?;
        let (expected, found) = (store.shape(id), archive.shape(&name)?);
        if found != expected.0 {
            return Err(Error::data(file, format!("{name}: expected shape {expected}, found {found:?}")));
        }
        store.set(id, &archive.floats(&name)?.data);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;
    use std::fs;

    fn saved(folder: &Path, steps: std::ops::Range<u64>) -> Store<f32> {
        let mut store = Store::default();
        let id = store.add("student.w", Shape::vector(3));
        store.add_with("teacher.a.w", Shape::vector(1), &[7f32]);
        for step in steps {
            store.set(id, &[step as f32; 3]);
            let progress = Progress { stage: "block1".into(), step, ..Default::default() };
            save(folder, &progress, &store).unwrap();
        }
        store
    }

    fn damage(file: &Path) {
        let mut bytes = fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(file, bytes).unwrap();
    }

    #[test]
    fn the_newest_undamaged_checkpoint_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find(dir.path()).unwrap().is_none());
        let mut store = saved(dir.path(), 1..4);
        let at = |found: &Found| (found.progress.step, found.fell_back.is_some());

        let newest = find(dir.path()).unwrap().unwrap();
        assert_eq!(at(&newest), (3, false));
        let id = store.id("student.w").unwrap();
        store.set(id, &[0f32; 3]);
        restore(&newest.file, &mut store).unwrap();
        assert_eq!(store.get(id), [3.0; 3]);

        damage(&dir.path().join(FILE));
        let older = find(dir.path()).unwrap().unwrap();
        assert_eq!(at(&older), (2, true));
        assert!(older.fell_back.as_ref().unwrap().contains("checkpoint.npz is damaged: its checksum"));
        restore(&older.file, &mut store).unwrap();
        assert_eq!(store.get(id), [2.0; 3]);

        damage(&dir.path().join(PREVIOUS));
        let e = find(dir.path()).err().unwrap();
        assert_eq!(e.exit_code(), 4);
        assert!(e.to_string().contains(FILE) && e.to_string().contains(PREVIOUS), "{e}");
        // Killed between the two renames of a save.
        saved(dir.path(), 5..7);
        fs::remove_file(dir.path().join(FILE)).unwrap();
        assert_eq!(at(&find(dir.path()).unwrap().unwrap()), (5, false));
    }

    #[test]
    fn a_checkpoint_of_a_version_without_hashes_of_files_is_read() {
        let progress = Progress { stage: "block1".into(), step: 3, ..Default::default() };
        let mut old = serde_json::to_value(&progress).unwrap();
        let fields = old.as_object_mut().unwrap();
        assert!(fields.remove("files").is_some() && fields.remove("total").is_some());
        assert_eq!(serde_json::from_value::<Progress>(old).unwrap(), progress);
    }

    #[test]
    fn an_error_names_the_tensor_that_does_not_fit() {
        let dir = tempfile::tempdir().unwrap();
        saved(dir.path(), 1..2);
        let file = dir.path().join(FILE);
        let mut other = Store::default();
        let e = restore(&file, &mut other).unwrap_err();
        assert!(e.exit_code() == 4 && e.to_string().contains("student.w: this run has no such"), "{e}");
        other.add("student.w", Shape::vector(4));
        let e = restore(&file, &mut other).unwrap_err().to_string();
        assert!(e.contains("student.w: expected shape [1, 1, 1, 4], found [1, 1, 1, 3]"), "{e}");
    }
}
