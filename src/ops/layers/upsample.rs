//! Upsampling: doubles height and width.

use crate::device::cpu::par::{Rows, even_grain, for_parts};
use crate::device::cpu::vectorised_by_width;
use crate::error::Result;
use crate::ops::launch::channel_tiles::{pack, per_image};
use crate::ops::launch::launches::Launches;
use crate::ops::operands::{Io, store_or_add};
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_operands};
use crate::tensor::{Real, Shape};

/// How output pixels are computed from input pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each input pixel is repeated four times.
    Nearest,
    /// Linear interpolation between pixel centres in both directions; edge pixels extend outwards.
    Bilinear,
}

/// `y[n,p,q,c] = sum_{i,j} a(p,i) a(q,j) x[n,i,j,c]`: with `Nearest`, `a(p,i) = 1` for `i = p/2`; with
/// `Bilinear`, output `p` lies at `(p + 1/2) / 2 - 1/2`, so that `2 i` takes 3/4 of `i` and 1/4 of `i - 1`,
/// and `2 i + 1` takes 3/4 of `i` and 1/4 of `i + 1`; an index outside the image is the edge's.
///
/// Shapes: x `[n, h, w, c]`, y `[n, 2h, 2w, c]`.
/// Source: ours (the generator's groups, docs/method.md 2); PyTorch's `interpolate` with
/// `align_corners = False`.
/// Backward: the transpose. Each dx gathers the 4 (nearest) or 16 (bilinear) outputs that read its pixel;
/// keeps nothing.
/// Errors: another number of operands than one.
/// Cost: 0 (nearest) or 4 (bilinear) multiply-adds per output in forward, 1 or 4 in backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upsample {
    /// How output pixels are computed.
    pub mode: Mode,
}

impl Operator for Upsample {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("upsample", args, &["x"])?;
        let [n, h, w, c] = args[0].shape.0;
        let y = Shape::new(n, 2 * h, 2 * w, c);
        Ok(Signature { outputs: vec![y], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (x, [n, h, w, c]) = (io.x(0), io.shape(0).0);
        // The unit of parallel work is a row of x, that is, two rows of y.
        for_parts(Rows::new(io.y(0), n * h), even_grain(n * h), &|first, part: Rows<R>| {
            for (i, y) in part.data.chunks_exact_mut(2 * w * c).enumerate() {
                let (image, p) = ((2 * first + i) / (2 * h) * h, (2 * first + i) % (2 * h));
                let row = |i: usize| &x[(image + i) * w * c..][..w * c];
                match self.mode {
                    Mode::Nearest => {
                        for (two, x) in y.chunks_exact_mut(2 * c).zip(row(p / 2).chunks_exact(c)) {
                            two[..c].copy_from_slice(x);
                            two[c..].copy_from_slice(x);
                        }
                    }
                    Mode::Bilinear => {
                        let (near, far) = (row(p / 2), row(neighbour(p, h)));
                        vectorised_by_width(
                            c,
                            #[inline(always)]
                            |c| {
                                for (q, y) in y.chunks_exact_mut(c).enumerate() {
                                    let (a, b) = (q / 2 * c, neighbour(q, w) * c);
                                    let (near_a, far_a) = (&near[a..][..c], &far[a..][..c]);
                                    let (near_b, far_b) = (&near[b..][..c], &far[b..][..c]);
                                    for i in 0..c {
                                        y[i] = mix(mix(near_a[i], far_a[i]), mix(near_b[i], far_b[i]));
                                    }
                                }
                            },
                        );
                    }
                }
            }
        });
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(dx) = io.dx(0) else { return };
        let (dy, [n, h, w, c], write) = (io.dy0(), io.shape(0).0, dx.write);
        let mode = self.mode;
        for_parts(Rows::new(dx.data, n * h), even_grain(n * h), &|first, part: Rows<R>| {
            vectorised_by_width(
                c,
                #[inline(always)]
                |c| {
                    let (mode, write) = (mode, write);
                    for (i, dx) in part.data.chunks_exact_mut(w * c).enumerate() {
                        let (image, row) = ((first + i) / h * 2 * h, (first + i) % h);
                        let line = |p: usize| &dy[(image + p) * 2 * w * c..][..2 * w * c];
                        let [a, b, d, e] = readers(row, h);
                        let lines = [line(a), line(b), line(d), line(e)];
                        for (column, dx) in dx.chunks_exact_mut(c).enumerate() {
                            let at = readers(column, w);
                            let mut sums = [[&lines[0][..c]; 4]; 4];
                            for (sums, line) in sums.iter_mut().zip(lines) {
                                for (sum, q) in sums.iter_mut().zip(at) {
                                    *sum = &line[q * c..][..c];
                                }
                            }
                            for i in 0..c {
                                let line = |s: &[&[R]; 4]| weigh(mode, [s[0][i], s[1][i], s[2][i], s[3][i]]);
                                let v = weigh(
                                    mode,
                                    [line(&sums[0]), line(&sums[1]), line(&sums[2]), line(&sums[3])],
                                );
                                store_or_add(write, &mut dx[i], v);
                            }
                        }
                    }
                },
            );
        });
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (x, y, [n, h, w, c]) = (l.x(0), l.y(0), l.shape(0).0);
        let pack = pack(x.elem, c);
        let (grid, block) = per_image("upsample", n, h * w * c / pack, pack)?;
        let args = [y.into(), x.into(), (h as i32).into(), (w as i32).into(), (c as i32).into()];
        l.launch(format!("{}<{}, {}, {pack}>", self.kernels().0, x.elem, y.elem), grid, block, 0, args)
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((dx, write)) = l.dx(0) else { return Ok(()) };
        let (dy, [n, h, w, c]) = (l.dy0(), l.shape(0).0);
        let pack = pack(dx.elem, c);
        let (grid, block) = per_image("upsample", n, h * w * c / pack, pack)?;
        let args =
            [dx.into(), dy.into(), (h as i32).into(), (w as i32).into(), (c as i32).into(), write.into()];
        l.launch(format!("{}<{}, {}, {pack}>", self.kernels().1, dx.elem, dy.elem), grid, block, 0, args)
    }
}

impl Upsample {
    /// The names of the kernels of forward and backward.
    fn kernels(&self) -> (&'static str, &'static str) {
        match self.mode {
            Mode::Nearest => ("upsample_nearest_fwd", "upsample_nearest_bwd"),
            Mode::Bilinear => ("upsample_bilinear_fwd", "upsample_bilinear_bwd"),
        }
    }
}

/// The farther of the two inputs that output `p` interpolates between; there are `len` inputs.
#[inline(always)]
fn neighbour(p: usize, len: usize) -> usize {
    if p.is_multiple_of(2) { (p / 2).saturating_sub(1) } else { (p / 2 + 1).min(len - 1) }
}

/// `3/4 near + 1/4 far`.
#[inline(always)]
fn mix<R: Real>(near: R, far: R) -> R {
    R::of(0.75).fma(near, R::of(0.25) * far)
}

/// The outputs that read input `i` of `len` bilinearly, of which the inner two are those of the nearest neighbour. At
/// an edge, an output appears twice.
#[inline(always)]
fn readers(i: usize, len: usize) -> [usize; 4] {
    [(2 * i).saturating_sub(1), 2 * i, 2 * i + 1, (2 * i + 2).min(2 * len - 1)]
}

/// The gradient of an input from those of its [`readers`], in one dimension.
#[inline(always)]
fn weigh<R: Real>(mode: Mode, dy: [R; 4]) -> R {
    let inner = dy[1] + dy[2];
    match mode {
        Mode::Nearest => inner,
        Mode::Bilinear => mix(inner, dy[0] + dy[3]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    /// Samples the continuous interpolant at each output's centre.
    fn plain(mode: Mode, x: Shape) -> impl Fn(&[Vec<f64>]) -> Vec<Vec<f64>> {
        move |t| {
            let [n, h, w, c] = x.0;
            let mut y = Vec::new();
            for i in 0..n * 2 * h * 2 * w * c {
                let (ch, q, p, n) = (i % c, i / c % (2 * w), i / c / (2 * w) % (2 * h), i / c / (4 * w * h));
                let at = |a: f64, b: f64| {
                    let clamp = |v: f64, len: usize| v.max(0.0).min(len as f64 - 1.0) as usize;
                    t[0][((n * h + clamp(a, h)) * w + clamp(b, w)) * c + ch]
                };
                let (a, b) = ((p as f64 + 0.5) / 2.0 - 0.5, (q as f64 + 0.5) / 2.0 - 0.5);
                y.push(match mode {
                    Mode::Nearest => at(a.round(), b.round()),
                    Mode::Bilinear => {
                        let ((a0, b0), (da, db)) = ((a.floor(), b.floor()), (a - a.floor(), b - b.floor()));
                        (1.0 - da) * ((1.0 - db) * at(a0, b0) + db * at(a0, b0 + 1.0))
                            + da * ((1.0 - db) * at(a0 + 1.0, b0) + db * at(a0 + 1.0, b0 + 1.0))
                    }
                });
            }
            vec![y]
        }
    }

    #[test]
    fn passes_the_op_checks() {
        for mode in [Mode::Nearest, Mode::Bilinear] {
            for x in [
                Shape::new(1, 1, 1, 1),
                Shape::new(3, 5, 7, 11),
                Shape::new(2, 2, 1, 16),
                Shape::new(1, 1, 13, 3),
                Shape::new(2, 8, 8, 33),
            ] {
                check(Case::new(Upsample { mode }, &[x]).reference(plain(mode, x)));
            }
        }
    }

    #[test]
    fn refuses_no_operand() {
        let e = Upsample { mode: Mode::Nearest }.signature(&[]).unwrap_err().to_string();
        assert_eq!(e, "upsample: expected 1 operands (x), found 0");
    }
}
