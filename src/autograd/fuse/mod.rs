//! Which ops of a step a GPU fuses with their neighbours.
//!
//! Each op states what its kernels can do (`ops::fusion::Fusion`); these passes see the whole step and
//! decide what is done. On the CPU every op's `Fusion` is the default, so that nothing is fused.

pub(super) mod act_mask;
pub(super) mod channel_stats;
pub(super) mod epilogue;
pub(super) mod first_term;
pub(super) mod folded_norms;
pub(super) mod linear_grad;
