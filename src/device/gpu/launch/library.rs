//! What libraries do among a step's launches.

use super::exchange::Exchange;
use super::matmul::Matmul;
use crate::device::gpu::kernel::Kernel;

/// What a library does in place of a kernel of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibraryCall {
    /// NCCL, or another mover of data between ranks. Arguments: destination, source, the source's bytes and the
    /// destination's.
    Exchange(Exchange),
    /// cuBLASLt. Arguments: d, a, b.
    Matmul(Matmul),
}

impl LibraryCall {
    /// A name and parameters, for lists of launches.
    pub(super) fn kernel(self) -> &'static Kernel {
        match self {
            LibraryCall::Exchange(exchange) => exchange.kernel(),
            LibraryCall::Matmul(product) => product.kernel(),
        }
    }
}
