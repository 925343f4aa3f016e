//! The output gradient behind the activation, `dz = dy * act'`, on the CPU.

use super::geometry::{Dims, Epilogue};
use crate::device::cpu::{scratch, vectorised};
use crate::ops::layers::activation::Act;
use crate::ops::operands::Io;
use crate::tensor::Real;
use std::ops::Range;

/// `dz`, computed from `dy` and the mask where it is read.
pub struct Masked<'a, R> {
    dy: &'a [R],
    mask: Option<&'a [u8]>,
    slope: R,
    k: usize,
}

impl<'a, R: Real> Masked<'a, R> {
    /// Of a convolution whose backward runs.
    pub fn of(d: &Dims, epilogue: &Epilogue, io: &Io<'a, R>) -> Self {
        Masked {
            dy: io.dy0(),
            mask: if epilogue.act == Act::None { None } else { Some(io.saved(0)) },
            slope: R::of(epilogue.slope()),
            k: d.k,
        }
    }
    /// Those of the pixels from `first` on.
    pub fn beyond(&self, first: usize) -> Self {
        let mask = self.mask.map(|mask| &mask[first * self.k.div_ceil(8)..]);
        Masked { dy: &self.dy[first * self.k..], mask, ..*self }
    }
    /// Copies the values of pixel `m` from channel `first` on, which is a multiple of 8.
    #[inline(always)]
    pub fn copy(&self, m: usize, first: usize, to: &mut [R]) {
        let dy = &self.dy[m * self.k + first..][..to.len()];
        let Some(mask) = self.mask else { return to.copy_from_slice(dy) };
        let mask = &mask[m * self.k.div_ceil(8) + first / 8..];
        let pick = |byte: u8, i: usize, v: R| if byte >> i & 1 == 1 { v } else { v * self.slope };
        let (eights, rest) = to.as_chunks_mut::<8>();
        let (dy, dy_rest) = dy.as_chunks::<8>();
        for (byte, (to, dy)) in mask.iter().zip(eights.iter_mut().zip(dy)) {
            *to = std::array::from_fn(|i| pick(*byte, i, dy[i]));
        }
        for (i, (to, v)) in rest.iter_mut().zip(dy_rest).enumerate() {
            *to = pick(mask[dy.len()], i, *v);
        }
    }
    /// Copies the values of some pixels.
    pub fn copy_pixels(&self, pixels: Range<usize>, to: &mut [R]) {
        if self.mask.is_none() {
            return to.copy_from_slice(&self.dy[pixels.start * self.k..pixels.end * self.k]);
        }
        vectorised(
            #[inline(always)]
            || {
                let rows = to.chunks_exact_mut(self.k).zip(pixels.clone());
                rows.for_each(|(row, m)| self.copy(m, 0, row));
            },
        );
    }
    /// Calls `f` on the values of some pixels, and on so many elements of this worker's scratch. The values are
    /// `dy` itself without a mask, otherwise they lie in the scratch too.
    pub fn with<O>(&self, pixels: Range<usize>, more: usize, f: impl FnOnce(&[R], &mut [R]) -> O) -> O {
        let dy = &self.dy[pixels.start * self.k..pixels.end * self.k];
        if self.mask.is_none() {
            return scratch::with(more, |more| f(dy, more));
        }
        scratch::with(dy.len() + more, |dz: &mut [R]| {
            let (dz, more) = dz.split_at_mut(dy.len());
            self.copy_pixels(pixels, dz);
            f(dz, more)
        })
    }
}
