//! Launch geometry of kernels on feature maps: which blocks and threads have which images, channels and pixels.

use crate::device::gpu::launch::{self, MULTIPROCESSORS};
use crate::error::{Error, Result};
use crate::ops::launch::channel_stats::fold_channel_stats;
use crate::ops::launch::launches::DeviceTensor;
use crate::ops::launch::launches::Launches;
use crate::ops::operands::Write;
use crate::tensor::{Elem, Shape};

/// Threads of a block, at most.
const THREADS: usize = launch::THREADS as usize;

/// Elements that a thread moves at once: 16 bytes where runs of `len` elements divide into such packs, else one.
pub fn pack(elem: Elem, len: usize) -> usize {
    let n = 16 / elem.bytes();
    if len.is_multiple_of(n) { n } else { 1 }
}

/// `max_pool_fwd<bf16, 8>`
pub fn instance(kernel: &str, elem: Elem, pack: usize) -> String {
    format!("{kernel}<{elem}, {pack}>")
}

/// As kernels take it: `TilesDims` of kernels/lib/channels.cuh.
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

/// Blocks of `lanes` packs of channels by `rows` pixels, whose threads keep their channels and walk over a chunk of an
/// image's pixels.
#[derive(Clone, Copy, Debug)]
pub struct Tiles {
    dims: TilesDims,
    images: usize,
    rows: usize,
    /// Elements of a pack.
    pub pack: usize,
}

impl Tiles {
    /// For one sum a channel over all pixels: 4 blocks a multiprocessor, for every chunk is one more part to fold.
    pub fn sums(x: Shape, elem: Elem) -> Self {
        Tiles::new(1, x.elems() / x.c(), x.c(), elem, 4)
    }
    /// For one pass over all pixels.
    pub fn pass(x: Shape, elem: Elem) -> Self {
        Tiles::new(1, x.elems() / x.c(), x.c(), elem, 16)
    }
    /// For one pass over all pixels, an image's apart from the next one's.
    pub fn image_pass(x: Shape, elem: Elem) -> Self {
        Tiles::new(x.n(), x.h() * x.w(), x.c(), elem, 16)
    }
    /// For one sum a channel and image: a block has all pixels of an image.
    pub fn image_sums(x: Shape, elem: Elem) -> Self {
        Tiles::new(x.n(), x.h() * x.w(), x.c(), elem, 0)
    }

    /// Chunks of at least four pixels a thread, which pay for loading its channels' coefficients, and no more of them
    /// than `wanted` blocks a multiprocessor take.
    fn new(images: usize, pixels: usize, c: usize, elem: Elem, wanted: usize) -> Self {
        let pack = pack(elem, c);
        // 32 packs of 16 bytes side by side are four full cache lines; more channels are more blocks. Without chunks, few
        // images would be few blocks (64 of them, for 132 multiprocessors): then down to 4 packs, two sectors of a line.
        let mut widest = 32;
        while wanted == 0 && widest > 4 && images * (c / pack).div_ceil(widest) < 2 * MULTIPROCESSORS {
            widest /= 2;
        }
        let slabs = (c / pack).div_ceil(widest);
        let lanes = (c / pack).div_ceil(slabs);
        let rows = (THREADS / lanes).min(pixels);
        let most = (wanted * MULTIPROCESSORS / (images * slabs)).max(1);
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

    pub fn chunks(&self) -> usize {
        self.dims.chunks as usize
    }
    pub fn grid(&self) -> [u32; 3] {
        [saturating(self.images * self.dims.slabs as usize), self.dims.chunks as u32, 1]
    }
    pub fn block(&self) -> u32 {
        (self.dims.lanes as usize * self.rows) as u32
    }
    /// Floats of two sums a channel and chunk, whatever the type of `x` turns out to be.
    pub fn parts_len(x: Shape, map_dtype: Elem) -> usize {
        [Elem::F32, map_dtype]
            .map(|elem| 2 * x.c() * Tiles::sums(x, elem).chunks())
            .into_iter()
            .fold(0, usize::max)
    }
}

impl From<Tiles> for launch::KernelArg {
    fn from(t: Tiles) -> Self {
        launch::KernelArg::structure("TilesDims", &t.dims)
    }
}

/// Blocks of the kernel that folds the parts: `FOLD_CHANNELS` of kernels/lib/channels.cuh.
pub fn fold_blocks(c: usize) -> u32 {
    saturating(c.div_ceil(8))
}

/// Grid and block of a kernel whose threads each have one of an image's `packs`; an image is a column of blocks.
///
/// Errors: an image of 2^31 elements or more, for within an image such kernels count in 32 bits.
pub fn per_image(op: &'static str, n: usize, packs: usize, pack: usize) -> Result<([u32; 3], u32)> {
    if packs * pack > i32::MAX as usize {
        return Err(Error::shape(op, format!("an image of {} elements; a GPU takes 2^31 - 1", packs * pack)));
    }
    let block = packs.next_multiple_of(32).min(THREADS);
    Ok(([saturating(n), packs.div_ceil(block).min(65_535) as u32, 1], block as u32))
}

/// Pixels of all images.
pub fn pixels(x: Shape) -> launch::KernelArg {
    ((x.elems() / x.c()) as i64).into()
}

/// Whether a gradient is added to; one that nobody wants is a null pointer, and either will do.
pub fn adds(gradient: Option<(DeviceTensor, Write)>) -> launch::KernelArg {
    gradient.is_some_and(|(_, write)| write == Write::Add).into()
}

/// What does not fit becomes what no launch accepts.
fn saturating(v: usize) -> u32 {
    u32::try_from(v).unwrap_or(u32::MAX)
}

/// Launches the sums of the first input's channels about a shift, into `parts` `[chunks][2][c]`; returns how many chunks.
/// They come from the moments that the input's producer left, or else from a pass over it by `kernel`.
pub fn sum_moments(
    l: &mut Launches,
    kernel: &str,
    parts: DeviceTensor,
    shift: DeviceTensor,
) -> Result<usize> {
    let (x, shape) = (l.x(0), l.shape(0));
    if let Some(moments) = l.channel_stats() {
        fold_channel_stats(l, moments, parts, shift, [shape.elems() / shape.c(), shape.c()])?;
        return Ok(1);
    }
    let tiles = Tiles::sums(shape, x.elem);
    let args = [parts.into(), shift.into(), x.into(), tiles.into()];
    l.launch(instance(kernel, x.elem, tiles.pack), tiles.grid(), tiles.block(), 0, args)?;
    Ok(tiles.chunks())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_pixel_and_channel_once() {
        for x in [(1, 1, 1, 1), (3, 5, 7, 11), (64, 32, 32, 64), (2, 9, 9, 2048), (256, 8, 8, 33)] {
            let x = Shape::new(x.0, x.1, x.2, x.3);
            for elem in [Elem::F32, Elem::Bf16] {
                for t in [Tiles::sums, Tiles::pass, Tiles::image_pass, Tiles::image_sums].map(|f| f(x, elem))
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
                assert_eq!(Tiles::image_sums(x, elem).chunks(), 1);
            }
        }
    }

    #[test]
    fn large_maps_fill_an_h200() {
        let x = Shape::new(128, 32, 32, 64);
        assert!((500..=528).contains(&Tiles::sums(x, Elem::Bf16).chunks()));
        assert!(Tiles::pass(x, Elem::Bf16).chunks() > 900);
        assert_eq!(Tiles::image_sums(x, Elem::Bf16).grid(), [256, 1, 1]);
    }
}
