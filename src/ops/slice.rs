//! A run of samples.

use super::concat::write_all;
use super::launches::{THREADS, blocks_for};
use super::tiles::{instance, pack};
use super::*;
use crate::device::cpu::par::{Rows, for_rows};

/// `y[i] = x[first + i]`, `0 <= i < count`, along the batch axis.
///
/// Shapes: x `[n, h, w, c]`, y `[count, h, w, c]`.
/// Source: docs/method.md 2 (one level's predictions out of the batch of all levels).
/// Backward: dx is dy in its place and zero elsewhere; keeps nothing.
/// Errors: a run that is empty or ends behind the last sample.
/// Cost: memory-bound; one copy of y forward, one pass over dx backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub first: usize,
    pub count: usize,
}

impl Operator for Slice {
    fn signature(&self, args: &[Arg]) -> Result<Signature> {
        expect_args("slice", args, &["x"])?;
        let x = args[0].shape;
        if self.count == 0 || self.first.checked_add(self.count).is_none_or(|end| end > x.n()) {
            let message = format!("x {x} has no run of {} samples from {}", self.count, self.first);
            return Err(Error::shape("slice", message));
        }
        Ok(Signature { outputs: vec![x.with_n(self.count)], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let from = self.first * io.shape(0).per_sample();
        let y = io.y(0);
        let x = &io.x(0)[from..][..y.len()];
        write_all(Grad { data: y, write: Write::Set }, x);
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let Some(dx) = io.dx(0) else { return };
        let dy = io.dy0();
        let (before, rest) = dx.data.split_at_mut(self.first * io.shape(0).per_sample());
        let (inside, after) = rest.split_at_mut(dy.len());
        write_all(Grad { data: inside, write: dx.write }, dy);
        if dx.write == Write::Set {
            for outside in [before, after] {
                let len = outside.len();
                for_rows(Rows::new(outside, len), 1, &|_, part: Rows<R>| part.data.fill(R::ZERO));
            }
        }
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (x, y, sample) = (l.x(0), l.y(0), l.shape(0).per_sample());
        l.expect_same("y", x, y)?;
        let pack = pack(x.elem, sample);
        let packs = self.count * sample / pack;
        let args = [y.into(), x.into(), ((self.first * sample / pack) as i64).into(), (packs as i64).into()];
        l.launch(instance("slice_fwd", x.elem, pack), blocks_for(packs, THREADS as usize), THREADS, 0, args)
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let Some((dx, write)) = l.dx(0) else { return Ok(()) };
        let (shape, sample) = (l.shape(0), l.shape(0).per_sample());
        let pack = pack(dx.elem, sample);
        let [first, count, packs] = [self.first, self.count, shape.n()].map(|n| n * sample / pack);
        let args = [
            dx.into(),
            l.dy0().into(),
            (first as i64).into(),
            (count as i64).into(),
            (packs as i64).into(),
            write.into(),
        ];
        l.launch(instance("slice_bwd", dx.elem, pack), blocks_for(packs, THREADS as usize), THREADS, 0, args)
    }
    /// A neighbour can do it on the way: nothing.
    fn minimal_bytes(&self, _: &Operands) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::super::gates::{Case, check};
    use super::*;

    #[test]
    fn gates() {
        for (x, first, count) in [
            (Shape::new(1, 1, 1, 1), 0, 1),
            (Shape::new(7, 5, 7, 11), 2, 3),
            (Shape::new(3, 33, 32, 17), 0, 2),
            (Shape::new(3, 33, 32, 17), 2, 1),
        ] {
            let run = first * x.per_sample()..(first + count) * x.per_sample();
            check(
                Case::new(Slice { first, count }, &[x]).reference(move |t| vec![t[0][run.clone()].to_vec()]),
            );
        }
    }

    #[test]
    fn refuses_runs_outside() {
        let arg = Arg { shape: Shape::rows(4, 3), wants: false };
        let e = |first, count| Slice { first, count }.signature(&[arg]).unwrap_err().to_string();
        assert_eq!(e(3, 2), "slice: x [4, 1, 1, 3] has no run of 2 samples from 3");
        assert!(e(0, 0).contains("no run of 0 samples"));
        assert!(e(usize::MAX, 1).contains("no run"));
    }
}
