//! Puts the predictions of networks on several ranks side by side.

use crate::device::collective;
use crate::device::gpu::launch::{Exchange, KernelArg};
use crate::error::Result;
use crate::ops::launch::launches::{DeviceTensor, Launches, THREADS};
use crate::ops::operands::{Io, Write, store_or_add};
use crate::ops::operator::{
    Extent, OperandInfo, Operator, Signature, expect_f32, expect_operands, expect_setting, expect_shape,
};
use crate::tensor::{Real, Shape};

/// `y[n] = [x of rank 0 [n], x of rank 1 [n], ...]`, in every rank.
///
/// Shapes: x `[n, 1, 1, widths[rank]]`, y `[n, 1, 1, sum widths]`.
/// Source: eq. 10, with the teachers on several ranks. `concat_columns` does the same in one process.
/// Backward: dx is a copy of its columns of dy, which every rank has computed; nothing is exchanged.
/// Errors: x is not rows of the rank's width; a width of 0.
/// Cost: an exchange of y; predictions have few elements.
#[derive(Clone, Debug, PartialEq)]
pub struct GatherColumns {
    /// Columns of each rank.
    pub widths: Vec<usize>,
    /// This rank.
    pub rank: usize,
}

impl GatherColumns {
    fn most(&self) -> usize {
        self.widths.iter().copied().max().unwrap_or(0)
    }
    fn width(&self) -> usize {
        self.widths.iter().sum()
    }
    /// First column of a rank.
    fn first(&self, rank: usize) -> usize {
        self.widths[..rank].iter().sum()
    }
}

impl Operator for GatherColumns {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("gather_columns", args, &["x"])?;
        let has_columns = self.widths.iter().all(|w| *w > 0) && self.rank < self.widths.len();
        expect_setting("gather_columns", has_columns, || {
            format!("widths: {:?}; every rank needs a column", self.widths)
        })?;
        let n = args[0].shape.n();
        expect_shape("gather_columns", "x", Shape::rows(n, self.widths[self.rank]), args[0].shape)?;
        let part = n * self.most();
        Ok(Signature {
            outputs: vec![Shape::rows(n, self.width())],
            scratch_forward: vec![Extent::Reals(part), Extent::Reals(part * self.widths.len())],
            exchanges: true,
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (own, all): (&mut [R], &mut [R]) = (io.scratch(0), io.scratch(1));
        let x = io.x(0);
        own[..x.len()].copy_from_slice(x);
        match collective::current() {
            Some(ranks) => ranks.all_gather(own, all),
            None => all.copy_from_slice(own),
        }
        let y = io.y(0);
        for (rank, (part, width)) in all.chunks_exact(own.len()).zip(&self.widths).enumerate() {
            let first = self.first(rank);
            for (y, x) in y.chunks_exact_mut(self.width()).zip(part.chunks_exact(*width)) {
                y[first..][..*width].copy_from_slice(x);
            }
        }
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(dx) = io.dx(0) else { return };
        let (first, width) = (self.first(self.rank), self.widths[self.rank]);
        let write = dx.write;
        for (dx, dy) in dx.data.chunks_exact_mut(width).zip(io.dy0().chunks_exact(self.width())) {
            dx.iter_mut().zip(&dy[first..]).for_each(|(dx, dy)| store_or_add(write, dx, *dy));
        }
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (x, y) = (expect_f32("gather_columns", "x", l.x(0))?, l.y(0));
        let (own, mut all, n) = (l.scratch(0), l.scratch(1), l.out_shape(0).n());
        if self.widths.len() > 1 {
            let width = self.widths[self.rank];
            copy_columns(
                l,
                "concat_columns_fwd",
                own,
                width,
                &[Columns { part: x, first: 0, width }],
                Write::Set,
            )?;
            l.exchange(Exchange::AllGather, all, own);
        } else {
            all = x;
        }
        let of_rank = |(rank, width): (usize, &usize)| Columns {
            part: all.part(rank * n * self.most(), n * width),
            first: self.first(rank),
            width: *width,
        };
        let parts: Vec<Columns> = self.widths.iter().enumerate().map(of_rank).collect();
        copy_columns(l, "concat_columns_fwd", y, self.width(), &parts, Write::Set)
    }
    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((dx, write)) = l.dx(0) else { return Ok(()) };
        let part = Columns { part: dx, first: self.first(self.rank), width: self.widths[self.rank] };
        copy_columns(l, "concat_columns_bwd", l.dy0(), self.width(), &[part], write)
    }
}

/// Columns of a matrix that are a matrix of their own.
struct Columns {
    part: DeviceTensor,
    first: usize,
    width: usize,
}

/// Copies columns to or from `whole`, which has `width` of them, with a kernel of `concat_columns`.
fn copy_columns(
    l: &mut Launches,
    kernel: &str,
    whole: DeviceTensor,
    width: usize,
    parts: &[Columns],
    write: Write,
) -> Result<()> {
    let n = l.out_shape(0).n();
    let row = |c: &Columns| {
        let [first, width] = [c.first, c.width].map(|v| KernelArg::from(v as i64));
        [c.part.into(), first, width, i64::from(write == Write::Add).into()]
    };
    let [count, rows, columns] = [parts.len(), n, width].map(|d| KernelArg::from(d as i32));
    let table = KernelArg::table(parts.iter().map(row).collect());
    l.launch(
        kernel,
        l.blocks_for(n * width, THREADS as usize),
        THREADS,
        0,
        [whole.into(), table, count, rows, columns],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    #[test]
    fn passes_the_op_checks_of_a_single_rank() {
        for (n, c) in [(1, 1), (67, 11)] {
            let case = Case::new(GatherColumns { widths: vec![c], rank: 0 }, &[Shape::rows(n, c)]);
            check(case.reference(|t| vec![t[0].clone()]));
        }
    }

    #[test]
    fn the_columns_of_all_ranks_have_room_and_others_are_refused() {
        let op = GatherColumns { widths: vec![10, 3], rank: 1 };
        let x = |c| OperandInfo { shape: Shape::rows(4, c), needs_grad: false };
        let s = op.signature(&[x(3)]).unwrap();
        assert_eq!(s.outputs, [Shape::rows(4, 13)]);
        assert_eq!(s.scratch_forward, [Extent::Reals(40), Extent::Reals(80)]);
        let e = op.signature(&[x(10)]).unwrap_err().to_string();
        assert_eq!(e, "gather_columns: x: expected [4, 1, 1, 3], found [4, 1, 1, 10]");
        let e = GatherColumns { widths: vec![2, 0], rank: 0 }.signature(&[x(2)]).unwrap_err().to_string();
        assert_eq!(e, "gather_columns: widths: [2, 0]; every rank needs a column");
    }
}
