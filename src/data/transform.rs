//! Crops, resizes and mirrors an image of any size to the size of a network's input. Resizing matches
//! torchvision's `antialias=True` (`crates/resize`).

use super::image::Pixels;
use super::rng::Rng;
use crate::error::{Error, Result};
use dfka_resize::{Part, Resizer};

/// The conversion of an image to a network's input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transform {
    /// Height, width and channels of the network's input. 1 channel is luminance, 3 are RGB.
    pub image: [usize; 3],
    pub view: View,
}

/// The part of an image that is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum View {
    /// A random crop of random aspect ratio, mirrored at random: torchvision's `RandomResizedCrop`, then
    /// `RandomHorizontalFlip`. For training.
    RandomCrop {
        /// Bounds of the crop's share of the image's area, within (0, 1].
        scale: [f32; 2],
        /// Bounds of the crop's width divided by its height, above 0.
        ratio: [f32; 2],
        /// The probability of mirroring.
        flip: f32,
    },
    /// The centre, after the image's shorter side was resized to `resize` times the network's shorter side.
    CentreCrop { resize: f32 },
    /// The whole image; its aspect ratio may change.
    Squash,
}

impl Transform {
    /// torchvision's training defaults: 8 to 100 % of the area, aspect ratios from 3:4 to 4:3, half of the
    /// images mirrored.
    pub fn train(image: [usize; 3]) -> Self {
        Transform {
            image,
            view: View::RandomCrop { scale: [0.08, 1.0], ratio: [0.75, 4.0 / 3.0], flip: 0.5 },
        }
    }

    /// torchvision's evaluation default: resized to 256 for a crop of 224.
    pub fn eval(image: [usize; 3]) -> Self {
        Transform { image, view: View::CentreCrop { resize: 256.0 / 224.0 } }
    }

    /// The size of a transformed image in bytes.
    pub fn len(&self) -> usize {
        self.image.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks the values.
    ///
    /// Errors: an input without pixels or with more than 8192 in height or width, channels other than 1 or
    /// 3, an invalid range.
    pub fn check(&self) -> Result<()> {
        let [h, w, c] = self.image;
        let fail = |m: String| Err(Error::shape("transform", m));
        // `Squash` may keep any number of channels, because it converts none.
        let fits = [1, 3].contains(&c) || (c > 0 && self.view == View::Squash);
        if h == 0 || w == 0 || h > 8192 || w > 8192 || !fits {
            return fail(format!(
                "expected images of 1 to 8192 pixels in height and width and 1 or 3 channels, \
                 found {h} x {w} x {c}"
            ));
        }
        match self.view {
            View::RandomCrop { scale: [a, b], ratio: [c, d], flip } => {
                let fits = 0.0 < a && a <= b && b <= 1.0 && 0.0 < c && c <= d && d.is_finite();
                if !fits || !(0.0..=1.0).contains(&flip) {
                    return fail(format!(
                        "expected 0 < scale <= 1 and 0 < ratio, each ascending, and 0 <= flip <= 1, \
                         found {:?}",
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

    /// Chooses the part of an image of `h` x `w` pixels, and whether it is mirrored.
    pub fn draw(&self, h: usize, w: usize, rng: &mut Rng) -> Crop {
        match self.view {
            View::RandomCrop { scale, ratio, flip } => {
                let part = random_part(h, w, scale, ratio, rng);
                Crop { part, is_mirrored: rng.unit() < f64::from(flip) }
            }
            View::CentreCrop { resize } => Crop { part: self.centre(h, w, resize), is_mirrored: false },
            View::Squash => Crop { part: Part::Pixels { top: 0, left: 0, h, w }, is_mirrored: false },
        }
    }

    /// The centre crop in the coordinates of the image before resizing, so that only the pixels of the crop
    /// are computed.
    fn centre(&self, h: usize, w: usize, resize: f32) -> Part {
        let (height, width) = (self.image[0] as f64, self.image[1] as f64);
        let side = |n: f64| (n * f64::from(resize)).round();
        // As torchvision: the side that is shorter relative to the network's gets the length `side`; the
        // other side keeps the aspect ratio and is rounded down.
        let (from_h, from_w) = (h as f64, w as f64);
        let tall = side(height) / from_h > side(width) / from_w;
        let (to, from) = if tall { (side(height), from_h) } else { (side(width), from_w) };
        let (new_h, new_w) = ((from_h * to / from).floor(), (from_w * to / from).floor());
        // The crop starts at a whole pixel of the resized image. Halves are rounded to even, as Python does.
        let (top, left) =
            (((new_h - height) / 2.0).round_ties_even(), ((new_w - width) / 2.0).round_ties_even());
        let (fy, fx) = (from_h / new_h, from_w / new_w);
        Part::Resized { top: top * fy, left: left * fx, h: height * fy, w: width * fx }
    }
}

/// The part of one image that is used, and whether it is mirrored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crop {
    part: Part,
    is_mirrored: bool,
}

impl Crop {
    /// The number of rows, from the first one on, that must be decoded.
    pub fn rows(&self) -> usize {
        match self.part {
            Part::Pixels { top, h, .. } => top + h,
            Part::Resized { .. } => usize::MAX,
        }
    }
}

/// torchvision's `RandomResizedCrop.get_params`: ten tries, then the largest centre crop of an allowed
/// aspect ratio.
fn random_part(h: usize, w: usize, scale: [f32; 2], ratio: [f32; 2], rng: &mut Rng) -> Part {
    let (scale, ratio) = (scale.map(f64::from), ratio.map(f64::from));
    for _ in 0..10 {
        let area = (h * w) as f64 * rng.uniform(scale[0], scale[1]);
        let shape = rng.uniform(ratio[0].ln(), ratio[1].ln()).exp();
        let (crop_w, crop_h) = ((area * shape).sqrt().round(), (area / shape).sqrt().round());
        if (1.0..=w as f64).contains(&crop_w) && (1.0..=h as f64).contains(&crop_h) {
            let (crop_h, crop_w) = (crop_h as usize, crop_w as usize);
            let top = rng.below(h - crop_h + 1);
            let left = rng.below(w - crop_w + 1);
            return Part::Pixels { top, left, h: crop_h, w: crop_w };
        }
    }
    let (height, width) = (h as f64, w as f64);
    let shape = (width / height).clamp(ratio[0], ratio[1]);
    let crop_w = (height * shape).round().clamp(1.0, width) as usize;
    let crop_h = (width / shape).round().clamp(1.0, height) as usize;
    Part::Pixels { top: (h - crop_h) / 2, left: (w - crop_w) / 2, h: crop_h, w: crop_w }
}

/// Applies transforms and keeps its buffers from image to image. Each thread has its own.
#[derive(Default)]
pub struct Transformer {
    resizer: Resizer,
    /// The resized crop before its channels are converted.
    buffer: Vec<u8>,
}

impl Transformer {
    /// Crops, resizes and mirrors `pixels`, converts them to the height, width and channels of `image`, and
    /// writes the result to `out`, which must have as many bytes. `pixels` may lack rows that the crop does
    /// not use (see [`Crop::rows`]).
    ///
    /// Errors: channels that cannot be converted.
    pub fn apply(&mut self, image: [usize; 3], crop: Crop, pixels: &Pixels, out: &mut [u8]) -> Result<()> {
        let [h, w, c] = image;
        if pixels.c == c {
            return self.crop_and_resize(crop, pixels, [h, w], out);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(h * w * pixels.c, 0);
        self.crop_and_resize(crop, pixels, [h, w], &mut buffer)?;
        match (pixels.c, c) {
            (4, 3) => {
                for (to, p) in out.as_chunks_mut::<3>().0.iter_mut().zip(buffer.as_chunks::<4>().0) {
                    *to = [p[0], p[1], p[2]];
                }
            }
            (3 | 4, 1) => {
                for (to, p) in out.iter_mut().zip(buffer.chunks_exact(pixels.c)) {
                    *to = luminance([p[0], p[1], p[2]]);
                }
            }
            (1, 3) => out.as_chunks_mut::<3>().0.iter_mut().zip(&buffer).for_each(|(to, g)| *to = [*g; 3]),
            (from, to) => {
                return Err(Error::shape("transform", format!("cannot convert {from} channels to {to}")));
            }
        }
        self.buffer = buffer;
        Ok(())
    }

    /// Crops, resizes and mirrors without converting channels.
    fn crop_and_resize(&mut self, crop: Crop, pixels: &Pixels, to: [usize; 2], out: &mut [u8]) -> Result<()> {
        let [h, w] = to;
        if to == [pixels.h, pixels.w] && crop.part == (Part::Pixels { top: 0, left: 0, h, w }) {
            out.copy_from_slice(&pixels.data);
        } else {
            let shape = [pixels.h, pixels.w, pixels.c];
            let fault =
                |e| Error::shape("transform", format!("{} x {} pixels to {to:?}: {e}", pixels.h, pixels.w));
            self.resizer.resize(&pixels.data, shape, crop.part, to, out).map_err(fault)?;
        }
        if crop.is_mirrored {
            mirror(out, w, pixels.c);
        }
        Ok(())
    }
}

/// The luminance of ITU-R 601-2 in integers, as in Pillow's mode "L".
fn luminance([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

fn mirror(image: &mut [u8], w: usize, c: usize) {
    for row in image.chunks_exact_mut(w * c) {
        match c {
            1 => row.reverse(),
            // Reversing whole pixels takes half the time of single bytes for three channels, and a fifteenth
            // for four.
            3 => row.as_chunks_mut::<3>().0.reverse(),
            4 => row.as_chunks_mut::<4>().0.reverse(),
            _ => {
                row.reverse();
                row.chunks_exact_mut(c).for_each(<[u8]>::reverse);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_crops_lie_inside_and_have_the_requested_area_and_ratio() {
        let (h, w) = (375, 500);
        let mut shares = Vec::new();
        for i in 0..4000 {
            let r = random_part(h, w, [0.08, 1.0], [0.75, 4.0 / 3.0], &mut Rng::stream(1, 2, i));
            let Part::Pixels { top, left, h: crop_h, w: crop_w } = r else { panic!("{r:?}") };
            assert!(top + crop_h <= h && left + crop_w <= w && crop_h >= 1 && crop_w >= 1, "{r:?}");
            // Sides of about a hundred pixels or more are rounded to whole pixels, which changes the ratio a
            // little.
            assert!((0.74..1.35).contains(&(crop_w as f64 / crop_h as f64)), "{r:?}");
            shares.push((crop_h * crop_w) as f64 / (h * w) as f64);
        }
        let mean = shares.iter().sum::<f64>() / 4000.0;
        assert!(shares.iter().all(|s| (0.079..=1.0).contains(s)));
        // torchvision 0.29 draws 0.434 on average (8,000 tries, standard error 0.002; here it is 0.0034).
        // That is below the mean of the uniform range, 0.54, because the largest areas fit in few aspect
        // ratios and are then drawn again.
        assert!((mean - 0.434).abs() < 0.015, "{mean}");
    }

    #[test]
    fn if_no_try_fits_the_crop_is_the_largest_centre() {
        // As in torchvision: the image is too wide for 4:3, so the crop has all of its height and the middle
        // of its width.
        let r = random_part(30, 3000, [1.0, 1.0], [0.75, 4.0 / 3.0], &mut Rng::stream(1, 2, 3));
        assert_eq!(r, Part::Pixels { top: 0, left: 1480, h: 30, w: 40 });
        let r = random_part(3000, 30, [1.0, 1.0], [0.75, 4.0 / 3.0], &mut Rng::stream(1, 2, 3));
        assert_eq!(r, Part::Pixels { top: 1480, left: 0, h: 40, w: 30 });
    }

    #[test]
    fn pixels_around_a_crop_influence_a_centre_crop_only() {
        let data = (0..64).map(|i| if i % 8 < 4 { 0 } else { 255 }).collect();
        let pixels = Pixels { h: 8, w: 8, c: 1, data };
        let of = |part| {
            let mut out = vec![7; 4];
            let crop = Crop { part, is_mirrored: false };
            Transformer::default().apply([2, 2, 1], crop, &pixels, &mut out).map(|()| out).unwrap()
        };
        assert_eq!(of(Part::Pixels { top: 0, left: 0, h: 8, w: 4 }), [0; 4]);
        let seen = of(Part::Resized { top: 0.0, left: 0.0, h: 8.0, w: 4.0 });
        assert!(seen[1] > 0 && seen[1] == seen[3], "{seen:?}");
    }

    #[test]
    fn images_are_mirrored_and_channels_converted() {
        let pixels = Pixels { h: 1, w: 3, c: 3, data: vec![255, 0, 0, 0, 255, 0, 0, 0, 255] };
        let mut t = Transformer::default();
        let mut of = |image, view, pixels: &Pixels| {
            let transform = Transform { image, view };
            let mut out = vec![0; transform.len()];
            let crop = transform.draw(pixels.h, pixels.w, &mut Rng::stream(0, 0, 0));
            t.apply(image, crop, pixels, &mut out).map(|()| out)
        };
        let whole = View::RandomCrop { scale: [1.0, 1.0], ratio: [3.0, 3.0], flip: 1.0 };
        assert_eq!(of([1, 3, 3], whole, &pixels).unwrap(), [0, 0, 255, 0, 255, 0, 255, 0, 0]);
        // 0.299, 0.587 and 0.114 of 255.
        let grey = of([1, 3, 1], View::Squash, &pixels).unwrap();
        assert_eq!(grey, [76, 150, 29]);
        let one = Pixels { h: 1, w: 3, c: 1, data: grey };
        assert_eq!(of([1, 3, 3], View::Squash, &one).unwrap(), [76, 76, 76, 150, 150, 150, 29, 29, 29]);
        assert!(
            of([1, 3, 2], View::Squash, &pixels)
                .unwrap_err()
                .to_string()
                .contains("cannot convert 3 channels")
        );
    }

    #[test]
    fn the_fourth_byte_is_ignored() {
        let noise = |n: u64| Rng::stream(5, 6, n).below(256) as u8;
        let rgb = Pixels { h: 20, w: 30, c: 3, data: (0..20 * 30 * 3).map(noise).collect() };
        for fourth in [0, 255] {
            let data = rgb.data.chunks_exact(3).flat_map(|p| [p[0], p[1], p[2], fourth]).collect();
            let rgbx = Pixels { c: 4, data, ..rgb };
            for (image, view) in [
                ([7, 9, 3], View::Squash),
                ([20, 30, 3], View::Squash),
                ([7, 9, 1], View::CentreCrop { resize: 1.2 }),
                ([7, 9, 3], View::RandomCrop { scale: [0.3, 0.5], ratio: [1.0, 1.0], flip: 1.0 }),
            ] {
                let crop = Transform { image, view }.draw(20, 30, &mut Rng::stream(1, 2, 3));
                let of = |pixels| {
                    let mut out = vec![0; image.iter().product()];
                    Transformer::default().apply(image, crop, pixels, &mut out).map(|()| out)
                };
                assert_eq!(of(&rgbx).unwrap(), of(&rgb).unwrap(), "{image:?} {view:?}");
            }
        }
    }

    #[test]
    fn an_invalid_transform_is_refused() {
        Transform::train([224, 224, 3]).check().unwrap();
        Transform::eval([32, 48, 1]).check().unwrap();
        let crop = |scale, ratio, flip| View::RandomCrop { scale, ratio, flip };
        for (image, view) in [
            ([0, 8, 3], View::Squash),
            ([8, 9000, 3], View::Squash),
            ([8, 8, 0], View::Squash),
            ([8, 8, 2], View::CentreCrop { resize: 1.0 }),
            ([8, 8, 3], View::CentreCrop { resize: 0.9 }),
            ([8, 8, 3], View::CentreCrop { resize: f32::NAN }),
            ([8, 8, 3], crop([0.0, 1.0], [1.0, 1.0], 0.5)),
            ([8, 8, 3], crop([0.5, 0.4], [1.0, 1.0], 0.5)),
            ([8, 8, 3], crop([0.5, 1.0], [0.0, 1.0], 0.5)),
            ([8, 8, 3], crop([0.5, 1.0], [1.0, f32::INFINITY], 0.5)),
            ([8, 8, 3], crop([0.5, 1.0], [1.0, 1.0], 1.5)),
        ] {
            assert!(Transform { image, view }.check().is_err(), "{image:?} {view:?}");
        }
    }

    #[test]
    fn a_crop_reads_no_pixel_around_it_and_a_resized_part_does() {
        // A white pixel right of the left half.
        let image = [0, 0, 255, 255];
        let mut out = [7];
        let crop = Part::Pixels { top: 0, left: 0, h: 1, w: 2 };
        Resizer::default().resize(&image, [1, 4, 1], crop, [1, 1], &mut out).unwrap();
        assert_eq!(out, [0]);
        let part = Part::Resized { top: 0.0, left: 0.0, h: 1.0, w: 2.0 };
        Resizer::default().resize(&image, [1, 4, 1], part, [1, 1], &mut out).unwrap();
        assert!(out[0] > 0, "{out:?}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let whole = Part::Pixels { top: 0, left: 0, h: 2, w: 2 };
        let resize = |from: &[u8], c, out: &mut [u8]| {
            Resizer::default().resize(from, [2, 2, c], whole, [1, 1], out).unwrap_err()
        };
        assert_eq!(resize(&[0; 8], 2, &mut [0; 2]), "expected 1, 3 or 4 channels to resize, found 2");
        assert!(!resize(&[0; 3], 1, &mut [0]).is_empty());
        assert!(!resize(&[0; 4], 1, &mut []).is_empty());
        let outside = Part::Pixels { top: 1, left: 0, h: 2, w: 2 };
        assert!(Resizer::default().resize(&[0; 4], [2, 2, 1], outside, [1, 1], &mut [0]).is_err());
    }
}
