//! The whole batch, from the parts that several ranks have computed.

use super::no_launch;
use crate::device::collective;
use crate::error::Result;
use crate::ops::launch::launches::Launches;
use crate::ops::operands::{Io, store_or_add};
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_operands};
use crate::tensor::Real;

/// `y = [x of rank 0, x of rank 1, ...]` along the batch, in every rank.
///
/// Shapes: x `[n, h, w, c]`, y `[n ranks, h, w, c]`.
/// Source: ours (`parallel.split = "batch"`): the losses over a batch are those of a single process.
/// Backward: dx is the rows of this rank of dy, which every rank has computed; nothing is exchanged.
/// Errors: another number of operands than one.
/// Cost: an exchange of y.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AllRows {
    /// This rank.
    pub rank: usize,
    /// How many there are.
    pub ranks: usize,
}

impl Operator for AllRows {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("all_rows", args, &["x"])?;
        let x = args[0].shape;
        Ok(Signature { outputs: vec![x.with_n(x.n() * self.ranks)], exchanges: true, ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        if let Some(ranks) = collective::current() {
            ranks.all_gather(io.x(0), io.y(0));
        }
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(dx) = io.dx(0) else { return };
        let (write, elems) = (dx.write, dx.data.len());
        let dy = &io.dy0()[self.rank * elems..];
        dx.data.iter_mut().zip(dy).for_each(|(dx, dy)| store_or_add(write, dx, *dy));
    }

    fn launch_forward(&self, _: &mut Launches) -> Result<()> {
        no_launch("all_rows")
    }
    fn launch_backward(&self, _: &mut Launches) -> Result<()> {
        no_launch("all_rows")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;

    #[test]
    fn the_batch_is_as_large_as_all_parts() {
        let x = OperandInfo { shape: Shape::new(4, 2, 2, 3), needs_grad: true };
        let s = AllRows { rank: 1, ranks: 3 }.signature(&[x]).unwrap();
        assert_eq!(s.outputs, [Shape::new(12, 2, 2, 3)]);
    }
}
