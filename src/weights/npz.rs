//! The npz format: a zip of npy arrays, read with suspicion and written whole. The array `__meta__` (uint8,
//! one-dimensional) holds the metadata as JSON text.
//!
//! Reading accepts little- and big-endian float32, float64 and float16 for tensors (converted to float32), uint8 for
//! images and targets, C and Fortran order (converted to C), npy versions 1 to 3, stored and deflated entries.
//! Everything else is an [`Error::Data`] that names file, array, expected and found. Memory is bounded by what the file
//! really holds: a header's claim is checked against the zip entry before anything is allocated, buffers grow only as
//! bytes arrive, and all entries together may declare at most [`MAX_BYTES`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use npyz::{DType, WriterBuilder};
pub use zip::CompressionMethod;
use zip::write::SimpleFileOptions;
use zip::{ZipArchive, ZipWriter};

use super::npy::{Body, CHUNK, Header};
use super::{Meta, Tensor, Tensors, elems};
use crate::error::{Error, Result};

/// The array that holds the metadata's JSON text.
pub const META: &str = "__meta__";

/// The most that all arrays of one file may take uncompressed: some ten times the largest model the method names
/// (89 M parameters), and an end to a small file that inflates without one.
pub const MAX_BYTES: u64 = 4 << 30;

const MAX_META_BYTES: u64 = 1 << 20;

/// Reads every array of `path` as a float tensor and the metadata, if there is any. PyTorch's batch counters are left out.
pub fn load(path: impl AsRef<Path>) -> Result<Tensors> {
    Archive::open(path)?.tensors()
}

/// Writes `tensors` and their metadata to `path`, atomically; the same tensors give the same bytes.
pub fn save(path: impl AsRef<Path>, tensors: &Tensors) -> Result<()> {
    let arrays: Vec<Array> =
        tensors.iter().map(|(name, t)| Array { name, shape: &t.shape, elems: Elems::F32(&t.data) }).collect();
    write(path, &arrays, &tensors.meta, CompressionMethod::Deflated)
}

/// An array on its way to a file.
pub struct Array<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    pub elems: Elems<'a>,
}

pub enum Elems<'a> {
    F32(&'a [f32]),
    U8(&'a [u8]),
}

/// Writes `arrays`, in the order given, after the metadata. Refuses what [`Archive`] would refuse to read.
pub fn write(path: impl AsRef<Path>, arrays: &[Array], meta: &Meta, method: CompressionMethod) -> Result<()> {
    let path = path.as_ref();
    check(path, arrays)?;
    let total: u64 = arrays.iter().map(Array::bytes).sum();
    if total > MAX_BYTES {
        return Err(Error::data(
            path,
            format!("expected at most {MAX_BYTES} bytes of arrays, found {total}"),
        ));
    }
    super::write_atomic(path, |w| fill(w, arrays, meta, method))
}

/// Writes arrays of any size, stored, with a [`super::seal`] behind them; the file that stood there stays as `previous`.
pub fn write_sealed(path: &Path, previous: &Path, arrays: &[Array], meta: &Meta) -> Result<()> {
    check(path, arrays)?;
    super::write_keeping(path, previous, |w| {
        fill(w, arrays, meta, CompressionMethod::Stored)?;
        super::seal::append(w)
    })
}

impl Array<'_> {
    fn bytes(&self) -> u64 {
        match self.elems {
            Elems::F32(v) => 4 * v.len() as u64,
            Elems::U8(v) => v.len() as u64,
        }
    }
}

/// Fails on arrays that cannot be read back: a shape that is not the elements', a number that is none.
fn check(path: &Path, arrays: &[Array]) -> Result<()> {
    for a in arrays {
        let len = match a.elems {
            Elems::F32(v) => v.len(),
            Elems::U8(v) => v.len(),
        };
        if elems(a.shape) != Some(len) {
            return Err(super::fault(
                path,
                a.name,
                format!("shape {:?} does not hold {len} elements", a.shape),
            ));
        }
        if let Elems::F32(v) = a.elems {
            check_finite(v, a.shape).map_err(|m| super::fault(path, a.name, m))?;
        }
    }
    Ok(())
}

fn fill(w: &mut BufWriter<File>, arrays: &[Array], meta: &Meta, method: CompressionMethod) -> io::Result<()> {
    let text = serde_json::Value::from(meta.clone()).to_string();
    let mut zip = ZipWriter::new(Quiet { inner: w, has_failed: false, at: 0, end: 0 });
    if !meta.is_empty() {
        let array = Array { name: META, shape: &[text.len()], elems: Elems::U8(text.as_bytes()) };
        write_array(&mut zip, method, &array)?;
    }
    arrays.iter().try_for_each(|a| write_array(&mut zip, method, a))?;
    zip.finish()?;
    Ok(())
}

/// Fails once. A zip writer that is dropped unfinished tries to finish, and prints on standard error what comes of it;
/// the failure that matters was told by then, and whatever is written behind it goes nowhere.
struct Quiet<W> {
    inner: W,
    has_failed: bool,
    at: u64,
    end: u64,
}

impl<W> Quiet<W> {
    fn note<T>(&mut self, done: io::Result<T>) -> io::Result<T> {
        self.has_failed |= done.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::Interrupted);
        done
    }
    fn move_to(&mut self, at: u64) -> u64 {
        (self.at, self.end) = (at, self.end.max(at));
        at
    }
}

impl<W: Write> Write for Quiet<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let done = if self.has_failed { Ok(bytes.len()) } else { self.inner.write(bytes) };
        let written = self.note(done)?;
        self.move_to(self.at + written as u64);
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        let done = if self.has_failed { Ok(()) } else { self.inner.flush() };
        self.note(done)
    }
}

impl<W: Seek> Seek for Quiet<W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let done = match (self.has_failed, to) {
            (false, to) => self.inner.seek(to),
            (true, SeekFrom::Start(at)) => Ok(at),
            (true, SeekFrom::Current(by)) => Ok(self.at.saturating_add_signed(by)),
            (true, SeekFrom::End(by)) => Ok(self.end.saturating_add_signed(by)),
        };
        let at = self.note(done)?;
        Ok(self.move_to(at))
    }
}

fn write_array<W: Write + Seek>(
    zip: &mut ZipWriter<W>,
    method: CompressionMethod,
    array: &Array,
) -> io::Result<()> {
    // A fixed time stamp keeps the file a function of its contents. Beyond 4 GiB an entry must say so beforehand; the
    // header of the array takes some of them.
    let options = SimpleFileOptions::default()
        .compression_method(method)
        .last_modified_time(zip::DateTime::DEFAULT)
        .large_file(array.bytes() > u64::from(u32::MAX) - (1 << 16));
    zip.start_file(npyz::npz::file_name_from_array_name(array.name), options)?;
    let dims: Vec<u64> = array.shape.iter().map(|&d| d as u64).collect();
    let dtype = match array.elems {
        Elems::F32(_) => "<f4",
        Elems::U8(_) => "|u1",
    };
    npyz::WriteOptions::new_header_only()
        .dtype(DType::new_scalar(dtype.parse().map_err(io::Error::other)?))
        .shape(&dims)
        .writer(&mut *zip)
        .write_header_only()?;
    match array.elems {
        Elems::F32(v) => v.chunks(CHUNK).try_for_each(|c| {
            let bytes: Vec<u8> = c.iter().flat_map(|x| x.to_le_bytes()).collect();
            zip.write_all(&bytes)
        }),
        Elems::U8(v) => v.chunks(CHUNK).try_for_each(|c| zip.write_all(c)),
    }
}

/// An open npz file.
pub struct Archive<R = BufReader<File>> {
    file: PathBuf,
    zip: ZipArchive<R>,
    /// Array name to position in the zip.
    names: BTreeMap<String, usize>,
}

impl Archive {
    pub fn open(path: impl AsRef<Path>) -> Result<Archive> {
        Archive::open_up_to(path, MAX_BYTES)
    }

    /// The same, for a caller who expects arrays of `max_bytes` together and asks their shapes before reading them.
    pub fn open_up_to(path: impl AsRef<Path>, max_bytes: u64) -> Result<Archive> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::data(path, format!("cannot open: {e}")))?;
        Archive::from_reader(BufReader::new(file), path, max_bytes)
    }
}

impl<R: Read + Seek> Archive<R> {
    fn from_reader(reader: R, file: &Path, max_bytes: u64) -> Result<Archive<R>> {
        let not_npz =
            |e| Error::data(file, format!("expected an npz file (a zip of npy arrays), found: {e}"));
        let mut zip = ZipArchive::new(reader).map_err(not_npz)?;
        if zip.has_duplicate_names() {
            let which = first_duplicate(zip).unwrap_or_else(|| "a name".into());
            return Err(Error::data(
                file,
                format!("expected each array once, found {which:?} more than once"),
            ));
        }
        let (mut names, mut total) = (BTreeMap::new(), 0u64);
        for i in 0..zip.len() {
            let entry = zip.by_index_raw(i).map_err(not_npz)?;
            let raw = String::from_utf8_lossy(entry.name_raw()).into_owned();
            if raw.ends_with("/data.pkl") {
                return Err(Error::data(file, super::PICKLE));
            }
            let Some(name) = raw.strip_suffix(".npy") else {
                return Err(Error::data(file, format!("expected only .npy entries, found {raw:?}")));
            };
            total = total.saturating_add(entry.size());
            if names.insert(name.to_owned(), i).is_some() {
                return Err(Error::data(
                    file,
                    format!("expected names in UTF-8, found two that read {name:?}"),
                ));
            }
        }
        if total > max_bytes {
            let message =
                format!("expected arrays of at most {max_bytes} bytes together, found {total} declared");
            return Err(Error::data(file, message));
        }
        Ok(Archive { file: file.into(), zip, names })
    }

    /// The arrays' names in order, without the metadata.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str).filter(|n| *n != META)
    }

    /// Requires that the file holds exactly the arrays `expected` (metadata aside).
    pub fn expect_names(&self, expected: &[&str]) -> Result<()> {
        let missing = expected.iter().find(|n| !self.names.contains_key(**n));
        let extra = self.names().find(|n| !expected.contains(n));
        match missing.copied().or(extra) {
            None => Ok(()),
            Some(_) => {
                let found: Vec<&str> = self.names().take(5).collect();
                Err(Error::data(&self.file, format!("expected the arrays {expected:?}, found {found:?}")))
            }
        }
    }

    /// The array `name` as float32, every element finite.
    pub fn floats(&mut self, name: &str) -> Result<Tensor> {
        self.array(name, u64::MAX, |header, body| {
            let data = body.floats(header)?;
            check_finite(&data, &header.shape)?;
            Ok(Tensor { shape: header.shape.clone(), data })
        })
    }

    /// The array `name` of uint8, with its shape.
    pub fn bytes(&mut self, name: &str) -> Result<(Vec<usize>, Vec<u8>)> {
        self.bytes_up_to(name, u64::MAX)
    }

    /// The shape that the array `name` says it has.
    pub fn shape(&mut self, name: &str) -> Result<Vec<usize>> {
        self.array(name, u64::MAX, |header, _| Ok(header.shape.clone()))
    }

    /// The metadata; empty when the file has none.
    pub fn meta(&mut self) -> Result<Meta> {
        if !self.names.contains_key(META) {
            return Ok(Meta::new());
        }
        let (shape, text) = self.bytes_up_to(META, MAX_META_BYTES)?;
        let fault = |m: String| super::fault(&self.file, META, m);
        if shape.len() != 1 {
            return Err(fault(format!(
                "expected a one-dimensional array of JSON text, found shape {shape:?}"
            )));
        }
        serde_json::from_slice(&text).map_err(|e| fault(format!("expected a JSON object: {e}")))
    }

    /// Everything as float tensors.
    fn tensors(mut self) -> Result<Tensors> {
        let names: Vec<String> = self.names().filter(|n| !super::is_counter(n)).map(str::to_owned).collect();
        let mut out = Tensors { file: self.file.clone(), meta: self.meta()?, ..Tensors::new() };
        for name in names {
            let t = self.floats(&name)?;
            out.map.insert(name, t);
        }
        Ok(out)
    }

    fn bytes_up_to(&mut self, name: &str, max_bytes: u64) -> Result<(Vec<usize>, Vec<u8>)> {
        self.array(name, max_bytes, |header, body| Ok((header.shape.clone(), body.bytes(header)?)))
    }

    /// Opens `name`, reads its header, and checks the header's claim against the entry's size.
    fn array<T>(
        &mut self,
        name: &str,
        max_bytes: u64,
        read: impl FnOnce(&Header, &mut Body) -> Result<T, String>,
    ) -> Result<T> {
        let Some(&index) = self.names.get(name) else {
            let found: Vec<&str> = self.names().take(5).collect();
            return Err(super::fault(
                &self.file,
                name,
                format!("expected it, found no such array (first: {found:?})"),
            ));
        };
        let inner = || {
            let mut entry = self.zip.by_index(index).map_err(|e| format!("cannot read the entry: {e}"))?;
            let size = entry.size();
            if size > max_bytes {
                return Err(format!("expected at most {max_bytes} bytes, found {size}"));
            }
            let (header, header_bytes) = Header::read(&mut entry)?;
            let mut body = Body { reader: &mut entry, bytes: size.saturating_sub(header_bytes) };
            read(&header, &mut body)
        };
        inner().map_err(|m: String| super::fault(&self.file, name, m))
    }
}

pub(super) fn check_finite(data: &[f32], shape: &[usize]) -> Result<(), String> {
    let Some(flat) = data.iter().position(|v| !v.is_finite()) else { return Ok(()) };
    let mut rest = flat;
    let mut at: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&d| {
            let i = rest % d;
            rest /= d;
            i
        })
        .collect();
    at.reverse();
    Err(format!(
        "expected finite numbers, found {} at index {at:?} (element {flat} of {})",
        data[flat],
        data.len()
    ))
}

/// Walks the zip's directory for the first name that stands there twice; the reader only knows that there is one.
fn first_duplicate<R: Read + Seek>(zip: ZipArchive<R>) -> Option<String> {
    let start = zip.central_directory_start();
    let mut r = zip.into_inner();
    r.seek(SeekFrom::Start(start)).ok()?;
    let mut seen = std::collections::BTreeSet::new();
    loop {
        // A directory entry: 46 bytes that begin with a signature and hold three lengths, then the name.
        let mut fixed = [0u8; 46];
        r.read_exact(&mut fixed).ok()?;
        if &fixed[..4] != b"PK\x01\x02" {
            return None;
        }
        let length = |at: usize| u16::from_le_bytes([fixed[at], fixed[at + 1]]);
        let mut name = vec![0; length(28) as usize];
        r.read_exact(&mut name).ok()?;
        r.seek_relative(length(30) as i64 + length(32) as i64).ok()?;
        if !seen.insert(name.clone()) {
            let name = String::from_utf8_lossy(&name).into_owned();
            return Some(name.strip_suffix(".npy").map(str::to_owned).unwrap_or(name));
        }
    }
}

#[cfg(test)]
mod tests;
