//! Global average pooling: the mean over the pixels of each image.

use crate::device::cpu::channels::image_mean;
use crate::device::cpu::par::{Rows, for_rows};
use crate::device::gpu::launch::KernelArg;
use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::ops::fusion::Fusion;
use crate::ops::launch::channel_tiles::{Tiles, instance};
use crate::ops::launch::launches::Launches;
use crate::ops::operands::{Io, store_or_add};
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_operands};
use crate::tensor::{Real, Shape};

/// `y[n,c] = 1 / (h w) * sum_{h,w} x[n,h,w,c]`
///
/// Shapes: x `[n, h, w, c]`, y `[n, 1, 1, c]`.
/// Source: docs/method.md 1 (the teachers' head); He et al. 2016.
/// Backward: `dx = dy / (h w)`; keeps nothing.
/// Errors: another number of operands than one.
/// Cost: memory-bound; forward reads x, backward writes dx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalAvgPool;

impl Operator for GlobalAvgPool {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("global_avg_pool", args, &["x"])?;
        let x = args[0].shape;
        Ok(Signature { outputs: vec![Shape::rows(x.n(), x.c())], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (x, shape) = (io.x(0), io.shape(0));
        let image = shape.per_sample();
        for_rows(Rows::new(io.y(0), shape.n()), image, &|first, part: Rows<R>| {
            for (i, y) in part.data.chunks_exact_mut(shape.c()).enumerate() {
                image_mean(&x[(first + i) * image..][..image], y);
            }
        });
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(dx) = io.dx(0) else { return };
        let (dy, shape, write) = (io.dy0(), io.shape(0), dx.write);
        let c = shape.c();
        let scale = R::of(1.0 / (shape.h() * shape.w()) as f64);
        for_rows(Rows::new(dx.data, shape.n()), shape.per_sample(), &|first, part: Rows<R>| {
            for (dx, dy) in
                part.data.chunks_exact_mut(shape.per_sample()).zip(dy[first * c..].chunks_exact(c))
            {
                for pixel in dx.chunks_exact_mut(c) {
                    pixel.iter_mut().zip(dy).for_each(|(dx, dy)| store_or_add(write, dx, *dy * scale));
                }
            }
        });
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let x = l.x(0);
        let tiles = Tiles::image_sums(l.target(), l.shape(0), x.elem);
        let args = [KernelArg::group_of_one("PoolForward", [l.y(0).into(), x.into()]), tiles.into()];
        let name = instance("global_avg_pool_fwd", x.elem, tiles.pack);
        l.launch(name, tiles.member_grid(), tiles.block(), 0, args)
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((dx, write)) = l.dx(0) else { return Ok(()) };
        let tiles = Tiles::image_pass(l.target(), l.shape(0), dx.elem);
        let mask = l.input_mask(0);
        let slope = mask.map_or(0.0, |m| m.slope);
        let mask = mask.map(|m| m.mask).into();
        let io = KernelArg::group_of_one("PoolBackward", [dx.into(), l.dy0().into(), mask]);
        let args = [io, slope.into(), write.into(), tiles.into()];
        let name = instance("global_avg_pool_bwd", dx.elem, tiles.pack);
        l.launch(name, tiles.member_grid(), tiles.block(), 0, args)
    }

    fn fusion(&self, inputs: &[Shape], _: Shape, _: &Target) -> Fusion {
        let group_key = Some(format!("global_avg_pool {}", inputs[0]));
        Fusion { has_f32_outputs: true, masks_input_grad: true, group_key, ..Fusion::default() }
    }
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
            Shape::new(2, 17, 16, 32),
            Shape::new(67, 1, 1, 3),
            Shape::new(2, 56, 55, 5),
        ] {
            check(Case::new(GlobalAvgPool, &[x]).reference(move |t| {
                let [n, h, w, c] = x.0;
                let mut y = vec![0.0; n * c];
                for (i, v) in t[0].iter().enumerate() {
                    y[i / (h * w * c) * c + i % c] += v / (h * w) as f64;
                }
                vec![y]
            }));
        }
    }

    #[test]
    fn refuses_two_operands() {
        let arg = OperandInfo { shape: Shape::SCALAR, needs_grad: false };
        let e = GlobalAvgPool.signature(&[arg, arg]).unwrap_err().to_string();
        assert_eq!(e, "global_avg_pool: expected 1 operands (x), found 2");
    }
}
