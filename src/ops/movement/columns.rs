//! The task-level filter: selects the predictions of some labels.

use crate::device::gpu::launch;
use crate::error::{Error, Result};
use crate::ops::launch::launches::{Launches, THREADS};
use crate::ops::operands::{Io, Write};
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_f32, expect_operands, expect_shape};
use crate::tensor::{Real, Shape};

/// `y[n, j] = x[n, index[j]]`
///
/// Shapes: x `[n, 1, 1, c]`, y `[n, 1, 1, index.len()]`.
/// Source: docs/method.md 3 (`g_m`, in front of eq. 13).
/// Backward: each dx is the sum of dy over the columns j that read it, 0 if none does; keeps nothing.
/// Errors: x that is not rows, no column, a column that x does not have.
/// Cost: negligible; predictions have few elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The column of x that each column of y copies.
    pub index: Vec<u32>,
}

impl Columns {
    /// The index, as a table in device memory.
    fn table(&self) -> launch::KernelArg {
        launch::KernelArg::table(self.index.iter().map(|i| [i64::from(*i).into()]).collect())
    }
}

impl Operator for Columns {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("columns", args, &["x"])?;
        let x = args[0].shape;
        expect_shape("columns", "x", Shape::rows(x.n(), x.c()), x)?;
        if self.index.is_empty() {
            return Err(Error::shape("columns", "expected one column or more, found none"));
        }
        if let Some(i) = self.index.iter().find(|i| **i as usize >= x.c()) {
            return Err(Error::shape("columns", format!("x {x} has no column {i}")));
        }
        Ok(Signature { outputs: vec![Shape::rows(x.n(), self.index.len())], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let rows = io.x(0).chunks_exact(io.shape(0).c());
        for (y, x) in io.y(0).chunks_exact_mut(self.index.len()).zip(rows) {
            y.iter_mut().zip(&self.index).for_each(|(y, i)| *y = x[*i as usize]);
        }
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(dx) = io.dx(0) else { return };
        if dx.write == Write::Set {
            dx.data.fill(R::ZERO);
        }
        let rows = dx.data.chunks_exact_mut(io.shape(0).c());
        for (dx, dy) in rows.zip(io.dy0().chunks_exact(self.index.len())) {
            dy.iter().zip(&self.index).for_each(|(dy, i)| dx[*i as usize] += *dy);
        }
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (x, y) = (expect_f32("columns", "x", l.x(0))?, l.y(0));
        let [n, c, picks] = [l.shape(0).n(), l.shape(0).c(), self.index.len()].map(|d| (d as i32).into());
        let grid = l.blocks_for(l.out_shape(0).elems(), THREADS as usize);
        l.launch("columns_fwd", grid, THREADS, 0, [y.into(), x.into(), self.table(), n, c, picks])
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((dx, write)) = l.dx(0) else { return Ok(()) };
        let shape = l.shape(0);
        let [n, c, picks] = [shape.n(), shape.c(), self.index.len()].map(|d| (d as i32).into());
        l.launch(
            "columns_bwd",
            l.blocks_for(shape.elems(), THREADS as usize),
            THREADS,
            0,
            [dx.into(), l.dy0().into(), self.table(), n, c, picks, write.into()],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    #[test]
    fn passes_the_op_checks() {
        for (n, c, index) in
            [(1, 1, vec![0]), (5, 11, vec![7, 2, 10]), (67, 20, vec![3]), (4, 3, vec![2, 0, 1, 0])]
        {
            let picks = index.clone();
            check(Case::new(Columns { index }, &[Shape::rows(n, c)]).reference(move |t| {
                let at = |i: usize| t[0][i / picks.len() * c + picks[i % picks.len()] as usize];
                vec![(0..n * picks.len()).map(at).collect()]
            }));
        }
    }

    #[test]
    fn refuses_columns_that_do_not_exist() {
        let e = |index: &[u32], x: Shape| {
            let arg = OperandInfo { shape: x, needs_grad: false };
            Columns { index: index.to_vec() }.signature(&[arg]).unwrap_err().to_string()
        };
        assert_eq!(e(&[0, 3], Shape::rows(2, 3)), "columns: x [2, 1, 1, 3] has no column 3");
        assert_eq!(e(&[], Shape::rows(2, 3)), "columns: expected one column or more, found none");
        assert_eq!(e(&[0], Shape::new(2, 2, 1, 3)), "columns: x: expected [2, 1, 1, 3], found [2, 2, 1, 3]");
    }
}
