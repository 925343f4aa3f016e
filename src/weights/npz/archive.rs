//! Reading an npz.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use zip::ZipArchive;

use crate::error::{Error, Result};
use crate::weights::common::{MAX_BYTES, PICKLE, array_error, check_finite, is_batch_counter, refuse_pipe};
use crate::weights::foreign;
use crate::weights::meta::{MAX_META_BYTES, META, Meta};
use crate::weights::npy::{Body, Header};
use crate::weights::tensors::{HostTensor, Tensors};

/// Reads every array of `path` as a float tensor, and the metadata, if there is any. PyTorch's batch
/// counters are left out.
pub fn load(path: impl AsRef<Path>) -> Result<Tensors> {
    let tensors = load_floats(path.as_ref())?;
    tensors.expect_all_read()?;
    Ok(tensors)
}

/// As [`load`], but leaves out the arrays that are not of finite floats (see [`Tensors::unread`]).
pub(in crate::weights) fn load_floats(path: &Path) -> Result<Tensors> {
    Archive::open(path)?.tensors()
}

/// An open npz file.
pub struct Archive<R = BufReader<File>> {
    file: PathBuf,
    zip: ZipArchive<R>,
    /// Index of each array in the zip, by name.
    names: BTreeMap<String, usize>,
}

impl Archive {
    /// Opens an npz whose arrays take at most `MAX_BYTES`.
    ///
    /// Errors: no zip, other entries than arrays, one name for two arrays, too many bytes.
    pub fn open(path: impl AsRef<Path>) -> Result<Archive> {
        Archive::open_up_to(path, MAX_BYTES)
    }

    /// As [`Archive::open`], with another limit on the bytes of all arrays: for a caller that expects more,
    /// and checks each shape before it reads the array.
    pub fn open_up_to(path: impl AsRef<Path>, max_bytes: u64) -> Result<Archive> {
        let path = path.as_ref();
        refuse_pipe(path)?;
        let file = File::open(path).map_err(|e| Error::data(path, format!("cannot open: {e}")))?;
        Archive::from_reader(BufReader::new(file), path, max_bytes)
    }
}

impl<R: Read + Seek> Archive<R> {
    pub(super) fn from_reader(reader: R, file: &Path, max_bytes: u64) -> Result<Archive<R>> {
        let not_npz = |e: &dyn std::fmt::Display| {
            Error::data(file, format!("expected an npz file (a zip of npy arrays), found {e}"))
        };
        let mut reader = reader;
        let cannot = |e: std::io::Error| Error::data(file, format!("cannot read: {e}"));
        let mut head = Vec::new();
        reader.by_ref().take(foreign::HEAD).read_to_end(&mut head).map_err(cannot)?;
        reader.rewind().map_err(cannot)?;
        let mut zip = ZipArchive::new(reader).map_err(|e| match foreign::describe(&head) {
            Some(found) => not_npz(&found),
            None if head.starts_with(b"PK") => not_npz(&foreign::describe_cut_zip(&head)),
            None if foreign::is_pickle(&head) => Error::data(file, PICKLE),
            None => not_npz(&format!("another file: {e}")),
        })?;
        if zip.file_names().flatten().any(|name| name == "data.pkl" || name.ends_with("/data.pkl")) {
            return Err(Error::data(file, PICKLE));
        }
        if zip.has_duplicate_names() {
            let which = first_duplicate(zip).unwrap_or_else(|| "a name".into());
            return Err(Error::data(
                file,
                format!("expected each array once, found {which:?} more than once"),
            ));
        }
        let (mut names, mut total) = (BTreeMap::new(), 0u64);
        for i in 0..zip.len() {
            let entry = zip.by_index_raw(i).map_err(|e| not_npz(&e))?;
            let raw = String::from_utf8_lossy(entry.name_raw()).into_owned();
            let Some(name) = raw.strip_suffix(".npy") else {
                return Err(Error::data(file, format!("expected only .npy entries, found {raw:?}")));
            };
            total = total.saturating_add(entry.size());
            if names.insert(name.to_owned(), i).is_some() {
                return Err(Error::data(
                    file,
                    format!("expected names in UTF-8, found two that both read as {name:?}"),
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

    /// Requires that the file holds exactly the arrays `expected`, metadata aside.
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

    /// Reads the array `name` as float32.
    ///
    /// Errors: no such array, a type that is not a float, a wrong length, damage, an element that is not
    /// finite.
    pub fn floats(&mut self, name: &str) -> Result<HostTensor> {
        self.array(name, u64::MAX, |header, body| {
            let data = body.floats(header)?;
            check_finite(&data, &header.shape)?;
            Ok(HostTensor { shape: header.shape.clone(), data })
        })
    }

    /// Reads the array `name`, which must be uint8; returns its shape and its elements.
    ///
    /// Errors: no such array, another type, a wrong length, damage.
    pub fn bytes(&mut self, name: &str) -> Result<(Vec<usize>, Vec<u8>)> {
        self.bytes_up_to(name, u64::MAX)
    }

    /// The shape in the header of the array `name`. The elements are not read.
    pub fn shape(&mut self, name: &str) -> Result<Vec<usize>> {
        self.array(name, u64::MAX, |header, _| Ok(header.shape.clone()))
    }

    /// Reads the metadata; it is empty when the file has none.
    ///
    /// Errors: anything but a JSON object of at most `MAX_META_BYTES` in a one-dimensional uint8 array.
    pub fn meta(&mut self) -> Result<Meta> {
        if !self.names.contains_key(META) {
            return Ok(Meta::new());
        }
        let (shape, text) = self.bytes_up_to(META, MAX_META_BYTES as u64)?;
        let error = |m: String| array_error(&self.file, META, m);
        if shape.len() != 1 {
            return Err(error(format!(
                "expected a one-dimensional array of JSON text, found shape {shape:?}"
            )));
        }
        serde_json::from_slice(&text).map_err(|e| error(format!("expected a JSON object: {e}")))
    }

    /// Reads every array of finite floats as a tensor, and the metadata.
    pub(super) fn tensors(mut self) -> Result<Tensors> {
        let names: Vec<String> = self.names().filter(|n| !is_batch_counter(n)).map(str::to_owned).collect();
        let meta = self.meta()?;
        let mut out = Tensors::of_file(&self.file, meta);
        for name in names {
            let content = self.array(&name, u64::MAX, |header, body| {
                if let Err(message) = header.expect_floats() {
                    return Ok(Err(message));
                }
                let data = body.floats(header)?;
                Ok(check_finite(&data, &header.shape)
                    .map(|()| HostTensor { shape: header.shape.clone(), data }))
            })?;
            match content {
                Ok(tensor) => out.insert_tensor(name, tensor)?,
                Err(message) => out.leave_unread(name, message),
            }
        }
        Ok(out)
    }

    fn bytes_up_to(&mut self, name: &str, max_bytes: u64) -> Result<(Vec<usize>, Vec<u8>)> {
        self.array(name, max_bytes, |header, body| Ok((header.shape.clone(), body.bytes(header)?)))
    }

    /// Opens the entry of the array `name`, reads the array's header, and passes both to `read`. An entry of
    /// more than `max_bytes` is an error.
    fn array<T>(
        &mut self,
        name: &str,
        max_bytes: u64,
        read: impl FnOnce(&Header, &mut Body) -> Result<T, String>,
    ) -> Result<T> {
        let Some(&index) = self.names.get(name) else {
            let found: Vec<&str> = self.names().take(5).collect();
            return Err(array_error(
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
        inner().map_err(|m: String| array_error(&self.file, name, m))
    }
}

/// The first array name that the zip's directory lists twice. The zip crate reports only that there is one.
fn first_duplicate<R: Read + Seek>(zip: ZipArchive<R>) -> Option<String> {
    let start = zip.central_directory_start();
    let mut r = zip.into_inner();
    r.seek(SeekFrom::Start(start)).ok()?;
    let mut seen = BTreeSet::new();
    loop {
        // A directory entry is 46 bytes that begin with a signature and hold the lengths of the three fields
        // that follow: name, extra field and comment.
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
