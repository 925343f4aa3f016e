//! Arithmetic and checks that several losses share. Most losses read rows of logits and reduce them to one
//! number. They compute in `f64` whatever the scalar type: they have few elements, and their sums and
//! cancellations would lose digits in `f32`.

use crate::device::cpu::par::{Rows, for_rows};
use crate::error::{Error, Result};
use crate::ops::operands::{Grad, store_or_add};
use crate::tensor::{Real, Shape};

/// `log(1 + e^v)`, without overflow.
pub fn softplus(v: f64) -> f64 {
    v.max(0.0) + (-v.abs()).exp().ln_1p()
}

/// Binary cross-entropy of the prediction `sigmoid(logit)` against `t`: `-t log y - (1 - t) log(1 - y)`.
pub fn cross_entropy(logit: f64, t: f64) -> f64 {
    softplus(logit) - logit * t
}

/// `p log p`, which is 0 at 0.
pub fn plogp(p: f64) -> f64 {
    if p > 0.0 { p * p.ln() } else { 0.0 }
}

/// Stores `dy * slope(i)` in every element `i` of a gradient, or adds it.
pub fn store_or_add_all<R: Real>(dx: Grad<R>, dy: R, slope: impl Fn(usize) -> f64 + Sync) {
    let (write, items, dy) = (dx.write, dx.data.len(), dy.f64());
    for_rows(Rows::new(dx.data, items), 1, &|first, part: Rows<R>| {
        part.data
            .iter_mut()
            .enumerate()
            .for_each(|(j, dx)| store_or_add(write, dx, R::of(dy * slope(first + j))));
    });
}

/// Checks that an operand is `[n, 1, 1, c]` and not empty.
///
/// Errors: any other shape.
pub fn expect_rows(op: &'static str, what: &str, found: Shape) -> Result<()> {
    if found.h() == 1 && found.w() == 1 && found.elems() > 0 {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what}: expected rows [n, 1, 1, c], found {found}")))
}

/// The threads of the single block that sums a loss of `terms` terms.
pub fn one_block(terms: usize) -> u32 {
    terms.next_multiple_of(32).min(1024) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cross_entropy_is_stable_at_both_ends() {
        // y = 3/4: -log(3/4) against 1, -log(1/4) against 0.
        let x = 3f64.ln();
        assert!((cross_entropy(x, 1.0) - (4f64 / 3.0).ln()).abs() < 1e-15);
        assert!((cross_entropy(x, 0.0) - 4f64.ln()).abs() < 1e-15);
        assert_eq!((cross_entropy(1000.0, 1.0), cross_entropy(1000.0, 0.0)), (0.0, 1000.0));
        assert_eq!((cross_entropy(-1000.0, 1.0), cross_entropy(-1000.0, 0.0)), (1000.0, 0.0));
        assert_eq!((plogp(0.0), plogp(1.0)), (0.0, 0.0));
    }
}
