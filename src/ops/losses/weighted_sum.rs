//! The weighted sum of loss terms.

use crate::device::gpu::launch;
use crate::error::Result;
use crate::ops::launch::launches::Launches;
use crate::ops::operands::{Io, Write};
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_f32, expect_setting, expect_shape};
use crate::tensor::{Real, Shape};

/// `y = sum_i weights[i] x_i`.
///
/// Shapes: each x_i and y a scalar; as many x_i as weights.
/// Source: eq. 8, 11, 14 and 16.
/// Backward: `dx_i = weights[i] dy`; keeps nothing.
/// Errors: no operand, another number of operands than weights, an operand that is not a scalar, a weight
/// that is not finite.
/// Cost: negligible.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedSum {
    /// One for each operand.
    pub weights: Vec<f32>,
}

impl Operator for WeightedSum {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        let count = self.weights.len();
        expect_setting("weighted_sum", count == args.len() && count > 0, || {
            format!(
                "expected one operand for each weight, and at least one; found {} for {count} weights",
                args.len()
            )
        })?;
        for (arg, weight) in args.iter().zip(&self.weights) {
            expect_shape("weighted_sum", "term", Shape::SCALAR, arg.shape)?;
            expect_setting("weighted_sum", weight.is_finite(), || format!("weight: {weight} is not finite"))?;
        }
        Ok(Signature { outputs: vec![Shape::SCALAR], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let terms = self.weights.iter().enumerate().map(|(i, w)| f64::from(*w) * io.x(i)[0].f64());
        io.y(0)[0] = R::of(terms.sum());
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        for (i, w) in self.weights.iter().enumerate() {
            if let Some(mut dx) = io.dx(i) {
                dx.store_or_add(0, R::of(f64::from(*w) * io.dy0()[0].f64()));
            }
        }
    }

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let mut terms = Vec::new();
        for (i, w) in self.weights.iter().enumerate() {
            terms.push([expect_f32("weighted_sum", "term", l.x(i))?.into(), f64::from(*w).into()]);
        }
        let count = terms.len() as i32;
        l.launch("weighted_sum_fwd", 1, 32, 0, [l.y(0).into(), launch::KernelArg::table(terms), count.into()])
    }

    fn launch_backward(&self, l: &mut Launches) -> Result<()> {
        let mut terms = Vec::new();
        for (i, w) in self.weights.iter().enumerate() {
            if let Some((dx, write)) = l.dx(i) {
                terms.push([dx.into(), f64::from(*w).into(), i64::from(write == Write::Add).into()]);
            }
        }
        let count = terms.len() as i32;
        l.launch(
            "weighted_sum_bwd",
            1,
            32,
            0,
            [launch::KernelArg::table(terms), l.dy0().into(), count.into()],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};

    #[test]
    fn passes_the_op_checks() {
        for weights in [vec![1.0], vec![1.0, 0.1, 1.0, 5.0], vec![-0.2; 17], vec![0.3; 70]] {
            let (op, terms) = (WeightedSum { weights: weights.clone() }, vec![Shape::SCALAR; weights.len()]);
            check(Case::new(op, &terms).reference(move |x| {
                let mut sum = 0.0;
                for (x, w) in x.iter().zip(&weights) {
                    sum += f64::from(*w) * x[0];
                }
                vec![vec![sum]]
            }));
        }
    }

    #[test]
    fn equals_a_result_computed_by_hand() {
        // Eq. 8, alpha = beta = 1, gamma = 5: 0.5 - 2 - 0.25 + 5 * 0.125 = -1.125.
        let op = WeightedSum { weights: vec![1.0, 1.0, 1.0, 5.0] };
        let case = [0.5, -2.0, -0.25, 0.125].iter().enumerate();
        let case = case.fold(Case::new(op, &[Shape::SCALAR; 4]), |case, (i, v)| case.values(i, vec![*v]));
        check(case.reference(|_| vec![vec![-1.125]]));
    }

    #[test]
    fn refuses_operands_and_settings_that_do_not_fit() {
        let e = |weights: &[f32], shapes: &[Shape]| {
            let args: Vec<OperandInfo> =
                shapes.iter().map(|shape| OperandInfo { shape: *shape, needs_grad: true }).collect();
            WeightedSum { weights: weights.to_vec() }.signature(&args).unwrap_err().to_string()
        };
        assert_eq!(
            e(&[1.0, 2.0], &[Shape::SCALAR]),
            "weighted_sum: expected one operand for each weight, and at least one; found 1 for 2 weights"
        );
        assert!(e(&[], &[]).contains("at least one"));
        assert_eq!(
            e(&[1.0], &[Shape::rows(2, 1)]),
            "weighted_sum: term: expected [1, 1, 1, 1], found [2, 1, 1, 1]"
        );
        assert!(e(&[f32::NAN], &[Shape::SCALAR]).contains("not finite"));
    }
}
