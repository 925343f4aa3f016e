//! The npz and safetensors formats, and a record format from which a valid zip is written, whatever the
//! mutation.

use super::{Outcome, refused, scratch, written};
use dfka_engine::error::Result;
use dfka_engine::weights::{Tensors, npz, safetensors as safetensors_file};
use std::io::{Cursor, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The input is an npz file.
pub fn npz(bytes: &[u8]) -> Outcome {
    tensors(&written("w.npz", bytes), "copy.npz", |p| npz::load(p), |p, t| npz::save(p, t))
}

/// The input is one npy array, which is put in a zip with a correct checksum. A wrong checksum would stop
/// the reader before it parses the array.
pub fn npy(bytes: &[u8]) -> Outcome {
    npz(&zip([("x".into(), bytes.to_vec())]))
}

/// The input is a safetensors file.
pub fn safetensors(bytes: &[u8]) -> Outcome {
    let (load, save) =
        (|p: &Path| safetensors_file::load(p), |p: &Path, t: &Tensors| safetensors_file::save(p, t));
    tensors(&written("w.safetensors", bytes), "copy.safetensors", load, save)
}

/// Loads float tensors. If they are accepted, they must be the same after saving and loading.
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
    save(&copy, &tensors).expect("content that was read can be written");
    let again = load(&copy).expect("a file that was written can be read");
    assert_eq!(tensors.meta, again.meta);
    assert_eq!(tensors.len(), again.len());
    for ((name, t), (other, u)) in tensors.iter().zip(again.iter()) {
        assert_eq!((name, &t.shape), (other, &u.shape));
        let same = t.data.iter().zip(&u.data).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same && t.data.len() == u.data.len() && t.data.iter().all(|v| v.is_finite()), "{name}");
    }
    Outcome::Accepted
}

/// An npz of `(array name, npy bytes)`. Of several arrays with the same name only the first is written.
pub fn zip(entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in entries {
        if zip.start_file(format!("{name}.npy"), stored).is_ok() {
            zip.write_all(&bytes).expect("writing to memory");
        }
    }
    zip.finish().expect("writing to memory").into_inner()
}

/// Builds an npz from short records, so that a mutation changes a shape or a name rather than a checksum.
///
/// A record is a name (its length in one byte, then its bytes), a letter for its kind, and the content:
///
/// - `j`: a JSON text (its length in two bytes, little-endian, then its bytes), stored as uint8;
/// - `f` or `u`: an array of float32 or uint8 (the number of dimensions, then one byte for each), whose
///   elements repeat a small pattern. If the shape has more than 2^16 elements, only 64 are written;
/// - any other letter, such as `n`: an npy file (its length in two bytes, little-endian, then its bytes).
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

/// The header of an npy file of version 1.
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
