//! Decodes JPEG and PNG files.
//!
//! Both are decoded to RGBX, which is RGB with a fourth byte that is ignored: resizing pixels of one 32-bit
//! word takes three quarters of the time that pixels of three bytes take, and mirroring an eighth. Grey is
//! repeated, CMYK and YCCK are converted without a colour profile, transparency is dropped, and 16 bits are
//! truncated to 8. The EXIF orientation is not applied, which is also the default of PIL and torchvision. A
//! file that ends early is an error, as in PIL: half an image with its label would be a wrong example. So is a
//! progressive JPEG without its last scans, which PIL smooths.
//!
//! A JPEG's pixels are bit for bit those of libjpeg-turbo, the decoder that PIL and torchvision use.

use std::path::Path;

use libjpeg_turbo_rs::{ComponentInfo, DecodeLimits, Decoder, JpegError, PixelFormat};

use super::files::read;
use super::jpeg;
use crate::error::{Error, Result};
use crate::machine::available_memory;

/// The most pixels of a PNG, and of a JPEG that is too short for more (256 MB of RGBX). The limit refuses
/// small files that claim to be large images.
pub const MAX_PIXELS: usize = 64 << 20;

/// The most pixels of a JPEG (2 GB of RGBX), five times those of a phone's largest photograph.
const MAX_JPEG_PIXELS: usize = 512 << 20;

/// The most pixels that a byte of a JPEG can hold: a block of 64 takes at least two bits.
const JPEG_PIXELS_PER_BYTE: usize = 256;

/// The most bytes of a file: four per pixel, more than a real JPEG or PNG has. The limit ends the reading of
/// an endless file.
const MAX_BYTES: u64 = 4 * MAX_PIXELS as u64;

/// First bytes of image formats that are not read: where they begin, and the format's name.
const OTHER_FORMATS: [(usize, &[u8], &str); 12] = [
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (8, b"WEBP", "a WebP"),
    (4, b"ftypavif", "an AVIF"),
    (4, b"ftypavis", "an AVIF"),
    (4, b"ftyphe", "a HEIC"),
    (4, b"ftypmif1", "a HEIC"),
    (0, b"\0\0\0\x0cjP", "a JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (0, b"\xff\x0a", "a JPEG XL"),
];

/// What a file is that is neither a JPEG nor a PNG, whatever its name says.
fn other_format(bytes: &[u8]) -> String {
    let has = |at: usize, mark: &[u8]| bytes.get(at..).is_some_and(|b| b.starts_with(mark));
    if let Some((_, _, name)) = OTHER_FORMATS.iter().find(|(at, mark, _)| has(*at, mark)) {
        return format!("{name} file, which is not read; convert it to JPEG or PNG");
    }
    if has(0, b"\0\x05\x16\x07") {
        return "a file of macOS with another file's attributes, which is no image; delete it".into();
    }
    if has(0, b"version https://git-lfs") {
        return "a Git LFS pointer, not the file itself: run `git lfs pull`".into();
    }
    format!("{:02x?}", &bytes[..bytes.len().min(4)])
}

/// The most scans of a progressive JPEG. About ten are usual; each takes time in proportion to the pixels,
/// however few bytes it has.
const MAX_SCANS: usize = 500;

/// `h` x `w` pixels of `c` bytes, in that memory order; `c` is 1 (grey), 3 (RGB) or 4 (RGBX).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pixels {
    pub h: usize,
    pub w: usize,
    pub c: usize,
    /// `h * w * c` bytes.
    pub data: Vec<u8>,
}

/// A JPEG or PNG file whose header has been read and whose pixels have not been decoded yet.
#[derive(Clone, Debug)]
pub struct Encoded<'a> {
    bytes: Vec<u8>,
    kind: Kind,
    /// For error messages.
    path: &'a Path,
    pub h: usize,
    pub w: usize,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Jpeg,
    Png,
}

impl<'a> Encoded<'a> {
    /// Reads the header of a file. `path` is for error messages.
    ///
    /// Errors: another format, a damaged header, no pixels or more than [`MAX_PIXELS`], a JPEG of an
    /// unsupported coding or sampling.
    pub fn new(bytes: Vec<u8>, path: &'a Path) -> Result<Encoded<'a>> {
        let read = match *bytes {
            [0xff, 0xd8, ..] => guarded(|| Ok((Kind::Jpeg, jpeg_decoder(&bytes)?.1))),
            [0x89, b'P', b'N', b'G', ..] => guarded(|| Ok((Kind::Png, png_decoder(&bytes)?.1))),
            [] => Err("expected a JPEG or PNG file, found an empty one".into()),
            _ => Err(format!("expected a JPEG or PNG file, found {}", other_format(&bytes))),
        };
        let (kind, [h, w]) = read.map_err(|message| Error::data(path, message))?;
        Ok(Encoded { bytes, kind, path, h, w })
    }

    /// As [`Encoded::new`], from the file `path`.
    pub fn open(path: &'a Path) -> Result<Encoded<'a>> {
        Encoded::new(read(path, MAX_BYTES)?, path)
    }

    /// Decodes at least the first `rows` rows to RGBX. Only a JPEG that `jpeg::shorten` can shorten is
    /// decoded in part. `buffer` is reused for the pixels.
    ///
    /// Errors: a file that is damaged or ends early.
    pub fn decode(mut self, rows: usize, mut buffer: Vec<u8>) -> Result<Pixels> {
        let (kind, w) = (self.kind, self.w);
        let h = match kind {
            Kind::Jpeg if rows < self.h => jpeg::shorten(&mut self.bytes, rows).unwrap_or(self.h),
            _ => self.h,
        };
        // The old contents are not cleared, because the decoders overwrite all of the buffer. The fuzz
        // targets check that.
        buffer.resize(h * w * 4, 0);
        let decoded = guarded(|| match kind {
            Kind::Jpeg => decode_jpeg(&self.bytes, &mut buffer),
            Kind::Png => decode_png(&self.bytes, &mut buffer),
        });
        decoded.map_err(|message| Error::data(self.path, message))?;
        Ok(Pixels { h, w, c: 4, data: buffer })
    }
}

/// Decodes all of a JPEG or PNG file to RGBX. `path` is for error messages.
///
/// Errors: those of [`Encoded::new`] and [`Encoded::decode`].
pub fn decode(bytes: &[u8], path: &Path) -> Result<Pixels> {
    Encoded::new(bytes.to_vec(), path)?.decode(usize::MAX, Vec::new())
}

/// Runs a decoder and turns a panic of it into an error, so that a bug in a decoder library does not end the
/// process.
fn guarded<T>(decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let decode = std::panic::AssertUnwindSafe(decode);
    std::panic::catch_unwind(decode).unwrap_or_else(|_| Err("the decoder panicked on this file".into()))
}

/// Reads and decodes the file `path`.
pub fn load(path: &Path) -> Result<Pixels> {
    Encoded::open(path)?.decode(usize::MAX, Vec::new())
}

fn check_size(w: usize, h: usize, most: usize) -> Result<(), String> {
    match w.checked_mul(h) {
        Some(0) => Err(format!("expected pixels, found an image of {w} x {h}")),
        Some(n) if n <= most => Ok(()),
        _ => Err(format!("expected at most {most} pixels, found {w} x {h}")),
    }
}

/// The most pixels that a JPEG of so many bytes may claim. A large image may take at most half of the memory
/// that is available, because other threads decode too.
fn most_jpeg_pixels(bytes: usize) -> usize {
    let by_length = bytes.saturating_mul(JPEG_PIXELS_PER_BYTE).min(MAX_JPEG_PIXELS);
    if by_length <= MAX_PIXELS {
        return MAX_PIXELS;
    }
    // RGBX, and up to four planes of the decoder.
    let by_memory = available_memory().map_or(MAX_PIXELS, |available| available / 2 / 8);
    by_length.min(by_memory).max(MAX_PIXELS)
}

/// A decoder that has read the header, and the image's height and width.
type Started<D> = Result<(D, [usize; 2]), String>;

fn jpeg_decoder(bytes: &[u8]) -> Started<Decoder<'_>> {
    let limits = DecodeLimits {
        max_width: usize::from(u16::MAX),
        max_height: usize::from(u16::MAX),
        max_pixels: MAX_JPEG_PIXELS as u64,
        max_scans: MAX_SCANS,
        max_memory: None,
    };
    let mut decoder = Decoder::new_with_limits(bytes, limits).map_err(jpeg_fault)?;
    decoder.set_output_format(PixelFormat::Rgbx);
    check_coding(&decoder)?;
    check_sampling(&decoder.header().components)?;
    let (w, h) = (decoder.output_width(), decoder.output_height());
    check_size(w, h, most_jpeg_pixels(bytes.len()))?;
    Ok((decoder, [h, w]))
}

/// Accepts the codings that cameras and the web use: baseline and progressive, 8 bits, Huffman code.
/// Arithmetic code is refused also because its decoder turns any bytes into an image, so that it would not
/// detect a file that ends early.
fn check_coding(decoder: &Decoder) -> Result<(), String> {
    let frame = decoder.header();
    let found = match (decoder.is_arithmetic(), frame.is_lossless, frame.precision) {
        (true, ..) => "arithmetic code".into(),
        (_, true, _) => "a lossless one".into(),
        (.., 8) => return Ok(()),
        (.., bits) => format!("{bits} bits"),
    };
    Err(format!("expected a baseline or progressive JPEG of 8 bits in Huffman code, found {found}"))
}

/// Refuses files of four components whose sampling factors are those of neither CMYK (all the same) nor YCCK
/// (the two middle ones the same and coarser). libjpeg-turbo-rs 0.9.0 does not check this; it panics on such
/// files or decodes noise.
fn check_sampling(components: &[ComponentInfo]) -> Result<(), String> {
    let rates: Vec<[u8; 2]> =
        components.iter().map(|c| [c.horizontal_sampling, c.vertical_sampling]).collect();
    match *rates {
        [y, cb, cr, k] if y != k || cb != cr || (0..2).any(|i| !y[i].is_multiple_of(cb[i])) => {
            Err(format!("expected a JPEG of CMYK or YCCK, found four components sampled at {rates:?}"))
        }
        _ => Ok(()),
    }
}

fn jpeg_fault(e: JpegError) -> String {
    format!("not a whole JPEG: {e}")
}

/// Decodes to `rgbx`, which has four bytes for each of the file's pixels.
fn decode_jpeg(bytes: &[u8], rgbx: &mut [u8]) -> Result<(), String> {
    if jpeg::lacks_scans(bytes) {
        return Err("not a whole JPEG: the last scans of this progressive file are missing, and decoders differ in what \
                    they show in their place; get the whole file, or decode it with a program of your choice and save it \
                    again"
            .into());
    }
    let written = jpeg_decoder(bytes)?.0.decode_image_into(rgbx).map_err(jpeg_fault)?.bytes_written;
    if written != rgbx.len() {
        return Err(format!("expected a JPEG of {} bytes of pixels, found {written}", rgbx.len()));
    }
    Ok(())
}

fn png_decoder(bytes: &[u8]) -> Started<png::Decoder<std::io::Cursor<&[u8]>>> {
    let limits = png::Limits { bytes: 8 * MAX_PIXELS };
    let mut decoder = png::Decoder::new_with_limits(std::io::Cursor::new(bytes), limits);
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let (w, h) =
        decoder.read_header_info().map(|i| (i.width as usize, i.height as usize)).map_err(png_fault)?;
    check_size(w, h, MAX_PIXELS)?;
    Ok((decoder, [h, w]))
}

fn png_fault(e: png::DecodingError) -> String {
    let text = e.to_string();
    // The decoder prints the name of a part as Rust prints the value.
    if text.contains('{') {
        let what =
            if text.starts_with("CRC") { "has another checksum than its bytes" } else { "is out of place" };
        return format!("not a whole PNG: a part of it {what}; copy or download it again");
    }
    format!("not a whole PNG: {text}")
}

/// Decodes to `rgbx`, which has four bytes for each of the file's pixels.
fn decode_png(bytes: &[u8], rgbx: &mut [u8]) -> Result<(), String> {
    let mut reader = png_decoder(bytes)?.0.read_info().map_err(png_fault)?;
    // png 0.18.1 expands palettes without checking them, and panics on one that is not a list of at most 256
    // colours.
    let bytes = |part: &Option<std::borrow::Cow<[u8]>>| part.as_ref().map_or(0, |p| p.len());
    let (palette, alpha) = (bytes(&reader.info().palette), bytes(&reader.info().trns));
    let is_sound = palette.is_multiple_of(3) && palette <= 3 * 256 && alpha <= palette / 3;
    if reader.info().color_type == png::ColorType::Indexed && !is_sound {
        let message = "expected a palette of at most 256 colours of 3 bytes";
        return Err(format!(
            "not a whole PNG: {message}, found {palette} bytes, and {alpha} of transparency"
        ));
    }
    let size = reader.output_buffer_size().ok_or("expected an image that fits in memory")?;
    let mut raw = vec![0; size];
    let info = reader.next_frame(&mut raw).map_err(png_fault)?;
    let samples = raw[..info.buffer_size()].chunks_exact(info.color_type.samples());
    if samples.len() != rgbx.len() / 4 {
        let found = samples.len();
        return Err(format!("not a whole PNG: expected {} pixels, found {found}", rgbx.len() / 4));
    }
    for (to, sample) in rgbx.as_chunks_mut::<4>().0.iter_mut().zip(samples) {
        let [r, g, b] = match *sample {
            [r, g, b] | [r, g, b, _] => [r, g, b],
            // Grey, with or without alpha. The decoder has expanded palettes to RGB.
            [grey, ..] => [grey; 3],
            [] => continue,
        };
        *to = [r, g, b, u8::MAX];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png_bytes(color: png::ColorType, depth: png::BitDepth, data: &[u8], w: u32, h: u32) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = png::Encoder::new(&mut out, w, h);
        encoder.set_color(color);
        encoder.set_depth(depth);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(data).unwrap();
        writer.finish().unwrap();
        out
    }

    fn of(bytes: &[u8]) -> Result<Pixels> {
        decode(bytes, Path::new("some.png"))
    }

    #[test]
    fn every_kind_of_png_becomes_rgbx() {
        use png::{BitDepth::*, ColorType::*};
        for (color, depth, data, expected) in [
            (Rgb, Eight, vec![1, 2, 3, 4, 5, 6], [1, 2, 3, 255, 4, 5, 6, 255]),
            (Rgba, Eight, vec![1, 2, 3, 0, 4, 5, 6, 9], [1, 2, 3, 255, 4, 5, 6, 255]),
            (Grayscale, Eight, vec![7, 9], [7, 7, 7, 255, 9, 9, 9, 255]),
            (GrayscaleAlpha, Eight, vec![7, 0, 9, 1], [7, 7, 7, 255, 9, 9, 9, 255]),
            (Grayscale, Sixteen, vec![7, 200, 9, 3], [7, 7, 7, 255, 9, 9, 9, 255]),
            (Grayscale, One, vec![0b0100_0000], [0, 0, 0, 255, 255, 255, 255, 255]),
        ] {
            let found = of(&png_bytes(color, depth, &data, 2, 1)).unwrap();
            assert_eq!((found.h, found.w, found.c), (1, 2, 4));
            assert_eq!(found.data, expected, "{color:?} {depth:?}");
        }
    }

    #[test]
    fn a_jpeg_of_an_unsupported_coding_is_refused() {
        for (frame, bits, found) in [
            (0xc9, 8, "arithmetic code"),
            (0xcb, 8, "arithmetic code"),
            (0xc3, 8, "a lossless one"),
            (0xc1, 12, "12 bits"),
        ] {
            let header = [0xff, 0xd8, 0xff, frame, 0, 11, bits, 0, 8, 0, 8, 1, 1, 0x11, 0];
            let scan =
                [0xff, 0xda, 0, 8, 1, 1, 0, if frame == 0xc3 { 1 } else { 0 }, 63, 0, 1, 2, 0xff, 0xd9];
            let e = of(&[&header[..], &scan].concat()).unwrap_err().to_string();
            assert!(e.ends_with(&format!("of 8 bits in Huffman code, found {found}")), "{e}");
        }
    }

    #[test]
    fn four_components_must_be_sampled_as_cmyk_or_ycck() {
        let of = |rates: &[[u8; 2]]| {
            let component = |&[horizontal_sampling, vertical_sampling]: &[u8; 2]| ComponentInfo {
                id: 1,
                horizontal_sampling,
                vertical_sampling,
                quant_table_index: 0,
            };
            check_sampling(&rates.iter().map(component).collect::<Vec<_>>())
        };
        for rates in
            [&[[1, 1]; 4][..], &[[2, 2], [1, 1], [1, 1], [2, 2]], &[[1, 4], [2, 1], [4, 4]], &[[2, 1]]]
        {
            of(rates).unwrap();
        }
        for rates in [
            [[1, 1], [1, 1], [1, 3], [1, 1]],
            [[2, 2], [1, 1], [1, 1], [1, 1]],
            [[1, 1], [2, 1], [2, 1], [1, 1]],
            [[3, 1], [2, 1], [2, 1], [3, 1]],
        ] {
            let e = of(&rates).unwrap_err();
            assert!(e.contains("expected a JPEG of CMYK or YCCK"), "{e}");
        }
    }

    #[test]
    fn a_palette_without_three_bytes_per_colour_is_refused() {
        for (palette, alpha, fits) in [(6, 2, true), (7, 0, false), (3 * 257, 0, false), (3, 2, false)] {
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
            encoder.set_color(png::ColorType::Indexed);
            encoder.set_depth(png::BitDepth::Eight);
            encoder.set_palette(vec![9; palette]);
            if alpha > 0 {
                encoder.set_trns(vec![1; alpha]);
            }
            encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
            match of(&bytes) {
                Ok(image) => assert!(fits && image.data == [9, 9, 9, 255], "{palette} {alpha}"),
                Err(e) => {
                    assert!(!fits && e.to_string().contains("not a whole PNG"), "{palette} {alpha}: {e}")
                }
            }
        }
    }

    #[test]
    fn a_file_that_is_not_an_image_is_refused_by_name() {
        let whole = png_bytes(png::ColorType::Rgb, png::BitDepth::Eight, &[9; 3 * 400], 20, 20);
        let mut huge = Vec::new();
        png::Encoder::new(&mut huge, 16384, 8192).write_header().unwrap();
        for (bytes, expected) in [
            (&b""[..], "found an empty one"),
            (b"GIF89a", "expected a JPEG or PNG file, found a GIF file, which is not read; convert it"),
            (b"RIFF\0\0\0\0WEBPVP8 ", "found a WebP file, which is not read"),
            (b"\0\0\0\x1cftypheic", "found a HEIC file, which is not read"),
            (b"\0\0\0\x1cftypavif", "found an AVIF file, which is not read"),
            (b"BM\x36\0", "found a BMP file, which is not read"),
            (b"II*\0\x08", "found a TIFF file, which is not read"),
            (b"\0\x05\x16\x07\0\x02", "found a file of macOS with another file's attributes"),
            (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
            (b"text", "found [74, 65, 78, 74]"),
            (&whole[..60], "not a whole PNG"),
            (b"\xff\xd8\xff", "not a whole JPEG"),
            (&huge, "pixels, found 16384 x 8192"),
        ] {
            let e = of(bytes).unwrap_err();
            assert_eq!(e.exit_code(), 4);
            assert!(e.to_string().starts_with("some.png: ") && e.to_string().contains(expected), "{e}");
        }
        for (w, h) in [(0, 5), (usize::MAX, 2), (MAX_PIXELS, 2)] {
            assert!(check_size(w, h, MAX_PIXELS).is_err());
        }
        check_size(MAX_PIXELS, 1, MAX_PIXELS).unwrap();
    }

    #[test]
    fn a_jpeg_may_be_as_large_as_its_bytes_and_the_memory_allow() {
        // 108 megapixels, as phones take them, and a file of as many that is too short to hold them.
        let (w, h) = (12_000, 9_000);
        assert!(check_size(w, h, most_jpeg_pixels(100_000)).is_err());
        assert_eq!(most_jpeg_pixels(0), MAX_PIXELS);
        let by_memory = available_memory().unwrap_or(0) / 16;
        let most = most_jpeg_pixels(usize::MAX);
        assert!((MAX_PIXELS..=MAX_JPEG_PIXELS).contains(&most), "{most} with {by_memory}");
        assert!(by_memory < w * h || check_size(w, h, most_jpeg_pixels(2_000_000)).is_ok());
    }
}
