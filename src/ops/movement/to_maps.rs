//! Copies images from the store into a feature map.

use crate::device::cpu::par::{Rows, for_rows};
use crate::error::Result;
use crate::ops::launch::launches::{Launches, THREADS};
use crate::ops::operands::Io;
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_f32, expect_frozen, expect_operands};
use crate::tensor::Real;

/// `y = x`, in the element type of feature maps. Tensors of the store are f32, and a convolution reads and writes
/// one type; a batch norm or a draw from a bank converts as well, so this op is for networks that begin with a
/// convolution of the images themselves.
///
/// Shapes: x `[n, h, w, c]`, y the same.
/// Source: ours.
/// Backward: none; images are data.
/// Errors: images that need a gradient.
/// Cost: no multiply-adds; reads and writes n images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToMaps;

/// Elements that a thread copies.
const PACK: usize = 4;

impl Operator for ToMaps {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        expect_operands("to_maps", args, &["x"])?;
        expect_frozen("to_maps", "x", args[0])?;
        Ok(Signature { outputs: vec![args[0].shape], ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (x, image) = (io.x(0), io.shape(0).per_sample());
        for_rows(Rows::new(io.y(0), io.shape(0).n()), image, &|first, part: Rows<R>| {
            part.data.copy_from_slice(&x[first * image..][..part.data.len()]);
        });
    }

    fn backward<R: Real>(&self, _: &Io<R>) {}

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let (x, y) = (expect_f32("to_maps", "x", l.x(0))?, l.y(0));
        let elements = l.shape(0).elems();
        let blocks = l.blocks_for(elements, PACK * THREADS as usize);
        l.launch(
            format!("to_maps<{}>", y.elem),
            [blocks, 1, 1],
            THREADS,
            0,
            [y.into(), x.into(), (elements as i64).into()],
        )
    }

    fn launch_backward(&self, _: &mut Launches) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check};
    use crate::tensor::Shape;

    #[test]
    fn passes_the_op_checks() {
        // Whole packs, several blocks, and a rest of 1.
        for shape in [Shape::new(2, 4, 4, 3), Shape::new(3, 32, 31, 3), Shape::new(3, 5, 7, 3)] {
            check(Case::new(ToMaps, &[shape]).frozen(0).reference(|x| vec![x[0].clone()]));
        }
    }

    #[test]
    fn refuses_a_gradient() {
        let arg = OperandInfo { shape: Shape::new(1, 2, 2, 3), needs_grad: true };
        let e = ToMaps.signature(&[arg]).unwrap_err().to_string();
        assert!(e.contains("needs a gradient, but the op passes none to it"), "{e}");
    }
}
