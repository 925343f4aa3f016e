//! How far a student and its teachers disagree: what the generator seeks while the student learns.

use super::launches::{THREADS, blocks_for};
use super::scalar::{expect_f32, expect_rows, one_block, put_slopes};
use super::*;
use crate::device::cpu::sum::sum_of;
use crate::device::gpu::launch;

/// `y = log(1/(n c) sum_{n,c} |a - b|)`, a mean below 1e-6 counting as 1e-6.
///
/// Shapes: a and b, logits, `[n, 1, 1, c]`; y a scalar.
/// Source: ours (the generator's loss less 0.2 y).
/// Backward: `da = dy sign(a - b) / sum |a - b|` and `db = -da`, from a, b and the saved sum; 0 below the floor.
/// Errors: operands that are not rows or differ in shape.
/// Cost: no multiply-adds; reads 2 tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogMeanAbs;

/// The mean difference below which two networks agree to what `f32` resolves of a logit near 10.
const FLOOR: f64 = 1e-6;

impl Operator for LogMeanAbs {
    fn signature(&self, args: &[Arg]) -> Result<Signature> {
        expect_args("disagreement", args, &["a", "b"])?;
        expect_rows("disagreement", "a", args[0].shape)?;
        expect_shape("disagreement", "b", args[0].shape, args[1].shape)?;
        Ok(Signature {
            outputs: vec![Shape::SCALAR],
            keeps_inputs: vec![0, 1],
            saved: vec![Extent::Bytes(size_of::<f64>())],
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (a, b) = (io.x(0), io.x(1));
        let total = sum_of(a.len(), |i| (a[i].f64() - b[i].f64()).abs());
        let mean = total / a.len() as f64;
        io.y(0)[0] = R::of(mean.max(FLOOR).ln());
        if io.saves() {
            io.save::<f64>(0)[0] = if mean > FLOOR { 1.0 / total } else { 0.0 };
        }
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let (a, b, dy) = (io.x(0), io.x(1), io.dy0()[0]);
        let slope = io.saved::<f64>(0)[0];
        let sign = |i: usize| f64::from(a[i] > b[i]) - f64::from(a[i] < b[i]);
        for (input, side) in [(0, slope), (1, -slope)] {
            if let Some(dx) = io.dx(input) {
                put_slopes(dx, dy, |i| side * sign(i));
            }
        }
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let [a, b] = [expect_f32("disagreement", "a", l.x(0))?, expect_f32("disagreement", "b", l.x(1))?];
        let (slope, elems) = (l.saves().then(|| l.saved(0)), l.shape(0).elems());
        l.launch(
            "disagreement_fwd",
            1,
            one_block(elems),
            0,
            [l.y(0).into(), slope.into(), a.into(), b.into(), (elems as i64).into(), FLOOR.into()],
        )
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let elems = l.shape(0).elems();
        let [(da, write_a), (db, write_b)] = [0, 1].map(|i| match l.dx(i) {
            Some((dx, write)) => (dx.into(), write),
            None => (launch::Arg::Null, Write::Set),
        });
        l.launch(
            "disagreement_bwd",
            blocks_for(elems, THREADS as usize),
            THREADS,
            0,
            [
                da,
                db,
                l.x(0).into(),
                l.x(1).into(),
                l.saved(0).into(),
                l.dy0().into(),
                (elems as i64).into(),
                write_a.into(),
                write_b.into(),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::gates::{Case, check};
    use super::*;

    #[test]
    fn gates() {
        for shape in [Shape::rows(1, 1), Shape::rows(7, 5), Shape::rows(64, 20), Shape::rows(1030, 17)] {
            let plain = |x: &[Vec<f64>]| {
                let mut sum = 0.0;
                for (a, b) in x[0].iter().zip(&x[1]) {
                    sum += (a - b).abs();
                }
                vec![vec![(sum / x[0].len() as f64).ln()]]
            };
            check(Case::new(LogMeanAbs, &[shape, shape]).reference(plain));
        }
    }

    #[test]
    fn hand_computed() {
        // |1 - 3|, |0 - -4|, |5 - 5|: a mean of 2.
        let case = || Case::new(LogMeanAbs, &[Shape::rows(1, 3); 2]).values(0, vec![1.0, 0.0, 5.0]);
        let apart = case().frozen(0).frozen(1).values(1, vec![3.0, -4.0, 5.0]);
        check(apart.reference(|_| vec![vec![2f64.ln()]]));
        // Perfect agreement leaves a number, and no gradient.
        let floor = case().values(1, vec![1.0, 0.0, 5.0]).frozen(0).frozen(1);
        check(floor.reference(|_| vec![vec![1e-6f64.ln()]]));
    }

    #[test]
    fn refuses_what_it_cannot_take() {
        let arg = |shape| Arg { shape, wants: true };
        let e = |a, b| LogMeanAbs.signature(&[arg(a), arg(b)]).unwrap_err().to_string();
        assert_eq!(
            e(Shape::rows(2, 3), Shape::rows(3, 3)),
            "disagreement: b: expected [2, 1, 1, 3], found [3, 1, 1, 3]"
        );
        assert!(e(Shape::new(2, 2, 2, 3), Shape::rows(2, 3)).contains("a: expected rows"));
    }
}
