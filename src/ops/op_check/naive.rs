//! f32 as a type of its own, for which no op has a faster way.
//!
//! In f32 the CPU computes many convolutions by Winograd's algorithm. Its rounding errors are smaller than those of a
//! plain sum. If the bound on a device's error came from it, a kernel that adds in order would not pass.

use crate::tensor::Real;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// An f32 that ops compute with plain sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Naive(f32);

impl fmt::Display for Naive {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! forward {
    ($($operator:ident, $method:ident, $assign:ident, $assign_method:ident;)*) => {$(
        impl $operator for Naive {
            type Output = Naive;
            #[inline(always)]
            fn $method(self, o: Naive) -> Naive {
                Naive($operator::$method(self.0, o.0))
            }
        }
        impl $assign for Naive {
            #[inline(always)]
            fn $assign_method(&mut self, o: Naive) {
                $assign::$assign_method(&mut self.0, o.0);
            }
        }
    )*};
}

forward! {
    Add, add, AddAssign, add_assign;
    Sub, sub, SubAssign, sub_assign;
    Mul, mul, MulAssign, mul_assign;
}

impl Div for Naive {
    type Output = Naive;
    fn div(self, o: Naive) -> Naive {
        Naive(self.0 / o.0)
    }
}

impl Neg for Naive {
    type Output = Naive;
    fn neg(self) -> Naive {
        Naive(-self.0)
    }
}

impl Sum for Naive {
    fn sum<I: Iterator<Item = Naive>>(all: I) -> Naive {
        Naive(all.map(|v| v.0).sum())
    }
}

impl Real for Naive {
    const ZERO: Self = Naive(0.0);
    const ONE: Self = Naive(1.0);
    const EPSILON: f64 = f32::EPSILON as f64;

    fn of(v: f64) -> Self {
        Naive(v as f32)
    }
    fn f64(self) -> f64 {
        f64::from(self.0)
    }
    fn exp(self) -> Self {
        Naive(self.0.exp())
    }
    fn ln(self) -> Self {
        Naive(self.0.ln())
    }
    fn tanh(self) -> Self {
        Naive(self.0.tanh())
    }
    fn sqrt(self) -> Self {
        Naive(self.0.sqrt())
    }
    fn abs(self) -> Self {
        Naive(self.0.abs())
    }
    fn fma(self, a: Self, b: Self) -> Self {
        Naive(self.0.mul_add(a.0, b.0))
    }
    fn finite(self) -> bool {
        self.0.is_finite()
    }
}
