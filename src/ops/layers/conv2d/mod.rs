//! 2-D convolution with everything that follows it in a network fused behind it.

use crate::device::cpu::channels::{add, with_width};
use crate::device::cpu::gemm::{self, Gather, Sink};
use crate::device::cpu::par::{Indices, Rows, Split, even_grain, for_parts};
use crate::device::cpu::{scratch, vectorised};
use crate::device::gpu::target::Target;
use crate::error::{Error, Result};
use crate::ops::fusion::{ActMask, Fusion};
use crate::ops::launch::launches::Launches;
use crate::ops::layers::activation::Act;
use crate::ops::operands::{Grad, Io, Operands, Write, store_or_add};
use crate::ops::operator::{Extent, OperandInfo, Operator, Signature, expect_operands, expect_shape};
use crate::tensor::Elem;
use crate::tensor::{Real, Shape};
use std::ops::Range;

mod launch;
mod wgmma;
pub use launch::fold_moments;

/// `y[n,p,q,k] = act( b[k] + residual[n,p,q,k] + sum_{r,s,c} w[k,r,s,c] * x[n, p*stride - pad + r, q*stride - pad + s, c] )`
///
/// Shapes: x `[n, h, w, c]`, w `[k, r, s, c]`, then, if declared, bias `[1, 1, 1, k]` and residual `[n, p, q, k]`;
/// y `[n, p, q, k]` with `p = (h + 2 pad - r) / stride + 1`. A linear layer is `h = w = r = s = 1`.
/// Source: He et al. 2016 (the teachers' blocks); frozen batch norm arrives folded into w and b (`models::fold`).
/// Backward: dx if x wants it (reads w), dw and db if they do (dw reads x), dresidual. The activation's derivative
/// comes from one saved bit per element; a frozen convolution therefore keeps neither x nor y.
/// Errors: channel counts that differ, a filter larger than the padded image, an activation that is not piecewise linear.
/// Cost: `n p q k r s c` multiply-adds forward, the same again for each of dx and dw; forward and dx leave out those with
/// padding, which the plan's count includes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conv2d {
    pub stride: usize,
    pub pad: usize,
    pub bias: bool,
    pub residual: bool,
    pub act: Act,
}

impl Conv2d {
    pub const fn new(stride: usize, pad: usize) -> Self {
        Conv2d { stride, pad, bias: false, residual: false, act: Act::None }
    }
    /// A fully connected layer: rows in, rows out.
    pub const fn linear() -> Self {
        Conv2d { bias: true, ..Conv2d::new(1, 0) }
    }
}

/// Partial sums of a weight gradient: a fixed number, so that the order of additions does not depend on the threads.
const WGRAD_PARTS: usize = 8;

/// Rows of output that one packing of scratch should serve: four tiles.
const ROWS_PER_PASS: usize = 48;

/// Elements of input that a pass over all panels should find in the second-level cache: half a megabyte of f32.
const PASS_ELEMS: usize = 1 << 17;

/// Pixels of a residual's gradient that go through the scratch together.
const RESIDUAL_PIXELS: usize = 512;

/// Images a worker takes at once: at 2x2 pixels each image gives every tile one row, and 16 are a tile and a rest of 4.
fn image_grain(n: usize) -> usize {
    even_grain(n).max((n / rayon::current_num_threads()).min(16))
}

/// Runs of images small enough for the cache.
fn passes(images: usize, image_elems: usize) -> impl Iterator<Item = Range<usize>> {
    let per_pass = (PASS_ELEMS / image_elems).max(1);
    (0..images).step_by(per_pass).map(move |at| at..(at + per_pass).min(images))
}

/// All sizes of one convolution.
#[derive(Clone, Copy)]
struct Dims {
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    k: usize,
    r: usize,
    s: usize,
    p: usize,
    q: usize,
    stride: usize,
    pad: usize,
}

impl Dims {
    fn of(op: &Conv2d, x: Shape, w: Shape, y: Shape) -> Dims {
        let ([n, h, iw, c], [k, r, s, _], [_, p, q, _]) = (x.0, w.0, y.0);
        Dims { n, h, w: iw, c, k, r, s, p, q, stride: op.stride, pad: op.pad }
    }
    fn depth(&self) -> usize {
        self.r * self.s * self.c
    }
    /// Height and width of the zero-padded image.
    fn padded(&self) -> (usize, usize) {
        (self.h + 2 * self.pad, self.w + 2 * self.pad)
    }
    /// Bytes of activation mask per pixel.
    fn mask_bytes(&self) -> usize {
        self.k.div_ceil(8)
    }
}

impl Operator for Conv2d {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        let mut expected = vec!["x", "w"];
        expected.extend(self.bias.then_some("bias"));
        expected.extend(self.residual.then_some("residual"));
        expect_operands("conv2d", args, &expected)?;
        let (x, w) = (args[0].shape, args[1].shape);
        let [k, r, s, c] = w.0;
        if x.c() != c {
            return Err(Error::shape(
                "conv2d",
                format!("x has {} channels, the filter {w} expects {c}", x.c()),
            ));
        }
        if x.h() + 2 * self.pad < r || x.w() + 2 * self.pad < s || self.stride == 0 {
            return Err(Error::shape(
                "conv2d",
                format!("filter {w} does not fit x {x} with padding {} and stride {}", self.pad, self.stride),
            ));
        }
        let out = |len: usize, f: usize| (len + 2 * self.pad - f) / self.stride + 1;
        let y = Shape::new(x.n(), out(x.h(), r), out(x.w(), s), k);
        if self.bias {
            expect_shape("conv2d", "bias", Shape::vector(k), args[2].shape)?;
        }
        if self.residual {
            expect_shape("conv2d", "residual", y, args[expected.len() - 1].shape)?;
        }
        if self.act.step_slope().is_none() {
            return Err(Error::shape(
                "conv2d",
                format!("activation {:?} cannot be fused; record it as an op of its own", self.act),
            ));
        }
        let d = Dims::of(self, x, w, y);
        let needs_grad = |i: usize| args.get(i).is_some_and(|a| a.needs_grad);
        let any = args.iter().any(|a| a.needs_grad);
        let macs = (y.elems() * d.depth()) as u64;
        let mut keeps_inputs = Vec::new();
        keeps_inputs.extend(needs_grad(1).then_some(0));
        keeps_inputs.extend(needs_grad(0).then_some(1));
        let phases = Phase::all(&d);
        let dgrad_panels: usize = phases.iter().map(|f| gemm::packed_len(f.depth(&d), d.c)).sum();
        Ok(Signature {
            outputs: vec![y],
            keeps_inputs,
            saved: if any && self.act != Act::None {
                vec![Extent::Bytes(d.n * d.p * d.q * d.mask_bytes())]
            } else {
                vec![]
            },
            scratch_forward: vec![Extent::Reals(gemm::packed_len(d.depth(), k))],
            scratch_backward: vec![
                Extent::Reals(if needs_grad(0) { dgrad_panels } else { 0 }),
                Extent::Reals(if needs_grad(1) { WGRAD_PARTS * gemm::packed_len(d.depth(), k) } else { 0 }),
            ],
            macs_forward: macs,
            macs_backward: macs * (u64::from(needs_grad(0)) + u64::from(needs_grad(1))),
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let d = Dims::of(self, io.shape(0), io.shape(1), io.out_shape(0));
        let (x, panels) = (io.x(0), io.scratch::<R>(0));
        let bias = self.bias.then(|| io.x(2));
        let residual = self.residual.then(|| io.x(io.inputs() - 1));
        pack_forward(&d, io.x(1), panels);
        let panels = &*panels;
        let mut none = [];
        let mask: &mut [u8] = if self.act != Act::None && io.saves() { io.save(0) } else { &mut none };
        let saves = !mask.is_empty();
        let parts = (Rows::new(io.y(0), d.n), Rows::new(mask, d.n));
        let axis = |outputs, taps, len| Axis { outputs, base: 0, step: d.stride, before: d.pad, taps, len };
        let (rows, cols) = (axis(d.p, d.r, d.h), axis(d.q, d.s, d.w));
        let image = d.h * d.w * d.c;
        for_parts(parts, image_grain(d.n), &|first, (y, mask)| {
            let images = y.items();
            let mut epilogue = Epilogue {
                y: y.data,
                mask: if saves { mask.data } else { &mut [] },
                bias,
                residual: residual.map(|r| &r[first * d.p * d.q * d.k..]),
                act: self.act,
                d: &d,
            };
            for pass in passes(images, image) {
                let x = &x[(first + pass.start) * image..][..pass.len() * image];
                windows(x, pass.len(), rows, cols, d.c, panels, d.k, |i, p, q, column, values| {
                    epilogue.row(((pass.start + i) * d.p + p) * d.q + q, column, values);
                });
            }
        });
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let d = Dims::of(self, io.shape(0), io.shape(1), io.out_shape(0));
        let dy = io.dy0();
        let masked = Masked {
            dy,
            mask: if self.act == Act::None { None } else { Some(io.saved(0)) },
            slope: R::of(self.act.step_slope().unwrap_or(1.0)),
            k: d.k,
        };
        if let Some(dx) = io.dx(0) {
            input_gradient(&d, &masked, io.x(1), io.scratch(0), dx);
        }
        if let Some(dw) = io.dx(1) {
            weight_gradient(&d, &masked, io.x(0), io.scratch(1), dw);
        }
        if self.bias
            && let Some(db) = io.dx(2)
        {
            bias_gradient(&d, &masked, db);
        }
        if self.residual
            && let Some(dr) = io.dx(io.inputs() - 1)
        {
            let write = dr.write;
            for_parts(Rows::new(dr.data, d.n * d.p * d.q), RESIDUAL_PIXELS, &|first, part: Rows<R>| {
                masked.with(first..first + part.data.len() / d.k, |dz| {
                    part.data.iter_mut().zip(dz).for_each(|(dr, dz)| store_or_add(write, dr, *dz));
                });
            });
        }
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        launch::forward(self, l)
    }
    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        launch::backward(self, l)
    }
    /// Forward: x, w, bias, residual, y and the mask. Backward: dz, w and dx, and x again where w learns. The mask is read
    /// once, wherever dz is made; the residual's gradient is dz itself, read once where it is added to another.
    fn minimal_bytes(&self, o: &Operands) -> u64 {
        let d = Dims::of(self, o.input_shapes[0], o.input_shapes[1], o.output_shapes[0]);
        let bytes = |i: usize| o.inputs[i].bytes as u64;
        // A bf16 map meets the filter's bf16 copy.
        let copied = o.input_elems.first() == Some(&Elem::Bf16) && o.input_elems[1] == Elem::F32;
        let filter = if copied { bytes(1) / 2 } else { bytes(1) };
        let mask = if self.act == Act::None { 0 } else { (d.n * d.p * d.q * d.mask_bytes()) as u64 };
        if !o.is_backward() {
            let rest: u64 = (2..o.inputs.len()).map(bytes).sum();
            let mask = if o.saved.is_empty() { 0 } else { mask };
            return bytes(0) + filter + rest + o.outputs[0].bytes as u64 + mask;
        }
        let needs_grad = |i: usize| o.input_grads[i].is_some();
        let dz = o.output_grads.iter().flatten().map(|s| s.bytes as u64).sum::<u64>() + mask;
        let dx = if needs_grad(0) { filter + o.gradient_bytes(0) } else { 0 };
        let dw = if needs_grad(1) { bytes(0) + o.gradient_bytes(1) } else { 0 };
        let db = if self.bias { o.gradient_bytes(2) } else { 0 };
        let last = o.input_grads.last().copied().flatten().filter(|_| self.residual);
        let dr = last.filter(|(_, write)| *write == Write::Add).map_or(0, |(slot, _)| slot.bytes as u64);
        dz + dx + dw + db + dr
    }
    fn device_extents(&self, args: &[OperandInfo], target: &Target, signature: &mut Signature) {
        launch::extents(self, args, target.map_dtype, signature);
    }
    fn fusion(&self, inputs: &[Shape], y: Shape, target: &Target) -> Fusion {
        let d = Dims::of(self, inputs[0], inputs[1], y);
        let is_map = d.p * d.q > 1;
        let is_linear = self.act == Act::None && !self.residual;
        let act_mask = ActMask { slope: launch::slope(self), scratch: Some(launch::DZ) };
        Fusion {
            act_mask: (self.act != Act::None).then_some(act_mask),
            masks_input_grad: true,
            grad_alias: self.residual.then_some(inputs.len() - 1),
            fuses_activation: is_linear && is_map,
            writes_channel_stats: if is_linear && is_map {
                launch::moment_rows(&d, target.map_dtype)
            } else {
                None
            },
            group_key: Some(format!("conv2d {} {} {} {}", self.stride, self.pad, inputs[0], inputs[1])),
            ..Fusion::default()
        }
    }
}

/// How windows lie along one dimension: tap `t` of output `j` reads `base + j * step + t - before`, if that is in `0..len`.
#[derive(Clone, Copy)]
struct Axis {
    outputs: usize,
    base: usize,
    step: usize,
    before: usize,
    taps: usize,
    len: usize,
}

/// Neighbouring outputs whose windows lose the same taps at the border.
#[derive(Clone)]
struct Reach {
    outputs: Range<usize>,
    taps: Range<usize>,
}

impl Axis {
    fn taps_inside(&self, output: usize) -> Range<usize> {
        let start = self.base + output * self.step;
        let first = self.before.saturating_sub(start).min(self.taps);
        first..(self.len + self.before).saturating_sub(start).clamp(first, self.taps)
    }
    fn reaches(self) -> impl Iterator<Item = Reach> + Clone {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (first, taps) = (at, self.taps_inside(at));
            while at < self.outputs && self.taps_inside(at) == taps {
                at += 1;
            }
            (first < at).then_some(Reach { outputs: first..at, taps })
        })
    }
    /// What the first tap inside reads, for an output of `reach`.
    fn source(&self, output: usize, reach: &Reach) -> usize {
        (self.base + output * self.step + reach.taps.start).saturating_sub(self.before)
    }
}

/// The product of every window of `images` images with packed panels `[r, s, c]` of `columns` columns;
/// `store(image, p, q, column, values)` takes the results. Windows that lose taps at the border are multiplied apart by
/// the taps that they have: no padded copy, and no multiply-add with a zero (at 2x2, five ninths of a 3x3 filter's).
#[allow(clippy::too_many_arguments)]
fn windows<R: Real>(
    x: &[R],
    images: usize,
    rows: Axis,
    cols: Axis,
    c: usize,
    panels: &[R],
    columns: usize,
    store: impl FnMut(usize, usize, usize, usize, &[R]),
) {
    /// Finds the pixel of a product's row.
    struct Pixels<F> {
        p: Range<usize>,
        q: Range<usize>,
        store: F,
    }
    impl<R, F: FnMut(usize, usize, usize, usize, &[R])> Sink<R> for Pixels<F> {
        #[inline(always)]
        fn row(&mut self, m: usize, column: usize, values: &[R]) {
            let (line, q) = (m / self.q.len(), m % self.q.len());
            let (image, p) = (line / self.p.len(), line % self.p.len());
            (self.store)(image, self.p.start + p, self.q.start + q, column, values);
        }
    }
    let runs: [usize; MAX_TAPS] = std::array::from_fn(|r| r * cols.len * c);
    let mut sink = Pixels { p: 0..0, q: 0..0, store };
    for down in rows.reaches() {
        for right in cols.reaches() {
            let (p, q) = (down.outputs.clone(), right.outputs.clone());
            let a = Gather {
                x,
                runs: &runs[..if right.taps.is_empty() { 0 } else { down.taps.len() }],
                len: right.taps.len() * c,
                step: 1,
                b_first: (down.taps.start * cols.taps + right.taps.start) * c,
                b_step: cols.taps * c,
            };
            let row = |m: usize| {
                let (line, column) = (m / q.len(), q.start + m % q.len());
                let (image, line) = (line / p.len(), p.start + line % p.len());
                let line = image * rows.len + rows.source(line, &down);
                (line * cols.len + cols.source(column, &right)) * c
            };
            (sink.p, sink.q) = (p.clone(), q.clone());
            let depth = rows.taps * cols.taps * c;
            for panel in 0..columns.div_ceil(gemm::lanes(columns)) {
                gemm::panel(a, images * p.len() * q.len(), row, panels, depth, columns, panel, &mut sink);
            }
        }
    }
}

/// Most filter rows (and stride phases' rows) the run table holds: a 7x7 stem fits, and nobody asks for more.
const MAX_TAPS: usize = 16;

/// Writes finished rows: bias, residual, activation, and the mask that backward reads.
struct Epilogue<'a, R> {
    y: &'a mut [R],
    mask: &'a mut [u8],
    bias: Option<&'a [R]>,
    residual: Option<&'a [R]>,
    act: Act,
    d: &'a Dims,
}

impl<R: Real> Epilogue<'_, R> {
    #[inline(always)]
    fn row(&mut self, m: usize, column: usize, values: &[R]) {
        let at = m * self.d.k + column;
        let slope = R::of(self.act.step_slope().unwrap_or(1.0));
        with_width(
            values.len(),
            #[inline(always)]
            |n| {
                let mut v = [R::ZERO; gemm::MAX_LANES];
                let v = &mut v[..n];
                v.copy_from_slice(&values[..n]);
                if let Some(bias) = self.bias {
                    add(v, &bias[column..][..n]);
                }
                if let Some(residual) = self.residual {
                    add(v, &residual[at..][..n]);
                }
                if !self.mask.is_empty() {
                    let mask = &mut self.mask[m * self.d.mask_bytes() + column / 8..][..n.div_ceil(8)];
                    for (byte, v) in mask.iter_mut().zip(v.chunks(8)) {
                        *byte = v.iter().enumerate().fold(0, |b, (i, v)| b | u8::from(*v > R::ZERO) << i);
                    }
                }
                if self.act != Act::None {
                    v.iter_mut().for_each(|v| *v = if *v > R::ZERO { *v } else { *v * slope });
                }
                self.y[at..][..n].copy_from_slice(v);
            },
        );
    }
}

/// The output gradient behind the activation: `dy * act'`, never stored on its own.
struct Masked<'a, R> {
    dy: &'a [R],
    mask: Option<&'a [u8]>,
    slope: R,
    k: usize,
}

impl<R: Real> Masked<'_, R> {
    /// Copies the values of pixel `m` from channel `first` on, a multiple of 8.
    #[inline(always)]
    fn copy(&self, m: usize, first: usize, to: &mut [R]) {
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
    /// Calls `f` on the values of some pixels, in this worker's scratch if they are not `dy` itself.
    fn with<O>(&self, pixels: Range<usize>, f: impl FnOnce(&[R]) -> O) -> O {
        let dy = &self.dy[pixels.start * self.k..pixels.end * self.k];
        if self.mask.is_none() {
            return f(dy);
        }
        scratch::with(dy.len(), |dz: &mut [R]| {
            vectorised(
                #[inline(always)]
                || {
                    let rows = dz.chunks_exact_mut(self.k).zip(pixels.clone());
                    rows.for_each(|(row, m)| self.copy(m, 0, row));
                },
            );
            f(dz)
        })
    }
}

/// Copies an `h x w x c` image into the interior of an `hp x wp` one, zeros around it.
#[allow(clippy::too_many_arguments)]
fn pad_image<R: Real>(
    to: &mut [R],
    from: &[R],
    h: usize,
    w: usize,
    c: usize,
    top: usize,
    left: usize,
    hp: usize,
    wp: usize,
) {
    let to = &mut to[..hp * wp * c];
    to[..top * wp * c].fill(R::ZERO);
    to[(top + h) * wp * c..].fill(R::ZERO);
    for (row, from) in to[top * wp * c..].chunks_mut(wp * c).zip(from.chunks(w * c)).take(h) {
        row[..left * c].fill(R::ZERO);
        row[left * c..][..w * c].copy_from_slice(from);
        row[(left + w) * c..].fill(R::ZERO);
    }
}

/// `w[k][rsc]` into panels `[k / lanes][rsc][lanes]`.
fn pack_forward<R: Real>(d: &Dims, w: &[R], panels: &mut [R]) {
    let (lanes, depth) = (gemm::lanes(d.k), d.depth());
    let count = d.k.div_ceil(lanes);
    for_parts(Rows::new(panels, count), 1, &|panel, part: Rows<R>| {
        for (j, column) in (panel * lanes..(panel + 1) * lanes).enumerate() {
            let from = w.get(column * depth..(column + 1) * depth);
            for i in 0..depth {
                part.data[i * lanes + j] = from.map_or(R::ZERO, |f| f[i]);
            }
        }
    });
}

/// One residue class of input pixels: those that the same subset of filter taps reaches. Stride 1 has a single phase,
/// stride 2 has four; together they visit every tap exactly once, so a strided input gradient wastes no multiply-add.
struct Phase {
    /// First input row and column of the class.
    h0: usize,
    w0: usize,
    /// Filter rows and columns, in order of increasing output row and column.
    rows: Taps,
    cols: Taps,
}

/// The taps `first, first - stride, ...` of one dimension: they read consecutive outputs `base, base + 1, ...`
struct Taps {
    count: usize,
    first: usize,
    /// Output index that tap `first` reads for the class's first input, plus `count - 1` so that it is never negative.
    base: usize,
}

impl Taps {
    fn of(phase: usize, taps: usize, d: &Dims) -> Taps {
        // Input i = phase + stride * j is reached from output o by tap t = i + pad - stride * o.
        let residue = (phase + d.pad) % d.stride;
        if residue >= taps {
            return Taps { count: 0, first: 0, base: 0 };
        }
        let count = (taps - 1 - residue) / d.stride + 1;
        // The largest tap reads the smallest output, (phase + pad - first) / stride, which may be negative.
        Taps { count, first: residue + (count - 1) * d.stride, base: (phase + d.pad - residue) / d.stride }
    }
}

impl Phase {
    fn all(d: &Dims) -> Vec<Phase> {
        let mut all = Vec::with_capacity(d.stride * d.stride);
        for h0 in 0..d.stride.min(d.h) {
            for w0 in 0..d.stride.min(d.w) {
                all.push(Phase::at(h0, w0, d));
            }
        }
        all
    }
    fn at(h0: usize, w0: usize, d: &Dims) -> Phase {
        Phase { h0, w0, rows: Taps::of(h0, d.r, d), cols: Taps::of(w0, d.s, d) }
    }
    /// Inner dimension of this phase's product.
    fn depth(&self, d: &Dims) -> usize {
        self.rows.count * self.cols.count * d.k
    }
    /// The filter taps in the order that the gathered output gradient presents them.
    fn taps(&self, stride: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        (0..self.rows.count).flat_map(move |i| {
            (0..self.cols.count).map(move |j| (self.rows.first - i * stride, self.cols.first - j * stride))
        })
    }
}

/// `dx[n,h,w,c] = sum_{r,s,k} dz[n, (h+pad-r)/stride, (w+pad-s)/stride, k] * w[k,r,s,c]`, one gathered product a phase.
fn input_gradient<R: Real>(d: &Dims, dz: &Masked<R>, w: &[R], panels: &mut [R], dx: Grad<R>) {
    let lanes = gemm::lanes(d.c);
    let columns = d.c.div_ceil(lanes);
    let phases = (0..d.stride.min(d.h) * d.stride.min(d.w))
        .map(|i| Phase::at(i / d.stride.min(d.w), i % d.stride.min(d.w), d));
    // Panels [phase][c / lanes][r', s', k][lanes].
    let mut at = 0;
    for phase in phases.clone() {
        let depth = phase.depth(d);
        let part = &mut panels[at..][..gemm::packed_len(depth, d.c)];
        at += part.len();
        if depth == 0 {
            continue;
        }
        for_parts(Rows::new(part, columns), 1, &|panel, part: Rows<R>| {
            let cut = (d.c - panel * lanes).min(lanes);
            let mut row = part.data.chunks_mut(lanes);
            for (r, s) in phase.taps(d.stride) {
                for k in 0..d.k {
                    let Some(row) = row.next() else { return };
                    row[..cut].copy_from_slice(&w[((k * d.r + r) * d.s + s) * d.c + panel * lanes..][..cut]);
                    row[cut..].fill(R::ZERO);
                }
            }
        });
    }
    let panels = &*panels;
    let write = dx.write;
    let (phases, image) = (&phases, d.p * d.q * d.k);
    let axis = |outputs: usize, phase: usize, taps: &Taps, len: usize| Axis {
        outputs: (outputs - phase).div_ceil(d.stride),
        base: taps.base,
        step: 1,
        before: taps.count.saturating_sub(1),
        taps: taps.count,
        len,
    };
    for_parts(Rows::new(dx.data, d.n), image_grain(d.n), &|first, part: Rows<R>| {
        for pass in passes(part.items(), image) {
            let pixels = (first + pass.start) * d.p * d.q..(first + pass.end) * d.p * d.q;
            dz.with(pixels, |dz| {
                let mut at = 0;
                for phase in phases.clone() {
                    let rows = axis(d.h, phase.h0, &phase.rows, d.p);
                    let cols = axis(d.w, phase.w0, &phase.cols, d.q);
                    windows(
                        dz,
                        pass.len(),
                        rows,
                        cols,
                        d.k,
                        &panels[at..],
                        d.c,
                        |i, p, q, column, values| {
                            let line = (pass.start + i) * d.h + phase.h0 + p * d.stride;
                            let pixel = line * d.w + phase.w0 + q * d.stride;
                            let to = &mut part.data[pixel * d.c + column..][..values.len()];
                            match write {
                                Write::Set => to.copy_from_slice(values),
                                Write::Add => to.iter_mut().zip(values).for_each(|(t, v)| *t += *v),
                            }
                        },
                    );
                    at += gemm::packed_len(phase.depth(d), d.c);
                }
            });
        }
    });
}

/// `dw[k,r,s,c] = sum_{n,p,q} dz[n,p,q,k] * x[n, p*stride - pad + r, q*stride - pad + s, c]`: the rows of the gathered
/// product are filter taps, its runs are rows of pixels. Images fall into a fixed number of parts, added in order.
fn weight_gradient<R: Real>(d: &Dims, dz: &Masked<R>, x: &[R], partial: &mut [R], dw: Grad<R>) {
    let (lanes, depth) = (gemm::lanes(d.k), d.depth());
    let columns = d.k.div_ceil(lanes);
    let (hp, wp) = d.padded();
    let in_place = d.pad == 0;
    let grain = d.n.div_ceil(WGRAD_PARTS);
    let parts = d.n.div_ceil(grain);
    let wide = columns * lanes;
    let partial = &mut partial[..parts * depth * wide];
    // Images whose padded copies and gradient panels share a pass: enough pixels to amortise loading the accumulators.
    let per_pass = (2 * ROWS_PER_PASS).div_ceil(d.p * d.q).min(MAX_PASS_ROWS / d.p.min(MAX_PASS_ROWS)).max(1);
    for_parts((Indices(parts), Rows::new(partial, parts)), 1, &|part, (_, sum): (Indices, Rows<R>)| {
        let images = part * grain..((part + 1) * grain).min(d.n);
        let x_len = if in_place { 0 } else { per_pass * hp * wp * d.c };
        let pixels = d.p * d.q;
        sum.data.fill(R::ZERO);
        scratch::with(x_len + per_pass * pixels * wide, |scratch: &mut [R]| {
            let (padded, panels) = scratch.split_at_mut(x_len);
            for start in images.clone().step_by(per_pass) {
                let count = per_pass.min(images.end - start);
                let source = &x[start * d.h * d.w * d.c..][..count * d.h * d.w * d.c];
                if !in_place {
                    for i in 0..count {
                        pad_image(
                            &mut padded[i * hp * wp * d.c..],
                            &source[i * d.h * d.w * d.c..],
                            d.h,
                            d.w,
                            d.c,
                            d.pad,
                            d.pad,
                            hp,
                            wp,
                        );
                    }
                }
                let rows = count * pixels;
                vectorised(
                    #[inline(always)]
                    || {
                        for (row, to) in panels[..rows * wide].chunks_exact_mut(lanes).enumerate() {
                            let (first, m) = (row / rows * lanes, start * pixels + row % rows);
                            let (to, padding) = to.split_at_mut((d.k - first).min(lanes));
                            dz.copy(m, first, to);
                            padding.fill(R::ZERO);
                        }
                    },
                );
                // Runs: one per row of output pixels. Long images take several gathers of at most MAX_PASS_ROWS runs.
                let all_rows = count * d.p;
                for r0 in (0..all_rows).step_by(MAX_PASS_ROWS) {
                    let n_runs = MAX_PASS_ROWS.min(all_rows - r0);
                    let runs: [usize; MAX_PASS_ROWS] = std::array::from_fn(|i| {
                        let (image, p) = ((r0 + i) / d.p, (r0 + i) % d.p);
                        (image * hp + p * d.stride) * wp * d.c
                    });
                    let a = Gather {
                        x: if in_place { source } else { &*padded },
                        runs: &runs[..n_runs],
                        len: d.q,
                        step: d.stride * d.c,
                        b_first: 0,
                        b_step: d.q,
                    };
                    let tap = |m: usize| (m / (d.s * d.c)) * wp * d.c + m % (d.s * d.c);
                    for panel in 0..columns {
                        let b = &panels[(panel * rows + r0 * d.q) * lanes..][..n_runs * d.q * lanes];
                        let mut sink = Accumulate { sum: &mut sum.data[panel * depth * lanes..], lanes };
                        gemm::panel(a, depth, tap, b, n_runs * d.q, lanes, 0, &mut sink);
                    }
                }
            }
        });
    });
    let partial = &*partial;
    let write = dw.write;
    for_parts(Rows::new(dw.data, d.k), even_grain(d.k), &|first, rows: Rows<R>| {
        for (j, row) in rows.data.chunks_mut(depth).enumerate() {
            let k = first + j;
            for (i, dw) in row.iter_mut().enumerate() {
                let at = ((k / lanes) * depth + i) * lanes + k % lanes;
                let sum = (0..parts).fold(R::ZERO, |s, part| s + partial[part * depth * wide + at]);
                store_or_add(write, dw, sum);
            }
        }
    });
}

/// Rows of pixels that one gathered product of a weight gradient sums over.
const MAX_PASS_ROWS: usize = 256;

/// Adds finished rows of a weight gradient to a part's sum, `[rsc][lanes]`.
struct Accumulate<'a, R> {
    sum: &'a mut [R],
    lanes: usize,
}

impl<R: Real> Sink<R> for Accumulate<'_, R> {
    #[inline(always)]
    fn row(&mut self, m: usize, _: usize, values: &[R]) {
        self.sum[m * self.lanes..][..values.len()].iter_mut().zip(values).for_each(|(s, v)| *s += *v);
    }
}

/// `db[k] = sum_{n,p,q} dz[n,p,q,k]`, a column at a time per worker, in pixel order.
fn bias_gradient<R: Real>(d: &Dims, dz: &Masked<R>, db: Grad<R>) {
    let mut db = db;
    let pixels = d.n * d.p * d.q;
    scratch::with(2 * d.k, |scratch: &mut [R]| {
        let (sum, row) = scratch.split_at_mut(d.k);
        sum.fill(R::ZERO);
        vectorised(
            #[inline(always)]
            || {
                for m in 0..pixels {
                    dz.copy(m, 0, row);
                    add(sum, row);
                }
            },
        );
        sum.iter().enumerate().for_each(|(k, v)| db.store_or_add(k, *v));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    /// The definition, seven loops.
    fn plain(op: Conv2d, shapes: Vec<Shape>) -> impl Fn(&[Vec<f64>]) -> Vec<Vec<f64>> {
        move |t| {
            let ([n, h, w, c], [k, r, s, _]) = (shapes[0].0, shapes[1].0);
            let (p, q) = ((h + 2 * op.pad - r) / op.stride + 1, (w + 2 * op.pad - s) / op.stride + 1);
            let mut y = Vec::new();
            for (n, p, q, k) in (0..n).flat_map(|n| {
                (0..p).flat_map(move |p| (0..q).flat_map(move |q| (0..k).map(move |k| (n, p, q, k))))
            }) {
                let mut sum = if op.bias { t[2][k] } else { 0.0 };
                if op.residual {
                    sum += t[t.len() - 1][y.len()];
                }
                for (i, j, ch) in
                    (0..r).flat_map(|i| (0..s).flat_map(move |j| (0..c).map(move |ch| (i, j, ch))))
                {
                    let (a, b) =
                        ((p * op.stride + i).wrapping_sub(op.pad), (q * op.stride + j).wrapping_sub(op.pad));
                    if a < h && b < w {
                        sum += t[0][((n * h + a) * w + b) * c + ch] * t[1][((k * r + i) * s + j) * c + ch];
                    }
                }
                y.push(op.act.apply(sum));
            }
            vec![y]
        }
    }

    fn case(op: Conv2d, x: Shape, k: usize, r: usize) -> Case {
        let w = Shape::new(k, r, r, x.c());
        let mut shapes = vec![x, w];
        if op.bias {
            shapes.push(Shape::vector(k));
        }
        if op.residual {
            let args: Vec<OperandInfo> =
                shapes.iter().map(|s| OperandInfo { shape: *s, needs_grad: false }).collect();
            shapes.push(Conv2d { residual: false, ..op }.signature(&args).unwrap().outputs[0]);
        }
        Case::new(op, &shapes).reference(plain(op, shapes.clone()))
    }

    #[test]
    fn gates() {
        let fused = Conv2d { bias: true, residual: true, act: Act::Relu, ..Conv2d::new(1, 1) };
        for (op, x, k, r) in [
            (Conv2d::new(1, 1), Shape::new(2, 5, 7, 3), 5, 3),
            (Conv2d::new(2, 1), Shape::new(3, 8, 8, 16), 33, 3),
            (Conv2d::new(2, 1), Shape::new(2, 7, 5, 2), 17, 3),
            (Conv2d::new(2, 3), Shape::new(1, 17, 16, 3), 8, 7),
            (Conv2d::new(1, 0), Shape::new(2, 6, 5, 13), 40, 1),
            (Conv2d::new(2, 0), Shape::new(2, 7, 6, 9), 20, 1),
            (Conv2d::new(3, 2), Shape::new(2, 11, 10, 4), 6, 5),
            (Conv2d::new(1, 0), Shape::new(2, 3, 3, 4), 6, 3),
            (Conv2d::new(3, 0), Shape::new(2, 7, 8, 4), 6, 2),
            (Conv2d::new(1, 1), Shape::new(9, 2, 2, 64), 64, 3),
            (Conv2d::new(1, 1), Shape::new(2, 9, 9, 4), 1, 3),
            (fused, Shape::new(2, 6, 6, 16), 32, 3),
            (Conv2d { stride: 2, ..fused }, Shape::new(3, 5, 9, 7), 11, 3),
            (Conv2d { act: Act::LeakyRelu(0.2), residual: false, ..fused }, Shape::new(1, 4, 4, 5), 19, 3),
            (Conv2d::linear(), Shape::rows(5, 37), 10, 1),
            (Conv2d { act: Act::Relu, ..Conv2d::linear() }, Shape::rows(67, 16), 4, 1),
            // Every tile of the GPU's kernels, and both ways to load each operand (`launch::tests`).
            (Conv2d { stride: 2, ..fused }, Shape::new(3, 9, 8, 24), 136, 3),
            (Conv2d::new(2, 1), Shape::new(6, 9, 8, 72), 16, 3),
            (fused, Shape::new(2, 9, 9, 40), 40, 3),
            (Conv2d { pad: 0, ..fused }, Shape::new(2, 8, 10, 40), 72, 1),
            (Conv2d::new(1, 2), Shape::new(2, 8, 9, 67), 66, 2),
            (Conv2d { act: Act::LeakyRelu(0.2), residual: false, ..fused }, Shape::new(3, 4, 9, 1), 48, 4),
        ] {
            check(case(op, x, k, r));
        }
    }

    /// Every tile of the kernels for compute capability 9.0, forward and gradient, both kinds of tensor maps, with rows that
    /// fill no whole number of tiles; which tile a case has, on the two multiprocessors that tests pretend, is beside it.
    #[test]
    fn gates_of_whole_slabs() {
        let fused = Conv2d { bias: true, residual: true, act: Act::Relu, ..Conv2d::new(1, 1) };
        let leaky = Conv2d { act: Act::LeakyRelu(0.2), bias: true, ..Conv2d::new(1, 0) };
        for (op, x, k, r) in [
            (fused, Shape::new(2, 13, 13, 64), 256, 3), // 192x256; 128x64
            (Conv2d::new(1, 1), Shape::new(2, 13, 13, 256), 64, 3), // 128x64; 192x256
            (leaky, Shape::new(3, 9, 7, 128), 192, 1),  // 128x128, plain maps
            (leaky, Shape::new(2, 6, 7, 64), 128, 3),   // windows of dz that reach two pixels beyond it
            (Conv2d::new(1, 2), Shape::new(2, 5, 6, 64), 64, 3), // and none
            (Conv2d { stride: 2, ..fused }, Shape::new(3, 9, 8, 64), 128, 3),
            (Conv2d { stride: 2, ..leaky }, Shape::new(3, 9, 8, 128), 64, 1),
        ] {
            check(case(op, x, k, r));
        }
    }

    #[test]
    fn frozen_weights_cost_no_weight_gradient_and_keep_no_input() {
        let args = [(Shape::new(2, 8, 8, 4), true), (Shape::new(8, 3, 3, 4), false)]
            .map(|(shape, needs_grad)| OperandInfo { shape, needs_grad });
        let sig = Conv2d { act: Act::Relu, ..Conv2d::new(1, 1) }.signature(&args).unwrap();
        assert_eq!(sig.keeps_inputs, [1], "only the weights are read again");
        assert!(!sig.keeps_outputs);
        assert_eq!(sig.saved, [Extent::Bytes(2 * 8 * 8)], "one bit per output element");
        assert_eq!(sig.scratch_backward[1], Extent::Reals(0));
        assert_eq!((sig.macs_forward, sig.macs_backward), (2 * 64 * 8 * 36, 2 * 64 * 8 * 36));
    }

    #[test]
    fn refuses_operands_that_do_not_fit() {
        let arg = |n, h, w, c| OperandInfo { shape: Shape::new(n, h, w, c), needs_grad: false };
        let e = |op: Conv2d, args: &[OperandInfo]| op.signature(args).unwrap_err().to_string();
        assert_eq!(
            e(Conv2d::new(1, 1), &[arg(1, 4, 4, 3), arg(8, 3, 3, 4)]),
            "conv2d: x has 3 channels, the filter [8, 3, 3, 4] expects 4"
        );
        assert!(e(Conv2d::new(1, 0), &[arg(1, 2, 4, 3), arg(8, 3, 3, 3)]).contains("does not fit"));
        assert!(
            e(Conv2d { act: Act::Tanh, ..Conv2d::new(1, 1) }, &[arg(1, 4, 4, 3), arg(8, 3, 3, 3)])
                .contains("cannot be fused")
        );
        assert!(
            e(Conv2d::linear(), &[arg(1, 1, 1, 3), arg(8, 1, 1, 3)])
                .contains("expected 3 operands (x, w, bias)")
        );
    }
}
