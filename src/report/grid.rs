//! A batch of images as one PNG.

use crate::error::{Error, Result};

/// Side of the square that shows one image pixel: 32x32 images are small on today's screens.
const SCALE: usize = 2;
/// Gap between neighbouring images, in pixels of the result.
const GAP: usize = 1;
const GAP_LEVEL: u8 = 96;

/// Number of images in a snapshot of the generator's progress.
pub const STRIP_IMAGES: usize = 16;

/// Longest side of an image in a report: 64 images of 224 x 224 pixels would take 9 MB.
const REPORT_SIDE: usize = 80;

/// [`grid_png`] for a report: images with a side over 80 pixels are shrunk, each new pixel the mean of a
/// square.
///
/// Errors: as [`grid_png`].
pub fn small_grid_png(images: &[f32], [n, h, w, c]: [usize; 4]) -> Result<Vec<u8>> {
    let k = h.max(w).div_ceil(REPORT_SIDE);
    if k <= 1 || images.len() != n * h * w * c {
        return grid_png(images, n, h, w, c);
    }
    let (to_h, to_w) = (h / k, w / k);
    let mut small = vec![0.0; n * to_h * to_w * c];
    for (to, from) in small.chunks_exact_mut(to_h * to_w * c).zip(images.chunks_exact(h * w * c)) {
        for (i, v) in to.iter_mut().enumerate() {
            let (y, x, channel) = (i / c / to_w * k, i / c % to_w * k, i % c);
            let square = (0..k * k).map(|j| from[((y + j / k) * w + x + j % k) * c + channel]);
            *v = square.sum::<f32>() / (k * k) as f32;
        }
    }
    grid_png(&small, n, to_h, to_w, c)
}

/// PNG of a near-square grid of `images`, which are `[n, h, w, c]` in [-1, 1] with one channel (gray) or
/// three (RGB). Sixteen images make two rows. Values outside the range are clipped, and NaN is black.
///
/// Errors: another number of channels, an empty batch, or a length that does not match the shape.
pub fn grid_png(images: &[f32], n: usize, h: usize, w: usize, c: usize) -> Result<Vec<u8>> {
    let wrong = |message: String| Err(Error::shape("grid_png", message));
    let color = match c {
        1 => png::ColorType::Grayscale,
        3 => png::ColorType::Rgb,
        _ => return wrong(format!("expected 1 or 3 channels, found {c}")),
    };
    if n == 0 || h == 0 || w == 0 || images.len() != n * h * w * c {
        return wrong(format!("expected {n}x{h}x{w}x{c} values, at least one, found {}", images.len()));
    }
    let columns = columns(n);
    let rows = n.div_ceil(columns);
    let side = |count: usize, pixels: usize| count * (pixels * SCALE + GAP) - GAP;
    let (width, height) = (side(columns, w), side(rows, h));

    let mut canvas = vec![GAP_LEVEL; width * height * c];
    for (i, image) in images.chunks_exact(h * w * c).enumerate() {
        let (top, left) = ((i / columns) * (h * SCALE + GAP), (i % columns) * (w * SCALE + GAP));
        for y in 0..h * SCALE {
            for x in 0..w * SCALE {
                let from = ((y / SCALE) * w + x / SCALE) * c;
                let to = ((top + y) * width + left + x) * c;
                for (byte, v) in canvas[to..to + c].iter_mut().zip(&image[from..from + c]) {
                    *byte = ((v + 1.0) * 127.5).round() as u8; // `as` saturates, and maps NaN to 0
                }
            }
        }
    }
    encode(&canvas, width, height, color).map_err(|e| Error::Run(format!("cannot encode a PNG: {e}")))
}

/// Columns of a grid of `n` images.
fn columns(n: usize) -> usize {
    let square = n.isqrt() + usize::from(n.isqrt().pow(2) < n);
    if n == STRIP_IMAGES { n / 2 } else { square }
}

/// Width and height of a grid, and its images' places: left, top, width and height.
pub(super) type Places = ([usize; 2], Vec<[usize; 4]>);

/// Where the images of a PNG of [`grid_png`] are, if it may show `n` of them.
pub(super) fn places(png: &[u8], n: usize) -> Option<Places> {
    // Behind the signature is the header's length and name, and then width and height.
    let number = |at: usize| {
        let word = png.get(at..at + 4)?.first_chunk()?;
        usize::try_from(u32::from_be_bytes(*word)).ok()
    };
    let (width, height) = (number(16)?, number(20)?);
    let columns = columns(n);
    let rows = (columns > 0).then(|| n.div_ceil(columns))?;
    let step = |side: usize, count: usize| {
        let step = (side + GAP) / count;
        (step > GAP && step * count == side + GAP).then_some(step)
    };
    let (right, down) = (step(width, columns)?, step(height, rows)?);
    let place = |i: usize| [i % columns * right, i / columns * down, right - GAP, down - GAP];
    Some(([width, height], (0..n).map(place).collect()))
}

fn encode(bytes: &[u8], width: usize, height: usize, color: png::ColorType) -> Result<Vec<u8>, String> {
    let side =
        |v: usize| u32::try_from(v).map_err(|_| format!("{width}x{height} pixels are too many for a PNG"));
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, side(width)?, side(height)?);
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|e| e.to_string())?;
    writer.write_image_data(bytes).map_err(|e| e.to_string())?;
    writer.finish().map_err(|e| e.to_string())?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> (png::OutputInfo, Vec<u8>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        (info, pixels)
    }

    #[test]
    fn gray_pixels_are_scaled_and_placed_in_the_grid() {
        // Three 1x2 images in a 2x2 grid.
        let (info, pixels) = decode(&grid_png(&[-1.0, 1.0, 0.0, 9.0, f32::NAN, -9.0], 3, 1, 2, 1).unwrap());
        assert_eq!((info.width, info.height, info.color_type), (9, 5, png::ColorType::Grayscale));
        let g = GAP_LEVEL;
        let first = [0, 0, 255, 255, g, 128, 128, 255, 255];
        assert_eq!(pixels[0..9], first);
        assert_eq!(pixels[9..18], first);
        assert_eq!(pixels[18..27], [g; 9]);
        assert_eq!(pixels[27..36], [0, 0, 0, 0, g, g, g, g, g]);
    }

    #[test]
    fn the_images_of_a_grid_are_found_again() {
        let png = grid_png(&[0.0; 6], 3, 1, 2, 1).unwrap();
        let (size, found) = places(&png, 3).unwrap();
        assert_eq!((size, found), ([9, 5], vec![[0, 0, 4, 2], [5, 0, 4, 2], [0, 3, 4, 2]]));
        let strip = small_grid_png(&[0.0; 16 * 4], [16, 2, 2, 1]).unwrap();
        assert_eq!(places(&strip, 16).unwrap().1[9], [5, 5, 4, 4]);
        // Grids of other numbers of images, and what is no PNG.
        assert!(places(&png, 0).is_none() && places(&png, 9).is_none() && places(b"PNG", 3).is_none());
    }

    #[test]
    fn large_images_are_shrunk_to_means() {
        // 160 x 96 pixels, left half -1, right half 1: halved to 80 x 48, and drawn twice as large.
        let images: Vec<f32> = (0..160 * 96).map(|i| if i % 96 < 48 { -1.0 } else { 1.0 }).collect();
        let (info, pixels) = decode(&small_grid_png(&images, [1, 160, 96, 1]).unwrap());
        assert_eq!((info.width, info.height), (96, 160));
        assert!((0..160).all(|y| pixels[y * 96 + 47] == 0 && pixels[y * 96 + 48] == 255));
        let strip = small_grid_png(&vec![0.0; 16 * 4], [16, 2, 2, 1]).unwrap();
        assert_eq!((decode(&strip).0.width, decode(&strip).0.height), (8 * 5 - 1, 2 * 5 - 1));
        assert!(small_grid_png(&images, [2, 160, 96, 1]).is_err());
    }

    #[test]
    fn rgb_decodes_and_wrong_shapes_are_errors() {
        let (info, pixels) = decode(&grid_png(&[-1.0, 0.0, 1.0], 1, 1, 1, 3).unwrap());
        assert_eq!((info.width, info.height, info.color_type), (2, 2, png::ColorType::Rgb));
        assert_eq!(pixels[..3], [0, 128, 255]);
        assert!(grid_png(&[0.0; 4], 1, 1, 2, 2).is_err());
        assert!(grid_png(&[0.0; 4], 1, 1, 1, 1).is_err());
        assert!(grid_png(&[], 0, 1, 1, 1).is_err());
    }
}
