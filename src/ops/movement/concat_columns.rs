//! Concatenates the predictions of several networks.

use crate::device::gpu::launch;
use crate::error::{Error, Result};
use crate::ops::launch::launches::{DeviceTensor, Launches, THREADS};
use crate::ops::operands::{Io, Write, store_or_add};
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_f32, expect_shape};
use crate::tensor::{Real, Shape};

/// `y[n] = [x_0[n], x_1[n], ...]`
///
/// Shapes: x_i `[n, 1, 1, c_i]`, y `[n, 1, 1, sum c_i]`.
/// Source: eq. 10.
/// Backward: `dx_i` is a copy of its columns of dy; keeps nothing.
/// Errors: no operand, operands that are not rows or differ in batch size.
/// Cost: negligible; predictions have few elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConcatColumns;

impl Operator for ConcatColumns {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        let Some(first) = args.first() else {
            return Err(Error::shape("concat_columns", "expected one operand or more, found none"));
        };
        let n = first.shape.n();
        for (i, a) in args.iter().enumerate() {
            expect_shape("concat_columns", &format!("operand {i}"), Shape::rows(n, a.shape.c()), a.shape)?;
        }
        let c = args.iter().map(|a| a.shape.c()).sum();
        Ok(Signature { outputs: vec![Shape::rows(n, c)], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (y, width) = (io.y(0), io.out_shape(0).c());
        let mut first = 0;
        for i in 0..io.inputs() {
            let c = io.shape(i).c();
            for (y, x) in y.chunks_exact_mut(width).zip(io.x(i).chunks_exact(c)) {
                y[first..][..c].copy_from_slice(x);
            }
            first += c;
        }
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let (dy, width) = (io.dy0(), io.out_shape(0).c());
        let mut first = 0;
        for i in 0..io.inputs() {
            let c = io.shape(i).c();
            if let Some(dx) = io.dx(i) {
                for (dx_row, dy) in dx.data.chunks_exact_mut(c).zip(dy.chunks_exact(width)) {
                    dx_row
                        .iter_mut()
                        .zip(&dy[first..])
                        .for_each(|(dx_i, dy)| store_or_add(dx.write, dx_i, *dy));
                }
            }
            first += c;
        }
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (mut first, mut parts) = (0, Vec::new());
        for i in 0..l.inputs() {
            let (x, c) = (expect_f32("concat_columns", "operand", l.x(i))?, l.shape(i).c() as i64);
            parts.push([x.into(), first.into(), c.into(), 0i64.into()]);
            first += c;
        }
        launch_parts(l, "concat_columns_fwd", l.y(0), parts)
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let (mut first, mut parts) = (0, Vec::new());
        for i in 0..l.inputs() {
            let c = l.shape(i).c() as i64;
            if let Some((dx, write)) = l.dx(i) {
                parts.push([dx.into(), first.into(), c.into(), i64::from(write == Write::Add).into()]);
            }
            first += c;
        }
        launch_parts(l, "concat_columns_bwd", l.dy0(), parts)
    }
}

/// One launch over all parts: `[x, first column, columns, add]` for each, and `whole`, which holds their rows
/// side by side.
fn launch_parts(
    l: &mut Launches,
    kernel: &str,
    whole: DeviceTensor,
    parts: Vec<[launch::KernelArg; 4]>,
) -> Result<()> {
    let shape = l.out_shape(0);
    let [count, n, width] = [parts.len(), shape.n(), shape.c()].map(|d| launch::KernelArg::from(d as i32));
    let grid = l.blocks_for(shape.elems(), THREADS as usize);
    l.launch(kernel, grid, THREADS, 0, [whole.into(), launch::KernelArg::table(parts), count, n, width])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    #[test]
    fn passes_the_op_checks() {
        for (n, widths) in [(1, vec![1]), (5, vec![3, 1, 11]), (67, vec![10, 10])] {
            let shapes: Vec<Shape> = widths.iter().map(|c| Shape::rows(n, *c)).collect();
            check(Case::new(ConcatColumns, &shapes).frozen(0));
            check(Case::new(ConcatColumns, &shapes).reference(move |t| {
                let row = |n: usize| t.iter().zip(&widths).flat_map(move |(x, c)| x[n * c..][..*c].to_vec());
                vec![(0..n).flat_map(row).collect()]
            }));
        }
    }

    #[test]
    fn refuses_operands_that_are_not_rows_of_one_batch() {
        let arg = |n, h| OperandInfo { shape: Shape::new(n, h, 1, 3), needs_grad: false };
        let e = |args: &[OperandInfo]| ConcatColumns.signature(args).unwrap_err().to_string();
        assert_eq!(
            e(&[arg(2, 1), arg(4, 1)]),
            "concat_columns: operand 1: expected [2, 1, 1, 3], found [4, 1, 1, 3]"
        );
        assert!(e(&[arg(2, 2)]).contains("operand 0: expected [2, 1, 1, 3], found [2, 2, 1, 3]"));
        assert_eq!(e(&[]), "concat_columns: expected one operand or more, found none");
    }
}
