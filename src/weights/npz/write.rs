//! Writing an npz.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use npyz::{DType, WriterBuilder};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::error::{Error, Result};
use crate::weights::atomic::{write_atomic, write_keeping};
use crate::weights::common::{CHUNK, MAX_BYTES, array_error, check_finite, element_count};
use crate::weights::meta::{META, Meta};
use crate::weights::seal;
use crate::weights::tensors::Tensors;

/// Writes `tensors` and their metadata to `path`, atomically. The same tensors give the same bytes.
///
/// Errors: numbers that are not finite, more than `MAX_BYTES`, a failed write.
pub fn save(path: impl AsRef<Path>, tensors: &Tensors) -> Result<()> {
    let arrays: Vec<Array> =
        tensors.iter().map(|(name, t)| Array { name, shape: &t.shape, elems: Elems::F32(&t.data) }).collect();
    write(path, &arrays, &tensors.meta, CompressionMethod::Deflated)
}

/// An array to be written, in C order.
pub struct Array<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    pub elems: Elems<'a>,
}

pub enum Elems<'a> {
    F32(&'a [f32]),
    U8(&'a [u8]),
}

/// Writes the metadata, then `arrays` in the order given, to `path`, atomically. The same arrays give the
/// same bytes.
///
/// Errors: arrays that [`super::Archive`] would not read back (a shape that does not hold the elements,
/// numbers that are not finite, more than `MAX_BYTES` together), a failed write.
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
    write_atomic(path, |w| fill(w, arrays, meta, method))
}

/// As [`write()`], without the limit on bytes, uncompressed, and with a [`seal`] at the end. The file that
/// was at `path` is kept as `previous`.
pub fn write_sealed(path: &Path, previous: &Path, arrays: &[Array], meta: &Meta) -> Result<()> {
    check(path, arrays)?;
    write_keeping(path, previous, |w| {
        fill(w, arrays, meta, CompressionMethod::Stored)?;
        seal::append(w)
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

/// Requires that shapes hold their elements and that all numbers are finite.
fn check(path: &Path, arrays: &[Array]) -> Result<()> {
    for a in arrays {
        let len = match a.elems {
            Elems::F32(v) => v.len(),
            Elems::U8(v) => v.len(),
        };
        if element_count(a.shape) != Some(len) {
            return Err(array_error(
                path,
                a.name,
                format!("shape {:?} does not hold {len} elements", a.shape),
            ));
        }
        if let Elems::F32(v) = a.elems {
            check_finite(v, a.shape).map_err(|m| array_error(path, a.name, m))?;
        }
    }
    Ok(())
}

fn fill(w: &mut BufWriter<File>, arrays: &[Array], meta: &Meta, method: CompressionMethod) -> io::Result<()> {
    let text = serde_json::Value::from(meta.clone()).to_string();
    let mut zip = ZipWriter::new(FailOnce { inner: w, has_failed: false, at: 0, end: 0 });
    if !meta.is_empty() {
        let array = Array { name: META, shape: &[text.len()], elems: Elems::U8(text.as_bytes()) };
        write_array(&mut zip, method, &array)?;
    }
    arrays.iter().try_for_each(|a| write_array(&mut zip, method, a))?;
    zip.finish()?;
    Ok(())
}

/// A writer that fails only once: after the first error every call succeeds and does nothing.
///
/// A [`ZipWriter`] that is dropped before it is finished tries to finish, and prints an error of that
/// attempt on standard error. The first error has been returned to the caller by then, so a second message
/// would only confuse.
struct FailOnce<W> {
    inner: W,
    has_failed: bool,
    /// The position and the end of what was written, kept so that seeking has an answer after a failure.
    at: u64,
    end: u64,
}

impl<W> FailOnce<W> {
    /// Passes a result on and remembers whether it was an error.
    fn remember<T>(&mut self, done: io::Result<T>) -> io::Result<T> {
        self.has_failed |= done.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::Interrupted);
        done
    }

    fn move_to(&mut self, at: u64) -> u64 {
        (self.at, self.end) = (at, self.end.max(at));
        at
    }
}

impl<W: Write> Write for FailOnce<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let done = if self.has_failed { Ok(bytes.len()) } else { self.inner.write(bytes) };
        let written = self.remember(done)?;
        self.move_to(self.at + written as u64);
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        let done = if self.has_failed { Ok(()) } else { self.inner.flush() };
        self.remember(done)
    }
}

impl<W: Seek> Seek for FailOnce<W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let done = match (self.has_failed, to) {
            (false, to) => self.inner.seek(to),
            (true, SeekFrom::Start(at)) => Ok(at),
            (true, SeekFrom::Current(by)) => Ok(self.at.saturating_add_signed(by)),
            (true, SeekFrom::End(by)) => Ok(self.end.saturating_add_signed(by)),
        };
        let at = self.remember(done)?;
        Ok(self.move_to(at))
    }
}

fn write_array<W: Write + Seek>(
    zip: &mut ZipWriter<W>,
    method: CompressionMethod,
    array: &Array,
) -> io::Result<()> {
    // A fixed time stamp makes the file a function of its contents. An entry above 4 GiB must be declared
    // beforehand; the margin is for the header of the array.
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
