//! Tensor maps: the boxes of a bf16 tensor that TMA copies to shared memory, in the 128-byte swizzle that
//! `wgmma` reads.

use super::block::Address;
use super::pointer::Pointer;
use crate::error::{Error, Result};

/// A tensor map in a machine's own format: 128 bytes.
pub type Encoded = [u64; 16];

/// Elements of a row of a box: 128 bytes of bf16, the span of the swizzle.
pub const ROW: u32 = 64;
const ELEMENT_BYTES: u64 = 2;

/// A tensor map while its tensor's address is unknown.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorMap {
    /// The bf16 tensor, or the bf16 copy of one.
    pub tensor: Pointer,
    /// The boxes that it is copied in.
    pub boxes: Boxes,
}

/// The part of a tensor that one copy brings to shared memory. Elements outside the tensor are zeros.
#[derive(Clone, Debug, PartialEq)]
pub enum Boxes {
    /// A box has `boxes[i]` elements of dimension i, innermost first, and begins at any coordinate
    /// (`tma_load_2d`).
    Tiled {
        /// Elements of each dimension, innermost first.
        dims: Vec<u64>,
        /// Bytes from one element to the next, for every dimension but the innermost.
        strides_bytes: Vec<u64>,
        /// Elements of a box in each dimension, innermost first.
        boxes: Vec<u32>,
    },
    /// A box has `pixels` successive windows of a convolution, and `channels` of one tap of each
    /// (`tma_load_im2col_4d`). The first taps of the windows run from `lower` to the image's last pixel plus
    /// `upper`, `steps` apart, row by row and image by image. For a filter of r rows padded by p, `lower` is
    /// -p and `upper` is p - (r - 1).
    Im2col {
        /// n, h, w and c of the tensor, which has no gaps.
        dims: [u64; 4],
        /// Where first taps begin, h and w.
        lower: [i32; 2],
        /// Where they end, relative to the last pixel, h and w.
        upper: [i32; 2],
        /// The convolution's stride.
        steps: [u32; 2],
        /// Channels of a box.
        channels: u32,
        /// Windows of a box.
        pixels: u32,
    },
}

/// The emulator's format. Mirrors `CUtensorMap` of kernels/emu/hopper.h.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Emulated {
    magic: [u8; 8],
    address: u64,
    kind: u32,
    rank: u32,
    dims: [u32; 4],
    strides: [u64; 3],
    boxes: [u32; 2],
    lower: [i32; 2],
    upper: [i32; 2],
    steps: [u32; 2],
    unused: [u32; 8],
}

const _: () = assert!(size_of::<Emulated>() == size_of::<Encoded>());

impl TensorMap {
    /// A matrix of `rows` by `columns` whose rows lie `row_bytes` apart, in boxes of `box_rows` by 64.
    pub fn matrix(tensor: Pointer, rows: u64, columns: u64, row_bytes: u64, box_rows: u32) -> TensorMap {
        let (dims, strides_bytes, boxes) = (vec![columns, rows], vec![row_bytes], vec![ROW, box_rows]);
        TensorMap { tensor, boxes: Boxes::Tiled { dims, strides_bytes, boxes } }
    }

    /// Sets the rows of a matrix, or the windows of a convolution, that a box has.
    pub fn set_box_rows(&mut self, rows: u32) {
        match &mut self.boxes {
            Boxes::Tiled { boxes, .. } => boxes[1] = rows,
            Boxes::Im2col { pixels, .. } => *pixels = rows,
        }
    }

    /// The dimensions, innermost first, and the bytes between the elements of all but the innermost.
    pub fn extents(&self) -> (Vec<u64>, Vec<u64>) {
        match &self.boxes {
            Boxes::Tiled { dims, strides_bytes, .. } => (dims.clone(), strides_bytes.clone()),
            Boxes::Im2col { dims: [n, h, w, c], .. } => {
                let pixel = c * ELEMENT_BYTES;
                (vec![*c, *w, *h, *n], vec![pixel, pixel * w, pixel * w * h])
            }
        }
    }

    /// Checks everything for which the driver would return just CUDA_ERROR_INVALID_VALUE, so that the error
    /// can say what is wrong.
    ///
    /// Errors: no tensor, or one that is not aligned to 16 bytes; a dimension, a stride, a box, a corner or
    /// a step that a tensor map cannot hold; rows of a box that are not 64 elements (128 bytes, which the
    /// swizzle requires).
    pub fn check(&self, address: Address) -> Result<()> {
        let wrong = |message: String| Err(Error::Run(format!("a tensor map: {message}")));
        if address == 0 || !address.is_multiple_of(16) {
            return wrong(format!("a tensor at {address:#x}, expected a multiple of 16 bytes"));
        }
        let (dims, strides) = self.extents();
        if let Some(d) = dims.iter().find(|d| **d == 0 || **d > 1 << 32) {
            return wrong(format!("dimensions {dims:?}: expected 1 to 2^32 elements, found {d}"));
        }
        if strides.len() + 1 != dims.len() {
            return wrong(format!("{} dimensions with {} strides", dims.len(), strides.len()));
        }
        if let Some(s) = strides.iter().find(|s| **s % 16 != 0 || **s >= 1 << 40) {
            return wrong(format!(
                "strides {strides:?}: expected multiples of 16 bytes below 2^40, found {s}"
            ));
        }
        let row = match &self.boxes {
            Boxes::Tiled { boxes, .. } => {
                if dims.len() != 2 || boxes.len() != 2 {
                    return wrong(format!(
                        "{} dimensions in boxes of {}, expected 2",
                        dims.len(),
                        boxes.len()
                    ));
                }
                if !(1..=256).contains(&boxes[1]) {
                    return wrong(format!("boxes of {boxes:?}: expected 1 to 256 rows"));
                }
                boxes[0]
            }
            Boxes::Im2col { lower, upper, steps, channels, pixels, .. } => {
                if !(1..=1024).contains(pixels) {
                    return wrong(format!("boxes of {pixels} pixels, expected 1 to 1024"));
                }
                let corners = lower.iter().chain(upper);
                if let Some(c) = corners.into_iter().find(|c| !(-128..=127).contains(*c)) {
                    return wrong(format!(
                        "corners {lower:?} and {upper:?}: expected -128 to 127, found {c}"
                    ));
                }
                if let Some(s) = steps.iter().find(|s| !(1..=8).contains(*s)) {
                    return wrong(format!("steps {steps:?}: expected 1 to 8, found {s}"));
                }
                for ((lower, upper), size) in lower.iter().zip(upper).zip([dims[2], dims[1]]) {
                    if i64::from(*lower) > size as i64 - 1 + i64::from(*upper) {
                        return wrong(format!(
                            "no window from {lower} on fits {size} pixels that end at {upper:+}"
                        ));
                    }
                }
                *channels
            }
        };
        if row != ROW {
            return wrong(format!(
                "boxes with rows of {row} elements, expected {ROW}: 128 bytes, which the swizzle requires"
            ));
        }
        Ok(())
    }

    /// Encodes a map that [`TensorMap::check`] accepts in the emulator's format.
    pub(super) fn emulated(&self, address: Address) -> Encoded {
        let (sizes, gaps) = self.extents();
        let (mut dims, mut strides) = ([1; 4], [0; 3]);
        sizes.iter().zip(&mut dims).for_each(|(from, to)| *to = *from as u32);
        gaps.iter().zip(&mut strides).for_each(|(from, to)| *to = *from);
        let plain = Emulated {
            magic: *b"DFKA MAP",
            address,
            kind: 0,
            rank: sizes.len() as u32,
            dims,
            strides,
            boxes: [0; 2],
            lower: [0; 2],
            upper: [0; 2],
            steps: [1; 2],
            unused: [0; 8],
        };
        bytemuck::cast(match &self.boxes {
            Boxes::Tiled { boxes, .. } => Emulated { boxes: [boxes[0], boxes[1]], ..plain },
            Boxes::Im2col { lower, upper, steps, channels, pixels, .. } => Emulated {
                kind: 1,
                boxes: [*channels, *pixels],
                lower: width_first(*lower),
                upper: width_first(*upper),
                steps: width_first(*steps),
                ..plain
            },
        })
    }
}

/// Height and width in the order of a tensor map, which names dimensions from the innermost on.
pub(super) fn width_first<T>([h, w]: [T; 2]) -> [T; 2] {
    [w, h]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Slot, Space};

    fn slot() -> Pointer {
        Pointer::Slot(Slot { space: Space::Arena, offset: 0, bytes: 1 << 20 })
    }

    fn windows() -> Boxes {
        let (lower, upper) = ([-1, -1], [-1, -1]);
        Boxes::Im2col { dims: [2, 7, 5, 24], lower, upper, steps: [2, 2], channels: 64, pixels: 128 }
    }

    fn refused(boxes: Boxes, address: Address) -> String {
        TensorMap { tensor: slot(), boxes }.check(address).unwrap_err().to_string()
    }

    #[test]
    fn a_map_that_the_driver_takes_passes_the_check() {
        TensorMap::matrix(slot(), 200, 144, 288, 256).check(256).unwrap();
        let im2col = TensorMap { tensor: slot(), boxes: windows() };
        im2col.check(16).unwrap();
        assert_eq!(im2col.extents(), (vec![24, 5, 7, 2], vec![48, 240, 1680]));
    }

    #[test]
    fn the_check_says_what_the_driver_would_refuse() {
        let matrix =
            |columns, row_bytes, rows| TensorMap::matrix(slot(), 200, columns, row_bytes, rows).boxes;
        let refused_maps = [
            (matrix(144, 288, 128), 8, "at 0x8, expected a multiple of 16"),
            (matrix(144, 288, 128), 0, "at 0x0"),
            (matrix(144, 280, 128), 16, "expected multiples of 16 bytes below 2^40, found 280"),
            (matrix(0, 288, 128), 16, "expected 1 to 2^32 elements, found 0"),
            (matrix(144, 288, 257), 16, "expected 1 to 256 rows"),
        ];
        for (boxes, address, piece) in refused_maps {
            let text = refused(boxes, address);
            assert!(text.contains(piece), "no `{piece}` in {text}");
        }
        let narrow = Boxes::Tiled { dims: vec![64, 8], strides_bytes: vec![128], boxes: vec![32, 8] };
        assert!(refused(narrow, 16).contains("rows of 32 elements, expected 64"));
        let cube =
            Boxes::Tiled { dims: vec![64, 8, 8], strides_bytes: vec![128, 1024], boxes: vec![64, 8, 8] };
        assert!(refused(cube, 16).contains("3 dimensions in boxes of 3, expected 2"));
        type Edit = fn(&mut Boxes);
        let edits: [(Edit, &str); 5] = [
            (
                |b| {
                    if let Boxes::Im2col { pixels, .. } = b {
                        *pixels = 1025
                    }
                },
                "1025 pixels, expected 1 to 1024",
            ),
            (
                |b| {
                    if let Boxes::Im2col { lower, .. } = b {
                        lower[0] = -129
                    }
                },
                "expected -128 to 127, found -129",
            ),
            (
                |b| {
                    if let Boxes::Im2col { steps, .. } = b {
                        steps[1] = 9
                    }
                },
                "expected 1 to 8, found 9",
            ),
            (
                |b| {
                    if let Boxes::Im2col { upper, .. } = b {
                        upper[1] = -8
                    }
                },
                "fits 5 pixels that end at -8",
            ),
            (
                |b| {
                    if let Boxes::Im2col { dims, .. } = b {
                        dims[3] = 20
                    }
                },
                "found 40",
            ),
        ];
        for (edit, piece) in edits {
            let mut boxes = windows();
            edit(&mut boxes);
            let text = refused(boxes, 16);
            assert!(text.contains(piece), "no `{piece}` in {text}");
        }
    }

    #[test]
    fn the_emulators_format_has_width_before_height() {
        let mut boxes = windows();
        if let Boxes::Im2col { lower, upper, steps, .. } = &mut boxes {
            (*lower, *upper, *steps) = ([-1, -2], [-3, -4], [1, 2]);
        }
        let map: Emulated = bytemuck::cast(TensorMap { tensor: slot(), boxes }.emulated(4096));
        assert_eq!((map.address, map.kind, map.rank, map.dims), (4096, 1, 4, [24, 5, 7, 2]));
        assert_eq!((map.lower, map.upper, map.steps, map.boxes), ([-2, -1], [-4, -3], [2, 1], [64, 128]));
    }
}
