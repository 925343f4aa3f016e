//! The ResNet family (He et al. 2016): basic and bottleneck blocks; any stem, widths and depths.
//!
//! One description covers the demo's small network and ResNet-18 to 152. A network is either *folded* (frozen, with batch
//! norm inside the convolutions: the discriminators of eq. 4) or *normed* (batch norm as an op of its own, for a network
//! that is trained). Tensor names are torchvision's.

mod build;
mod layer;
mod net;
mod spec;

pub use build::{Build, Mode, Source};
pub use net::ResNet;
pub use spec::{BlockKind, Normalisation, ResNetSpec, Stem, StridePlace};
