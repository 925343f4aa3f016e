//! Max pooling.

use crate::device::cpu::par::{Rows, even_grain, for_parts};
use crate::device::cpu::vectorised;
use crate::device::gpu;
use crate::device::gpu::launch::KernelArg;
use crate::device::gpu::target::Target;
use crate::error::{Error, Result};
use crate::ops::fusion::Fusion;
use crate::ops::launch::channel_tiles::{instance, pack, per_image};
use crate::ops::launch::launches::Launches;
use crate::ops::operands::{Io, Write};
use crate::ops::operator::{Extent, OperandInfo, Operator, Signature, expect_operands};
use crate::tensor::{Real, Shape};

/// `y[n,p,q,c] = max_{r,s} x[n, p*stride - pad + r, q*stride - pad + s, c]` with `r, s < window`. Padding
/// counts as minus infinity.
///
/// Shapes: x `[n, h, w, c]`, y `[n, p, q, c]` with `p = (h + 2 pad - window) / stride + 1`.
/// Source: He et al. 2016 (the stem: window 3, stride 2, padding 1).
/// Backward: dy goes to the maximum of its window, the first in row order among equals. Saves the maximum's
/// place in its window, one byte per output, and keeps neither x nor y. NaN counts as the maximum, so that
/// divergence shows.
/// Errors: a window larger than the padded image or than 16 (its places must fit a byte), a stride of 0,
/// padding of more than half a window.
/// Cost: no multiply-adds. `window^2` reads per output in forward, one read and one addition per output in
/// backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPool {
    /// Height and width of the window.
    pub window: usize,
    /// Pixels from one window to the next, in both directions.
    pub stride: usize,
    /// Pixels of padding on each side.
    pub pad: usize,
}

/// The largest window whose `window^2` places fit a byte.
const MAX_WINDOW: usize = 16;

impl MaxPool {
    /// Calls `f(place in the window, pixel in the image)` for every pixel of the window of output `(p, q)`
    /// that lies inside the image, in row order.
    #[inline(always)]
    fn taps(&self, x: Shape, p: usize, q: usize, mut f: impl FnMut(usize, usize)) {
        for r in 0..self.window {
            for s in 0..self.window {
                let (row, column) = (p * self.stride + r, q * self.stride + s);
                if (self.pad..self.pad + x.h()).contains(&row)
                    && (self.pad..self.pad + x.w()).contains(&column)
                {
                    f(r * self.window + s, (row - self.pad) * x.w() + column - self.pad);
                }
            }
        }
    }
}

impl Operator for MaxPool {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("max_pool", args, &["x"])?;
        let (x, window) = (args[0].shape, self.window);
        if window == 0 || window > MAX_WINDOW || self.stride == 0 || 2 * self.pad > window {
            let message = format!(
                "window {window}, stride {}, padding {}: expected a window of 1 to {MAX_WINDOW}, \
                 a stride of 1 or more, at most half a window of padding",
                self.stride, self.pad
            );
            return Err(Error::shape("max_pool", message));
        }
        let (h, w) = (x.h() + 2 * self.pad, x.w() + 2 * self.pad);
        if h < window || w < window {
            let message = format!("window {window} does not fit x {x} with padding {}", self.pad);
            return Err(Error::shape("max_pool", message));
        }
        let y = Shape::new(x.n(), (h - window) / self.stride + 1, (w - window) / self.stride + 1, x.c());
        Ok(Signature { outputs: vec![y], saved: vec![Extent::Bytes(y.elems())], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (x, shape, out) = (io.x(0), io.shape(0), io.out_shape(0));
        let c = shape.c();
        let places: &mut [u8] = if io.saves() { io.save(0) } else { &mut [] };
        let saves = !places.is_empty();
        let rows = out.n() * out.h();
        let parts = (Rows::new(io.y(0), rows), Rows::new(places, rows));
        for_parts(parts, even_grain(rows), &|first, (y, places)| {
            vectorised(
                #[inline(always)]
                || {
                    for (i, y) in y.data.chunks_exact_mut(c).enumerate() {
                        let (row, q) = (first + i / out.w(), i % out.w());
                        let image = &x[row / out.h() * shape.per_sample()..][..shape.per_sample()];
                        let mut fresh = true;
                        let mut none = [];
                        let places = if saves { &mut places.data[i * c..][..c] } else { &mut none[..] };
                        self.taps(
                            shape,
                            row % out.h(),
                            q,
                            #[inline(always)]
                            |place, pixel| {
                                let x = &image[pixel * c..][..c];
                                if fresh {
                                    fresh = false;
                                    y.copy_from_slice(x);
                                    places.fill(place as u8);
                                } else if saves {
                                    for ((y, at), x) in y.iter_mut().zip(&mut *places).zip(x) {
                                        let wins = beats(*x, *y);
                                        *y = if wins { *x } else { *y };
                                        *at = if wins { place as u8 } else { *at };
                                    }
                                } else {
                                    y.iter_mut()
                                        .zip(x)
                                        .for_each(|(y, x)| *y = if beats(*x, *y) { *x } else { *y });
                                }
                            },
                        );
                    }
                },
            );
        });
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(dx) = io.dx(0) else { return };
        let (places, dy, shape, out) = (io.saved::<u8>(0), io.dy0(), io.shape(0), io.out_shape(0));
        let (c, write) = (shape.c(), dx.write);
        // Offsets in pixels: from a window's corner to each of its places, and from the corner of the padded
        // image to that of the image.
        let steps: [usize; MAX_WINDOW * MAX_WINDOW] =
            std::array::from_fn(|place| place / self.window * shape.w() + place % self.window);
        let outside = self.pad * (shape.w() + 1);
        for_parts(Rows::new(dx.data, shape.n()), even_grain(shape.n()), &|first, part: Rows<R>| {
            if write == Write::Set {
                part.data.fill(R::ZERO);
            }
            for (i, dx) in part.data.chunks_exact_mut(shape.per_sample()).enumerate() {
                for (p, q) in (0..out.h()).flat_map(|p| (0..out.w()).map(move |q| (p, q))) {
                    let at = (((first + i) * out.h() + p) * out.w() + q) * c;
                    let corner = (p * shape.w() + q) * self.stride;
                    for (ch, (place, dy)) in places[at..][..c].iter().zip(&dy[at..]).enumerate() {
                        dx[(corner + steps[usize::from(*place)] - outside) * c + ch] += *dy;
                    }
                }
            }
        });
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (x, y, shape, out) = (l.x(0), l.y(0), l.shape(0), l.out_shape(0));
        l.expect_same("y", x, y)?;
        let pack = pack(x.elem, shape.c());
        per_image("max_pool", shape.n(), shape.per_sample() / pack, pack)?;
        let ([images, parts, _], block) = per_image("max_pool", out.n(), out.per_sample() / pack, pack)?;
        let places = l.saves().then(|| l.saved(0));
        let io = KernelArg::group_of_one("MaxPoolForward", [y.into(), places.into(), x.into()]);
        let name = instance("max_pool_fwd", x.elem, pack);
        l.launch(name, [images, 1, parts], block, 0, [io, self.dims(shape, out)])
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((dx, write)) = l.dx(0) else { return Ok(()) };
        let (dy, shape, out) = (l.dy0(), l.shape(0), l.out_shape(0));
        let pack = pack(dx.elem, shape.c());
        let ([images, parts, _], block) = per_image("max_pool", shape.n(), shape.per_sample() / pack, pack)?;
        let mask = l.input_mask(0);
        let io = [dx.into(), l.saved(0).into(), dy.into(), mask.map(|m| m.mask).into()];
        let args = [
            KernelArg::group_of_one("MaxPoolBackward", io),
            self.dims(shape, out),
            mask.map_or(0.0, |m| m.slope).into(),
            write.into(),
        ];
        l.launch(instance("max_pool_bwd", dx.elem, pack), [images, 1, parts], block, 0, args)
    }
    fn fusion(&self, inputs: &[Shape], _: Shape, _: &Target) -> Fusion {
        let MaxPool { window, stride, pad } = self;
        let group_key = Some(format!("max_pool {window} {stride} {pad} {}", inputs[0]));
        Fusion { masks_input_grad: true, group_key, ..Fusion::default() }
    }
}

/// The layout of `MaxPoolDims` in kernels/layers/max_pool.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct MaxPoolDims {
    h: i32,
    w: i32,
    p: i32,
    q: i32,
    c: i32,
    window: i32,
    stride: i32,
    pad: i32,
}

const _: () = assert!(size_of::<MaxPoolDims>() == 32);

impl MaxPool {
    fn dims(&self, x: Shape, y: Shape) -> gpu::launch::KernelArg {
        let [h, w, p, q, c] = [x.h(), x.w(), y.h(), y.w(), x.c()].map(|v| v as i32);
        let [window, stride, pad] = [self.window, self.stride, self.pad].map(|v| v as i32);
        gpu::launch::KernelArg::structure("MaxPoolDims", &MaxPoolDims { h, w, p, q, c, window, stride, pad })
    }
}

/// Whether `x` replaces the maximum so far.
#[inline(always)]
#[allow(clippy::eq_op)] // NaN is what differs from itself
fn beats<R: Real>(x: R, best: R) -> bool {
    x > best || x != x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    fn plain(op: MaxPool, x: Shape) -> impl Fn(&[Vec<f64>]) -> Vec<Vec<f64>> {
        move |t| {
            let [n, h, w, c] = x.0;
            let out = |len: usize| (len + 2 * op.pad - op.window) / op.stride + 1;
            let mut y = vec![f64::NEG_INFINITY; n * out(h) * out(w) * c];
            for (i, y) in y.iter_mut().enumerate() {
                let (ch, q, p, n) = (i % c, i / c % out(w), i / c / out(w) % out(h), i / c / out(w) / out(h));
                for a in (p * op.stride..p * op.stride + op.window).filter_map(|a| a.checked_sub(op.pad)) {
                    for b in (q * op.stride..q * op.stride + op.window).filter_map(|b| b.checked_sub(op.pad))
                    {
                        if a < h && b < w {
                            *y = y.max(t[0][((n * h + a) * w + b) * c + ch]);
                        }
                    }
                }
            }
            vec![y]
        }
    }

    #[test]
    fn passes_the_op_checks() {
        for (window, stride, pad, x) in [
            (1, 1, 0, Shape::new(1, 1, 1, 1)),
            (2, 2, 0, Shape::new(3, 5, 7, 11)),
            (3, 2, 1, Shape::new(2, 16, 16, 8)),
            (3, 2, 1, Shape::new(2, 9, 6, 33)),
            (3, 1, 1, Shape::new(1, 1, 1, 3)),
            (2, 3, 1, Shape::new(2, 7, 7, 2)),
            (5, 1, 2, Shape::new(1, 13, 5, 3)),
        ] {
            let op = MaxPool { window, stride, pad };
            check(Case::new(op, &[x]).reference(plain(op, x)));
        }
    }

    #[test]
    fn refuses_windows_that_do_not_fit() {
        let e = |window, stride, pad| {
            let arg = OperandInfo { shape: Shape::new(1, 4, 2, 3), needs_grad: false };
            MaxPool { window, stride, pad }.signature(&[arg]).unwrap_err().to_string()
        };
        assert_eq!(e(3, 1, 0), "max_pool: window 3 does not fit x [1, 4, 2, 3] with padding 0");
        for (window, stride, pad) in [(0, 1, 0), (17, 1, 0), (2, 0, 0), (3, 1, 2)] {
            assert!(e(window, stride, pad).contains("expected a window of 1 to 16"));
        }
    }
}
