//! The convolution's forward pass on the CPU: the choice of how windows are multiplied with filters, the gathered
//! product with packed filters, and the epilogue behind it.

use super::cpu_few;
use super::cpu_winograd::{self, Tiling};
use super::geometry::{Axis, Dims, Epilogue, MAX_TAPS};
use crate::device::cpu::channels::add;
use crate::device::cpu::gemm::{self, Gather, Sink};
use crate::device::cpu::par::{Rows, Split, even_grain, for_parts};
use crate::device::cpu::scratch;
use crate::ops::layers::activation::Act;
use crate::ops::operands::Io;
use crate::tensor::Real;
use std::ops::Range;

/// Elements of input that a pass over all panels should find in the second-level cache: half a megabyte of
/// f32.
const PASS_ELEMS: usize = 1 << 17;

/// Images that a worker takes at once. With 2x2 output pixels a product has one row for each image, so that
/// 16 images fill one tile of 12 rows and a rest of 4.
pub fn image_grain(n: usize) -> usize {
    even_grain(n).max((n / rayon::current_num_threads()).min(16))
}

/// Runs of images small enough for the cache.
pub fn passes(images: usize, image_elems: usize) -> impl Iterator<Item = Range<usize>> {
    let per_pass = (PASS_ELEMS / image_elems).max(1);
    (0..images).step_by(per_pass).map(move |at| at..(at + per_pass).min(images))
}

/// How windows are multiplied with filters.
#[derive(Clone, Copy)]
pub enum Way {
    /// A dot product for each output, where there are few channels of outputs (`cpu_few.rs`).
    Dots,
    /// Winograd's algorithm (`cpu_winograd.rs`).
    Tiles(Tiling),
    /// A gathered product ([`windows`]).
    Product,
}

impl Way {
    /// The fastest way from `c` to `k` channels; `tiled` where the filters are 3x3 and the stride is 1.
    pub fn of<R: Real>(c: usize, k: usize, tiled: Option<Tiling>) -> Way {
        match tiled.filter(Tiling::fits::<R>) {
            _ if cpu_few::fits::<R>(c, k) => Way::Dots,
            Some(g) => Way::Tiles(g),
            None => Way::Product,
        }
    }
    /// Elements of a worker's scratch.
    pub fn worker_scratch_len(&self) -> usize {
        if let Way::Tiles(g) = self { g.scratch_len() } else { 0 }
    }
}

/// Elements of scratch that `forward` needs: the packed filters.
pub fn scratch_len(d: &Dims) -> usize {
    Tiling::of(d)
        .filter(Tiling::fits::<f32>)
        .map_or(0, |g| g.packed_len())
        .max(gemm::packed_len(d.depth(), d.k))
}

/// Writes y and, if backward will run, the activation mask.
pub fn forward<R: Real>(d: &Dims, epilogue: &Epilogue, io: &Io<R>) {
    let (x, panels) = (io.x(0), io.scratch::<R>(0));
    let bias = epilogue.has_bias.then(|| io.x(2));
    let residual = epilogue.has_residual.then(|| io.x(io.inputs() - 1));
    let (w, way) = (io.x(1), Way::of::<R>(d.c, d.k, Tiling::of(d)));
    match &way {
        Way::Dots => {}
        _ if io.is_packed() => {}
        Way::Tiles(g) => cpu_winograd::pack(g, &mut panels[..g.packed_len()], |k, c, r, s| {
            w[((k * 3 + r) * 3 + s) * d.c + c]
        }),
        Way::Product => pack_filters(d, w, &mut panels[..gemm::packed_len(d.depth(), d.k)]),
    }
    let panels = &*panels;
    let mut none = [];
    let mask: &mut [u8] = if epilogue.act != Act::None && io.saves() { io.save(0) } else { &mut none };
    let saves = !mask.is_empty();
    let parts = (Rows::new(io.y(0), d.n), Rows::new(mask, d.n));
    let axis = |outputs, taps, len| Axis { outputs, base: 0, step: d.stride, before: d.pad, taps, len };
    let (rows, cols) = (axis(d.p, d.r, d.h), axis(d.q, d.s, d.w));
    let image = d.h * d.w * d.c;
    for_parts(parts, image_grain(d.n), &|first, (y, mask)| {
        let images = y.items();
        for pass in passes(images, image) {
            let x = &x[(first + pass.start) * image..][..pass.len() * image];
            let from = pass.start;
            let (p_len, q_len) = (d.p, d.q);
            let pixel = move |i: usize, p: usize, q: usize| ((from + i) * p_len + p) * q_len + q;
            // The closures own it: through a reference, its fields would be loaded again for every row.
            let mut store = Store {
                y: &mut *y.data,
                mask: if saves { &mut *mask.data } else { &mut [] },
                bias,
                residual: residual.map(|r| &r[first * d.p * d.q * d.k..]),
                act: epilogue.act,
                k: d.k,
                mask_bytes: d.mask_bytes(),
            };
            match &way {
                Way::Dots => cpu_few::dots(
                    x,
                    pass.len(),
                    [rows, cols],
                    [d.c, d.k],
                    w,
                    #[inline(always)]
                    move |i, p, q, values| store.row(pixel(i, p, q), 0, values),
                ),
                Way::Tiles(g) => scratch::with(way.worker_scratch_len(), |scratch| {
                    cpu_winograd::windows(
                        g,
                        x,
                        pass.len(),
                        panels,
                        scratch,
                        #[inline(always)]
                        move |i, p, q, column, values| store.row(pixel(i, p, q), column, values),
                    );
                }),
                Way::Product => {
                    windows(
                        x,
                        pass.len(),
                        [rows, cols],
                        d.c,
                        panels,
                        d.k,
                        #[inline(always)]
                        move |i, p, q, column, values| store.row(pixel(i, p, q), column, values),
                    );
                }
            }
        }
    });
}

/// Packs the filters `w[k][rsc]` into panels `[k / lanes][rsc][lanes]`.
fn pack_filters<R: Real>(d: &Dims, w: &[R], panels: &mut [R]) {
    let (lanes, depth) = (gemm::lanes(d.k), d.depth());
    let count = d.k.div_ceil(lanes);
    for_parts(Rows::new(panels, count), 1, &|panel, part: Rows<R>| {
        // Row by row: 16 or 32 filters are read side by side, which stay in the first-level cache. Filter by filter, every
        // number was written to another line.
        let w = &w[panel * lanes * depth..];
        for (i, row) in part.data.chunks_exact_mut(lanes).enumerate() {
            let (row, padding) = row.split_at_mut((d.k - panel * lanes).min(lanes));
            row.iter_mut().enumerate().for_each(|(j, v)| *v = w[j * depth + i]);
            padding.fill(R::ZERO);
        }
    });
}

/// The product of every window of `images` images `x` (`c` channels) with packed panels `[r, s, c]` of
/// `filters` columns. `store(image, p, q, column, values)` takes the results.
///
/// Windows that lose taps at the border are multiplied separately, by the taps that they have: no padded
/// copy, and no multiply-add with a zero (at 2x2 pixels those would be five ninths of a 3x3 filter's).
#[allow(clippy::too_many_arguments)]
pub fn windows<R: Real>(
    x: &[R],
    images: usize,
    [rows, cols]: [Axis; 2],
    c: usize,
    panels: &[R],
    filters: usize,
    store: impl FnMut(usize, usize, usize, usize, &[R]),
) {
    /// Finds the output pixel of a row of the product.
    struct Pixels<F> {
        raster: Raster,
        store: F,
    }
    impl<R, F: FnMut(usize, usize, usize, usize, &[R])> Sink<R> for Pixels<F> {
        #[inline(always)]
        fn row(&mut self, _: usize, column: usize, values: &[R]) {
            let [image, p, q] = self.raster.next();
            (self.store)(image, p, q, column, values);
        }
    }
    let runs: [usize; MAX_TAPS] = std::array::from_fn(|r| r * cols.len * c);
    let mut sink = Pixels { raster: Raster::of(0..0, 0..0), store };
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
            let (count, depth) = (images * p.len() * q.len(), rows.taps * cols.taps * c);
            for panel in 0..filters.div_ceil(gemm::lanes(filters)) {
                let mut raster = Raster::of(p.clone(), q.clone());
                sink.raster = raster.clone();
                sink = gemm::panel(
                    a,
                    count,
                    #[inline(always)]
                    |_| {
                        let [image, p, q] = raster.next();
                        let line = image * rows.len + rows.source(p, &down);
                        (line * cols.len + cols.source(q, &right)) * c
                    },
                    panels,
                    depth,
                    filters,
                    panel,
                    sink,
                );
            }
        }
    }
}

/// Counts through a rectangle of pixels of one image after the other. (Divisions of a row's number took half the time of
/// products of 9 or 16 elements.)
#[derive(Clone)]
struct Raster {
    lines: Range<usize>,
    columns: Range<usize>,
    at: [usize; 3],
}

impl Raster {
    fn of(lines: Range<usize>, columns: Range<usize>) -> Raster {
        let at = [0, lines.start, columns.start];
        Raster { lines, columns, at }
    }
    /// The image, the line and the column that come next.
    #[inline(always)]
    fn next(&mut self) -> [usize; 3] {
        let at = self.at;
        self.at[2] += 1;
        if self.at[2] == self.columns.end {
            self.at = [at[0], at[1] + 1, self.columns.start];
            if self.at[1] == self.lines.end {
                self.at = [at[0] + 1, self.lines.start, self.columns.start];
            }
        }
        at
    }
}

/// Runs `f(n)`, with a copy of `f` compiled for each common number of channels of a finished row. Write
/// `#[inline(always)]` before the closure.
#[inline(always)]
pub fn with_panel_width<O>(n: usize, mut f: impl FnMut(usize) -> O) -> O {
    match n {
        1 => f(1),
        16 => f(16),
        32 => f(32),
        n => f(n),
    }
}

/// Stores finished rows: bias, residual, activation, and the mask that backward reads.
struct Store<'a, R> {
    y: &'a mut [R],
    mask: &'a mut [u8],
    bias: Option<&'a [R]>,
    residual: Option<&'a [R]>,
    act: Act,
    k: usize,
    mask_bytes: usize,
}

impl<R: Real> Store<'_, R> {
    #[inline(always)]
    fn row(&mut self, m: usize, column: usize, values: &[R]) {
        let at = m * self.k + column;
        let slope = R::of(self.act.step_slope().unwrap_or(1.0));
        with_panel_width(
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
                    let mask = &mut self.mask[m * self.mask_bytes + column / 8..][..n.div_ceil(8)];
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_depends_on_channels_filters_and_type() {
        let way = |c, k, side: usize, r, stride| {
            let d = Dims { n: 1, h: side, w: side, c, k, r, s: r, p: side, q: side, stride, pad: r / 2 };
            [Way::of::<f32>(c, k, Tiling::of(&d)), Way::of::<f64>(c, k, Tiling::of(&d))].map(
                |way| match way {
                    Way::Dots => "dots",
                    Way::Tiles(_) => "tiles",
                    Way::Product => "product",
                },
            )
        };
        assert_eq!(way(32, 64, 8, 3, 1), ["tiles", "product"], "f64 is the reference of f32");
        assert_eq!(way(16, 16, 4, 3, 1), ["tiles", "product"]);
        assert_eq!(way(16, 16, 2, 3, 1), ["product", "product"], "2x2 outputs save nothing");
        assert_eq!(way(16, 48, 8, 3, 1), ["product", "product"], "half a panel");
        assert_eq!(way(16, 16, 8, 3, 2), ["product", "product"]);
        assert_eq!(way(16, 3, 8, 3, 1), ["dots", "product"]);
        assert_eq!(way(3, 16, 8, 3, 1), ["product", "product"]);
    }
}
