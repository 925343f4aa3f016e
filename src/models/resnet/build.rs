//! How a ResNet is built and recorded: the choices that the network and its layers share.

use crate::autograd::tape::Learn;
use crate::ops::layers::batch_norm::Stats;
use crate::weights::Tensors;

/// How a network takes part in a recording.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mode {
    /// Whether the network's tensors get gradients.
    pub learn: Learn,
    /// Which statistics batch norms normalise by. A folded network has no batch norm and ignores this.
    pub stats: Stats,
}

impl Mode {
    /// A network that does not change: no gradients for its tensors, running statistics.
    pub const FROZEN: Mode = Mode { learn: Learn::Frozen, stats: Stats::Running };
}

/// Where a network's initial values come from.
pub enum Source<'a> {
    /// The tensors of a weights file, under torchvision's names. Building a network removes them from the
    /// set.
    Tensors(&'a mut Tensors),
    /// Random values from this seed (He et al. 2015); batch norms start at gamma 1 and beta 0.
    Random(u64),
}

/// Whether batch norms are folded into the convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// Batch norms are folded. The targets of the statistics loss are stored beside each layer, unless the
    /// file's convolutions were folded already.
    Folded,
    /// Batch norms are ops of their own.
    Normed,
}
