//! Hands a value to networks that several ranks share, and adds their gradients.

use super::no_launch;
use crate::device::collective;
use crate::error::Result;
use crate::ops::launch::launches::Launches;
use crate::ops::operands::{Io, store_or_add};
use crate::ops::operator::{Extent, OperandInfo, Operator, Signature, expect_operands, expect_setting};
use crate::tensor::Real;

/// `y_m = x` for each of this rank's networks m. Every rank has the same x.
///
/// Shapes: x any; as many y of its shape as this rank has networks.
/// Source: the input of several teachers, eq. 4 and 10, with the teachers on several ranks.
/// Backward: `dx = sum over all networks m of dy_m`, in every rank. The terms are added from the last network to the first,
/// as the backward pass of a single process meets them, so that the bits are the same for any number of ranks.
/// Errors: no network, or more ranks than networks.
/// Cost: a copy for each network forward; backward exchanges each term once and the sum once.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// Networks of each rank, in their order.
    pub networks: Vec<usize>,
    /// This rank.
    pub rank: usize,
}

impl Spread {
    /// Most networks of a rank.
    fn most(&self) -> usize {
        self.networks.iter().copied().max().unwrap_or(0)
    }
    /// Elements of the slice of dx that each rank adds.
    fn slice(&self, elems: usize) -> usize {
        elems.div_ceil(self.networks.len())
    }
}

impl Operator for Spread {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("spread", args, &["x"])?;
        let has_some = self.networks.iter().all(|n| *n > 0) && self.rank < self.networks.len();
        expect_setting("spread", has_some, || {
            format!("networks: {:?} for each rank; every rank needs one", self.networks)
        })?;
        let x = args[0].shape;
        let terms = self.networks.len() * self.most() * self.slice(x.elems());
        Ok(Signature {
            outputs: vec![x; self.networks[self.rank]],
            scratch_backward: vec![Extent::Reals(terms), Extent::Reals(terms)],
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        (0..self.networks[self.rank]).for_each(|i| io.y(i).copy_from_slice(io.x(0)));
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let (Some(dx), Some(ranks)) = (io.dx(0), collective::current()) else { return };
        let (elems, most) = (dx.data.len(), self.most());
        let slice = self.slice(elems);
        // [rank that adds][network][slice]; what is missing is not read.
        let (own, all): (&mut [R], &mut [R]) = (io.scratch(0), io.scratch(1));
        for (i, term) in (0..self.networks[self.rank]).filter_map(|i| Some((i, io.dy(i)?))) {
            for (rank, part) in term.chunks(slice).enumerate() {
                own[(rank * most + i) * slice..][..part.len()].copy_from_slice(part);
            }
        }
        ranks.all_to_all(own, all);
        let of_network = |(rank, count): (usize, &usize)| (0..*count).map(move |i| rank * most + i);
        let order: Vec<usize> = self.networks.iter().enumerate().flat_map(of_network).collect();
        let sum = &mut own[..slice];
        for (i, at) in order.iter().rev().enumerate() {
            let term = &all[at * slice..][..slice];
            match i {
                0 => sum.copy_from_slice(term),
                _ => sum.iter_mut().zip(term).for_each(|(s, t)| *s += *t),
            }
        }
        let all = &mut all[..slice * self.networks.len()];
        ranks.all_gather(sum, all);
        let write = dx.write;
        dx.data.iter_mut().zip(&*all).for_each(|(dx, v)| store_or_add(write, dx, *v));
    }

    fn launch_forward(&self, _: &mut Launches) -> Result<()> {
        no_launch("spread")
    }
    fn launch_backward(&self, _: &mut Launches) -> Result<()> {
        no_launch("spread")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;

    #[test]
    fn every_network_of_the_rank_gets_an_output_and_the_terms_get_room() {
        let x = OperandInfo { shape: Shape::new(2, 1, 1, 5), needs_grad: true };
        let spread = |networks: &[usize], rank| Spread { networks: networks.to_vec(), rank };
        let s = spread(&[2, 2, 1], 2).signature(&[x]).unwrap();
        assert_eq!(s.outputs, [x.shape]);
        // Ten elements in slices of four, of two networks, for three ranks.
        assert_eq!(s.scratch_backward, [Extent::Reals(24); 2]);
        assert_eq!(spread(&[2, 1], 0).signature(&[x]).unwrap().outputs.len(), 2);
        let e = spread(&[1, 0], 0).signature(&[x]).unwrap_err().to_string();
        assert_eq!(e, "spread: networks: [1, 0] for each rank; every rank needs one");
    }
}
