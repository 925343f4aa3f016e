//! Random augmentation of a batch of images: shift, flip, and a mix with another image.

use crate::device::cpu::par::{Rows, for_parts};
use crate::device::gpu;
use crate::device::gpu::target::Target;
use crate::device::philox::{Draws, below, unit};
use crate::error::Result;
use crate::ops::launch::channel_tiles::per_image;
use crate::ops::launch::launches::{DeviceTensor, Launches, THREADS};
use crate::ops::operands::{Io, Write};
use crate::ops::operator::{Extent, OperandInfo, Operator, Signature, expect_operands, expect_setting};
use crate::tensor::{Real, Shape};
use std::ops::Range;

/// `y[i] = mix(s_i, s_j)`, where j is another sample of the batch.
///
/// `s_i` is `x[i]`, shifted by up to `max_shift` pixels in each direction (`fill` moves in), then mirrored left
/// to right with probability `flip`. With probability `mix_max`, `mix` is the elementwise maximum of the two;
/// with probability `cutmix`, it is s_i with a random rectangle of s_j pasted in, of up to half the height
/// and width; otherwise it is s_i.
///
/// Shapes: x, y `[n, h, w, c]`.
/// Source: ours (shifts for the generator's images, the maximum of two images for the student's).
/// Backward: each dy goes to the pixel whose value the output took (for a maximum, the larger one; s_i at a
/// tie). Reads x only if `mix_max > 0`. Each sample of dx sums its own dy first, then those of the samples it
/// was mixed into, in order.
/// Errors: a shift of the image's size or more; probabilities outside [0, 1]; mixing in a batch of one
/// sample; `fill` that is not finite.
/// Cost: no multiply-adds; reads x once or twice and writes y.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Augment {
    /// The largest shift, in pixels.
    pub max_shift: usize,
    /// The value of pixels that shift in. Images have values in [-1, 1], so black is -1.
    pub fill: f32,
    /// The probability of a mirrored sample.
    pub flip: f32,
    /// The probability of a maximum with another sample.
    pub mix_max: f32,
    /// The probability of a rectangle pasted from another sample.
    pub cutmix: f32,
    /// The random stream.
    pub stream: u32,
}

/// How one sample is shifted and mirrored.
struct Place {
    down: isize,
    right: isize,
    mirrored: bool,
}

/// How a sample is mixed with another.
enum Mix {
    Alone,
    Maximum { with: usize },
    Paste { from: usize, rows: Range<usize>, cols: Range<usize> },
}

impl Mix {
    fn partner(&self) -> Option<usize> {
        match self {
            Mix::Alone => None,
            Mix::Maximum { with: j } | Mix::Paste { from: j, .. } => Some(*j),
        }
    }
}

impl Place {
    /// The pixel of an `h x w` image that appears at `(p, q)`; `None` where `fill` appears instead.
    #[inline(always)]
    fn source(&self, p: usize, q: usize, h: usize, w: usize) -> Option<usize> {
        let q = if self.mirrored { w - 1 - q } else { q };
        let row = p.checked_add_signed(-self.down).filter(|r| *r < h)?;
        let col = q.checked_add_signed(-self.right).filter(|c| *c < w)?;
        Some(row * w + col)
    }

    /// Draws the columns `cols` of row `p` of an image `[h, w, c]` that lies so into a row `to`; `fill` where it has no
    /// pixel. With `maximum`, the greater of that and what is there stays.
    fn draw<R: Real>(
        &self,
        (image, [h, w, c]): (&[R], [usize; 3]),
        (p, cols): (usize, Range<usize>),
        to: &mut [R],
        fill: R,
        maximum: bool,
    ) {
        let greater = |to: R, v: R| if maximum { to.max(v) } else { v };
        let right = if self.mirrored { -self.right } else { self.right };
        let (first, end) = (right.max(0), w as isize + right.min(0));
        let within = |q: isize| (q as usize).clamp(cols.start, cols.end);
        let row = p.checked_add_signed(-self.down).filter(|r| *r < h);
        let inside = row.map_or(cols.end..cols.end, |_| within(first)..within(end));
        for outside in [cols.start..inside.start, inside.end..cols.end] {
            to[outside.start * c..outside.end * c].iter_mut().for_each(|to| *to = greater(*to, fill));
        }
        let Some(row) = row.map(|r| &image[r * w * c..][..w * c]).filter(|_| !inside.is_empty()) else {
            return;
        };
        let to = &mut to[inside.start * c..inside.end * c];
        if self.mirrored {
            let from = row[..(w as isize - inside.start as isize - self.right) as usize * c].rchunks_exact(c);
            for (to, from) in to.chunks_exact_mut(c).zip(from) {
                to.iter_mut().zip(from).for_each(|(to, v)| *to = greater(*to, *v));
            }
        } else {
            let from = &row[(inside.start as isize - self.right) as usize * c..];
            to.iter_mut().zip(from).for_each(|(to, v)| *to = greater(*to, *v));
        }
    }
}

/// The random choices of one step.
struct Choices<'a> {
    op: &'a Augment,
    draws: Draws,
    shape: Shape,
}

impl<'a> Choices<'a> {
    fn new<R: Real>(op: &'a Augment, io: &Io<R>) -> Self {
        Choices { op, draws: Draws::new(io.step.seed, op.stream, io.step.step), shape: io.shape(0) }
    }

    fn place(&self, i: usize) -> Place {
        let [down, right, mirror, _] = self.draws.words(i as u32, 0);
        let shift = |word| below(word, 2 * self.op.max_shift + 1) as isize - self.op.max_shift as isize;
        Place { down: shift(down), right: shift(right), mirrored: unit(mirror) < f64::from(self.op.flip) }
    }

    fn mix(&self, i: usize) -> Mix {
        let [n, h, w, _] = self.shape.0;
        let (maximum, paste) = (f64::from(self.op.mix_max), f64::from(self.op.cutmix));
        let u = unit(self.draws.words(i as u32, 0)[3]);
        if u >= maximum + paste {
            return Mix::Alone;
        }
        let [other, ..] = self.draws.words(i as u32, 1);
        let j = (i + 1 + below(other, n - 1)) % n;
        if u < maximum {
            return Mix::Maximum { with: j };
        }
        let [height, width, top, left] = self.draws.words(i as u32, 2);
        let side = |length: usize, size: u32, start: u32| {
            let size = 1 + below(size, length.div_ceil(2));
            let start = below(start, length - size + 1);
            start..start + size
        };
        Mix::Paste { from: j, rows: side(h, height, top), cols: side(w, width, left) }
    }
}

impl Operator for Augment {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("augment", args, &["x"])?;
        let x = args[0].shape;
        let Augment { max_shift, fill, flip, mix_max, cutmix, .. } = *self;
        expect_setting("augment", max_shift < x.h().min(x.w()), || {
            format!("a shift by {max_shift} leaves nothing of {x}")
        })?;
        let share = |p: f32| (0.0..=1.0).contains(&p);
        let shares = share(flip) && share(mix_max) && share(cutmix) && share(mix_max + cutmix);
        expect_setting("augment", shares, || {
            format!("flip, mix_max, cutmix: expected probabilities, found {flip}, {mix_max} and {cutmix}")
        })?;
        expect_setting("augment", fill.is_finite(), || format!("fill: {fill} is not finite"))?;
        expect_setting("augment", x.n() > 1 || mix_max + cutmix == 0.0, || {
            format!("mix: one sample has no other to be mixed with, found {x}")
        })?;
        Ok(Signature {
            outputs: vec![x],
            keeps_inputs: if mix_max > 0.0 { vec![0] } else { vec![] },
            scratch_backward: vec![Extent::Bytes(size_of::<u32>() * x.n())],
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (x, choices) = (io.x(0), Choices::new(self, io));
        let [n, h, w, c] = io.shape(0).0;
        let fill = R::of(f64::from(self.fill));
        for_parts(Rows::new(io.y(0), n), 1, &|i, part: Rows<R>| {
            let (own, mix) = (choices.place(i), choices.mix(i));
            let image = |j: usize| (&x[j * h * w * c..][..h * w * c], [h, w, c]);
            let other = mix.partner().map(|j| (image(j), choices.place(j)));
            for (p, y) in part.data.chunks_exact_mut(w * c).enumerate() {
                own.draw(image(i), (p, 0..w), y, fill, false);
                match (&mix, &other) {
                    (Mix::Maximum { .. }, Some((image, place))) => {
                        place.draw(*image, (p, 0..w), y, fill, true)
                    }
                    (Mix::Paste { rows, cols, .. }, Some((image, place))) if rows.contains(&p) => {
                        place.draw(*image, (p, cols.clone()), y, fill, false);
                    }
                    _ => {}
                }
            }
        });
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(dx) = io.dx(0) else { return };
        let (dy, choices, partners) = (io.dy0(), Choices::new(self, io), io.scratch::<u32>(0));
        let [n, h, w, c] = io.shape(0).0;
        let x = (self.mix_max > 0.0).then(|| io.x(0));
        let fill = R::of(f64::from(self.fill));
        for (i, partner) in partners.iter_mut().enumerate() {
            *partner = choices.mix(i).partner().map_or(u32::MAX, |j| j as u32);
        }
        let partners = &*partners;
        let write = dx.write;
        for_parts(Rows::new(dx.data, n), 1, &|j, part: Rows<R>| {
            if write == Write::Set {
                part.data.fill(R::ZERO);
            }
            let place = choices.place(j);
            // Sample `j` contributes to output `j`, and to the outputs that it was mixed into.
            let mixed = (0..n).filter(|i| partners[*i] == j as u32);
            for i in std::iter::once(j).chain(mixed) {
                let mix = choices.mix(i);
                let rival = match &mix {
                    Mix::Maximum { with } => {
                        let other = if i == j { *with } else { i };
                        x.map(|x| (&x[other * h * w * c..][..h * w * c], choices.place(other)))
                    }
                    _ => None,
                };
                for (at, dy) in dy[i * h * w * c..][..h * w * c].chunks(c).enumerate() {
                    let (p, q) = (at / w, at % w);
                    let Some(from) = place.source(p, q, h, w) else { continue };
                    if let Mix::Paste { rows, cols, .. } = &mix
                        && (rows.contains(&p) && cols.contains(&q)) == (i == j)
                    {
                        continue;
                    }
                    let against = rival.as_ref().map(|(image, place)| (image, place.source(p, q, h, w)));
                    for (k, dy) in dy.iter().enumerate() {
                        if let (Some((image, theirs)), Some(x)) = (&against, x) {
                            let mine = x[j * h * w * c + from * c + k];
                            let theirs = theirs.map_or(fill, |at| image[at * c + k]);
                            // At a tie, the gradient goes to the output's own sample.
                            if mine < theirs || (i != j && mine == theirs) {
                                continue;
                            }
                        }
                        part.data[from * c + k] += *dy;
                    }
                }
            }
        });
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (x, y, shape, choices) = (l.x(0), l.y(0), l.shape(0), l.scratch(0));
        l.expect_same("y", x, y)?;
        self.launch_choices(l, choices)?;
        let (grid, block) = per_image("augment", shape.n(), shape.per_sample(), 1)?;
        let args = [y.into(), x.into(), choices.into(), self.dims(shape)];
        l.launch(format!("augment_fwd<{}>", x.elem), grid, block, 0, args)
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((dx, write)) = l.dx(0) else { return Ok(()) };
        let (dy, shape, choices) = (l.dy0(), l.shape(0), l.scratch(0));
        self.launch_choices(l, choices)?;
        let x = (self.mix_max > 0.0).then(|| l.x(0));
        let (grid, block) = per_image("augment", shape.n(), shape.per_sample(), 1)?;
        let args = [dx.into(), x.into(), dy.into(), choices.into(), self.dims(shape), write.into()];
        // One bit per sample.
        let shared_bytes = (size_of::<u32>() * shape.n().div_ceil(32)) as u32;
        l.launch(format!("augment_bwd<{}>", dx.elem), grid, block, shared_bytes, args)
    }

    fn device_extents(&self, args: &[OperandInfo], _: &Target, signature: &mut Signature) {
        let choices = Extent::Bytes(CHOICE_BYTES * args[0].shape.n());
        signature.scratch_forward = vec![choices];
        signature.scratch_backward = vec![choices];
    }
}

/// The size of `AugmentChoice` in kernels/random/augment.cu, which asserts it.
const CHOICE_BYTES: usize = 36;

/// The layout of `AugmentDims` in kernels/random/augment.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct AugmentDims {
    n: i32,
    h: i32,
    w: i32,
    c: i32,
    max_shift: i32,
    stream: u32,
    fill: f32,
    flip: f32,
    mix_max: f32,
    cutmix: f32,
}

const _: () = assert!(size_of::<AugmentDims>() == 40);

impl Augment {
    fn dims(&self, x: Shape) -> gpu::launch::KernelArg {
        let [n, h, w, c] = x.0.map(|v| v as i32);
        let Augment { fill, flip, mix_max, cutmix, stream, .. } = *self;
        let max_shift = self.max_shift as i32;
        let dims = AugmentDims { n, h, w, c, max_shift, stream, fill, flip, mix_max, cutmix };
        gpu::launch::KernelArg::structure("AugmentDims", &dims)
    }
    /// Launches the kernel that draws the choices of every sample. Backward draws them again, which is
    /// cheaper than keeping 36 bytes per sample.
    fn launch_choices(&self, l: &mut Launches, choices: DeviceTensor) -> Result<()> {
        let x = l.shape(0);
        let args = [choices.into(), l.step(), self.dims(x)];
        l.launch("augment_choices", x.n().div_ceil(THREADS as usize) as u32, THREADS, 0, args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    const SHIFT: Augment =
        Augment { max_shift: 2, fill: -1.0, flip: 0.0, mix_max: 0.0, cutmix: 0.0, stream: 6 };

    /// Two passes over whole images: move every sample, then mix the moved ones.
    fn plain(op: Augment, shape: Shape) -> impl Fn(&[Vec<f64>]) -> Vec<Vec<f64>> {
        move |x| {
            let [n, h, w, c] = shape.0;
            let draws = Draws::new(11, op.stream, 5);
            let span = 2 * op.max_shift + 1;
            let at = |i: usize, p: usize, q: usize, k: usize| ((i * h + p) * w + q) * c + k;
            let mut moved = vec![f64::from(op.fill); shape.elems()];
            for i in 0..n {
                let words = draws.words(i as u32, 0);
                let (down, right) = (below(words[0], span), below(words[1], span));
                for (p, q, k) in (0..h).flat_map(|p| (0..w).flat_map(move |q| (0..c).map(move |k| (p, q, k))))
                {
                    let (to_p, mut to_q) =
                        ((p + down).wrapping_sub(op.max_shift), (q + right).wrapping_sub(op.max_shift));
                    if to_p < h && to_q < w {
                        if unit(words[2]) < f64::from(op.flip) {
                            to_q = w - 1 - to_q;
                        }
                        moved[at(i, to_p, to_q, k)] = x[0][at(i, p, q, k)];
                    }
                }
            }
            let mut y = moved.clone();
            for i in 0..n {
                let u = unit(draws.words(i as u32, 0)[3]);
                let j = (i + 1 + if n > 1 { below(draws.words(i as u32, 1)[0], n - 1) } else { 0 }) % n;
                if u < f64::from(op.mix_max) {
                    for e in 0..h * w * c {
                        y[i * h * w * c + e] = moved[i * h * w * c + e].max(moved[j * h * w * c + e]);
                    }
                } else if u < f64::from(op.mix_max) + f64::from(op.cutmix) {
                    let [height, width, top, left] = draws.words(i as u32, 2);
                    let (rows, cols) = (1 + below(height, h.div_ceil(2)), 1 + below(width, w.div_ceil(2)));
                    let (top, left) = (below(top, h - rows + 1), below(left, w - cols + 1));
                    for (p, q, k) in (top..top + rows)
                        .flat_map(|p| (left..left + cols).flat_map(move |q| (0..c).map(move |k| (p, q, k))))
                    {
                        y[at(i, p, q, k)] = moved[at(j, p, q, k)];
                    }
                }
            }
            vec![y]
        }
    }

    #[test]
    fn passes_the_op_checks() {
        for shape in [
            Shape::new(2, 3, 3, 1),
            Shape::new(9, 5, 7, 3),
            Shape::new(16, 32, 31, 2),
            Shape::new(37, 3, 4, 2),
        ] {
            for op in [
                SHIFT,
                Augment { max_shift: 0, flip: 1.0, ..SHIFT },
                Augment { flip: 0.5, ..SHIFT },
                Augment { max_shift: 0, mix_max: 1.0, ..SHIFT },
                Augment { max_shift: 0, cutmix: 1.0, ..SHIFT },
                Augment { max_shift: 1, fill: 0.25, flip: 0.5, mix_max: 0.4, cutmix: 0.4, ..SHIFT },
            ] {
                check(Case::new(op, &[shape]).reference(plain(op, shape)));
            }
        }
        let one = Shape::new(1, 5, 5, 3);
        check(Case::new(SHIFT, &[one]).reference(plain(SHIFT, one)));
    }

    #[test]
    fn without_shift_flip_and_mix_the_images_stay_unchanged() {
        let op = Augment { max_shift: 0, ..SHIFT };
        check(Case::new(op, &[Shape::new(3, 4, 5, 2)]).reference(|x| x.to_vec()));
    }

    /// Of 20 000 samples, a quarter is mixed by maximum, a quarter by pasting, and half are mirrored; all
    /// shifts are equally likely. Five standard errors are allowed.
    #[test]
    fn choices_have_the_set_probabilities() {
        let op = Augment { flip: 0.5, mix_max: 0.25, cutmix: 0.25, ..SHIFT };
        let n = 20_000;
        let choices = Choices { op: &op, draws: Draws::new(1, 6, 0), shape: Shape::new(n, 8, 8, 3) };
        let share = |what: &str, p: f64, holds: &dyn Fn(usize) -> bool| {
            let found = (0..n).filter(|i| holds(*i)).count() as f64 / n as f64;
            assert!(
                (found - p).abs() < 5.0 * (p * (1.0 - p) / n as f64).sqrt(),
                "{what}: {found}, expected {p}"
            );
        };
        share("maximum", 0.25, &|i| matches!(choices.mix(i), Mix::Maximum { .. }));
        share("paste", 0.25, &|i| matches!(choices.mix(i), Mix::Paste { .. }));
        share("mirrored", 0.5, &|i| choices.place(i).mirrored);
        for shift in -2..=2 {
            share("down", 0.2, &|i| choices.place(i).down == shift);
            share("right", 0.2, &|i| choices.place(i).right == shift);
        }
        assert!((0..n).all(|i| choices.mix(i).partner() != Some(i)), "no sample is mixed with itself");
    }

    #[test]
    fn a_tie_gives_its_gradient_to_the_sample_itself_and_once() {
        let op = Augment { max_shift: 0, mix_max: 1.0, ..SHIFT };
        let shape = Shape::new(4, 3, 3, 2);
        let dy: Vec<f64> = (0..shape.elems()).map(|i| i as f64 + 1.0).collect();
        let case = Case::new(op, &[shape]).map(0, |_| 0.5);
        assert_eq!(case.gradients(std::slice::from_ref(&dy)), [Some(dy)]);
    }

    #[test]
    fn keeps_the_images_for_the_maximum_only() {
        let kept = |op: Augment| {
            op.signature(&[OperandInfo { shape: Shape::new(4, 5, 5, 3), needs_grad: true }])
                .unwrap()
                .keeps_inputs
        };
        assert!(kept(Augment { cutmix: 0.5, ..SHIFT }).is_empty());
        assert_eq!(kept(Augment { mix_max: 0.5, ..SHIFT }), [0]);
    }

    #[test]
    fn refuses_settings_outside_their_range() {
        let e = |op: Augment, n: usize| {
            op.signature(&[OperandInfo { shape: Shape::new(n, 5, 4, 3), needs_grad: true }])
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            e(Augment { max_shift: 4, ..SHIFT }, 2),
            "augment: a shift by 4 leaves nothing of [2, 5, 4, 3]"
        );
        assert!(e(Augment { mix_max: 0.6, cutmix: 0.6, ..SHIFT }, 2).contains("expected probabilities"));
        assert!(e(Augment { flip: f32::NAN, ..SHIFT }, 2).contains("expected probabilities"));
        assert!(e(Augment { fill: f32::NAN, ..SHIFT }, 2).contains("fill"));
        assert!(e(Augment { mix_max: 0.3, ..SHIFT }, 1).contains("no other to be mixed with"));
    }
}
