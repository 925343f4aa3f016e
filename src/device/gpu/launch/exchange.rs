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
        const fn named(name: &'static str) -> Kernel {
            const PARAMETERS: &[Parameter<&str>] =
                &[Parameter::Pointer, Parameter::Pointer, Parameter::I64, Parameter::I64];
            Kernel {
                name,
                module: 0,
                symbol: "",
                threads: 1,
                needs_90a: false,
                parameters: PARAMETERS,
                figures: &[],
                emulated: None,
            }
        }
        static ALL_TO_ALL: Kernel = named("all_to_all");
        static ALL_GATHER: Kernel = named("all_gather");
        match self {
            Exchange::AllToAll => &ALL_TO_ALL,
            Exchange::AllGather => &ALL_GATHER,
        }
    }
}
