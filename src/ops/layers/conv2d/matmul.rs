//! The products of 1x1 convolutions and linear layers by cuBLASLt, for targets that ask for it
//! (`Target::library_matmul`): a second opinion on our kernels. What follows the sums is in kernels/layers/conv2d_matmul.cu;
//! channel statistics are left to a pass over the output.

use super::geometry::Dims;
use crate::device::gpu::launch::{KernelArg, Matmul};
use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::ops::launch::launches::{DeviceTensor, Launches, THREADS};
use crate::ops::operands::Write;
use crate::tensor::{Elem, Shape};

/// Whether the library computes this convolution on `target`. It computes only 1x1 filters without stride and padding, whose
/// products are those of matrices.
pub fn takes(d: &Dims, target: &Target) -> bool {
    target.library_matmul && d.r * d.s == 1 && d.stride == 1 && d.pad == 0
}

fn sizes(d: &Dims) -> [usize; 3] {
    [d.outputs(), d.c, d.k]
}

/// Forward; `io` are the addresses of `Conv2dForward` without those of x and w, `sums` has room for f32 `[pixels, k]`.
pub fn forward(
    d: &Dims,
    [x, w, y, sums]: [DeviceTensor; 4],
    io: KernelArg,
    slope: f32,
    l: &mut Launches,
) -> Result<()> {
    l.multiply(Matmul::forward(sizes(d), x.elem, Elem::F32), [sums, x, w])?;
    let name = format!("conv2d_matmul_fwd<{}>", y.elem);
    let blocks = blocks(d.outputs(), d.k, l);
    l.launch(name, blocks, THREADS, 0, [io, sums.into(), d.kernel_arg()?, slope.into()])
}

/// The input gradient; `io` are the addresses of `Conv2dInputGradient` without those of dz and w, `sums` has room for f32 `[pixels, c]`.
pub fn input_gradient(
    d: &Dims,
    [dz, w, dx, sums]: [DeviceTensor; 4],
    io: KernelArg,
    (write, slope): (Write, f32),
    l: &mut Launches,
) -> Result<()> {
    l.multiply(Matmul::input_gradient(sizes(d), dz.elem, Elem::F32), [sums, dz, w])?;
    let name = format!("conv2d_matmul_dgrad<{}>", dx.elem);
    let blocks = blocks(d.inputs(), d.c, l);
    l.launch(name, blocks, THREADS, 0, [io, sums.into(), d.kernel_arg()?, write.into(), slope.into()])
}

/// The weight gradient.
pub fn weight_gradient(
    d: &Dims,
    [dz, x]: [DeviceTensor; 2],
    (dw, write): (DeviceTensor, Write),
    l: &mut Launches,
) -> Result<()> {
    let product = Matmul { adds: write == Write::Add, ..Matmul::weight_gradient(sizes(d), x.elem) };
    l.multiply(product, [dw, dz, x])
}

fn blocks(pixels: usize, channels: usize, l: &Launches) -> u32 {
    l.blocks_for(pixels * channels.div_ceil(8), THREADS as usize)
}

/// The product that a launch of a convolution's kernel computes, if it is one of matrices: forward and the input gradient in
/// the type of the kernel's feature maps, the weight gradient in f32. `members`: how many such products the launch has.
pub fn product_of(kernel: &str, x: Shape, w: Shape, y: Shape, members: usize) -> Option<Matmul> {
    let is_product = w.h() * w.w() == 1 && [x.h(), x.w()] == [y.h(), y.w()];
    let elem = if kernel.contains("float") { Elem::F32 } else { Elem::Bf16 };
    let sizes = [y.elems() / y.c(), x.c(), y.c()];
    let product = match kernel.strip_prefix("conv2d_")?.split(['<', '_']).next()? {
        "fwd" => Matmul::forward(sizes, elem, elem),
        "dgrad" => Matmul::input_gradient(sizes, elem, elem),
        "wgrad" => Matmul::weight_gradient(sizes, elem),
        _ => return None,
    };
    is_product.then_some(Matmul { count: members, ..product })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::KERNELS;

    #[test]
    fn every_kernel_of_a_1x1_convolution_has_its_product() {
        let [x, w, y] = [[2, 3, 4, 64], [128, 1, 1, 64], [2, 3, 4, 128]].map(Shape);
        let mut found = 0;
        for kernel in KERNELS {
            let name = kernel.name.split('<').next().unwrap_or_default();
            let sizes = match name.trim_end_matches("_cooperative").trim_end_matches("_wgmma") {
                "conv2d_fwd" => [24, 128, 64],
                "conv2d_dgrad" | "conv2d_dgrad_statistics" => [24, 64, 128],
                "conv2d_wgrad" => [128, 64, 24],
                _ => {
                    assert_eq!(product_of(kernel.name, x, w, y, 1), None, "{}", kernel.name);
                    continue;
                }
            };
            let p = product_of(kernel.name, x, w, y, 3).expect(kernel.name);
            assert_eq!(([p.rows, p.columns, p.depth], p.count), (sizes, 3), "{}", kernel.name);
            assert_eq!(p.operands == Elem::F32, kernel.name.contains("float"), "{}", kernel.name);
            found += 1;
        }
        assert!(found > 20, "{found} kernels");
        let strided = Shape::new(2, 2, 2, 128);
        assert_eq!(product_of("conv2d_fwd<float, 64, 64>", x, w, strided, 1), None);
    }
}
