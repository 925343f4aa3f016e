//! Shapes, scalar types and views of images, which every module may use.

use std::fmt;

/// The shape of a tensor: four extents in memory order, the last one contiguous.
///
/// Activations are `[n, h, w, c]` (NHWC), convolution filters `[k, r, s, c]`, per-channel vectors
/// `[1, 1, 1, c]`, predictions and other per-sample vectors `[n, 1, 1, c]`, scalars `[1, 1, 1, 1]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape(pub [usize; 4]);

impl Shape {
    /// One element.
    pub const SCALAR: Shape = Shape([1, 1, 1, 1]);

    /// `[n, h, w, c]`.
    pub const fn new(n: usize, h: usize, w: usize, c: usize) -> Self {
        Shape([n, h, w, c])
    }

    /// A per-channel vector, `[1, 1, 1, c]`.
    pub const fn vector(c: usize) -> Self {
        Shape([1, 1, 1, c])
    }

    /// One row per sample, `[n, 1, 1, c]`.
    pub const fn rows(n: usize, c: usize) -> Self {
        Shape([n, 1, 1, c])
    }

    /// Samples, the first extent.
    pub const fn n(self) -> usize {
        self.0[0]
    }

    /// Height, the second extent.
    pub const fn h(self) -> usize {
        self.0[1]
    }

    /// Width, the third extent.
    pub const fn w(self) -> usize {
        self.0[2]
    }

    /// Channels, the last extent.
    pub const fn c(self) -> usize {
        self.0[3]
    }

    /// Number of elements.
    pub const fn elems(self) -> usize {
        self.0[0] * self.0[1] * self.0[2] * self.0[3]
    }

    /// Number of elements of one sample.
    pub const fn per_sample(self) -> usize {
        self.0[1] * self.0[2] * self.0[3]
    }

    /// The same shape with `n` samples.
    pub const fn with_n(self, n: usize) -> Self {
        Shape([n, self.0[1], self.0[2], self.0[3]])
    }

    /// The same shape with `c` channels.
    pub const fn with_c(self, c: usize) -> Self {
        Shape([self.0[0], self.0[1], self.0[2], c])
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [n, h, w, c] = self.0;
        write!(f, "[{n}, {h}, {w}, {c}]")
    }
}
impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a GPU stores the elements of a tensor. Arithmetic is in `f32` either way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Elem {
    /// IEEE single precision.
    F32,
    /// bfloat16: the upper 16 bits of an `f32`.
    Bf16,
}

impl Elem {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Elem::F32 => 4,
            Elem::Bf16 => 2,
        }
    }
}

/// The type's name in the kernels.
impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Elem::F32 => "float",
            Elem::Bf16 => "bf16",
        })
    }
}

/// The scalar type that ops compute in: `f32` is the CPU backend, and tests compare it with `f64`.
pub trait Real:
    bytemuck::Pod
    + Send
    + Sync
    + PartialOrd
    + fmt::Debug
    + fmt::Display
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
    + std::iter::Sum
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// The difference between 1 and the next larger number.
    const EPSILON: f64;
    /// The nearest value to `v`.
    fn of(v: f64) -> Self;
    /// The value as an `f64`, exactly.
    fn f64(self) -> f64;
    /// e to this power.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// `self * a + b`, rounded once.
    fn fma(self, a: Self, b: Self) -> Self;
    /// Whether this is neither NaN nor an infinity.
    fn finite(self) -> bool;
    /// The greater of the two; `o` where one of them is NaN.
    fn max(self, o: Self) -> Self {
        if self > o { self } else { o }
    }
    /// The lesser of the two; `o` where one of them is NaN.
    fn min(self, o: Self) -> Self {
        if self < o { self } else { o }
    }
}

macro_rules! real {
    ($t:ty, $tanh:path) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const EPSILON: f64 = <$t>::EPSILON as f64;
            #[inline(always)]
            fn of(v: f64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn exp(self) -> Self {
                self.exp()
            }
            #[inline(always)]
            fn ln(self) -> Self {
                self.ln()
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                $tanh(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            #[inline(always)]
            fn abs(self) -> Self {
                self.abs()
            }
            #[inline(always)]
            fn fma(self, a: Self, b: Self) -> Self {
                self.mul_add(a, b)
            }
            #[inline(always)]
            fn finite(self) -> bool {
                self.is_finite()
            }
        }
    };
}
real!(f32, tanh);
real!(f64, f64::tanh);

/// The hyperbolic tangent, without branches, so that loops over it become vectors: an image of 64x32x32 takes 40 us
/// instead of 630 through the library's function. It is computed in f64 and rounded once.
#[inline(always)]
fn tanh(v: f32) -> f32 {
    /// 1.5 * 2^52: a small number added to it loses its fraction and stands in the lowest bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// 1 / i!, from i = 9 down to 2. The next term is 2e-11 of the sum.
    const TERMS: [f64; 8] = [
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        1.0 / 2.0,
    ];
    let x = 2.0 * f64::from(v.abs());
    // Beyond it, 1 is the nearest f32. (NaN stays.)
    let x = if x > 40.0 { 40.0 } else { x };
    // e^x = 2^n e^r with r within half of ln 2.
    let shifted = x.mul_add(std::f64::consts::LOG2_E, ROUND);
    let power = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1.0f64.to_bits()));
    let r = (shifted - ROUND).mul_add(-std::f64::consts::LN_2, x);
    let mut sum = TERMS[0];
    for term in &TERMS[1..] {
        sum = sum.mul_add(r, *term);
    }
    let less_one = sum.mul_add(r * r, r).mul_add(power, power - 1.0);
    ((less_one / (less_one + 2.0)) as f32).copysign(v)
}

/// Images that are to be written, `[n, h, w, c]`.
pub enum ImagesMut<'a> {
    /// As files have them: one byte for each element.
    Pixels(&'a mut [u8]),
    /// As networks take them: in [-1, 1].
    Inputs(&'a mut [f32]),
}

impl<'a> ImagesMut<'a> {
    /// The first `elems` elements.
    ///
    /// Panics: more than there are.
    pub fn first(self, elems: usize) -> ImagesMut<'a> {
        match self {
            ImagesMut::Pixels(all) => ImagesMut::Pixels(&mut all[..elems]),
            ImagesMut::Inputs(all) => ImagesMut::Inputs(&mut all[..elems]),
        }
    }
    /// The number of elements.
    pub fn elems(&self) -> usize {
        match self {
            ImagesMut::Pixels(all) => all.len(),
            ImagesMut::Inputs(all) => all.len(),
        }
    }
}

impl<'a> From<&'a mut [u8]> for ImagesMut<'a> {
    fn from(pixels: &'a mut [u8]) -> Self {
        ImagesMut::Pixels(pixels)
    }
}

impl<'a> From<&'a mut [f32]> for ImagesMut<'a> {
    fn from(inputs: &'a mut [f32]) -> Self {
        ImagesMut::Inputs(inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hyperbolic_tangent_is_the_nearest_number() {
        let numbers = (0..40_000).map(|i| 1e-6 * 1.0005f32.powi(i)).filter(|v| *v < 1e6);
        for v in numbers.chain([0.0, f32::MIN_POSITIVE, 1e-40, f32::MAX, f32::INFINITY]) {
            let want = f64::from(v).tanh();
            for (got, want) in [(tanh(v), want), (tanh(-v), -want)] {
                let ulp = f64::from(f32::EPSILON) * want.abs() / 2.0 + 1e-45;
                assert!((f64::from(got) - want).abs() <= 1.01 * ulp, "tanh {v}: {got}, {want}");
            }
        }
        assert!(tanh(f32::NAN).is_nan());
        assert!(tanh(-0.0).is_sign_negative());
    }
}
