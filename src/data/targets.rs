//! Images by name and their targets, as a table or an annotation file lists them.

use std::path::{Path, PathBuf};

use super::files::find_below;
use crate::error::{Error, Result};

/// Names of images, and their targets.
#[derive(Debug, PartialEq)]
pub struct Named {
    /// May lead through folders, as in `val2017/1.jpg`.
    pub files: Vec<String>,
    /// `[n, labels]`: 0 absent, 1 present, 2 ignored.
    pub targets: Vec<u8>,
    /// In the order of the targets' columns.
    pub labels: Vec<String>,
}

/// The same with the images' paths.
#[derive(Debug, PartialEq)]
pub struct Listed {
    pub images: Vec<PathBuf>,
    pub targets: Vec<u8>,
    pub labels: Vec<String>,
}

impl Named {
    /// Looks the images up in `folder`. No image is opened. `list` is the file that names them.
    ///
    /// Errors: an image that is not in the folder; a folder that cannot be read.
    pub fn below(self, folder: &Path, list: &Path) -> Result<Listed> {
        let Named { files, targets, labels } = self;
        let path = |(name, path): (&String, Option<PathBuf>)| {
            let message = || format!("expected {name} in {}, found no such file", folder.display());
            path.ok_or_else(|| Error::data(list, message()))
        };
        let images = files.iter().zip(find_below(folder, &files)?).map(path).collect::<Result<_>>()?;
        Ok(Listed { images, targets, labels })
    }
}
