//! Exchanges between ranks, which take their places among a step's launches. A library moves the data, so an exchange is a
//! launch without a kernel of ours.

use crate::device::gpu::kernel::Kernel;
use crate::device::gpu::source::Parameter;

/// What an exchange moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// Part i of each rank's source goes to rank i, whose part j is that of rank j.
    AllToAll,
    /// Every rank gets the sources of all, in their order.
    AllGather,
}

impl Exchange {
    /// A name and parameters, for lists of launches: destination, source, the source's bytes and the destination's.
    pub(super) fn kernel(self) -> &'static Kernel {
        const PARAMETERS: &[Parameter<&str>] =
            &[Parameter::Pointer, Parameter::Pointer, Parameter::I64, Parameter::I64];
        static ALL_TO_ALL: Kernel = Kernel::of_library("all_to_all", PARAMETERS);
        static ALL_GATHER: Kernel = Kernel::of_library("all_gather", PARAMETERS);
        match self {
            Exchange::AllToAll => &ALL_TO_ALL,
            Exchange::AllGather => &ALL_GATHER,
        }
    }
}
