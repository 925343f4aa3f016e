//! Hands a value to networks that several ranks share, and adds their gradients.

use crate::device::collective;
use crate::device::gpu::launch::{Exchange, KernelArg};
use crate::error::Result;
use crate::ops::launch::launches::{Launches, THREADS};
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
    /// The terms of all networks from the last to the first, as rows of what all ranks have sent.
    fn order(&self) -> impl Iterator<Item = usize> {
        let most = self.most();
        let of_rank = move |(rank, count): (usize, &usize)| (0..*count).map(move |i| rank * most + i);
        let all: Vec<usize> = self.networks.iter().enumerate().flat_map(of_rank).collect();
        all.into_iter().rev()
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
            exchanges: true,
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        (0..self.networks[self.rank]).for_each(|i| io.y(i).copy_from_slice(io.x(0)));
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(dx) = io.dx(0) else { return };
        let (elems, most) = (dx.data.len(), self.most());
        let slice = self.slice(elems);
        // [rank that adds][network][slice]; what is missing is not read.
        let (own, all): (&mut [R], &mut [R]) = (io.scratch(0), io.scratch(1));
        for i in 0..self.networks[self.rank] {
            for rank in 0..self.networks.len() {
                let [from, to] = [rank, rank + 1].map(|r| (r * slice).min(elems));
                let part = &mut own[(rank * most + i) * slice..][..to - from];
                match io.dy(i) {
                    Some(term) => part.copy_from_slice(&term[from..to]),
                    // The loss does not depend on this network.
                    None => part.fill(R::ZERO),
                }
            }
        }
        match collective::current() {
            Some(ranks) => ranks.all_to_all(own, all),
            None => all.copy_from_slice(own),
        }
        let sum = &mut own[..slice];
        for (i, at) in self.order().enumerate() {
            let term = &all[at * slice..][..slice];
            match i {
                0 => sum.copy_from_slice(term),
                _ => sum.iter_mut().zip(term).for_each(|(s, t)| *s += *t),
            }
        }
        let all = &mut all[..slice * self.networks.len()];
        match collective::current() {
            Some(ranks) => ranks.all_gather(sum, all),
            None => all.copy_from_slice(sum),
        }
        let write = dx.write;
        dx.data.iter_mut().zip(&*all).for_each(|(dx, v)| store_or_add(write, dx, *v));
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (x, networks) = (l.x(0), self.networks[self.rank]);
        for i in 0..networks {
            l.expect_same("y", x, l.y(i))?;
        }
        let elements = l.shape(0).elems();
        let outputs = KernelArg::table((0..networks).map(|i| [l.y(i).into()]).collect());
        let args = [outputs, x.into(), (networks as i32).into(), (elements as i64).into()];
        let blocks = l.blocks_for(elements, THREADS as usize);
        l.launch(format!("spread_fwd<{}>", x.elem), blocks, THREADS, 0, args)
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((dx, write)) = l.dx(0) else { return Ok(()) };
        let (elements, ranks, most) = (l.shape(0).elems(), self.networks.len(), self.most());
        let slice = self.slice(elements);
        let (own, all) = (l.scratch(0), l.scratch(1));
        let int = |v: usize| KernelArg::from(v as i32);
        let long = |v: usize| KernelArg::from(v as i64);
        let blocks = |elements: usize| l.blocks_for(elements, THREADS as usize);
        let (over_slice, over_all) = (blocks(slice), blocks(elements));

        let networks = self.networks[self.rank];
        let gradients = KernelArg::table((0..networks).map(|i| [l.dy(i).into()]).collect());
        let args = [own.into(), gradients, int(networks), int(most), long(slice), long(elements)];
        l.launch(format!("spread_pack<{}>", dx.elem), over_all, THREADS, 0, args)?;
        // A single rank adds its own terms, and has all sums then.
        let (terms, sum) = if ranks > 1 { (all, own.part(0, slice)) } else { (own, all) };
        if ranks > 1 {
            l.exchange(Exchange::AllToAll, all, own);
        }
        let order = KernelArg::table(self.order().map(|row| [long(row)]).collect());
        let args = [sum.into(), terms.into(), order, int(self.networks.iter().sum()), long(slice)];
        l.launch("spread_sum", over_slice, THREADS, 0, args)?;
        if ranks > 1 {
            l.exchange(Exchange::AllGather, all.part(0, slice * ranks), sum);
        }
        let args = [dx.into(), all.into(), long(elements), write.into()];
        l.launch(format!("spread_store<{}>", dx.elem), over_all, THREADS, 0, args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};
    use crate::tensor::Shape;

    #[test]
    fn passes_the_op_checks_of_a_single_rank() {
        for (networks, x) in [(1, Shape::rows(1, 1)), (3, Shape::new(2, 5, 3, 7)), (2, Shape::rows(67, 11))] {
            let case = Case::new(Spread { networks: vec![networks], rank: 0 }, &[x]);
            check(case.reference(move |t| vec![t[0].clone(); networks]));
        }
    }

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
