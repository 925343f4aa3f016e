//! The ResNet family (He et al. 2016): basic and bottleneck blocks; any stem, widths and depths.
//!
//! One description covers the demo's small network, ResNet-18 to 152, the Wide ResNets and ResNet-D. A network is either *folded* (batch
//! norms inside the convolutions, as in the frozen discriminators of eq. 4) or *normed* (batch norms as ops
//! of their own). Tensor names are torchvision's.

mod build;
mod difference;
mod layer;
mod names;
mod net;
mod spec;
mod variant;

pub use build::{Build, Mode, Source};
pub use difference::difference;
pub use net::ResNet;
pub use spec::{Architecture, BlockKind, Normalisation, ResNetSpec, Stem, StridePlace};
pub use variant::{Shortcut, Variant};
