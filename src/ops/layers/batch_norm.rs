//! Batch normalisation, followed by an activation.

use crate::device::cpu::par::{Rows, for_rows};
use crate::device::cpu::{channels, vectorised_by_width, with_width};
use crate::device::gpu;
use crate::device::gpu::launch::KernelArg;
use crate::device::gpu::target::Target;
use crate::error::{Error, Result};
use crate::ops::fusion::Fusion;
use crate::ops::launch::channel_tiles::{TILE_FOLD_THREADS, Tiles, adds, fold_blocks, instance, pixels};
use crate::ops::launch::late_sums::{Fold, LateSum};
use crate::ops::launch::launches::{DeviceTensor, Launches, THREADS};
use crate::ops::layers::activation::Act;
use crate::ops::operands::{Io, Operands, store_or_add};
use crate::ops::operator::{
    Extent, OperandInfo, Operator, Signature, expect_frozen, expect_operands, expect_shape, operands_once,
};
use crate::tensor::{Elem, Real, Shape};

/// The statistics that normalise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stats {
    /// The mean and variance of the batch, which also update the running estimates. For training.
    Batch,
    /// The running estimates, which stay unchanged. For inference, and for frozen networks.
    Running,
}

/// `y = act( gamma * (x - mean) / sqrt(var + eps) + beta )`, where everything but x and y is per channel.
///
/// With `Stats::Batch`, `mean` and the biased variance `var` are those of x over n, h and w, and the running
/// estimates become `(1 - momentum) * running + momentum * batch`, with the unbiased variance of the batch.
///
/// Shapes: x, y `[n, h, w, c]`; gamma, beta, running_mean, running_var `[1, 1, 1, c]`, in this order.
/// Source: Ioffe and Szegedy 2015, algorithms 1 and 2; the running variance and the defaults as in PyTorch.
/// Backward: dx, dgamma, dbeta. Reads x, gamma and beta, and saves three scalars per channel. The sign of y,
/// which the activation's derivative depends on, is computed again: two multiply-adds per element, hidden
/// behind the load of x, instead of a mask that one pass would write and two would read.
/// Errors: vectors of another length than x's channels, running estimates that need a gradient, batch
/// statistics of one value per channel, an activation that is not piecewise linear.
/// Cost: memory-bound. Forward reads x twice (once with `Stats::Running`) and writes y; backward reads x and
/// dy twice and writes dx.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm {
    /// The statistics that normalise.
    pub stats: Stats,
    /// The activation at the end.
    pub act: Act,
    /// Weight of the batch in the running estimates.
    pub momentum: f32,
    /// Added to the variance under the square root.
    pub eps: f32,
}

impl Operator for BatchNorm {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        let names = ["x", "gamma", "beta", "running_mean", "running_var"];
        expect_operands("batch_norm", args, &names)?;
        let x = args[0].shape;
        for (name, arg) in names.iter().zip(args).skip(1) {
            expect_shape("batch_norm", name, Shape::vector(x.c()), arg.shape)?;
        }
        for i in [3, 4] {
            expect_frozen("batch_norm", names[i], args[i])?;
        }
        if self.stats == Stats::Batch && x.elems() == x.c() {
            let message = format!("x {x} has one value a channel, batch statistics need two or more");
            return Err(Error::shape("batch_norm", message));
        }
        if self.act.step_slope().is_none() {
            let message = format!("activation {:?} cannot be fused; record it as an op of its own", self.act);
            return Err(Error::shape("batch_norm", message));
        }
        let sums = Extent::Reals(channels::scratch_len(2 * x.c()));
        let coefficients = Extent::Reals(3 * x.c());
        Ok(Signature {
            outputs: vec![x],
            keeps_inputs: if args.iter().any(|a| a.needs_grad) { vec![0, 1, 2] } else { vec![] },
            saved: vec![coefficients],
            scratch_forward: vec![sums, coefficients],
            scratch_backward: vec![sums],
            updates: if self.stats == Stats::Batch { vec![3, 4] } else { vec![] },
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (x, c) = (io.x(0), io.shape(0).c());
        let pixels = x.len() / c;
        let coefficients = if io.saves() { io.save(0) } else { io.scratch(1) };
        let (shift, rest) = coefficients.split_at_mut(c);
        let (rstd, offset) = rest.split_at_mut(c);
        match self.stats {
            Stats::Batch => {
                channels::channel_stats(io.division, x, c, io.scratch(0), shift, offset, rstd);
                let all = (pixels * io.division.processes()) as f64;
                let unbiased = R::of(all / (all - 1.0));
                let momentum = R::of(f64::from(self.momentum));
                let follow = |running: &mut R, batch: R| *running += momentum * (batch - *running);
                io.state(3).iter_mut().enumerate().for_each(|(i, mean)| follow(mean, shift[i] + offset[i]));
                io.state(4).iter_mut().zip(&*rstd).for_each(|(var, batch)| follow(var, *batch * unbiased));
            }
            Stats::Running => {
                shift.copy_from_slice(io.x(3));
                offset.fill(R::ZERO);
                rstd.copy_from_slice(io.x(4));
            }
        }
        for (rstd, offset) in rstd.iter_mut().zip(offset) {
            *rstd = R::ONE / (*rstd + R::of(f64::from(self.eps))).sqrt();
            *offset = -*offset * *rstd;
        }
        let channels = Channels::of(coefficients, io.x(1), io.x(2), self.act);
        for_rows(Rows::new(io.y(0), pixels), c, &|first, part: Rows<R>| {
            vectorised_by_width(
                c,
                #[inline(always)]
                |c| {
                    for (y, x) in part.data.chunks_exact_mut(c).zip(x[first * c..].chunks_exact(c)) {
                        let channels = channels.cut(c);
                        for i in 0..c {
                            let y_i = channels.affine(i, channels.normalised(i, x[i]));
                            y[i] = if y_i > R::ZERO { y_i } else { y_i * channels.slope };
                        }
                    }
                },
            );
        });
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let (x, dy, c) = (io.x(0), io.dy0(), io.shape(0).c());
        let pixels = x.len() / c;
        let channels = Channels::of(io.saved(0), io.x(1), io.x(2), self.act);
        let (dx, dgamma, dbeta) = (io.dx(0), io.dx(1), io.dx(2));
        let scratch = io.scratch(0);
        let through_stats = dx.is_some() && self.stats == Stats::Batch;
        // Sums over the pixels of g and of g * xhat, where g = dy * act'.
        let means = if through_stats || dgamma.is_some() || dbeta.is_some() {
            let sums = channels::sums_of_shares(
                io.division,
                pixels,
                2 * c,
                scratch,
                #[inline(always)]
                |pixels, sums: &mut [R]| {
                    let range = pixels.start * c..pixels.end * c;
                    let (x, dy) = (&x[range.clone()], &dy[range]);
                    with_width(
                        c,
                        #[inline(always)]
                        |c| {
                            let fours = x.len() / (4 * c) * 4 * c;
                            let [(x, x_rest), (dy, dy_rest)] = [x.split_at(fours), dy.split_at(fours)];
                            for (x, dy) in x.chunks_exact(4 * c).zip(dy.chunks_exact(4 * c)) {
                                channels.add_sums::<4>(x, dy, c, sums);
                            }
                            for (x, dy) in x_rest.chunks_exact(c).zip(dy_rest.chunks_exact(c)) {
                                channels.add_sums::<1>(x, dy, c, sums);
                            }
                        },
                    )
                },
            );
            for (gradient, sum) in [dbeta, dgamma].into_iter().zip(sums.chunks_exact(c)) {
                if let Some(mut gradient) = gradient {
                    // Every process has the sum of all shares, but the gradients of parameters are added over them later.
                    let is_counted = io.division.has_first();
                    let value = |v: R| if is_counted { v } else { R::ZERO };
                    sum.iter().enumerate().for_each(|(i, v)| gradient.store_or_add(i, value(*v)));
                }
            }
            sums
        } else {
            &mut scratch[..2 * c]
        };
        let Some(dx) = dx else { return };
        // Running estimates do not depend on x, so the two terms of dx that pass through the statistics are
        // zero.
        let scale = R::of(1.0 / (pixels * io.division.processes()) as f64);
        means.iter_mut().for_each(|v| *v = if through_stats { *v * scale } else { R::ZERO });
        let (mean_g, mean_gx) = means.split_at(c);
        let write = dx.write;
        for_rows(Rows::new(dx.data, pixels), c, &|first, part: Rows<R>| {
            vectorised_by_width(
                c,
                #[inline(always)]
                |c| {
                    let (write, range) = (write, first * c..first * c + part.data.len());
                    let operands = x[range.clone()].chunks_exact(c).zip(dy[range].chunks_exact(c));
                    for (dx, (x, dy)) in part.data.chunks_exact_mut(c).zip(operands) {
                        let (channels, mean_g, mean_gx) = (channels.cut(c), &mean_g[..c], &mean_gx[..c]);
                        for i in 0..c {
                            let xhat = channels.normalised(i, x[i]);
                            let g = channels.through(i, xhat, dy[i]) - mean_g[i];
                            let v = channels.gamma[i] * channels.rstd[i] * (-xhat).fma(mean_gx[i], g);
                            store_or_add(write, &mut dx[i], v);
                        }
                    }
                },
            );
        });
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (x, y, shape) = (l.x(0), l.y(0), l.shape(0));
        let (slope, running) = (self.slope(), [l.x(3), l.x(4)]);
        let batch = self.stats == Stats::Batch;
        let coefficients = match (l.saves(), batch) {
            (true, _) => Some(l.saved(0)),
            (false, true) => Some(l.scratch(1)),
            (false, false) => None,
        };
        if batch {
            let (kernel, threads, parts, count) = match l.channel_stats() {
                Some(tiles) => ("batch_norm_fwd_merge", TILE_FOLD_THREADS, tiles.parts, tiles.rows),
                None => {
                    let (tiles, parts) = (Tiles::sums(l.target(), shape, x.elem), l.scratch(0));
                    let name = instance("batch_norm_fwd_sums", x.elem, tiles.pack);
                    let io = [parts.into(), coefficients.into(), x.into()];
                    let args = [KernelArg::group_of_one("BatchNormSums", io), tiles.into()];
                    l.launch(name, tiles.member_grid(), tiles.block(), 0, args)?;
                    ("batch_norm_fwd_finish", THREADS, parts, tiles.chunks())
                }
            };
            let io = [coefficients.into(), running[0].into(), running[1].into(), parts.into()];
            let args = [
                KernelArg::group_of_one("BatchNormFold", io),
                pixels(shape),
                (shape.c() as i32).into(),
                (count as i32).into(),
                self.momentum.into(),
                self.eps.into(),
            ];
            l.launch(kernel, fold_blocks(shape.c()), threads, 0, args)?;
        }
        let running = running.map(|r| (!batch).then_some(r));
        let tiles = Tiles::pass(l.target(), shape, x.elem);
        if let Some(a) = l.fused_activation() {
            l.expect_same("x, which has y's type", y, x)?;
            let io = [
                KernelArg::Slot(a.y),
                a.mask.map(KernelArg::Slot).into(),
                a.keeps_sum.then_some(y).into(),
                a.residual.map(KernelArg::Slot).into(),
                coefficients.into(),
                x.into(),
                l.x(1).into(),
                l.x(2).into(),
                running[0].into(),
                running[1].into(),
            ];
            let io = KernelArg::group_of_one("BatchNormActivation", io);
            let args = [io, self.eps.into(), a.slope.into(), tiles.into()];
            return l.launch("batch_norm_fwd_activation", tiles.member_grid(), tiles.block(), 0, args);
        }
        let io = [
            y.into(),
            coefficients.into(),
            x.into(),
            l.x(1).into(),
            l.x(2).into(),
            running[0].into(),
            running[1].into(),
        ];
        let io = KernelArg::group_of_one("BatchNormForward", io);
        let name = format!("batch_norm_fwd<{}, {}, {}>", x.elem, y.elem, tiles.pack);
        let args = [io, self.eps.into(), slope, tiles.into()];
        l.launch(name, tiles.member_grid(), tiles.block(), 0, args)
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let (x, dy, shape) = (l.x(0), l.dy0(), l.shape(0));
        let (dx, dgamma, dbeta) = (l.dx(0), l.dx(1), l.dx(2));
        let (coefficients, gamma, beta) = (l.saved(0), l.x(1), l.x(2));
        let means = (dx.is_some() && self.stats == Stats::Batch).then(|| l.scratch(1));
        let needs_sums = means.is_some() || dgamma.is_some() || dbeta.is_some();
        // The operands of a pass of backward over the maps, and the name of its kernel.
        let pass = |dx: Option<DeviceTensor>, parts: Option<DeviceTensor>, means: Option<DeviceTensor>| {
            let [dx, parts, means] = [dx, parts, means].map(KernelArg::from);
            let [x, dy, coefficients, gamma, beta] = [x, dy, coefficients, gamma, beta].map(KernelArg::from);
            KernelArg::group_of_one("BatchNormBackward", [dx, parts, x, dy, coefficients, gamma, beta, means])
        };
        let name = |kernel: &str, tiles: &Tiles| format!("{kernel}<{}, {}, {}>", x.elem, dy.elem, tiles.pack);
        // Running estimates: dx needs no sums, and both come out of one pass.
        let in_one_pass = dx.filter(|_| needs_sums && means.is_none());
        if needs_sums {
            let (tiles, parts) = (Tiles::sums(l.target(), shape, x.elem), l.scratch(0));
            let (grid, block) = (tiles.member_grid(), tiles.block());
            if let Some((dx, write)) = in_one_pass {
                let args = [pass(Some(dx), Some(parts), None), self.slope(), write.into(), tiles.into()];
                l.launch(name("batch_norm_bwd_running", &tiles), grid, block, 0, args)?;
            } else {
                let args = [pass(None, Some(parts), None), self.slope(), tiles.into()];
                l.launch(name("batch_norm_bwd_sums", &tiles), grid, block, 0, args)?;
            }
            // Nobody but an optimiser waits for the sums, unless dx needs their means.
            let is_late = means.is_none() && [1, 2].iter().all(|i| l.dx(*i).is_none() || l.is_late(*i));
            if is_late {
                let (len, stride, count) = (shape.c(), 2 * shape.c(), tiles.chunks());
                for (i, gradient) in [dbeta, dgamma].into_iter().enumerate() {
                    let Some((to, write)) = gradient else { continue };
                    // The two gradients' sums alternate: each has half of the parts' bytes.
                    let (to, parts) = (to.slot, parts.part(i * len, count * len).slot);
                    l.late.push(LateSum { to, write, parts, len, stride, count, fold: Fold::Many });
                }
            } else {
                let io = [means.into(), dgamma.map(|d| d.0).into(), dbeta.map(|d| d.0).into(), parts.into()];
                let args = [
                    KernelArg::group_of_one("BatchNormBackwardFold", io),
                    pixels(shape),
                    (shape.c() as i32).into(),
                    (tiles.chunks() as i32).into(),
                    adds(dgamma),
                    adds(dbeta),
                ];
                l.launch("batch_norm_bwd_finish", fold_blocks(shape.c()), THREADS, 0, args)?;
            }
        }
        let Some((dx, write)) = dx.filter(|_| in_one_pass.is_none()) else { return Ok(()) };
        let tiles = Tiles::pass(l.target(), shape, x.elem);
        let args = [pass(Some(dx), None, means), self.slope(), write.into(), tiles.into()];
        l.launch(name("batch_norm_bwd", &tiles), tiles.member_grid(), tiles.block(), 0, args)
    }
    /// The producer of x can sum the batch's statistics while it writes x. Backward's two sums are complete
    /// only once x and dy have been read, and dx then reads both a second time.
    fn minimal_bytes(&self, o: &Operands) -> u64 {
        let again = o.is_backward() && self.stats == Stats::Batch && o.input_grads[0].is_some();
        let dy = o.output_grads.first().copied().flatten();
        let again = if again { o.inputs[0].bytes + dy.map_or(0, |s| s.bytes) } else { 0 };
        operands_once(self, o) + again as u64 + o.output_beside_sum()
    }

    fn fusion(&self, _: &[Shape], y: Shape, target: &Target) -> Fusion {
        let is_batch = self.stats == Stats::Batch;
        // The kernel writes whole bytes of a mask: eight channels, a pack of bf16.
        let has_packs = target.map_dtype == Elem::Bf16 && y.c().is_multiple_of(8) && y.h() * y.w() > 1;
        Fusion {
            reads_channel_stats: is_batch,
            scratch_without_stats: is_batch.then_some(0),
            fuses_activation: self.act == Act::None && has_packs,
            group_key: Some(format!("batch_norm {:?} {y}", self.stats)),
            ..Fusion::default()
        }
    }
    fn device_extents(&self, args: &[OperandInfo], target: &Target, signature: &mut Signature) {
        let x = args[0].shape;
        let parts = Extent::Reals(Tiles::parts_len(target, x));
        signature.scratch_forward = match self.stats {
            Stats::Batch => vec![parts, Extent::Reals(3 * x.c())],
            Stats::Running => vec![],
        };
        signature.scratch_backward = vec![parts, Extent::Reals(2 * x.c())];
        if self.stats == Stats::Running {
            signature.late_sums =
                [1, 2].into_iter().filter(|i| args[*i].needs_grad).map(|i| (i, 0)).collect();
        }
    }
}

impl BatchNorm {
    /// The activation as the kernels take it: its slope below zero.
    fn slope(&self) -> gpu::launch::KernelArg {
        (self.act.step_slope().unwrap_or(1.0) as f32).into()
    }
}

/// The coefficients of each channel: `xhat = (x - shift) * rstd + offset`. The shift is near the mean, and
/// the offset corrects for their difference, so that a mean far from zero costs no precision.
#[derive(Clone, Copy)]
struct Channels<'a, R> {
    shift: &'a [R],
    rstd: &'a [R],
    offset: &'a [R],
    gamma: &'a [R],
    beta: &'a [R],
    slope: R,
}

impl<'a, R: Real> Channels<'a, R> {
    fn of(coefficients: &'a [R], gamma: &'a [R], beta: &'a [R], act: Act) -> Self {
        let (shift, rest) = coefficients.split_at(gamma.len());
        let (rstd, offset) = rest.split_at(gamma.len());
        Channels { shift, rstd, offset, gamma, beta, slope: R::of(act.step_slope().unwrap_or(1.0)) }
    }
    /// The first `c` elements of every slice. The compiler then drops the bounds checks in loops up to `c`.
    #[inline(always)]
    fn cut(&self, c: usize) -> Self {
        Channels {
            shift: &self.shift[..c],
            rstd: &self.rstd[..c],
            offset: &self.offset[..c],
            gamma: &self.gamma[..c],
            beta: &self.beta[..c],
            slope: self.slope,
        }
    }
    #[inline(always)]
    fn normalised(&self, i: usize, x: R) -> R {
        (x - self.shift[i]).fma(self.rstd[i], self.offset[i])
    }
    /// The output before the activation.
    #[inline(always)]
    fn affine(&self, i: usize, xhat: R) -> R {
        xhat.fma(self.gamma[i], self.beta[i])
    }
    /// Adds g and `g * xhat` of `P` pixels to the first and the second `c` sums, with `g = dy * act'`. With four pixels
    /// at once a sum is loaded and stored a fourth as often; the next addition waits for that store.
    #[inline(always)]
    fn add_sums<const P: usize>(&self, x: &[R], dy: &[R], c: usize, sums: &mut [R]) {
        let (sum_g, sum_gx) = sums.split_at_mut(c);
        let (channels, sum_g, sum_gx) = (self.cut(c), &mut sum_g[..c], &mut sum_gx[..c]);
        let (x, dy) = (&x[..P * c], &dy[..P * c]);
        for i in 0..c {
            let (mut of_g, mut of_gx) = (R::ZERO, R::ZERO);
            for p in 0..P {
                let xhat = channels.normalised(i, x[p * c + i]);
                let g = channels.through(i, xhat, dy[p * c + i]);
                of_g += g;
                of_gx = g.fma(xhat, of_gx);
            }
            sum_g[i] += of_g;
            sum_gx[i] += of_gx;
        }
    }
    /// The gradient with respect to the output before the activation.
    #[inline(always)]
    fn through(&self, i: usize, xhat: R, dy: R) -> R {
        if self.affine(i, xhat) > R::ZERO { dy } else { dy * self.slope }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    const MOMENTUM: f64 = 0.25;
    const EPS: f64 = 0.0078125;

    fn op(stats: Stats, act: Act) -> BatchNorm {
        BatchNorm { stats, act, momentum: MOMENTUM as f32, eps: EPS as f32 }
    }

    /// A channel at a time: mean, then squared distances from it.
    fn plain(op: BatchNorm, c: usize) -> impl Fn(&[Vec<f64>]) -> Vec<Vec<f64>> {
        move |t| {
            let (mut y, mut mean, mut var) = (vec![0.0; t[0].len()], t[3].clone(), t[4].clone());
            let m = (t[0].len() / c) as f64;
            for ch in 0..c {
                let x = || t[0].iter().skip(ch).step_by(c);
                if op.stats == Stats::Batch {
                    mean[ch] = x().sum::<f64>() / m;
                    var[ch] = x().map(|v| (v - mean[ch]).powi(2)).sum::<f64>() / m;
                }
                for (y, x) in y.iter_mut().skip(ch).step_by(c).zip(x()) {
                    let v = t[1][ch] * (x - mean[ch]) / (var[ch] + EPS).sqrt() + t[2][ch];
                    *y = match op.act {
                        Act::Relu if v < 0.0 => 0.0,
                        Act::LeakyRelu(slope) if v < 0.0 => v * f64::from(slope),
                        _ => v,
                    };
                }
                mean[ch] = t[3][ch] * (1.0 - MOMENTUM) + mean[ch] * MOMENTUM;
                var[ch] = t[4][ch] * (1.0 - MOMENTUM) + var[ch] * m / (m - 1.0) * MOMENTUM;
            }
            match op.stats {
                Stats::Batch => vec![y, mean, var],
                Stats::Running => vec![y],
            }
        }
    }

    fn case(op: BatchNorm, x: Shape) -> Case {
        let v = Shape::vector(x.c());
        let case = Case::new(op, &[x, v, v, v, v]).reference(plain(op, x.c()));
        case.map(4, |v| v.abs() + 0.1).frozen(3).frozen(4)
    }

    /// Every statistic and activation, of maps of these shapes.
    fn check_all(shapes: &[Shape]) {
        for act in [Act::None, Act::Relu, Act::LeakyRelu(0.2)] {
            for x in shapes {
                check(case(op(Stats::Batch, act), *x));
                check(case(op(Stats::Running, act), *x));
            }
        }
    }

    #[test]
    fn passes_the_op_checks() {
        check_all(&[Shape::new(2, 1, 1, 1), Shape::new(3, 5, 7, 11), Shape::new(1, 9, 8, 16)]);
        check(case(op(Stats::Running, Act::Relu), Shape::vector(5)));
    }

    #[test]
    #[cfg_attr(debug_assertions, ignore = "slow without optimisation: cargo test --release --lib batch_norm")]
    fn passes_the_op_checks_of_several_chunks_and_packs() {
        check_all(&[
            // 35 chunks of pixels on a device, more than a fold has threads per channel.
            Shape::new(5, 13, 17, 31),
            Shape::rows(67, 64),
            // Packs of channels, with two chunks of pixels and with two slabs of 17 and 16 packs.
            Shape::new(2, 13, 11, 32),
            Shape::new(2, 3, 5, 264),
        ]);
    }

    #[test]
    fn a_mean_of_a_hundred_standard_deviations_costs_no_digits() {
        for x in [Shape::new(3, 5, 7, 11), Shape::new(4, 32, 33, 5)] {
            check(case(op(Stats::Batch, Act::Relu), x).map(0, |v| v + 100.0));
            check(case(op(Stats::Running, Act::None), x).map(0, |v| v + 100.0).map(3, |v| v + 100.0));
        }
    }

    #[test]
    fn refuses_operands_that_do_not_fit() {
        let e = |op: BatchNorm, x: Shape, other: Shape, needs_grad: bool| {
            let arg = |shape| OperandInfo { shape, needs_grad };
            let v = Shape::vector(x.c());
            op.signature(&[arg(x), arg(v), arg(other), arg(v), arg(v)]).unwrap_err().to_string()
        };
        let (x, v) = (Shape::new(2, 4, 4, 3), Shape::vector(3));
        let batch = op(Stats::Batch, Act::Relu);
        assert_eq!(
            e(batch, x, Shape::vector(4), false),
            "batch_norm: beta: expected [1, 1, 1, 3], found [1, 1, 1, 4]"
        );
        assert_eq!(
            e(batch, x, v, true),
            "batch_norm: running_mean: needs a gradient, but the op passes none to it; detach it first"
        );
        assert!(e(batch, v, v, false).contains("[1, 1, 1, 3] has one value a channel"));
        assert!(e(op(Stats::Running, Act::Tanh), x, v, false).contains("Tanh cannot be fused"));
        assert!(batch.signature(&[]).unwrap_err().to_string().contains("expected 5 operands (x, gamma"));
    }
}
