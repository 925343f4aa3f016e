//! Resizes images of one, three or four bytes per pixel with `fast_image_resize`, as torchvision's
//! `antialias=True` does: a triangle filter whose width is the scale (Pillow's `BILINEAR`), in 8 bits.
//!
//! It is a crate of its own because the library is generic: whoever calls it compiles its filters, for each
//! pixel type and each of 30 precisions. Within the engine they were 31 % of the code that the compiler
//! optimised at every change, and again for its tests. Of the 13 pixel types three are compiled.

use fast_image_resize::images::{Image, ImageRef, TypedCroppedImage};
use fast_image_resize::pixels::{U8, U8x3, U8x4};
use fast_image_resize::{
    FilterType, IntoImageView, IntoImageViewMut, PixelTrait, PixelType, ResizeAlg, ResizeOptions,
};

/// A rectangle of an image, in its pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Part {
    /// Cropped, then resized: pixels around the crop have no influence.
    Pixels { top: usize, left: usize, h: usize, w: usize },
    /// Resized, then cropped: the filter also reads pixels around the crop.
    Resized { top: f64, left: f64, h: f64, w: f64 },
}

/// Resizes images, and keeps its buffers from one to the next.
#[derive(Default)]
pub struct Resizer(fast_image_resize::Resizer);

impl Resizer {
    /// Resizes a part of an image to `to`, height and width. `from` holds `[height, width, channels]` pixels
    /// row by row, `out` the same channels.
    ///
    /// Errors: other than 1, 3 or 4 channels, slices of another length, a part outside the image.
    pub fn resize(
        &mut self,
        from: &[u8],
        shape: [usize; 3],
        part: Part,
        to: [usize; 2],
        out: &mut [u8],
    ) -> Result<(), String> {
        match shape[2] {
            1 => self.typed::<U8>(PixelType::U8, from, shape, part, to, out),
            3 => self.typed::<U8x3>(PixelType::U8x3, from, shape, part, to, out),
            4 => self.typed::<U8x4>(PixelType::U8x4, from, shape, part, to, out),
            c => Err(format!("expected 1, 3 or 4 channels to resize, found {c}")),
        }
    }

    fn typed<P: PixelTrait>(
        &mut self,
        kind: PixelType,
        from: &[u8],
        [h, w, _]: [usize; 3],
        part: Part,
        to: [usize; 2],
        out: &mut [u8],
    ) -> Result<(), String> {
        let wrong = |e: &dyn std::fmt::Display| e.to_string();
        let from = ImageRef::new(w as u32, h as u32, from, kind).map_err(|e| wrong(&e))?;
        let mut out = Image::from_slice_u8(to[1] as u32, to[0] as u32, out, kind).map_err(|e| wrong(&e))?;
        let (Some(from), Some(mut out)) = (from.image_view::<P>(), out.image_view_mut::<P>()) else {
            return Err("an image that is not of its own pixel type".into());
        };
        // The fourth byte is not transparency, so colours must not be multiplied by it.
        let options =
            ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
        let ([left, top, w, h], options) = match part {
            Part::Pixels { top, left, h, w } => ([left, top, w, h], options),
            Part::Resized { top, left, h: rows, w: columns } => {
                ([0, 0, w, h], options.crop(left, top, columns, rows))
            }
        };
        // Both parts are resized as a crop, because a second type of source would compile every filter again.
        let [left, top, w, h] = [left, top, w, h].map(|n| n as u32);
        let from = TypedCroppedImage::new(from, left, top, w, h).map_err(|e| wrong(&e))?;
        self.0.resize_typed(&from, &mut out, &options).map_err(|e| wrong(&e))
    }
}
