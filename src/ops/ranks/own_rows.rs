//! The part of a batch that one of several ranks computes.

use super::no_launch;
use crate::error::Result;
use crate::ops::launch::launches::Launches;
use crate::ops::operands::{Io, Write};
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_operands, expect_setting};
use crate::tensor::Real;

/// `y[i] = x[rank n / ranks + i]`: the samples of this rank, of a batch that every rank has.
///
/// Shapes: x `[n, h, w, c]`, y `[n / ranks, h, w, c]`.
/// Source: ours (`parallel.split = "batch"`).
/// Backward: dx is dy in the rows of this rank and zero in the others, of which another rank has the gradient.
/// Errors: a batch that the ranks cannot divide equally.
/// Cost: a copy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OwnRows {
    /// This rank.
    pub rank: usize,
    /// How many there are.
    pub ranks: usize,
}

impl Operator for OwnRows {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("own_rows", args, &["x"])?;
        let x = args[0].shape;
        let divides = self.rank < self.ranks && x.n().is_multiple_of(self.ranks);
        expect_setting("own_rows", divides, || {
            format!("ranks: {} ranks cannot divide a batch of {} equally", self.ranks, x.n())
        })?;
        Ok(Signature { outputs: vec![x.with_n(x.n() / self.ranks)], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let y = io.y(0);
        y.copy_from_slice(&io.x(0)[self.rank * y.len()..][..y.len()]);
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let (Some(dx), dy) = (io.dx(0), io.dy0()) else { return };
        if dx.write == Write::Set {
            dx.data.fill(R::ZERO);
        }
        let own = &mut dx.data[self.rank * dy.len()..][..dy.len()];
        own.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += *dy);
    }

    fn launch_forward(&self, _: &mut Launches) -> Result<()> {
        no_launch("own_rows")
    }
    fn launch_backward(&self, _: &mut Launches) -> Result<()> {
        no_launch("own_rows")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};
    use crate::tensor::Shape;

    #[test]
    fn passes_the_op_checks() {
        let x = Shape::new(6, 2, 1, 3);
        for rank in 0..3 {
            let case = Case::new(OwnRows { rank, ranks: 3 }, &[x]).on_targets(&[]);
            check(case.reference(move |t| vec![t[0][rank * 12..][..12].to_vec()]));
        }
    }

    #[test]
    fn a_batch_that_cannot_be_divided_is_refused() {
        let x = OperandInfo { shape: Shape::rows(5, 1), needs_grad: false };
        let e = OwnRows { rank: 0, ranks: 2 }.signature(&[x]).unwrap_err().to_string();
        assert_eq!(e, "own_rows: ranks: 2 ranks cannot divide a batch of 5 equally");
    }
}
