//! The safetensors format: a JSON header of names, types, shapes and offsets, then the bytes.
//!
//! Reading accepts F32, F16, BF16 and F64, and converts them to float32. The safetensors crate parses the
//! header and checks that the offsets are contiguous and match shapes and types. The tensors are then read
//! one at a time, so that a file is never in memory twice and no buffer is larger than the bytes that
//! arrived.
//!
//! The format's `__metadata__` maps names to strings. All metadata of [`Tensors`] is stored as JSON text
//! under [`OURS`], and the entries in [`PLAIN`], which other programs may look for, are repeated under their
//! own names.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::Value;

use super::atomic::write_atomic;
use super::common::{CHUNK, MAX_BYTES, array_error, check_finite, is_batch_counter};
use super::meta::{META, Meta};
use super::tensors::{HostTensor, Tensors};
use crate::error::{Error, Result};

/// The entry of `__metadata__` that holds all of our metadata as JSON text.
pub const OURS: &str = "dfka";

/// Entries of our metadata that are repeated beside [`OURS`], each as JSON text. From a file without
/// [`OURS`], which is another program's, these are read if they are lists of texts (labels) or of numbers.
pub const PLAIN: [&str; 4] = ["labels", "mean", "std", "thresholds"];

const METADATA: &str = "__metadata__";

/// The header of ResNet-152 (932 tensors) takes 0.1 MB.
const MAX_HEADER_BYTES: u64 = 8 << 20;

/// The most dimensions of a tensor; numpy has the same limit.
const MAX_RANK: usize = 64;

/// Reads every tensor of `path` and the metadata, if there is any. PyTorch's batch counters are left out.
///
/// Errors: damage, another type than a float, numbers that are not finite, more than 4 GiB.
pub fn load(path: impl AsRef<Path>) -> Result<Tensors> {
    let tensors = load_floats(path.as_ref())?;
    tensors.expect_all_read()?;
    Ok(tensors)
}

/// As [`load`], but leaves out the tensors that are not of finite floats (see [`Tensors::unread`]).
pub(super) fn load_floats(path: &Path) -> Result<Tensors> {
    let file = File::open(path).map_err(|e| Error::data(path, format!("cannot open: {e}")))?;
    let bytes = file.metadata().map_err(|e| Error::data(path, format!("cannot read: {e}")))?.len();
    read_floats(&mut BufReader::new(file), bytes, path)
}

/// As [`load`], from a stream of `bytes` bytes. `file` is for error messages.
pub fn read(r: &mut impl Read, bytes: u64, file: &Path) -> Result<Tensors> {
    let tensors = read_floats(r, bytes, file)?;
    tensors.expect_all_read()?;
    Ok(tensors)
}

fn read_floats(r: &mut impl Read, bytes: u64, file: &Path) -> Result<Tensors> {
    let wrong = |message: String| Error::data(file, message);
    if bytes > MAX_BYTES + MAX_HEADER_BYTES {
        return Err(wrong(format!("expected at most {MAX_BYTES} bytes of tensors, found a file of {bytes}")));
    }
    let short = |e: std::io::Error| wrong(format!("expected a safetensors header, found the end: {e}"));
    let mut length = [0; 8];
    r.read_exact(&mut length).map_err(short)?;
    let length = u64::from_le_bytes(length);
    let most = bytes.saturating_sub(8).min(MAX_HEADER_BYTES);
    if length > most {
        return Err(wrong(format!("expected a safetensors header of at most {most} bytes, found {length}")));
    }
    let mut text = vec![0; length as usize];
    r.read_exact(&mut text).map_err(short)?;
    let header: Metadata =
        serde_json::from_slice(&text).map_err(|e| wrong(format!("malformed safetensors header: {e}")))?;
    let (expected, found) = (header.data_len() as u64, bytes - 8 - length);
    if expected != found {
        return Err(wrong(format!("expected {expected} bytes of tensors, found {found}")));
    }
    let mut out = Tensors::of_file(file, meta(file, &header)?);
    for name in header.offset_keys() {
        let info = header.info(&name).ok_or_else(|| array_error(file, &name, "expected it in the header"))?;
        match tensor(r, &name, info).map_err(|m| array_error(file, &name, m))? {
            Content::Floats(tensor) => out.insert_tensor(name, tensor)?,
            Content::Unread(message) => out.leave_unread(name, message),
            Content::BatchCounter => {}
        }
    }
    Ok(out)
}

fn meta(file: &Path, header: &Metadata) -> Result<Meta> {
    let Some(all) = header.metadata() else { return Ok(Meta::new()) };
    if let Some(text) = all.get(OURS) {
        let wrong = |e| Error::data(file, format!("{METADATA}: {OURS}: expected a JSON object: {e}"));
        return serde_json::from_str(text).map_err(wrong);
    }
    // In another program's file an entry may mean anything, so one of another form than ours is ignored. A
    // config can state labels, mean and deviation instead.
    let parsed = |name: &str| {
        let value = serde_json::from_str::<Value>(all.get(name)?).ok()?;
        let is_item = if name == "labels" { Value::is_string } else { Value::is_number };
        value.as_array().is_some_and(|items| items.iter().all(is_item)).then(|| (name.to_owned(), value))
    };
    let mut meta: Meta = PLAIN.into_iter().filter_map(parsed).collect();
    // One of the two alone describes no normalisation.
    if !(meta.contains_key("mean") && meta.contains_key("std")) {
        ["mean", "std"].iter().for_each(|key| {
            meta.remove(*key);
        });
    }
    Ok(meta)
}

/// What a tensor of a file is.
enum Content {
    Floats(HostTensor),
    /// No finite floats; the message says what was found.
    Unread(String),
    BatchCounter,
}

/// Reads the next tensor of the stream.
fn tensor(r: &mut impl Read, name: &str, info: &TensorInfo) -> Result<Content, String> {
    let bytes = info.data_offsets.1 - info.data_offsets.0;
    if info.shape.len() > MAX_RANK {
        return Err(format!("expected at most {MAX_RANK} dimensions, found {}", info.shape.len()));
    }
    if name == META {
        return Err("the name is reserved for labels and other text".into());
    }
    if is_batch_counter(name) {
        values(r, bytes, 1, |_| ())?;
        return Ok(Content::BatchCounter);
    }
    let data = match info.dtype {
        Dtype::F32 => values(r, bytes, 4, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        Dtype::F16 => values(r, bytes, 2, |b| f16::from_le_bytes([b[0], b[1]]).to_f32()),
        Dtype::BF16 => values(r, bytes, 2, |b| bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        Dtype::F64 => values(r, bytes, 8, |b| {
            f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32
        }),
        other => {
            values(r, bytes, 1, |_| ())?;
            return Ok(Content::Unread(format!("expected dtype F32 (or F64, F16, BF16), found {other}")));
        }
    }?;
    Ok(match check_finite(&data, &info.shape) {
        Ok(()) => Content::Floats(HostTensor { shape: info.shape.clone(), data }),
        Err(message) => Content::Unread(message),
    })
}

/// Reads and decodes elements of `size` bytes each. `bytes`, their size together, is a multiple of `size`.
fn values<T>(
    r: &mut impl Read,
    bytes: usize,
    size: usize,
    decode: impl Fn(&[u8]) -> T,
) -> Result<Vec<T>, String> {
    let mut out = Vec::with_capacity((bytes / size).min(CHUNK));
    let mut buf = vec![0; bytes.min(CHUNK * size)];
    let mut left = bytes;
    while left > 0 {
        let n = left.min(buf.len());
        r.read_exact(&mut buf[..n]).map_err(|e| {
            format!("expected {bytes} bytes, found damage or the end after {}: {e}", bytes - left)
        })?;
        out.extend(buf[..n].chunks_exact(size).map(&decode));
        left -= n;
    }
    Ok(out)
}

/// Writes `tensors` as float32, and their metadata, to `path`, atomically. The same tensors give the same
/// bytes.
///
/// Errors: what [`load`] would not read back, a failed write.
pub fn save(path: impl AsRef<Path>, tensors: &Tensors) -> Result<()> {
    let path = path.as_ref();
    let header = header(path, tensors)?;
    write_atomic(path, |w| {
        w.write_all(&(header.len() as u64).to_le_bytes())?;
        w.write_all(header.as_bytes())?;
        for (_, t) in tensors.iter() {
            for chunk in t.data.chunks(CHUNK) {
                w.write_all(&chunk.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())?;
            }
        }
        Ok(())
    })
}

/// The header as JSON text, padded to a multiple of eight bytes.
///
/// The safetensors crate has a writer, but it keeps `__metadata__` in a hash map, so that the order of its
/// entries, and with it the file's bytes, would differ from run to run.
fn header(path: &Path, tensors: &Tensors) -> Result<String> {
    let json = |v: serde_json::Result<Value>| v.map_err(|e| Error::data(path, format!("header: {e}")));
    let mut header = serde_json::Map::new();
    if !tensors.meta.is_empty() {
        let plain = PLAIN.iter().filter_map(|k| Some((*k, tensors.meta.get(*k)?.to_string())));
        let ours = (OURS, Value::from(tensors.meta.clone()).to_string());
        let all: BTreeMap<&str, String> = plain.chain([ours]).collect();
        header.insert(METADATA.into(), json(serde_json::to_value(all))?);
    }
    let mut end = 0;
    for (name, t) in tensors.iter() {
        if name == METADATA || t.shape.len() > MAX_RANK {
            return Err(array_error(path, name, "safetensors cannot store this name or so many dimensions"));
        }
        check_finite(&t.data, &t.shape).map_err(|m| array_error(path, name, m))?;
        let start = end;
        end += 4 * t.data.len();
        let info = TensorInfo { dtype: Dtype::F32, shape: t.shape.clone(), data_offsets: (start, end) };
        header.insert(name.into(), json(serde_json::to_value(info))?);
    }
    let mut text = Value::from(header).to_string();
    // The format asks that tensors begin at a multiple of eight bytes.
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    if end as u64 > MAX_BYTES || text.len() as u64 > MAX_HEADER_BYTES {
        let (most, header) = (MAX_BYTES, text.len());
        return Err(Error::data(
            path,
            format!("expected at most {most} bytes of tensors, found {end} and a header of {header}"),
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
