//! `fast_image_resize` for images of one, three or four bytes per pixel.
//!
//! The library's own `Resizer::resize` is generic, so that its caller compiles every filter for all 13 pixel
//! types: 6.2 of the 13.9 MB of machine code in this library's tests, which most changes compile again. This
//! one compiles three.

use fast_image_resize::images::Image;
use fast_image_resize::pixels::{U8, U8x3, U8x4};
use fast_image_resize::{
    ImageError, IntoImageView, IntoImageViewMut, PixelTrait, PixelType, ResizeError, ResizeOptions,
};

#[derive(Default)]
pub struct Resizer(fast_image_resize::Resizer);

impl Resizer {
    /// Resizes `from` to the size of `to`, with the same result as `fast_image_resize::Resizer::resize`.
    ///
    /// Errors: another pixel type, two different ones, or options that crop outside `from`.
    pub fn resize(
        &mut self,
        from: &impl IntoImageView,
        to: &mut Image,
        options: &ResizeOptions,
    ) -> Result<(), ResizeError> {
        match from.pixel_type() {
            Some(PixelType::U8) => self.typed::<U8>(from, to, options),
            Some(PixelType::U8x3) => self.typed::<U8x3>(from, to, options),
            Some(PixelType::U8x4) => self.typed::<U8x4>(from, to, options),
            _ => Err(ImageError::UnsupportedPixelType.into()),
        }
    }

    fn typed<P: PixelTrait>(
        &mut self,
        from: &impl IntoImageView,
        to: &mut Image,
        options: &ResizeOptions,
    ) -> Result<(), ResizeError> {
        match (from.image_view::<P>(), to.image_view_mut::<P>()) {
            (Some(from), Some(mut to)) => self.0.resize_typed(&from, &mut to, options),
            _ => Err(ResizeError::PixelTypesAreDifferent),
        }
    }
}
