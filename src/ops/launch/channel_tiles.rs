//! Launch geometry of kernels on feature maps: which images, channels and pixels each block and thread
//! computes.

use crate::device::gpu::launch;
use crate::device::gpu::target::Target;
use crate::error::{Error, Result};
use crate::ops::launch::launches::DeviceTensor;
use crate::ops::operands::Write;
use crate::tensor::{Elem, Shape};

/// Most threads of a block.
const THREADS: usize = launch::THREADS as usize;

/// Elements that a thread moves at once: 16 bytes if runs of `len` elements divide into such packs, else
/// one.
pub fn pack(elem: Elem, len: usize) -> usize {
    let n = 16 / elem.bytes();
    if len.is_multiple_of(n) { n } else { 1 }
}

/// The name of an instance: `max_pool_fwd<bf16, 8>`.
pub fn instance(kernel: &str, elem: Elem, pack: usize) -> String {
    format!("{kernel}<{elem}, {pack}>")
}

/// Mirrors the structure of this name in kernels/lib/channels.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
struct TilesDims {
    pixels: i64,
    chunk: i64,
    c: i32,
    lanes: i32,
    slabs: i32,
    chunks: i32,
}

const _: () = assert!(size_of::<TilesDims>() == 32);

/// Blocks of `lanes` packs of channels by `rows` pixels. Each thread keeps its channels and walks over a
/// chunk of an image's pixels.
#[derive(Clone, Copy, Debug)]
pub struct Tiles {
    dims: TilesDims,
    images: usize,
    rows: usize,
    /// Elements of a pack.
    pub pack: usize,
}

impl Tiles {
    /// For one sum over all pixels for each channel. There are at most 4 blocks for each multiprocessor,
    /// because every chunk is one more part to fold.
    pub fn sums(target: &Target, x: Shape, elem: Elem) -> Self {
        Tiles::new(target, 1, x.elems() / x.c(), x.c(), elem, 4)
    }
    /// For one pass over all pixels.
    pub fn pass(target: &Target, x: Shape, elem: Elem) -> Self {
        Tiles::new(target, 1, x.elems() / x.c(), x.c(), elem, 16)
    }
    /// For one pass over all pixels, where a chunk lies in one image.
    pub fn image_pass(target: &Target, x: Shape, elem: Elem) -> Self {
        Tiles::new(target, x.n(), x.h() * x.w(), x.c(), elem, 16)
    }
    /// For one sum for each channel and image: a block has all pixels of an image.
    pub fn image_sums(target: &Target, x: Shape, elem: Elem) -> Self {
        Tiles::new(target, x.n(), x.h() * x.w(), x.c(), elem, 0)
    }

    /// At most `wanted` blocks for each multiprocessor; 0 gives one chunk for each image. A chunk of a large
    /// map has about four pixels or more for each thread, so that loading the coefficients of its channels
    /// pays off.
    fn new(target: &Target, images: usize, pixels: usize, c: usize, elem: Elem, wanted: usize) -> Self {
        let pack = pack(elem, c);
        // A block has at most 32 packs of 16 bytes side by side, which are four full cache lines. Without
        // chunks, 64 images would give 132 multiprocessors only 64 blocks; the width then shrinks, down to 4
        // packs, two sectors of a line.
        let mut widest = 32;
        while wanted == 0 && widest > 4 && images * (c / pack).div_ceil(widest) < 2 * target.multiprocessors {
            widest /= 2;
        }
        let slabs = (c / pack).div_ceil(widest);
        let lanes = (c / pack).div_ceil(slabs);
        let rows = (THREADS / lanes).min(pixels);
        let most = (wanted * target.multiprocessors / (images * slabs)).max(1);
        let chunk = pixels.div_ceil(pixels.div_ceil(4 * rows).min(most));
        let dims = TilesDims {
            pixels: pixels as i64,
            chunk: chunk as i64,
            c: c as i32,
            lanes: lanes as i32,
            slabs: slabs as i32,
            chunks: pixels.div_ceil(chunk) as i32,
        };
        Tiles { dims, images, rows, pack }
    }

    /// Chunks of an image, or of all pixels for [`Tiles::sums`] and [`Tiles::pass`].
    pub fn chunks(&self) -> usize {
        self.dims.chunks as usize
    }
    /// Blocks in x, y and z.
    pub fn grid(&self) -> [u32; 3] {
        [saturating(self.images * self.dims.slabs as usize), self.dims.chunks as u32, 1]
    }
    /// Blocks in x, y and z of a launch that may be grouped: y is the member, z the chunk.
    pub fn member_grid(&self) -> [u32; 3] {
        let [columns, chunks, _] = self.grid();
        [columns, 1, chunks]
    }
    /// The blocks of [`Tiles::grid`] in a row, slabs first.
    pub fn blocks(&self) -> u32 {
        saturating(self.images * self.dims.slabs as usize * self.chunks())
    }
    /// The fields of `TilesDims`, a cell of a table each.
    pub fn cells(&self) -> [launch::KernelArg; 6] {
        let TilesDims { pixels, chunk, c, lanes, slabs, chunks } = self.dims;
        [pixels, chunk, c.into(), lanes.into(), slabs.into(), chunks.into()].map(i64::into)
    }
    /// Threads of a block.
    pub fn block(&self) -> u32 {
        (self.dims.lanes as usize * self.rows) as u32
    }
    /// Floats that hold two sums for each channel and chunk of [`Tiles::sums`], enough for `x` in f32 and in
    /// the target's `map_dtype`.
    pub fn parts_len(target: &Target, x: Shape) -> usize {
        [Elem::F32, target.map_dtype]
            .map(|elem| 2 * x.c() * Tiles::sums(target, x, elem).chunks())
            .into_iter()
            .fold(0, usize::max)
    }
}

impl From<Tiles> for launch::KernelArg {
    fn from(t: Tiles) -> Self {
        launch::KernelArg::structure("TilesDims", &t.dims)
    }
}

/// Threads of a block that merges the statistics of tiles, in as many blocks as [`fold_blocks`] says. Mirrors the
/// constant of kernels/lib/channel_stats.cuh.
pub const TILE_FOLD_THREADS: u32 = 1024;

/// Blocks of a kernel that folds parts, 8 channels each: `FOLD_CHANNELS` of kernels/lib/channels.cuh.
pub fn fold_blocks(c: usize) -> u32 {
    saturating(c.div_ceil(8))
}

/// Grid and block of a kernel in which each thread has one of the `packs` of an image, and each image a
/// column of blocks.
///
/// Errors: an image of 2^31 elements or more, because such kernels count the elements of an image in 32
/// bits.
pub fn per_image(op: &'static str, n: usize, packs: usize, pack: usize) -> Result<([u32; 3], u32)> {
    if packs * pack > i32::MAX as usize {
        return Err(Error::shape(op, format!("an image of {} elements; a GPU takes 2^31 - 1", packs * pack)));
    }
    let block = packs.next_multiple_of(32).min(THREADS);
    Ok(([saturating(n), packs.div_ceil(block).min(65_535) as u32, 1], block as u32))
}

/// The number of pixels of all images, as kernels take it.
pub fn pixels(x: Shape) -> launch::KernelArg {
    ((x.elems() / x.c()) as i64).into()
}

/// Whether a kernel adds to a gradient or overwrites it. A gradient that is not needed is a null pointer,
/// and the value is not read.
pub fn adds(gradient: Option<(DeviceTensor, Write)>) -> launch::KernelArg {
    gradient.is_some_and(|(_, write)| write == Write::Add).into()
}

/// `v`, or a number of blocks that no launch accepts if it does not fit.
fn saturating(v: usize) -> u32 {
    u32::try_from(v).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_pixel_and_channel_once() {
        let target = Target::h200(Elem::Bf16);
        for x in [(1, 1, 1, 1), (3, 5, 7, 11), (64, 32, 32, 64), (2, 9, 9, 2048), (256, 8, 8, 33)] {
            let x = Shape::new(x.0, x.1, x.2, x.3);
            for elem in [Elem::F32, Elem::Bf16] {
                for t in [Tiles::sums, Tiles::pass, Tiles::image_pass, Tiles::image_sums]
                    .map(|f| f(&target, x, elem))
                {
                    let d = t.dims;
                    assert_eq!(t.images * d.pixels as usize * x.c(), x.elems());
                    assert!(
                        d.chunk * i64::from(d.chunks) >= d.pixels
                            && d.chunk * i64::from(d.chunks - 1) < d.pixels
                    );
                    let packs = x.c() as i32 / t.pack as i32;
                    assert!(d.lanes * d.slabs >= packs && d.lanes * (d.slabs - 1) < packs && d.lanes <= 32);
                    assert!(t.block() <= 256 && t.rows >= 1);
                }
                assert_eq!(Tiles::image_sums(&target, x, elem).chunks(), 1);
            }
        }
    }

    #[test]
    fn large_maps_fill_an_h200() {
        let (target, x) = (Target::h200(Elem::Bf16), Shape::new(128, 32, 32, 64));
        assert!((500..=528).contains(&Tiles::sums(&target, x, Elem::Bf16).chunks()));
        assert!(Tiles::pass(&target, x, Elem::Bf16).chunks() > 900);
        assert_eq!(Tiles::image_sums(&target, x, Elem::Bf16).grid(), [256, 1, 1]);
    }
}
