//! Average pooling over windows of 2x2 pixels.

use crate::device::cpu::par::{Rows, for_rows};
use crate::device::gpu::launch::KernelArg;
use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::ops::fusion::Fusion;
use crate::ops::launch::channel_tiles::{instance, pack, per_image};
use crate::ops::launch::launches::Launches;
use crate::ops::operands::{Io, store_or_add};
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_operands};
use crate::tensor::{Real, Shape};

/// `y[n,p,q,c] = mean of x[n, 2p + r, 2q + s, c]` over the pixels of `r, s < 2` that the image has: at an odd
/// height or width the last windows have one row or column.
///
/// Shapes: x `[n, h, w, c]`, y `[n, ceil(h / 2), ceil(w / 2), c]`.
/// Source: He et al. 2019, Bag of Tricks for Image Classification, 4.2 (the shortcut of ResNet-D); PyTorch's
/// `AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)`.
/// Backward: `dx[n,h,w,c] = dy[n, h / 2, w / 2, c] / pixels of that window`; keeps nothing.
/// Errors: another number of operands than one.
/// Cost: memory-bound; forward reads x and writes y, backward reads dy and writes dx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AvgPool;

/// First input pixel of a window and the number of its pixels, in one direction of `size` pixels.
fn window(size: usize, at: usize) -> (usize, usize) {
    (2 * at, (size - 2 * at).min(2))
}

impl Operator for AvgPool {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("avg_pool", args, &["x"])?;
        let x = args[0].shape;
        let y = Shape::new(x.n(), x.h().div_ceil(2), x.w().div_ceil(2), x.c());
        Ok(Signature { outputs: vec![y], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (x, shape, out) = (io.x(0), io.shape(0), io.out_shape(0));
        let (c, w) = (shape.c(), shape.w());
        let rows = Rows::new(io.y(0), out.n() * out.h());
        for_rows(rows, 2 * w * c, &|first, part: Rows<R>| {
            for (i, y) in part.data.chunks_exact_mut(out.w() * c).enumerate() {
                let (image, p) = ((first + i) / out.h(), (first + i) % out.h());
                let (row, height) = window(shape.h(), p);
                for (q, y) in y.chunks_exact_mut(c).enumerate() {
                    let (column, width) = window(w, q);
                    y.fill(R::ZERO);
                    for pixel in (0..height * width).map(|k| (row + k / width) * w + column + k % width) {
                        let x = &x[image * shape.per_sample() + pixel * c..][..c];
                        y.iter_mut().zip(x).for_each(|(y, x)| *y += *x);
                    }
                    let scale = R::of(1.0 / (height * width) as f64);
                    y.iter_mut().for_each(|y| *y *= scale);
                }
            }
        });
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(dx) = io.dx(0) else { return };
        let (dy, shape, out, write) = (io.dy0(), io.shape(0), io.out_shape(0), dx.write);
        let (c, w) = (shape.c(), shape.w());
        for_rows(Rows::new(dx.data, shape.n() * shape.h()), w * c, &|first, part: Rows<R>| {
            for (i, dx) in part.data.chunks_exact_mut(w * c).enumerate() {
                let (image, p) = ((first + i) / shape.h(), (first + i) % shape.h() / 2);
                let height = window(shape.h(), p).1;
                for (column, dx) in dx.chunks_exact_mut(c).enumerate() {
                    let q = column / 2;
                    let scale = R::of(1.0 / (height * window(w, q).1) as f64);
                    let dy = &dy[((image * out.h() + p) * out.w() + q) * c..][..c];
                    dx.iter_mut().zip(dy).for_each(|(dx, dy)| store_or_add(write, dx, *dy * scale));
                }
            }
        });
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (x, y, shape, out) = (l.x(0), l.y(0), l.shape(0), l.out_shape(0));
        l.expect_same("y", x, y)?;
        let pack = pack(x.elem, shape.c());
        per_image("avg_pool", shape.n(), shape.per_sample() / pack, pack)?;
        let (grid, block) = per_image("avg_pool", out.n(), out.per_sample() / pack, pack)?;
        let args = [y.into(), x.into(), dims(shape, out)];
        l.launch(instance("avg_pool_fwd", x.elem, pack), grid, block, 0, args)
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((dx, write)) = l.dx(0) else { return Ok(()) };
        let (dy, shape, out) = (l.dy0(), l.shape(0), l.out_shape(0));
        let pack = pack(dx.elem, shape.c());
        let (grid, block) = per_image("avg_pool", shape.n(), shape.per_sample() / pack, pack)?;
        let mask = l.input_mask(0);
        let slope = mask.map_or(0.0, |m| m.slope);
        let mask = mask.map(|m| m.mask).into();
        let args = [dx.into(), dy.into(), mask, dims(shape, out), slope.into(), write.into()];
        l.launch(instance("avg_pool_bwd", dx.elem, pack), grid, block, 0, args)
    }

    fn fusion(&self, _: &[Shape], _: Shape, _: &Target) -> Fusion {
        Fusion { masks_input_grad: true, ..Fusion::default() }
    }
}

/// The layout of `AvgPoolDims` in kernels/layers/avg_pool.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct AvgPoolDims {
    h: i32,
    w: i32,
    p: i32,
    q: i32,
    c: i32,
}

const _: () = assert!(size_of::<AvgPoolDims>() == 20);

fn dims(x: Shape, y: Shape) -> KernelArg {
    let [h, w, p, q, c] = [x.h(), x.w(), y.h(), y.w(), x.c()].map(|v| v as i32);
    KernelArg::structure("AvgPoolDims", &AvgPoolDims { h, w, p, q, c })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    #[test]
    fn passes_the_op_checks() {
        for x in [
            Shape::new(1, 1, 1, 1),
            Shape::new(3, 5, 7, 11),
            Shape::new(2, 4, 9, 16),
            Shape::new(2, 16, 16, 8),
            Shape::new(67, 2, 1, 3),
            Shape::new(1, 13, 6, 33),
        ] {
            check(Case::new(AvgPool, &[x]).reference(move |t| {
                let [n, h, w, c] = x.0;
                let (p, q) = (h.div_ceil(2), w.div_ceil(2));
                let (mut y, mut pixels) = (vec![0.0; n * p * q * c], vec![0.0; n * p * q * c]);
                for (i, v) in t[0].iter().enumerate() {
                    let (ch, column, row, n) = (i % c, i / c % w, i / c / w % h, i / c / w / h);
                    let at = ((n * p + row / 2) * q + column / 2) * c + ch;
                    y[at] += v;
                    pixels[at] += 1.0;
                }
                vec![y.iter().zip(pixels).map(|(y, pixels)| y / pixels).collect()]
            }));
        }
    }

    #[test]
    fn refuses_two_operands() {
        let arg = OperandInfo { shape: Shape::SCALAR, needs_grad: false };
        let e = AvgPool.signature(&[arg, arg]).unwrap_err().to_string();
        assert_eq!(e, "avg_pool: expected 1 operands (x), found 2");
    }
}
