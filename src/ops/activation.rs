//! Elementwise activation, and the residual addition in front of it.

use super::*;
use crate::device::cpu::par::{Rows, for_rows};

/// The pointwise function that also ends a convolution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    None,
    Relu,
    /// Slope below zero.
    LeakyRelu(f32),
    Tanh,
    Sigmoid,
}

impl Act {
    #[inline(always)]
    pub fn apply<R: Real>(self, v: R) -> R {
        match self {
            Act::None => v,
            // Not `max`: a NaN must pass through, or a diverged network would look like a dead one.
            Act::Relu => {
                if v < R::ZERO {
                    R::ZERO
                } else {
                    v
                }
            }
            Act::LeakyRelu(slope) => {
                if v > R::ZERO {
                    v
                } else {
                    v * R::of(f64::from(slope))
                }
            }
            Act::Tanh => v.tanh(),
            Act::Sigmoid => sigmoid(v),
        }
    }

    /// The derivative, from the function's *value* `y`: every one of these can be had from it.
    #[inline(always)]
    pub fn slope<R: Real>(self, y: R) -> R {
        match self {
            Act::None => R::ONE,
            Act::Relu => {
                if y > R::ZERO {
                    R::ONE
                } else {
                    R::ZERO
                }
            }
            Act::LeakyRelu(slope) => {
                if y > R::ZERO {
                    R::ONE
                } else {
                    R::of(f64::from(slope))
                }
            }
            Act::Tanh => R::ONE - y * y,
            Act::Sigmoid => y * (R::ONE - y),
        }
    }

    /// The slope for non-positive inputs, when the derivative is a step and one bit tells it.
    pub fn step_slope(self) -> Option<f64> {
        match self {
            Act::None => Some(1.0),
            Act::Relu => Some(0.0),
            Act::LeakyRelu(slope) => Some(f64::from(slope)),
            Act::Tanh | Act::Sigmoid => None,
        }
    }
}

/// `1 / (1 + e^-v)`, without overflow on either side.
#[inline(always)]
pub fn sigmoid<R: Real>(v: R) -> R {
    let e = (-v.abs()).exp();
    let small = e / (R::ONE + e);
    if v > R::ZERO { R::ONE - small } else { small }
}

/// `y = act(x)`, or `y = act(x + residual)` with two operands.
///
/// Shapes: x, residual, y `[n, h, w, c]`.
/// Source: ResNet's block end (He et al. 2016, eq. 1); tanh and sigmoid as METHOD 1 and 2 use them.
/// Backward: `dx = dresidual = dy * act'`, from the saved output alone.
/// Errors: operands of different shapes.
/// Cost: no multiply-adds; reads 1 or 2 tensors, writes 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Activation(pub Act);

impl Operator for Activation {
    fn signature(&self, args: &[Arg]) -> Result<Signature> {
        if args.len() != 2 {
            expect_args("activation", args, &["x"])?;
        }
        for a in args {
            expect_shape("activation", "residual", args[0].shape, a.shape)?;
        }
        Ok(Signature {
            outputs: vec![args[0].shape],
            keeps_outputs: self.0 != Act::None,
            ..Default::default()
        })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (x, y) = (io.x(0), io.y(0));
        let residual = (io.inputs() == 2).then(|| io.x(1));
        let items = y.len();
        for_rows(Rows::new(y, items), 1, &|first, part: Rows<R>| {
            let x = &x[first..][..part.data.len()];
            match residual {
                None => part.data.iter_mut().zip(x).for_each(|(y, x)| *y = self.0.apply(*x)),
                Some(r) => {
                    part.data
                        .iter_mut()
                        .zip(x.iter().zip(&r[first..]))
                        .for_each(|(y, (x, r))| *y = self.0.apply(*x + *r));
                }
            }
        });
    }

    fn backward<R: Real>(&self, io: &Io<R>) {
        let dy = io.dy0();
        let y = (self.0 != Act::None).then(|| io.kept_y(0));
        for i in 0..io.inputs() {
            let Some(dx) = io.dx(i) else { continue };
            let (write, items) = (dx.write, dx.data.len());
            for_rows(Rows::new(dx.data, items), 1, &|first, part: Rows<R>| {
                for (j, dx) in part.data.iter_mut().enumerate() {
                    let slope = y.map_or(R::ONE, |y| self.0.slope(y[first + j]));
                    put(write, dx, dy[first + j] * slope);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gates::{Case, check};
    use super::*;

    #[test]
    fn gates() {
        for act in [Act::None, Act::Relu, Act::LeakyRelu(0.2), Act::Tanh, Act::Sigmoid] {
            for shape in [Shape::new(1, 1, 1, 1), Shape::new(3, 5, 7, 11), Shape::new(2, 64, 33, 8)] {
                let f = move |v: f64| match act {
                    Act::None => v,
                    Act::Relu => v.max(0.0),
                    Act::LeakyRelu(s) => v.max(f64::from(s) * v),
                    Act::Tanh => v.tanh(),
                    Act::Sigmoid => 1.0 / (1.0 + (-v).exp()),
                };
                check(
                    Case::new(Activation(act), &[shape])
                        .reference(move |x| vec![x[0].iter().map(|v| f(*v)).collect()]),
                );
                check(
                    Case::new(Activation(act), &[shape, shape])
                        .reference(move |x| vec![x[0].iter().zip(&x[1]).map(|(a, b)| f(a + b)).collect()]),
                );
            }
        }
    }

    #[test]
    fn a_nan_passes_every_activation() {
        for act in [Act::None, Act::Relu, Act::LeakyRelu(0.2), Act::Tanh, Act::Sigmoid] {
            assert!(act.apply(f32::NAN).is_nan(), "{act:?}");
        }
    }

    #[test]
    fn refuses_a_residual_of_another_shape() {
        let arg = |c| Arg { shape: Shape::vector(c), wants: false };
        let e = Activation(Act::Relu).signature(&[arg(3), arg(4)]).unwrap_err().to_string();
        assert_eq!(e, "activation: residual: expected [1, 1, 1, 3], found [1, 1, 1, 4]");
    }
}
