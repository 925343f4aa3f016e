//! Joining along the batch axis.

use super::launches::{THREADS, Tensor, blocks_for};
use super::tiles::{instance, pack};
use super::*;
use crate::device::cpu::par::{Rows, for_rows};
use crate::device::gpu;

/// `y = [x_0; x_1; ...]`, the samples of each operand in turn.
///
/// Shapes: x_i `[n_i, h, w, c]`, y `[sum n_i, h, w, c]`.
/// Source: docs/method.md 2 (block `b` runs once on the batch of all levels that reach it).
/// Backward: dx_i is dy's part; keeps nothing.
/// Errors: no operand, samples of different shapes.
/// Cost: memory-bound; one copy of y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concat;

impl Operator for Concat {
    fn signature(&self, args: &[Arg]) -> Result<Signature> {
        let Some(first) = args.first() else {
            return Err(Error::shape("concat", "expected one operand or more, found none"));
        };
        for (i, a) in args.iter().enumerate() {
            expect_shape("concat", &format!("operand {i}"), first.shape.with_n(a.shape.n()), a.shape)?;
        }
        let n = args.iter().map(|a| a.shape.n()).sum();
        Ok(Signature { outputs: vec![first.shape.with_n(n)], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let mut y = io.y(0);
        for i in 0..io.inputs() {
            let (part, rest) = y.split_at_mut(io.shape(i).elems());
            write_all(Grad { data: part, write: Write::Set }, io.x(i));
            y = rest;
        }
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let mut dy = io.dy0();
        for i in 0..io.inputs() {
            let (part, rest) = dy.split_at(io.shape(i).elems());
            if let Some(dx) = io.dx(i) {
                write_all(dx, part);
            }
            dy = rest;
        }
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let y = l.y(0);
        let pack = pack(y.elem, l.shape(0).per_sample());
        let mut parts = Vec::new();
        for i in 0..l.inputs() {
            l.expect_same("operand", y, l.x(i))?;
            parts.push((i, l.x(i), false.into()));
        }
        let (grid, table) = rows(l, pack, parts);
        let args = [y.into(), table];
        l.launch(instance("concat_fwd", y.elem, pack), grid, THREADS, 0, args)
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let dy = l.dy0();
        let pack = pack(dy.elem, l.shape(0).per_sample());
        let parts = (0..l.inputs()).filter_map(|i| l.dx(i).map(|(dx, write)| (i, dx, write.into())));
        let parts: Vec<_> = parts.collect();
        if parts.is_empty() {
            return Ok(());
        }
        let (grid, table) = rows(l, pack, parts);
        let args = [table, dy.into()];
        l.launch(instance("concat_bwd", dy.elem, pack), grid, THREADS, 0, args)
    }
    /// A neighbour can do it on the way: nothing.
    fn minimal_bytes(&self, _: &Operands) -> u64 {
        0
    }
}

/// Grid and table for these operands: `ConcatPart` of kernels/concat.cu, a row of blocks each.
fn rows(
    l: &Launches,
    pack: usize,
    parts: Vec<(usize, Tensor, gpu::launch::Arg)>,
) -> ([u32; 3], gpu::launch::Arg) {
    let packs = |i: usize| l.shape(i).elems() / pack;
    let most = parts.iter().map(|(i, ..)| packs(*i)).max().unwrap_or(1);
    let grid = [blocks_for(most, THREADS as usize), parts.len() as u32, 1];
    let row = |(i, data, add): (usize, Tensor, gpu::launch::Arg)| {
        let first = (0..i).map(packs).sum::<usize>();
        [data.into(), (first as i64).into(), (packs(i) as i64).into(), add]
    };
    (grid, gpu::launch::Arg::table(parts.into_iter().map(row).collect()))
}

/// Stores or adds `from`, element by element.
pub fn write_all<R: Real>(to: Grad<R>, from: &[R]) {
    let (write, len) = (to.write, to.data.len());
    for_rows(Rows::new(to.data, len), 1, &|first, part: Rows<R>| {
        let from = &from[first..][..part.data.len()];
        match write {
            Write::Set => part.data.copy_from_slice(from),
            Write::Add => part.data.iter_mut().zip(from).for_each(|(to, v)| *to += *v),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::gates::{Case, check};
    use super::*;

    #[test]
    fn gates() {
        for (counts, h, w, c) in [(vec![1], 1, 1, 1), (vec![3, 1, 5], 5, 7, 11), (vec![2, 2], 33, 32, 17)] {
            let shapes: Vec<Shape> = counts.iter().map(|n| Shape::new(*n, h, w, c)).collect();
            check(Case::new(Concat, &shapes).reference(|t| vec![t.concat()]));
            check(Case::new(Concat, &shapes).frozen(0));
        }
    }

    #[test]
    fn refuses_samples_of_different_shapes() {
        let arg = |n, c| Arg { shape: Shape::rows(n, c), wants: false };
        let e = |args: &[Arg]| Concat.signature(args).unwrap_err().to_string();
        assert_eq!(
            e(&[arg(2, 3), arg(4, 5)]),
            "concat: operand 1: expected [4, 1, 1, 3], found [4, 1, 1, 5]"
        );
        assert_eq!(e(&[]), "concat: expected one operand or more, found none");
    }
}
