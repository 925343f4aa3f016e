//! Reading the files of a data set with a limit on their size, and listing folders.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::text::{self, Fault};
use crate::weights::refuse_pipe;

/// Reads a whole file of at most `max_bytes`.
///
/// Errors: a file that cannot be read or is larger; a pipe, a device or a socket.
pub fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let cannot = |e: std::io::Error| Error::data(path, format!("cannot read: {e}"));
    refuse_pipe(path)?;
    let file = File::open(path).map_err(cannot)?;
    // The one byte of extra capacity lets `read_to_end` see the end without growing.
    let len = file.metadata().map_or(0, |m| m.len().min(max_bytes));
    let mut bytes = Vec::with_capacity(len as usize + 1);
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::data(path, format!("expected at most {max_bytes} bytes, found more")));
    }
    Ok(bytes)
}

/// As [`read()`], for UTF-8 text (see [`text::decode`]).
///
/// Errors: also text that is not UTF-8, with the line.
pub fn read_text(path: &Path, max_bytes: u64) -> Result<String> {
    text::decode(read(path, max_bytes)?).map_err(|fault| encoding_error(path, &fault))
}

/// The error for a text that is not UTF-8.
pub fn encoding_error(path: &Path, fault: &Fault) -> Error {
    Error::data(path, format!("line {}: {}", fault.line, fault.message))
}

/// The names in a folder. Listing a folder once is a fast way to check that ten thousand files exist.
pub struct Listing {
    folder: PathBuf,
    names: HashSet<String>,
}

impl Listing {
    pub fn of(folder: &Path) -> Result<Listing> {
        let cannot = |e: std::io::Error| Error::data(folder, format!("cannot read the folder: {e}"));
        let mut names = HashSet::new();
        for entry in std::fs::read_dir(folder).map_err(cannot)? {
            // The lists that name files are UTF-8, so a name that is not cannot be in one.
            if let Ok(name) = entry.map_err(cannot)?.file_name().into_string() {
                names.insert(name);
            }
        }
        Ok(Listing { folder: folder.into(), names })
    }

    /// The path of the file `name`, if the folder has one.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.names.contains(name).then(|| self.folder.join(name))
    }

    pub fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }
}

/// The path of each of the files `names` in `folder`, or `None` where there is no such file. A name may lead
/// through folders, as in `val2017/1.jpg`.
///
/// Errors: `folder` cannot be read.
pub fn find_below(folder: &Path, names: &[String]) -> Result<Vec<Option<PathBuf>>> {
    let mut listings = HashMap::from([("", Some(Listing::of(folder)?))]);
    let mut paths = Vec::with_capacity(names.len());
    for name in names {
        let (inner, file) = name.rsplit_once('/').unwrap_or(("", name));
        let listing = listings.entry(inner).or_insert_with(|| Listing::of(&folder.join(inner)).ok());
        paths.push(listing.as_ref().and_then(|listing| listing.path(file)));
    }
    Ok(paths)
}

/// Whether `name` is a file name without a path, so that it cannot lead out of its folder.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}
