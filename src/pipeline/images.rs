//! Real images without labels, for the KA baseline: the only data that training can reach.

use super::teachers::Teachers;
use crate::autograd::{Store, TensorId};
use crate::data::folder;
use crate::data::transform::Transform;
use crate::data::unlabelled::{ImageSet, to_input};
use crate::device::memory;
use crate::error::{Error, Result};
use crate::models::resnet::ResNetSpec;
use crate::tensor::Real;
use std::path::Path;

/// Loads the images of `path` into the store as `[n, h, w, c]` in [-1, 1]; a store without values gets only
/// the shape.
///
/// Errors: those of [`check_images`], damaged files, and more images than fit in memory.
pub(super) fn load_images<R: Real>(
    store: &mut Store<R>,
    path: &Path,
    teachers: &Teachers,
) -> Result<TensorId> {
    let n = check_images(path, &teachers.network)?;
    let id = store.add("data.images", teachers.network.feature(0, n));
    if !store.holds_values() {
        return Ok(id);
    }
    // The bytes as read and the store's values are in memory at the same time for a moment.
    let bytes = teachers.network.feature(0, n).elems().saturating_mul(1 + size_of::<R>());
    memory::expect_room(&format!("images of {}", path.display()), bytes)?;
    let set = if path.is_dir() { folder::load(path, teachers.network.image)? } else { ImageSet::load(path)? };
    let to = store.get_mut(id);
    to.iter_mut().zip(&set.images).for_each(|(t, p)| *t = R::of(to_input(*p).into()));
    Ok(id)
}

/// The number of images in `path`, which is an npz that holds only images, of the teachers' size, or a folder
/// of JPEG and PNG files of any size. Only headers are read.
///
/// Errors: images of another size, no images, teachers whose images are neither grey nor RGB.
pub fn check_images(path: &Path, network: &ResNetSpec) -> Result<usize> {
    if path.is_dir() {
        Transform::eval(network.image).check()?;
        return Ok(folder::list(path)?.len());
    }
    let [n, h, w, c] = ImageSet::shape_of(path)?;
    if [h, w, c] == network.image {
        return Ok(n);
    }
    Err(Error::data(path, format!("images: the teachers expect {:?}, found {:?}", network.image, [h, w, c])))
}
