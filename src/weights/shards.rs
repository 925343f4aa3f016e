//! Weights in several safetensors files, the shards, with a JSON file that says which of them has which
//! tensor. Hugging Face's libraries write such an index as `model.safetensors.index.json`:
//!
//! ```json
//! {"metadata": {"total_size": 9}, "weight_map": {"conv1.weight": "model-00001-of-00002.safetensors"}}
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::common::{MAX_BYTES, array_error, is_batch_counter, refuse_pipe};
use super::foreign;
use super::safetensors;
use super::tensors::Tensors;
use crate::error::{Error, Result};
use crate::text;

/// The largest index that is read; that of ResNet-152 (932 tensors) takes 0.1 MB.
const MAX_INDEX_BYTES: u64 = 8 << 20;

#[derive(Deserialize)]
struct RawIndex {
    weight_map: Option<WeightMap>,
}

/// The shard of each tensor, by the tensor's name.
struct WeightMap(BTreeMap<String, String>);

// Written by hand because a map that is derived keeps the last of two entries of one name.
impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct EachOnce;
        impl<'de> Visitor<'de> for EachOnce {
            type Value = WeightMap;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object with a file's name for each tensor")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<WeightMap, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((tensor, shard)) = entries.next_entry::<String, String>()? {
                    if let Some(first) = map.insert(tensor.clone(), shard.clone()) {
                        let message = format!("the tensor {tensor} is listed in {first} and in {shard}");
                        return Err(serde::de::Error::custom(message));
                    }
                }
                Ok(WeightMap(map))
            }
        }
        d.deserialize_map(EachOnce)
    }
}

/// The shard of each tensor, by the tensor's name, as the index `path` lists them.
fn weight_map(path: &Path) -> Result<BTreeMap<String, String>> {
    let wrong = |m: String| Error::data(path, m);
    let mut text = Vec::new();
    let file = File::open(path).map_err(|e| wrong(format!("cannot open: {e}")))?;
    file.take(MAX_INDEX_BYTES + 1).read_to_end(&mut text).map_err(|e| wrong(format!("cannot read: {e}")))?;
    if text.len() as u64 > MAX_INDEX_BYTES {
        return Err(wrong(format!("expected an index of at most {MAX_INDEX_BYTES} bytes, found more")));
    }
    let raw: RawIndex = serde_json::from_slice(text::without_mark(&text)).map_err(|e| {
        let in_json = || format!("expected weights or an index of safetensors files in JSON: {e}");
        wrong(text::fault(&text).map_or_else(in_json, |f| format!("line {}: {}", f.line, f.message)))
    })?;
    let Some(WeightMap(map)) = raw.weight_map.filter(|map| !map.0.is_empty()) else {
        let message = "expected an npz, safetensors or ONNX file, found JSON text without a `weight_map`, which an index \
                       of safetensors files has";
        return Err(wrong(message.into()));
    };
    Ok(map)
}

/// The path of a shard, which is relative to the index.
fn shard_path(index: &Path, shard: &str) -> Result<PathBuf> {
    let is_below = Path::new(shard).components().all(|part| matches!(part, Component::Normal(_)));
    if shard.is_empty() || !is_below {
        let message =
            format!("weight_map: expected a file in the folder of the index or below it, found {shard:?}");
        return Err(Error::data(index, message));
    }
    Ok(index.parent().unwrap_or(Path::new("")).join(shard))
}

/// Reads all tensors of the shards that the index `path` lists, and their metadata.
///
/// Errors: an index of another structure, a shard that is missing or damaged, a tensor that its shard does
/// not have, that two shards have, or that the index does not list; two shards with different metadata.
pub fn load(path: &Path) -> Result<Tensors> {
    let map = weight_map(path)?;
    let mut out = Tensors::of_file(path, serde_json::Map::new());
    let (mut found, mut bytes) = (BTreeSet::new(), 0u64);
    for file in files(path)?.into_iter().skip(1) {
        bytes = bytes.saturating_add(file.metadata().map_or(0, |m| m.len()));
        if bytes > MAX_BYTES {
            let message = format!("expected shards of at most {MAX_BYTES} bytes together, found more");
            return Err(Error::data(path, message));
        }
        let shard = read_shard(path, &file)?;
        for (key, value) in &shard.meta {
            if out.meta.get(key).is_some_and(|known| known != value) {
                let message = format!("the metadata's entry {key:?} differs from that of an earlier shard");
                return Err(Error::data(file, message));
            }
            out.meta.insert(key.clone(), value.clone());
        }
        for (name, content) in shard.into_contents() {
            expect_listed(path, &file, &name, map.get(&name))?;
            found.insert(name.clone());
            match content {
                Ok(tensor) => out.insert_tensor(name, tensor)?,
                Err(message) => out.leave_unread(name, message),
            }
        }
    }
    match map.iter().find(|(name, _)| !found.contains(*name) && !is_batch_counter(name)) {
        None => Ok(out),
        Some((name, shard)) => {
            let message = format!("expected it in {shard}, as the index says, found no such tensor");
            Err(array_error(path, name, message))
        }
    }
}

/// Requires that the index lists the tensor `name`, which is in the file `shard`, for that shard.
fn expect_listed(index: &Path, shard: &Path, name: &str, listed: Option<&String>) -> Result<()> {
    let message = match listed.map(|listed| shard_path(index, listed)).transpose()? {
        Some(listed) if listed == shard => return Ok(()),
        Some(listed) => format!("the index lists it in {}", listed.display()),
        None => format!("the index {} does not list it", index.display()),
    };
    Err(array_error(shard, name, message))
}

fn read_shard(index: &Path, file: &Path) -> Result<Tensors> {
    let open =
        |e: std::io::Error| Error::data(file, format!("cannot open this shard of {}: {e}", index.display()));
    refuse_pipe(file)?;
    let mut head = Vec::new();
    let opened = File::open(file).map_err(open)?;
    opened.take(foreign::HEAD).read_to_end(&mut head).map_err(open)?;
    match foreign::describe(&head).filter(|_| !foreign::is_safetensors(&head)) {
        Some(found) => Err(Error::data(file, format!("expected a safetensors file, found {found}"))),
        None => safetensors::load_floats(file),
    }
}

/// The index `path` and its shards, each once, in the order of their names.
///
/// Errors: an index of another structure.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let map = weight_map(path)?;
    let shards = map.values().map(|shard| shard_path(path, shard)).collect::<Result<Vec<_>>>()?;
    let each_once: BTreeSet<PathBuf> = shards.into_iter().collect();
    Ok([path.to_path_buf()].into_iter().chain(each_once).collect())
}
