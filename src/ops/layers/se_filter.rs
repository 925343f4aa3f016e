//! The teacher-level filter: squeeze and excitation.

use crate::device::cpu::channels::{add, axpys, dot, image_mean};
use crate::device::cpu::par::{Rows, even_grain, for_parts, for_rows};
use crate::device::cpu::{scratch, vectorised};
use crate::device::gpu::launch::KernelArg;
use crate::device::gpu::target::Target;
use crate::error::{Error, Result};
use crate::ops::fusion::Fusion;
use crate::ops::launch::channel_tiles::{Tiles, adds, instance};
use crate::ops::launch::launches::{Launches, THREADS};
use crate::ops::layers::activation::sigmoid;
use crate::ops::operands::{Grad, Io, Write, store_or_add};
use crate::ops::operator::{Extent, OperandInfo, Operator, Signature, expect_operands, expect_shape};
use crate::tensor::{Real, Shape};

/// `y = x * gain[n,c]`, `gain = top * sigmoid(w2 hidden + b2)`, `hidden = relu(w1 pooled + b1)`,
/// `pooled[n,c] = mean_{h,w} x`
///
/// Shapes: x, y `[n, h, w, c]`; w1 `[k, 1, 1, c]`, b1 `[1, 1, 1, k]`, w2 `[c, 1, 1, k]`, b2 `[1, 1, 1, c]`,
/// in this order, with `k = c / r` hidden units.
/// Source: eq. 9 and supplement 1.2 (`r = 4`); Hu et al. 2018.
/// Backward: dx and the gradients of the four weights, which sum over the samples in order. Reads x, w1 and
/// w2; saves pooled, gain and hidden (`2 c + k` scalars per sample).
/// Errors: no hidden unit, weights that do not fit x's channels or each other.
/// Cost: `2 n c k` multiply-adds forward, twice that backward. Memory-bound on x: forward reads x and writes
/// y, backward reads x and dy and writes dx. The CPU processes one image at a time, so that its second pass
/// over an image finds it in cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SeFilter {
    /// The upper limit of the gain: 1 as published; with 2, small initial weights give a gain near 1, the
    /// identity.
    pub top: f32,
}

/// Scalars that forward saves for each sample: `[pooled c][gain c][hidden k]`.
fn saved_len(c: usize, k: usize) -> usize {
    2 * c + k
}

impl Operator for SeFilter {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("se_filter", args, &["x", "w1", "b1", "w2", "b2"])?;
        let (x, k) = (args[0].shape, args[1].shape.n());
        if k == 0 {
            return Err(Error::shape("se_filter", format!("no hidden unit for the {} channels of x", x.c())));
        }
        expect_shape("se_filter", "w1", Shape::rows(k, x.c()), args[1].shape)?;
        expect_shape("se_filter", "b1", Shape::vector(k), args[2].shape)?;
        expect_shape("se_filter", "w2", Shape::rows(x.c(), k), args[3].shape)?;
        expect_shape("se_filter", "b2", Shape::vector(x.c()), args[4].shape)?;
        let any = args.iter().any(|a| a.needs_grad);
        let small = x.n() * saved_len(x.c(), k);
        let product = (x.n() * x.c() * k) as u64;
        let weights = args[1].needs_grad || args[3].needs_grad;
        Ok(Signature {
            outputs: vec![x],
            keeps_inputs: if any { vec![0, 1, 3] } else { vec![] },
            saved: vec![Extent::Reals(small)],
            scratch_forward: vec![Extent::Reals(if any { 0 } else { small })],
            scratch_backward: vec![Extent::Reals(x.n() * (x.c() + k))],
            macs_forward: 2 * product,
            macs_backward: 2 * product * (u64::from(any) + u64::from(weights)),
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (x, shape, k) = (io.x(0), io.shape(0), io.shape(1).n());
        let (n, c, image) = (shape.n(), shape.c(), shape.per_sample());
        let (w1, b1, w2, b2) = (io.x(1), io.x(2), io.x(3), io.x(4));
        let top = R::of(f64::from(self.top));
        let small = if io.saves() { io.save(0) } else { io.scratch(0) };
        let parts = (Rows::new(io.y(0), n), Rows::new(small, n));
        for_parts(parts, even_grain(n), &|first, (y, small): (Rows<R>, Rows<R>)| {
            let samples = y.data.chunks_exact_mut(image).zip(small.data.chunks_exact_mut(saved_len(c, k)));
            for ((y, small), x) in samples.zip(x[first * image..].chunks_exact(image)) {
                let (pooled, small) = small.split_at_mut(c);
                let (gain, hidden) = small.split_at_mut(c);
                image_mean(x, pooled);
                vectorised(
                    #[inline(always)]
                    || {
                        for (hidden, (w1, b1)) in hidden.iter_mut().zip(w1.chunks_exact(c).zip(b1)) {
                            *hidden = (dot(w1, pooled) + *b1).max(R::ZERO);
                        }
                        for (gain, (w2, b2)) in gain.iter_mut().zip(w2.chunks_exact(k).zip(b2)) {
                            *gain = dot(w2, hidden) + *b2;
                        }
                    },
                );
                gain.iter_mut().for_each(|gain| *gain = top * sigmoid(*gain));
                vectorised(
                    #[inline(always)]
                    || {
                        for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                            y.iter_mut().zip(x.iter().zip(&*gain)).for_each(|(y, (x, gain))| *y = *x * *gain);
                        }
                    },
                );
            }
        });
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let (x, dy, shape, k) = (io.x(0), io.dy0(), io.shape(0), io.shape(1).n());
        let (n, c, image) = (shape.n(), shape.c(), shape.per_sample());
        let (w1, w2, small) = (io.x(1), io.x(3), io.saved::<R>(0));
        let below = R::of(1.0 / f64::from(self.top));
        let sample = |i: usize| &small[i * saved_len(c, k)..][..saved_len(c, k)];
        // Gradients with respect to the inputs of the sigmoid (`c`) and of the ReLU (`k`), for each sample.
        let inner = io.scratch::<R>(0);
        let dx = io.dx(0);
        let write = dx.as_ref().map(|dx| dx.write);
        let mut none = [];
        let parts = (Rows::new(dx.map_or(&mut none[..], |dx| dx.data), n), Rows::new(&mut *inner, n));
        for_parts(parts, even_grain(n), &|first, (dx, inner): (Rows<R>, Rows<R>)| {
            for (i, inner) in inner.data.chunks_exact_mut(c + k).enumerate() {
                let (gain, hidden) = sample(first + i)[c..].split_at(c);
                let at = (first + i) * image..(first + i + 1) * image;
                let (x, dy) = (&x[at.clone()], &dy[at]);
                let (outer, dhidden) = inner.split_at_mut(c);
                outer.fill(R::ZERO);
                vectorised(
                    #[inline(always)]
                    || {
                        for (x, dy) in x.chunks_exact(c).zip(dy.chunks_exact(c)) {
                            let operands = x.iter().zip(dy);
                            outer.iter_mut().zip(operands).for_each(|(sum, (x, dy))| *sum = x.fma(*dy, *sum));
                        }
                    },
                );
                outer.iter_mut().zip(gain).for_each(|(v, gain)| *v *= *gain * (R::ONE - *gain * below));
                dhidden.fill(R::ZERO);
                vectorised(
                    #[inline(always)]
                    || add_rows(outer, w2, dhidden),
                );
                for (v, hidden) in dhidden.iter_mut().zip(hidden) {
                    *v = if *hidden > R::ZERO { *v } else { R::ZERO };
                }
                let Some(write) = write else { continue };
                scratch::with(c, |dpooled: &mut [R]| {
                    dpooled.fill(R::ZERO);
                    let scale = R::of(c as f64 / image as f64);
                    let dx = &mut dx.data[i * image..][..image];
                    vectorised(
                        #[inline(always)]
                        || {
                            add_rows(dhidden, w1, dpooled);
                            dpooled.iter_mut().for_each(|v| *v *= scale);
                            for (dx, dy) in dx.chunks_exact_mut(c).zip(dy.chunks_exact(c)) {
                                let (write, gain, dpooled) = (write, &gain[..c], &dpooled[..c]);
                                for i in 0..c {
                                    store_or_add(write, &mut dx[i], dy[i].fma(gain[i], dpooled[i]));
                                }
                            }
                        },
                    );
                });
            }
        });
        let inner = &*inner;
        let outer = |n: usize| &inner[n * (c + k)..][..c];
        let dhidden = |n: usize| &inner[n * (c + k) + c..][..k];
        for (of, dw1) in io.dx_of_shares(1, n) {
            weight_gradient(dw1, of.len(), k, |i| (dhidden(of.start + i), &sample(of.start + i)[..c]));
        }
        for (of, db1) in io.dx_of_shares(2, n) {
            bias_gradient(db1, of.len(), |i| dhidden(of.start + i));
        }
        for (of, dw2) in io.dx_of_shares(3, n) {
            weight_gradient(dw2, of.len(), c, |i| (outer(of.start + i), &sample(of.start + i)[2 * c..]));
        }
        for (of, db2) in io.dx_of_shares(4, n) {
            bias_gradient(db2, of.len(), |i| outer(of.start + i));
        }
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (x, y, shape, k) = (l.x(0), l.y(0), l.shape(0), l.shape(1).n() as i32);
        l.expect_same("y", x, y)?;
        let small = if l.saves() { l.saved(0) } else { l.scratch(0) };
        let tiles = Tiles::image_sums(l.target(), shape, x.elem);
        let name = instance("se_filter_fwd_squeeze", x.elem, tiles.pack);
        let io = KernelArg::group_of_one("SeSqueeze", [small.into(), x.into()]);
        l.launch(name, tiles.member_grid(), tiles.block(), 0, [io, k.into(), tiles.into()])?;
        let [w1, b1, w2, b2] = [1, 2, 3, 4].map(|i| l.x(i).into());
        let io = KernelArg::group_of_one("SeExcite", [small.into(), w1, b1, w2, b2]);
        let args = [io, self.top.into(), (shape.c() as i32).into(), k.into()];
        l.launch("se_filter_fwd_excite", shape.n() as u32, THREADS, 0, args)?;
        let tiles = Tiles::image_pass(l.target(), shape, x.elem);
        let io = KernelArg::group_of_one("SeScale", [y.into(), x.into(), small.into()]);
        let name = instance("se_filter_fwd", x.elem, tiles.pack);
        l.launch(name, tiles.member_grid(), tiles.block(), 0, [io, k.into(), tiles.into()])
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let (x, dy, shape, k) = (l.x(0), l.dy0(), l.shape(0), l.shape(1).n());
        let (small, inner, c) = (l.saved(0), l.scratch(0), shape.c());
        let tiles = Tiles::image_sums(l.target(), shape, x.elem);
        let name = instance("se_filter_bwd_squeeze", x.elem, tiles.pack);
        let io = [inner.into(), x.into(), dy.into(), small.into()];
        let io = KernelArg::group_of_one("SeSqueezeBackward", io);
        let args = [io, self.top.into(), (k as i32).into(), tiles.into()];
        l.launch(name, tiles.member_grid(), tiles.block(), 0, args)?;
        let io = [inner.into(), small.into(), l.x(1).into(), l.x(3).into()];
        let io = KernelArg::group_of_one("SeExciteBackward", io);
        let pixels = (shape.h() * shape.w()) as i64;
        let args = [io, pixels.into(), (c as i32).into(), (k as i32).into()];
        l.launch("se_filter_bwd_excite", shape.n() as u32, THREADS, 0, args)?;
        let weights = [l.dx(1), l.dx(2), l.dx(3), l.dx(4)];
        if weights.iter().any(Option::is_some) {
            let [dw1, db1, dw2, db2] = weights.map(|g| g.map(|g| g.0).into());
            let [add_w1, add_b1, add_w2, add_b2] = weights.map(adds);
            let io = [dw1, db1, dw2, db2, inner.into(), small.into()];
            let args = [
                KernelArg::group_of_one("SeWeightGradients", io),
                (shape.n() as i32).into(),
                (c as i32).into(),
                (k as i32).into(),
                add_w1,
                add_b1,
                add_w2,
                add_b2,
            ];
            // A block computes 32 elements of the four gradients.
            let elements = 2 * c * k + c + k;
            l.launch("se_filter_bwd_weights", elements.div_ceil(32) as u32, THREADS, 0, args)?;
        }
        let Some((dx, write)) = l.dx(0) else { return Ok(()) };
        let tiles = Tiles::image_pass(l.target(), shape, dx.elem);
        let io = KernelArg::group_of_one("SeBackward", [dx.into(), dy.into(), small.into(), inner.into()]);
        let name = instance("se_filter_bwd", dx.elem, tiles.pack);
        let args = [io, (k as i32).into(), write.into(), tiles.into()];
        l.launch(name, tiles.member_grid(), tiles.block(), 0, args)
    }

    fn fusion(&self, inputs: &[Shape], y: Shape, _: &Target) -> Fusion {
        Fusion { group_key: Some(format!("se_filter {y} {}", inputs[1])), ..Fusion::default() }
    }
    fn device_extents(&self, args: &[OperandInfo], _: &Target, signature: &mut Signature) {
        let (x, k) = (args[0].shape, args[1].shape.n());
        signature.scratch_backward = vec![Extent::Reals(x.n() * saved_len(x.c(), k))];
    }
}

/// `dw[j, i] = sum_n left[n, j] * right[n, i]`: rows in parallel, samples in order.
fn weight_gradient<'a, R: Real>(
    dw: Grad<R>,
    n: usize,
    rows: usize,
    operands: impl Fn(usize) -> (&'a [R], &'a [R]) + Sync,
) {
    let (write, columns) = (dw.write, dw.data.len() / rows);
    for_rows(Rows::new(dw.data, rows), columns, &|first, part: Rows<R>| {
        vectorised(
            #[inline(always)]
            || {
                for (j, row) in part.data.chunks_exact_mut(columns).enumerate() {
                    if write == Write::Set {
                        row.fill(R::ZERO);
                    }
                    axpys(
                        n,
                        #[inline(always)]
                        |n| {
                            let (left, right) = operands(n);
                            (left[first + j], right)
                        },
                        row,
                    );
                }
            },
        );
    });
}

/// `y += sum_i v[i] * matrix[i]`
#[inline(always)]
fn add_rows<R: Real>(v: &[R], matrix: &[R], y: &mut [R]) {
    let columns = y.len();
    axpys(
        v.len(),
        #[inline(always)]
        |i| (v[i], &matrix[i * columns..][..columns]),
        y,
    );
}

/// `db[j] = sum_n left[n, j]`
fn bias_gradient<'a, R: Real>(mut db: Grad<R>, n: usize, left: impl Fn(usize) -> &'a [R]) {
    const LANES: usize = 16;
    let count = db.data.len();
    for first in (0..count).step_by(LANES) {
        let mut sums = [R::ZERO; LANES];
        let sums = &mut sums[..LANES.min(count - first)];
        (0..n).for_each(|n| add(sums, &left(n)[first..]));
        sums.iter().enumerate().for_each(|(j, sum)| db.store_or_add(first + j, *sum));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    fn shapes(x: Shape, k: usize) -> [Shape; 5] {
        let c = x.c();
        [x, Shape::rows(k, c), Shape::vector(k), Shape::rows(c, k), Shape::vector(c)]
    }

    /// A sample and a channel at a time.
    fn plain(x: Shape, k: usize, top: f64) -> impl Fn(&[Vec<f64>]) -> Vec<Vec<f64>> {
        move |t| {
            let (c, pixels) = (x.c(), x.h() * x.w());
            let at = |n: usize, p: usize, ch: usize| t[0][(n * pixels + p) * c + ch];
            let mut y = t[0].clone();
            for n in 0..x.n() {
                let hidden: Vec<f64> = (0..k)
                    .map(|j| {
                        let mut sum = t[2][j];
                        for ch in 0..c {
                            sum += t[1][j * c + ch] * (0..pixels).map(|p| at(n, p, ch)).sum::<f64>()
                                / pixels as f64;
                        }
                        sum.max(0.0)
                    })
                    .collect();
                for ch in 0..c {
                    let sum = t[4][ch] + (0..k).map(|j| t[3][ch * k + j] * hidden[j]).sum::<f64>();
                    for p in 0..pixels {
                        y[(n * pixels + p) * c + ch] *= top / (1.0 + (-sum).exp());
                    }
                }
            }
            vec![y]
        }
    }

    #[test]
    fn passes_the_op_checks() {
        for (x, k) in [
            (Shape::new(1, 1, 1, 1), 1),
            (Shape::new(3, 5, 7, 11), 3),
            (Shape::new(9, 8, 8, 32), 8),
            (Shape::new(67, 2, 1, 20), 5),
            (Shape::new(2, 3, 3, 37), 17),
            (Shape::new(2, 17, 16, 32), 8),
            (Shape::new(2, 1, 2, 3), 300),
        ] {
            for top in [1.0, 2.0] {
                let case = Case::new(SeFilter { top }, &shapes(x, k));
                check(case.reference(plain(x, k, f64::from(top))));
            }
            // x needs no gradient, the weights do.
            check(Case::new(SeFilter { top: 2.0 }, &shapes(x, k)).frozen(0));
        }
    }

    #[test]
    fn refuses_operands_that_do_not_fit() {
        let good = shapes(Shape::new(2, 4, 4, 8), 2);
        let e = |i: usize, shape: Shape| {
            let mut args = good.map(|shape| OperandInfo { shape, needs_grad: false });
            args[i].shape = shape;
            SeFilter { top: 2.0 }.signature(&args).unwrap_err().to_string()
        };
        assert_eq!(e(1, Shape::rows(2, 9)), "se_filter: w1: expected [2, 1, 1, 8], found [2, 1, 1, 9]");
        assert_eq!(e(1, Shape::rows(0, 8)), "se_filter: no hidden unit for the 8 channels of x");
        assert_eq!(e(2, Shape::vector(3)), "se_filter: b1: expected [1, 1, 1, 2], found [1, 1, 1, 3]");
        assert_eq!(e(3, Shape::rows(2, 8)), "se_filter: w2: expected [8, 1, 1, 2], found [2, 1, 1, 8]");
        assert_eq!(e(4, Shape::SCALAR), "se_filter: b2: expected [1, 1, 1, 8], found [1, 1, 1, 1]");
    }
}
