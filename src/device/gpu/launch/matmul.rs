//! Products of matrices that cuBLASLt computes in place of kernels of ours, for comparisons.

use crate::device::gpu::kernel::Kernel;
use crate::device::gpu::source::Parameter;
use crate::tensor::Elem;

/// `d = a b`, or `d += a b`. Matrices are row-major without gaps: a `[rows, depth]`, b `[depth, columns]`, d
/// `[rows, columns]`. Sums are in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Matmul {
    /// Rows of d.
    pub rows: usize,
    /// Columns of d.
    pub columns: usize,
    /// Terms of each sum.
    pub depth: usize,
    /// Whether a is stored as `[depth, rows]`.
    pub is_a_transposed: bool,
    /// Whether b is stored as `[columns, depth]`.
    pub is_b_transposed: bool,
    /// The type of a and b.
    pub operands: Elem,
    /// The type of d.
    pub result: Elem,
    /// Whether it adds to d.
    pub adds: bool,
    /// How many products of this size are computed at once. The matrices of each follow those of the one before it.
    pub count: usize,
}

impl Matmul {
    /// Forward of a layer: x `[pixels, c]` times the filters `[k, c]` transposed.
    pub fn forward([pixels, c, k]: [usize; 3], operands: Elem, result: Elem) -> Matmul {
        Matmul {
            rows: pixels,
            columns: k,
            depth: c,
            is_a_transposed: false,
            is_b_transposed: true,
            operands,
            result,
            adds: false,
            count: 1,
        }
    }
    /// The gradient of its input: dz `[pixels, k]` times the filters `[k, c]`.
    pub fn input_gradient([pixels, c, k]: [usize; 3], operands: Elem, result: Elem) -> Matmul {
        Matmul { is_b_transposed: false, ..Matmul::forward([pixels, k, c], operands, result) }
    }
    /// The gradient of its filters in f32: dz `[pixels, k]` transposed times x `[pixels, c]`.
    pub fn weight_gradient([pixels, c, k]: [usize; 3], operands: Elem) -> Matmul {
        let (rows, columns, depth) = (k, c, pixels);
        let (is_a_transposed, is_b_transposed) = (true, false);
        let forward = Matmul::forward([pixels, c, k], operands, Elem::F32);
        Matmul { rows, columns, depth, is_a_transposed, is_b_transposed, ..forward }
    }
    /// A name and parameters, for lists of launches: d, a, b.
    pub(super) fn kernel(self) -> &'static Kernel {
        static KERNEL: Kernel = Kernel::of_library(
            "cublaslt_matmul",
            &[Parameter::Pointer, Parameter::Pointer, Parameter::Pointer],
        );
        &KERNEL
    }
    /// Bytes of d, a and b.
    pub fn bytes(&self) -> [usize; 3] {
        let Matmul { rows, columns, depth, count, .. } = *self;
        let (operand, result) = (self.operands.bytes(), self.result.bytes());
        [rows * columns * result, rows * depth * operand, depth * columns * operand].map(|b| count * b)
    }
}
