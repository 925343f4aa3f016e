//! The npz format itself, and a way to write zips that a mutation does not break at once.

use super::{Outcome, refused, scratch, written};
use dfka_engine::error::Result;
use dfka_engine::weights::{Tensors, npz, safetensors as safetensors_file};
use std::io::{Cursor, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The bytes of a whole file.
pub fn npz(bytes: &[u8]) -> Outcome {
    tensors(&written("w.npz", bytes), "copy.npz", |p| npz::load(p), |p, t| npz::save(p, t))
}

/// The bytes of one array, in a zip whose checksum is right: a checksum that is wrong hides everything behind it.
pub fn npy(bytes: &[u8]) -> Outcome {
    npz(&zip([("x".into(), bytes.to_vec())]))
}

/// The bytes of a whole file.
pub fn safetensors(bytes: &[u8]) -> Outcome {
    let (load, save) =
        (|p: &Path| safetensors_file::load(p), |p: &Path, t: &Tensors| safetensors_file::save(p, t));
    tensors(&written("w.safetensors", bytes), "copy.safetensors", load, save)
}

/// Loads float tensors; accepted ones are the same after saving and loading.
fn tensors(
    path: &Path,
    copy: &str,
    load: fn(&Path) -> Result<Tensors>,
    save: fn(&Path, &Tensors) -> Result<()>,
) -> Outcome {
    let tensors = match load(path) {
        Ok(tensors) => tensors,
        Err(e) => return refused(&e, 4, path),
    };
    let copy = scratch(copy);
    save(&copy, &tensors).expect("what was read can be written");
    let again = load(&copy).expect("what was written can be read");
    assert_eq!(tensors.meta, again.meta);
    assert_eq!(tensors.len(), again.len());
    for ((name, t), (other, u)) in tensors.iter().zip(again.iter()) {
        assert_eq!((name, &t.shape), (other, &u.shape));
        let same = t.data.iter().zip(&u.data).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same && t.data.len() == u.data.len() && t.data.iter().all(|v| v.is_finite()), "{name}");
    }
    Outcome::Accepted
}

/// An npz of `(array, npy bytes)`; of arrays with one name the first.
pub fn zip(entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in entries {
        if zip.start_file(format!("{name}.npy"), stored).is_ok() {
            zip.write_all(&bytes).expect("memory takes bytes");
        }
    }
    zip.finish().expect("memory takes a zip").into_inner()
}

/// An npz described in few bytes, so that a mutation changes a shape or a name rather than a checksum.
///
/// A record is a name (its length in a byte, then its bytes), a letter and what belongs to it: `j` a JSON text (length in
/// two bytes, least first) as uint8; `n` an npy file as it is (length likewise); `f` or `u` an array of float32 or uint8
/// (count of dimensions, then a byte each) whose elements repeat a small pattern. A claim beyond 2^16 elements gets only 64.
pub fn recorded(mut bytes: &[u8]) -> Vec<u8> {
    let mut entries = Vec::new();
    let r = &mut bytes;
    while let Some(n) = byte(r) {
        let name = String::from_utf8_lossy(take(r, n as usize)).into_owned();
        let body = match byte(r) {
            Some(b'j') => {
                let text = sized(r);
                [header("|u1", &[text.len()]), text.to_vec()].concat()
            }
            Some(b'f') => array(r, "<f4", |i| ((i % 7) as f32 * 0.25 + 0.5).to_le_bytes()),
            Some(b'u') => array(r, "|u1", |i| [(i % 3) as u8]),
            _ => sized(r).to_vec(),
        };
        entries.push((name, body));
    }
    zip(entries)
}

fn array<const N: usize>(r: &mut &[u8], dtype: &str, element: impl Fn(usize) -> [u8; N]) -> Vec<u8> {
    let dims = byte(r).unwrap_or(0) as usize;
    let shape: Vec<usize> = take(r, dims).iter().map(|d| *d as usize).collect();
    let count = shape.iter().try_fold(1usize, |a, d| a.checked_mul(*d)).filter(|n| *n <= 1 << 16);
    let mut out = header(dtype, &shape);
    out.extend((0..count.unwrap_or(64)).flat_map(element));
    out
}

/// The head of an npy file, version 1.
fn header(dtype: &str, shape: &[usize]) -> Vec<u8> {
    let dims: String = shape.iter().map(|d| format!("{d}, ")).collect();
    let text = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({dims}), }}\n");
    let text = text.replace("(1, )", "(1,)");
    let length = u16::try_from(text.len()).expect("255 dimensions take less than 64 KiB");
    [b"\x93NUMPY\x01\x00", &length.to_le_bytes()[..], text.as_bytes()].concat()
}

fn byte(r: &mut &[u8]) -> Option<u8> {
    let (first, rest) = r.split_first()?;
    *r = rest;
    Some(*first)
}

fn take<'a>(r: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (head, rest) = r.split_at(n.min(r.len()));
    *r = rest;
    head
}

fn sized<'a>(r: &mut &'a [u8]) -> &'a [u8] {
    let n = usize::from(byte(r).unwrap_or(0)) + 256 * usize::from(byte(r).unwrap_or(0));
    take(r, n)
}
