//! A folder of unlabelled images, for knowledge amalgamation on real images (KA).

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::image;
use super::rng::Rng;
use super::transform::{Transform, Transformer};
use super::unlabelled::ImageSet;
use crate::error::{Error, Result};

/// The most files of a folder: ten times COCO's training set. A folder given by mistake, such as `/`, has
/// more.
const MAX_FILES: usize = 1_000_000;

/// Lists all `.jpg`, `.jpeg` and `.png` files in `folder` and its subfolders, sorted by path. The case of an
/// extension does not matter. Links to folders are not followed. Hidden files and folders are left out: macOS
/// puts a file `._a.jpg`, which is no image, beside `a.jpg` on other file systems and in archives.
///
/// Errors: a folder that cannot be read, no images, too many.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        let cannot = |e: std::io::Error| Error::data(&next, format!("cannot read the folder: {e}"));
        for entry in fs::read_dir(&next).map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            if entry.file_type().map_err(cannot)?.is_dir() {
                folders.push(path);
            } else if is_image(&path) {
                files.push(path);
            }
            if files.len() + folders.len() > MAX_FILES {
                return Err(Error::data(folder, format!("expected at most {MAX_FILES} images, found more")));
            }
        }
    }
    if files.is_empty() {
        return Err(Error::data(folder, "expected .jpg, .jpeg or .png files, found none"));
    }
    files.sort();
    Ok(files)
}

/// Whether a file's name is that of an image.
pub fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    ["jpg", "jpeg", "png"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Reads all images of a folder and crops and resizes the centre of each to `image` (height, width,
/// channels), as for evaluation.
pub fn load(folder: &Path, image: [usize; 3]) -> Result<ImageSet> {
    let files = list(folder)?;
    load_files(&files, image, format!("{} images of {}", files.len(), folder.display()))
}

/// As [`load`], for the images in these files, in their order.
pub fn load_files(files: &[PathBuf], image: [usize; 3], provenance: String) -> Result<ImageSet> {
    let transform = Transform::eval(image);
    transform.check()?;
    let mut pixels = vec![0; files.len() * transform.len()];
    pixels.par_chunks_exact_mut(transform.len()).zip(files).try_for_each_init(
        Transformer::default,
        |transformer, (to, file)| {
            let pixels = image::load(file)?;
            let crop = transform.draw(pixels.h, pixels.w, &mut Rng::stream(0, 0, 0));
            transformer.apply(image, crop, &pixels, to)
        },
    )?;
    let [h, w, c] = image;
    ImageSet::new(pixels, [files.len(), h, w, c], provenance)
}
