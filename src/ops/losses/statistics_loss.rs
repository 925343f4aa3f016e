//! Matches the channel statistics of generated images to those that a frozen teacher's batch norm stores of
//! its training data.

use crate::device::cpu::par::{Rows, for_rows};
use crate::device::cpu::{channels, vectorised_by_width};
use crate::device::gpu::launch::KernelArg;
use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::ops::fusion::Fusion;
use crate::ops::launch::channel_tiles::{TILE_FOLD_THREADS, Tiles, fold_blocks, instance, pixels};
use crate::ops::launch::launches::{Launches, THREADS};
use crate::ops::operands::{Io, Operands, Write, store_or_add};
use crate::ops::operator::{
    Extent, OperandInfo, Operator, Signature, expect_frozen, expect_operands, expect_shape,
};
use crate::tensor::{Real, Shape};

/// `loss = mean_c [ ((mu_c - target_mean_c) / target_std_c)^2 + (sigma_c / target_std_c - 1)^2 ]`, where mu
/// and var are the mean and biased variance of u over n, h and w, and
/// `sigma / target_std = sqrt(var / target_std^2 + eps)`.
///
/// For a batch norm folded into its convolution, u is the output before the activation, target_mean its beta
/// and target_std its |gamma|. The loss then measures the deviation from the stored mean and variance before
/// the batch norm, because `mu_u - beta = gamma * (mu - running_mean) / s` and
/// `sigma_u = |gamma| * sigma / s` with `s^2 = running_var + eps_bn`. Channels with target_std below
/// [`MIN_STD`] carry no signal and are left out of the mean.
///
/// Shapes: u `[n, h, w, c]`, target_mean and target_std `[1, 1, 1, c]`; loss `[1, 1, 1, 1]`.
/// Source: ours, after Yin et al. 2020 (DeepInversion, eq. 4); the amalgamation paper has no such term.
/// Backward: `du = dloss * (slope_c * (u - shift_c) + offset_c)`. Reads u, and saves the three vectors. The
/// targets get no gradient.
/// Errors: vectors of another length than u's channels, targets that need a gradient.
/// Cost: memory-bound. Forward reads u; backward reads u and writes du.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StatisticsLoss {
    /// Keeps the derivative of sigma finite where a channel is constant; in units of the target variance.
    pub eps: f32,
}

/// The smallest target that counts (ours): trained batch norms have |gamma| near 1, pruned channels below
/// 1e-4.
pub const MIN_STD: f64 = 1e-3;

impl Operator for StatisticsLoss {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        let names = ["u", "target_mean", "target_std"];
        expect_operands("statistics_loss", args, &names)?;
        let u = args[0].shape;
        for i in [1, 2] {
            expect_shape("statistics_loss", names[i], Shape::vector(u.c()), args[i].shape)?;
            expect_frozen("statistics_loss", names[i], args[i])?;
        }
        Ok(Signature {
            outputs: vec![Shape::SCALAR],
            keeps_inputs: if args[0].needs_grad { vec![0] } else { vec![] },
            saved: vec![Extent::Reals(3 * u.c())],
            scratch_forward: vec![Extent::Reals(channels::scratch_len(2 * u.c())), Extent::Reals(3 * u.c())],
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (u, c, mean, std) = (io.x(0), io.shape(0).c(), io.x(1), io.x(2));
        let coefficients = if io.saves() { io.save(0) } else { io.scratch(1) };
        let (shift, rest) = coefficients.split_at_mut(c);
        let (slope, offset) = rest.split_at_mut(c);
        channels::channel_stats(io.division, u, c, io.scratch(0), shift, offset, slope);
        let counts = |i: &usize| std[*i].f64() >= MIN_STD;
        let counted = (0..c).filter(counts).count().max(1) as f64;
        let per_element = 2.0 / (counted * (u.len() / c * io.division.processes()) as f64);
        let mut loss = 0.0;
        // A few scalars per channel, so f64 costs nothing.
        for i in 0..c {
            if !counts(&i) {
                (slope[i], offset[i]) = (R::ZERO, R::ZERO);
                continue;
            }
            let (delta, var, std) = (offset[i].f64(), slope[i].f64(), std[i].f64());
            let away = (shift[i] - mean[i]).f64() + delta;
            let ratio = (var / (std * std) + f64::from(self.eps)).sqrt();
            loss += (away / std).powi(2) + (ratio - 1.0).powi(2);
            let spread = if ratio > 0.0 { (ratio - 1.0) / ratio } else { 0.0 };
            let scale = per_element / (std * std);
            slope[i] = R::of(scale * spread);
            offset[i] = R::of(scale * (away - spread * delta));
        }
        io.y(0)[0] = R::of(loss / counted);
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(du) = io.dx(0) else { return };
        let (u, c, dloss) = (io.x(0), io.shape(0).c(), io.dy0()[0]);
        let (shift, rest) = io.saved::<R>(0).split_at(c);
        let (slope, offset) = rest.split_at(c);
        let write = du.write;
        for_rows(Rows::new(du.data, u.len() / c), c, &|first, part: Rows<R>| {
            vectorised_by_width(
                c,
                #[inline(always)]
                |c| {
                    let (write, dloss) = (write, dloss);
                    for (du, u) in part.data.chunks_exact_mut(c).zip(u[first * c..].chunks_exact(c)) {
                        let (shift, slope, offset) = (&shift[..c], &slope[..c], &offset[..c]);
                        for i in 0..c {
                            store_or_add(write, &mut du[i], dloss * slope[i].fma(u[i] - shift[i], offset[i]));
                        }
                    }
                },
            );
        });
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (u, shape, stats) = (l.x(0), l.shape(0), l.channel_stats());
        let (c, blocks) = (shape.c(), fold_blocks(shape.c()));
        let tiles = Tiles::sums(l.target(), shape, u.elem);
        let coefficients = if l.saves() { l.saved(0) } else { l.scratch(1) };
        let (parts, count) = stats.map_or((l.scratch(0), tiles.chunks()), |s| (s.parts, s.rows));
        // The kernels call it `StatisticsMap`. Its first cell tells the members of a group apart.
        let map = KernelArg::member([
            l.y(0).into(),
            coefficients.into(),
            parts.into(),
            l.x(1).into(),
            l.x(2).into(),
            pixels(shape),
            (c as i64).into(),
            (count as i64).into(),
        ]);
        if stats.is_some() {
            l.launch("statistics_loss_fwd_merge", blocks, TILE_FOLD_THREADS, 0, [map.clone()])?;
        } else {
            let [pixels, chunk, c, lanes, slabs, chunks] = tiles.cells();
            let pass = [parts.into(), coefficients.into(), u.into(), pixels, chunk, c, lanes, slabs, chunks];
            let kernel = instance("statistics_loss_fwd_sums", u.elem, tiles.pack);
            l.launch(kernel, tiles.blocks(), THREADS, 0, [KernelArg::member(pass)])?;
            l.launch("statistics_loss_fwd_coefficients", blocks, THREADS, 0, [map.clone()])?;
        }
        l.launch("statistics_loss_fwd", 1, THREADS, 0, [map, self.eps.into(), MIN_STD.into()])
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((du, write)) = l.dx(0).filter(|_| !l.is_grad_added()) else { return Ok(()) };
        let (u, tiles) = (l.x(0), Tiles::pass(l.target(), l.shape(0), l.x(0).elem));
        let name = instance("statistics_loss_bwd", u.elem, tiles.pack);
        let first = l.first_term().or((write == Write::Add).then_some(du));
        let args = [du.into(), first.into(), u.into(), l.saved(0).into(), l.dy0().into(), tiles.into()];
        l.launch(name, tiles.grid(), tiles.block(), 0, args)
    }

    /// Forward: u must be stored in addition to its activation, and its statistics can be summed while it is
    /// written. Backward: u is read where its gradient is written. That gradient needs a buffer of its own if
    /// the first term is also the gradient of a skip connection.
    fn minimal_bytes(&self, o: &Operands) -> u64 {
        let u = o.inputs[0].bytes as u64;
        if o.first_term.is_some() { 2 * u } else { u }
    }
    fn fusion(&self, _: &[Shape], _: Shape, _: &Target) -> Fusion {
        Fusion {
            adds_first_term: true,
            has_linear_grad: true,
            reads_channel_stats: true,
            scratch_without_stats: Some(0),
            gathers_forward: true,
            ..Fusion::default()
        }
    }
    fn device_extents(&self, args: &[OperandInfo], target: &Target, signature: &mut Signature) {
        signature.scratch_forward[0] = Extent::Reals(Tiles::parts_len(target, args[0].shape));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    const EPS: f64 = 0.00390625;

    /// Mean and biased variance of channel `ch`.
    fn mean_and_var(x: &[f64], c: usize, ch: usize) -> (f64, f64) {
        let v: Vec<f64> = x.iter().skip(ch).step_by(c).copied().collect();
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        (mean, v.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / v.len() as f64)
    }

    fn plain(eps: f64, t: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let c = t[1].len();
        let mut terms = Vec::new();
        for ch in (0..c).filter(|ch| t[2][*ch] >= 1e-3) {
            let ((mean, var), std) = (mean_and_var(&t[0], c, ch), t[2][ch]);
            terms.push(((mean - t[1][ch]) / std).powi(2) + ((var / std.powi(2) + eps).sqrt() - 1.0).powi(2));
        }
        vec![vec![terms.iter().sum::<f64>() / terms.len().max(1) as f64]]
    }

    fn case(u: Shape) -> Case {
        let v = Shape::vector(u.c());
        let case = Case::new(StatisticsLoss { eps: EPS as f32 }, &[u, v, v]).reference(|t| plain(EPS, t));
        case.map(2, |v| v.abs() + 0.25).frozen(1).frozen(2)
    }

    #[test]
    fn passes_the_op_checks() {
        for u in [
            Shape::vector(1),
            Shape::new(3, 5, 7, 11),
            Shape::new(1, 8, 9, 16),
            Shape::new(5, 13, 17, 33),
            Shape::rows(67, 64),
            // 24 packs of channels do not divide the 256 threads of a block.
            Shape::new(2, 9, 8, 96),
            Shape::new(2, 9, 8, 192),
        ] {
            check(case(u));
            check(case(u).map(0, |v| v + 100.0).map(1, |v| v + 100.0));
            // About half of the targets are below `MIN_STD`; with one channel, it may be all of them.
            check(case(u).map(2, |v| if v > 0.9 { v } else { 1e-4 }));
        }
    }

    #[test]
    fn equals_matching_the_stored_statistics_before_folding() {
        let (c, pixels, eps_bn) = (3, 5 * 4 * 4, 1e-5);
        let draws = crate::device::philox::Draws::new(1, 2, 3);
        let normal = |i: usize, k: u32| draws.normals(i as u32, k)[0];
        let before: Vec<f64> = (0..pixels * c).map(|i| normal(i, 0) * 1.5 + 0.3).collect();
        let [gamma, beta, mean] = [1, 2, 3].map(|k| (0..c).map(|i| normal(i, k)).collect::<Vec<_>>());
        let var: Vec<f64> = (0..c).map(|i| normal(i, 4).abs() + 0.5).collect();
        let scale = |i: usize| (var[i] + eps_bn).sqrt();
        let after: Vec<f64> = before
            .iter()
            .enumerate()
            .map(|(i, v)| (i % c, v))
            .map(|(i, v)| gamma[i] * (v - mean[i]) / scale(i) + beta[i])
            .collect();
        let matching = (0..c).map(|i| {
            let (m, v) = mean_and_var(&before, c, i);
            ((m - mean[i]) / scale(i)).powi(2) + (v.sqrt() / scale(i) - 1.0).powi(2)
        });
        let want = matching.sum::<f64>() / c as f64;
        assert!(gamma.iter().any(|g| *g < 0.0), "a negative gamma is part of the claim");
        let v = Shape::vector(c);
        let magnitude = gamma.iter().map(|g| g.abs()).collect();
        let case = Case::new(StatisticsLoss { eps: 0.0 }, &[Shape::new(5, 4, 4, c), v, v]);
        let case = case.values(0, after).values(1, beta).values(2, magnitude).frozen(1).frozen(2);
        check(case.reference(move |_| vec![vec![want]]));
    }

    #[test]
    fn refuses_operands_that_do_not_fit() {
        let arg = |c, needs_grad| OperandInfo { shape: Shape::vector(c), needs_grad };
        let e = |args: &[OperandInfo]| StatisticsLoss { eps: 0.0 }.signature(args).unwrap_err().to_string();
        assert_eq!(
            e(&[arg(3, true), arg(3, false), arg(4, false)]),
            "statistics_loss: target_std: expected [1, 1, 1, 3], found [1, 1, 1, 4]"
        );
        assert_eq!(
            e(&[arg(3, true), arg(3, true), arg(3, false)]),
            "statistics_loss: target_mean: needs a gradient, but the op passes none to it; detach it first"
        );
        assert!(e(&[]).contains("expected 3 operands (u, target_mean, target_std)"));
    }
}
