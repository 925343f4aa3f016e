//! ONNX files: the engine writes them for other programs to run, and reads back only those it wrote itself.
//!
//! Our models store their weights as initializers, under the names and shapes that an npz of the same model
//! has, and the npz's `__meta__` as JSON under the metadata key `dfka`. Constants that belong only to the
//! graph have names that begin with [`CONSTANT`]. Reading takes the weights and the metadata and ignores the
//! nodes.
//!
//! The file's size bounds the memory that reading takes: a file has at most [`MAX_BYTES`], every length is
//! checked against the bytes that are there, and tensors are decoded one at a time.

pub mod float16;
pub mod proto;

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};

use super::atomic::write_atomic;
use super::common::{array_error, check_finite, element_count};
use super::meta::{MAX_META_BYTES, Meta};
use super::tensors::Tensors;
use crate::error::{Error, Result};
use proto::{ModelProto, data_type};

/// The `producer_name` of the files that can be read back.
pub const PRODUCER: &str = "dfka-engine";

/// The key in `metadata_props` of our metadata as JSON text.
pub const META: &str = "dfka";

/// The prefix of the names of constants that belong to the graph and are not weights.
pub const CONSTANT: &str = "graph.";

/// The largest message that protobuf allows.
pub const MAX_BYTES: u64 = i32::MAX as u64;

/// The most bytes of an initializer beside its elements: name, type and shape. Ours stay far below it; the
/// limit is there because a dimension takes one byte in the file and eight in memory.
const MAX_HEADER_BYTES: usize = 1 << 12;

/// The field numbers that reading needs, of ModelProto, GraphProto, StringStringEntryProto and TensorProto.
mod field {
    pub const PRODUCER_NAME: u32 = 2;
    pub const GRAPH: u32 = 7;
    pub const METADATA: u32 = 14;
    pub const INITIALIZER: u32 = 5;
    pub const KEY: u32 = 1;
    pub const VALUE: u32 = 2;
    pub const RAW_DATA: u32 = 9;
}

/// Whether a file that begins with `head` may be an ONNX file. The first field of one is its IR version, a
/// number.
pub fn is_likely(head: &[u8]) -> bool {
    head.first() == Some(&0x08)
}

/// Writes a model, atomically. The same model gives the same bytes.
///
/// Errors: a model larger than [`MAX_BYTES`], a failed write.
pub fn save(path: impl AsRef<Path>, model: &ModelProto) -> Result<()> {
    let (path, bytes) = (path.as_ref(), model.encoded_len() as u64);
    if bytes > MAX_BYTES {
        let message = format!("an ONNX file holds at most {MAX_BYTES} bytes, this model needs {bytes}");
        return Err(Error::data(path, message));
    }
    write_atomic(path, |w| w.write_all(&model.encode_to_vec()))
}

/// Reads the weights and the metadata of a model that [`save`] wrote.
///
/// Errors: a file of another producer or format, a damaged one, or one with numbers that are not finite.
pub fn load(path: impl AsRef<Path>) -> Result<Tensors> {
    let path = path.as_ref();
    parse(&read(path)?, path)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let cannot = |e: std::io::Error| Error::data(path, format!("cannot read: {e}"));
    let file = File::open(path).map_err(|e| Error::data(path, format!("cannot open: {e}")))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::data(
            path,
            format!("expected an ONNX file of at most {MAX_BYTES} bytes, found more"),
        ));
    }
    Ok(bytes)
}

/// As [`load`], from the bytes of a file. `path` is for error messages.
pub fn parse(bytes: &[u8], path: &Path) -> Result<Tensors> {
    let error = |m: String| Error::data(path, m);
    let damaged = |m: String| error(format!("expected an ONNX file, found damage: {m}"));
    let (mut producer, mut graph, mut meta) = (None, None, None);
    for part in Fields(bytes) {
        let (number, value) = part.map_err(damaged)?;
        let Some(value) = value else { continue };
        let twice = match number {
            field::PRODUCER_NAME => producer.replace(value).is_some(),
            field::GRAPH => graph.replace(value).is_some(),
            field::METADATA => {
                let (key, text) = property(value).map_err(damaged)?;
                key == META.as_bytes() && meta.replace(text).is_some()
            }
            _ => false,
        };
        if twice {
            return Err(damaged(format!("field {number} occurs twice")));
        }
    }
    let producer = String::from_utf8_lossy(producer.unwrap_or_default());
    let (Some(graph), Some(meta), true) = (graph, meta, producer == PRODUCER) else {
        return Err(error(format!(
            "only ONNX files that dfka-engine exported can be read back; the producer of this one is {}",
            if producer.is_empty() { "not named".into() } else { format!("{producer:?}") }
        )));
    };

    let mut out = Tensors::of_file(path, parse_meta(meta).map_err(error)?);
    for part in Fields(graph) {
        let (number, value) = part.map_err(damaged)?;
        let (field::INITIALIZER, Some(value)) = (number, value) else { continue };
        let tensor = initializer(value).map_err(damaged)?;
        let name = tensor.name.clone().unwrap_or_default();
        if name.starts_with(CONSTANT) {
            continue;
        }
        let (shape, data) = floats(&tensor).map_err(|m| array_error(path, &name, m))?;
        out.insert(name, &shape, data)?;
    }
    Ok(out)
}

fn parse_meta(text: &[u8]) -> Result<Meta, String> {
    if text.len() > MAX_META_BYTES {
        return Err(format!(
            "metadata {META:?}: expected at most {MAX_META_BYTES} bytes, found {}",
            text.len()
        ));
    }
    serde_json::from_slice(text).map_err(|e| format!("metadata {META:?}: expected a JSON object: {e}"))
}

/// The key and the value of a StringStringEntryProto.
fn property(bytes: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let (mut key, mut text) = (&bytes[..0], &bytes[..0]);
    for part in Fields(bytes) {
        match part? {
            (field::KEY, Some(value)) => key = value,
            (field::VALUE, Some(value)) => text = value,
            _ => {}
        }
    }
    Ok((key, text))
}

/// Decodes a TensorProto that has at most [`MAX_HEADER_BYTES`] beside its elements.
fn initializer(bytes: &[u8]) -> Result<proto::TensorProto, String> {
    let mut elements = 0;
    for part in Fields(bytes) {
        if let (field::RAW_DATA, Some(value)) = part? {
            elements += value.len();
        }
    }
    let rest = bytes.len() - elements;
    if rest > MAX_HEADER_BYTES {
        return Err(format!(
            "an initializer has {rest} bytes beside its raw data, at most {MAX_HEADER_BYTES} are read"
        ));
    }
    proto::TensorProto::decode(bytes).map_err(|e| e.to_string())
}

/// The shape and the elements of an initializer of float or float16.
///
/// Errors: another type, a shape that does not fit the elements, an element that is not finite.
fn floats(t: &proto::TensorProto) -> Result<(Vec<usize>, Vec<f32>), String> {
    let size = match t.data_type.unwrap_or_default() {
        data_type::FLOAT => 4,
        data_type::FLOAT16 => 2,
        found => {
            return Err(format!(
                "expected elements of float or float16 (ONNX data types 1 and 10), found data type {found}"
            ));
        }
    };
    let shape: Option<Vec<usize>> = t.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
    let count = shape.as_deref().and_then(element_count);
    let raw = t.raw_data.as_deref().unwrap_or_default();
    let (Some(shape), Some(count)) = (shape, count) else {
        return Err(format!("expected a shape, found {:?}", t.dims));
    };
    if count.checked_mul(size) != Some(raw.len()) {
        return Err(format!(
            "expected {count} elements of {size} bytes for shape {shape:?}, found {} bytes",
            raw.len()
        ));
    }
    let data: Vec<f32> = match size {
        4 => raw.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        _ => raw.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
    };
    check_finite(&data, &shape)?;
    Ok((shape, data))
}

/// Iterates over the fields of a protobuf message. An item is the field's number and, for a length-delimited
/// field, its bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u32, Option<&'a [u8]>), String> {
        let (number, wire) = decode_key(&mut self.0).map_err(|e| e.to_string())?;
        let length = match wire {
            WireType::Varint => decode_varint(&mut self.0).map(|_| 0).map_err(|e| e.to_string())?,
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => decode_varint(&mut self.0).map_err(|e| e.to_string())?,
            WireType::StartGroup | WireType::EndGroup => return Err(format!("field {number} is a group")),
        };
        let split = usize::try_from(length).ok().and_then(|n| self.0.split_at_checked(n));
        let Some((value, rest)) = split else {
            return Err(format!("field {number} has {length} bytes of the {} left", self.0.len()));
        };
        self.0 = rest;
        Ok((number, (wire == WireType::LengthDelimited).then_some(value)))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Option<&'a [u8]>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests;
