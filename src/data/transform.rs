//! From an image of any size to what a network takes: cut, resized, mirrored.
//!
//! Resizing is torchvision's `antialias=True`: a triangle filter as wide as the scale (Pillow's `BILINEAR`), in 8 bits.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::image::Pixels;
use super::rng::Rng;
use super::unlabelled::to_input;
use crate::error::{Error, Result};

/// What is done to an image on its way into a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transform {
    /// The network's input: height, width, channels (1: luminance; 3: RGB).
    pub image: [usize; 3],
    pub view: View,
}

/// Which part of the image is seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum View {
    /// A random part of random shape, at random mirrored: torchvision's `RandomResizedCrop`, then
    /// `RandomHorizontalFlip`. For training.
    RandomCrop {
        /// Share of the image's area, from and to; within (0, 1].
        scale: [f32; 2],
        /// Width over height, from and to; above 0.
        ratio: [f32; 2],
        /// Probability.
        flip: f32,
    },
    /// The centre, of the network's shape, after the image's shorter side was resized to `resize` times the network's
    /// shorter side.
    CentreCrop { resize: f32 },
    /// All of the image, whatever becomes of its proportions.
    Squash,
}

impl Transform {
    /// torchvision's training defaults: 8 to 100 % of the area, 3:4 to 4:3, half of the images mirrored.
    pub fn train(image: [usize; 3]) -> Self {
        Transform {
            image,
            view: View::RandomCrop { scale: [0.08, 1.0], ratio: [0.75, 4.0 / 3.0], flip: 0.5 },
        }
    }

    /// torchvision's evaluation default: 256 for a crop of 224.
    pub fn eval(image: [usize; 3]) -> Self {
        Transform { image, view: View::CentreCrop { resize: 256.0 / 224.0 } }
    }

    /// Bytes of a transformed image.
    pub fn len(&self) -> usize {
        self.image.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Errors: an image without pixels or of more than 8192 a side, channels other than 1 or 3, a range that is none.
    pub fn check(&self) -> Result<()> {
        let [h, w, c] = self.image;
        let fail = |m: String| Err(Error::shape("transform", m));
        // Nothing is converted where all is seen as it is.
        let fits = [1, 3].contains(&c) || (c > 0 && self.view == View::Squash);
        if h == 0 || w == 0 || h > 8192 || w > 8192 || !fits {
            return fail(format!(
                "expected images of 1 to 8192 pixels a side and 1 or 3 channels, found {h} x {w} x {c}"
            ));
        }
        match self.view {
            View::RandomCrop { scale: [a, b], ratio: [c, d], flip } => {
                let fits = 0.0 < a && a <= b && b <= 1.0 && 0.0 < c && c <= d && d.is_finite();
                if !fits || !(0.0..=1.0).contains(&flip) {
                    return fail(format!(
                        "expected 0 < scale <= 1 and 0 < ratio, each ascending, and a probability, found {:?}",
                        self.view
                    ));
                }
            }
            View::CentreCrop { resize } if !(1.0..=16.0).contains(&resize) => {
                return fail(format!(
                    "expected the shorter side resized to 1 to 16 times the crop, found {resize}"
                ));
            }
            View::CentreCrop { .. } | View::Squash => {}
        }
        Ok(())
    }

    /// The part of an image of `h` x `w` that is seen, and whether mirrored.
    fn region(&self, h: usize, w: usize, rng: &mut Rng) -> (Region, bool) {
        match self.view {
            View::RandomCrop { scale, ratio, flip } => {
                let region = random_region(h, w, scale, ratio, rng);
                (region, rng.unit() < f64::from(flip))
            }
            View::CentreCrop { resize } => (self.centre(h, w, resize), false),
            View::Squash => (Region::all(h, w), false),
        }
    }

    /// The crop's place before resizing: what the resize would enlarge is cut out first, so no pixel is made for nothing.
    fn centre(&self, h: usize, w: usize, resize: f32) -> Region {
        let (height, width) = (self.image[0] as f64, self.image[1] as f64);
        let side = |n: f64| (n * f64::from(resize)).round();
        // torchvision: the side that is shorter for its target becomes `side`, the other one follows, cut to whole pixels.
        let (from_h, from_w) = (h as f64, w as f64);
        let tall = side(height) / from_h > side(width) / from_w;
        let (to, from) = if tall { (side(height), from_h) } else { (side(width), from_w) };
        let (new_h, new_w) = ((from_h * to / from).floor(), (from_w * to / from).floor());
        // The crop starts at a whole pixel of the resized image, halves to the even one as Python rounds.
        let (top, left) =
            (((new_h - height) / 2.0).round_ties_even(), ((new_w - width) / 2.0).round_ties_even());
        let (fy, fx) = (from_h / new_h, from_w / new_w);
        Region { top: top * fy, left: left * fx, h: height * fy, w: width * fx }
    }
}

/// A rectangle of an image, in its pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Region {
    top: f64,
    left: f64,
    h: f64,
    w: f64,
}

impl Region {
    fn all(h: usize, w: usize) -> Self {
        Region { top: 0.0, left: 0.0, h: h as f64, w: w as f64 }
    }
}

/// torchvision's `RandomResizedCrop.get_params`: ten tries, then the largest centre that the shapes allow.
fn random_region(h: usize, w: usize, scale: [f32; 2], ratio: [f32; 2], rng: &mut Rng) -> Region {
    let (scale, ratio) = (scale.map(f64::from), ratio.map(f64::from));
    for _ in 0..10 {
        let area = (h * w) as f64 * rng.uniform(scale[0], scale[1]);
        let shape = rng.uniform(ratio[0].ln(), ratio[1].ln()).exp();
        let (cut_w, cut_h) = ((area * shape).sqrt().round(), (area / shape).sqrt().round());
        if (1.0..=w as f64).contains(&cut_w) && (1.0..=h as f64).contains(&cut_h) {
            let top = rng.below(h - cut_h as usize + 1) as f64;
            let left = rng.below(w - cut_w as usize + 1) as f64;
            return Region { top, left, h: cut_h, w: cut_w };
        }
    }
    let (height, width) = (h as f64, w as f64);
    let shape = (width / height).clamp(ratio[0], ratio[1]);
    let cut_w = (height * shape).round().clamp(1.0, width);
    let cut_h = (width / shape).round().clamp(1.0, height);
    Region {
        top: ((height - cut_h) / 2.0).floor(),
        left: ((width - cut_w) / 2.0).floor(),
        h: cut_h,
        w: cut_w,
    }
}

/// A thread's transformer: keeps the resizer's buffers from image to image.
#[derive(Default)]
pub struct Transformer {
    resizer: Resizer,
}

impl Transformer {
    /// Writes `pixels`, transformed, to `out`, which holds `transform.len()` bytes.
    pub fn apply(
        &mut self,
        transform: &Transform,
        pixels: &Pixels,
        rng: &mut Rng,
        out: &mut [u8],
    ) -> Result<()> {
        let [h, w, c] = transform.image;
        let (region, is_flipped) = transform.region(pixels.h, pixels.w, rng);
        if transform.image == [pixels.h, pixels.w, pixels.c] && region == Region::all(h, w) {
            out.copy_from_slice(&pixels.data);
        } else if pixels.c == c && [1, 3].contains(&c) {
            self.resize(pixels, region, [h, w, c], out)?;
        } else if (pixels.c, c) == (3, 1) {
            let mut rgb = vec![0; h * w * 3];
            self.resize(pixels, region, [h, w, 3], &mut rgb)?;
            for (to, p) in out.iter_mut().zip(rgb.chunks_exact(3)) {
                *to = luminance([p[0], p[1], p[2]]);
            }
        } else if (pixels.c, c) == (1, 3) {
            let mut grey = vec![0; h * w];
            self.resize(pixels, region, [h, w, 1], &mut grey)?;
            for (to, g) in out.chunks_exact_mut(3).zip(grey) {
                to.fill(g);
            }
        } else {
            let message = format!("no way from {} channels to {c}", pixels.c);
            return Err(Error::shape("transform", message));
        }
        if is_flipped {
            mirror(out, w, c);
        }
        Ok(())
    }

    fn resize(&mut self, pixels: &Pixels, region: Region, to: [usize; 3], out: &mut [u8]) -> Result<()> {
        let fault = |e: &dyn std::fmt::Display| {
            Error::shape("transform", format!("{} x {} pixels to {to:?}: {e}", pixels.h, pixels.w))
        };
        let kind = if pixels.c == 1 { PixelType::U8 } else { PixelType::U8x3 };
        let from =
            ImageRef::new(pixels.w as u32, pixels.h as u32, &pixels.data, kind).map_err(|e| fault(&e))?;
        let mut target =
            Image::from_slice_u8(to[1] as u32, to[0] as u32, out, kind).map_err(|e| fault(&e))?;
        let options = ResizeOptions::new()
            .crop(region.left, region.top, region.w, region.h)
            .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
        self.resizer.resize(&from, &mut target, &options).map_err(|e| fault(&e))
    }
}

/// ITU-R 601-2 in integers, as Pillow's mode "L".
fn luminance([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

fn mirror(image: &mut [u8], w: usize, c: usize) {
    for row in image.chunks_exact_mut(w * c) {
        for x in 0..w / 2 {
            let (left, right) = row.split_at_mut((w - 1 - x) * c);
            left[x * c..][..c].swap_with_slice(&mut right[..c]);
        }
    }
}

/// Pixels to network input (see [`to_input`]); both of one length.
pub fn to_inputs(pixels: &[u8], out: &mut [f32]) {
    for (x, &p) in out.iter_mut().zip(pixels) {
        *x = to_input(p);
    }
}
