//! Images without labels.

use std::io::{Read, Seek};
use std::path::Path;

use crate::error::{Error, Result};
use crate::tensor::ImagesMut;
use crate::weights::Meta;
use crate::weights::npz::{self, Archive, Array, Elems};

/// `n` images of `h` x `w` pixels with `c` channels: `images` is `[n, h, w, c]`.
///
/// On disk: an npz with the array `images` (uint8, `[n, h, w, c]`) and metadata `{"provenance": text}`.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageSet {
    pub images: Vec<u8>,
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    /// Where the images come from, for the report.
    pub provenance: String,
}

/// A pixel as network input: 0 becomes -1 and 255 becomes 1.
pub fn to_input(pixel: u8) -> f32 {
    pixel as f32 / 127.5 - 1.0
}

/// Network input as the nearest pixel.
pub fn to_pixel(input: f32) -> u8 {
    ((input + 1.0) * 127.5).round() as u8 // `as` saturates
}

/// Converts pixels to network input (see [`to_input`]). Both slices have the same length.
pub fn to_inputs(pixels: &[u8], out: &mut [f32]) {
    out.iter_mut().zip(pixels).for_each(|(x, p)| *x = to_input(*p));
}

impl ImageSet {
    pub fn new(images: Vec<u8>, shape: [usize; 4], provenance: impl Into<String>) -> Result<Self> {
        let [n, h, w, c] = shape;
        let set = ImageSet { images, n, h, w, c, provenance: provenance.into() };
        set.check().map_err(|m| Error::data("<memory>", m))?;
        Ok(set)
    }

    /// Reads a file of images. A file that also has targets is refused, so that labels cannot be loaded by
    /// accident.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let mut archive = Archive::open(&path)?;
        archive.expect_names(&["images"])?;
        let meta = archive.meta()?;
        ImageSet::from_archive(&mut archive, &meta, path.as_ref())
    }

    /// The shape `[n, h, w, c]` in the header of a file of images. The images are not read.
    pub fn shape_of(path: impl AsRef<Path>) -> Result<[usize; 4]> {
        let mut archive = Archive::open(&path)?;
        archive.expect_names(&["images"])?;
        ImageSet::shape_in(&mut archive, path.as_ref())
    }

    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.check().map_err(|m| Error::data(&path, m))?;
        let mut meta = Meta::new();
        meta.insert("provenance".into(), self.provenance.clone().into());
        npz::write(path, &[self.as_array(&self.shape())], &meta, npz::CompressionMethod::Deflated)
    }

    pub fn shape(&self) -> [usize; 4] {
        [self.n, self.h, self.w, self.c]
    }

    /// The size of one image in bytes.
    pub fn image_len(&self) -> usize {
        self.h * self.w * self.c
    }

    /// The pixels of image `i`, which must be below `n`.
    pub fn image(&self, i: usize) -> &[u8] {
        &self.images[i * self.image_len()..][..self.image_len()]
    }

    /// Writes the images at `indices` to `out`, one after the other.
    ///
    /// Errors: an `out` of another size, an index that is not below `n`.
    pub fn gather<'a>(&self, indices: &[usize], out: impl Into<ImagesMut<'a>>) -> Result<()> {
        let (len, out) = (self.image_len(), out.into());
        if out.elems() != indices.len() * len {
            let (found, n) = (out.elems(), indices.len());
            return Err(Error::shape(
                "gather",
                format!("expected an output of {n} x {len} pixels, found {found}"),
            ));
        }
        if let Some(i) = indices.iter().find(|i| **i >= self.n) {
            return Err(Error::shape(
                "gather",
                format!("expected image indices below {}, found {i}", self.n),
            ));
        }
        let images = indices.iter().map(|i| self.image(*i));
        match out {
            ImagesMut::Pixels(all) => {
                all.chunks_exact_mut(len).zip(images).for_each(|(to, image)| to.copy_from_slice(image));
            }
            ImagesMut::Inputs(all) => {
                all.chunks_exact_mut(len).zip(images).for_each(|(to, image)| to_inputs(image, to));
            }
        }
        Ok(())
    }

    pub(super) fn shape_in<R: Read + Seek>(archive: &mut Archive<R>, file: &Path) -> Result<[usize; 4]> {
        let shape = archive.shape("images")?;
        <[usize; 4]>::try_from(&shape[..]).map_err(|_| {
            Error::data(file, format!("array \"images\": expected shape [n, h, w, c], found {shape:?}"))
        })
    }

    pub(super) fn from_archive<R: Read + Seek>(
        archive: &mut Archive<R>,
        meta: &Meta,
        file: &Path,
    ) -> Result<Self> {
        let [n, h, w, c] = ImageSet::shape_in(archive, file)?;
        let (_, images) = archive.bytes("images")?;
        let provenance = match meta.get("provenance") {
            None => String::new(),
            Some(_) => crate::weights::meta_as(file, meta, "provenance")?,
        };
        let set = ImageSet { images, n, h, w, c, provenance };
        set.check().map_err(|m| Error::data(file, m))?;
        Ok(set)
    }

    pub(super) fn as_array<'a>(&'a self, shape: &'a [usize; 4]) -> Array<'a> {
        Array { name: "images", shape, elems: Elems::U8(&self.images) }
    }

    pub(super) fn check(&self) -> std::result::Result<(), String> {
        let elems = self.shape().iter().try_fold(1usize, |a, &d| a.checked_mul(d));
        if elems == Some(0) {
            return Err(format!(
                "array \"images\": expected at least one image with pixels, found shape {:?}",
                self.shape()
            ));
        }
        if elems != Some(self.images.len()) {
            let (shape, found) = (self.shape(), self.images.len());
            return Err(format!(
                "array \"images\": expected as many bytes as shape {shape:?} holds, found {found}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ImageSet {
        ImageSet::new((0..24).map(|i| i * 10).collect(), [2, 2, 3, 2], "made up").unwrap()
    }

    #[test]
    fn a_saved_set_is_loaded_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("u.npz");
        sample().save(&path).unwrap();
        assert_eq!(ImageSet::load(&path).unwrap(), sample());
    }

    #[test]
    fn pixels_map_to_minus_one_and_one() {
        assert_eq!((to_input(0), to_input(255)), (-1.0, 1.0));
        assert!((to_input(51) + 0.6).abs() < 1e-6);
        assert!((0..=255).all(|p| to_pixel(to_input(p)) == p) && to_pixel(-1.1) == 0 && to_pixel(1.1) == 255);
        let mut out = [0.0; 24];
        sample().gather(&[1, 0], &mut out[..]).unwrap();
        assert_eq!((out[0], out[12], out[13]), (to_input(120), -1.0, to_input(10)));
    }

    #[test]
    fn gather_refuses_a_wrong_size_and_an_index_out_of_range() {
        assert!(
            sample()
                .gather(&[0], &mut [0.0; 11][..])
                .unwrap_err()
                .to_string()
                .contains("1 x 12 pixels, found 11")
        );
        assert!(
            sample().gather(&[2], &mut [0u8; 12][..]).unwrap_err().to_string().contains("below 2, found 2")
        );
    }

    #[test]
    fn malformed_sets_are_refused() {
        for (len, shape) in
            [(5, [1, 2, 3, 1]), (0, [0, 2, 3, 1]), (0, [1, 0, 3, 1]), (8, [usize::MAX, 2, 2, 2])]
        {
            let e = ImageSet::new(vec![0; len], shape, "").unwrap_err();
            assert!(e.exit_code() == 4 && e.to_string().contains("images"), "{e}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("u.npz");
        let write = |shape: &[usize], elems| {
            npz::write(
                &path,
                &[Array { name: "images", shape, elems }],
                &Meta::new(),
                npz::CompressionMethod::Deflated,
            )
        };
        write(&[2, 2], Elems::U8(&[0; 4])).unwrap();
        assert!(ImageSet::load(&path).unwrap_err().to_string().contains("[n, h, w, c], found [2, 2]"));
        write(&[1, 2, 2, 1], Elems::F32(&[0.0; 4])).unwrap();
        assert!(
            ImageSet::load(&path).unwrap_err().to_string().contains("expected dtype uint8, found float32")
        );
        write(&[0, 2, 2, 1], Elems::U8(&[])).unwrap();
        assert!(ImageSet::load(&path).unwrap_err().to_string().contains("at least one image"));
    }
}
