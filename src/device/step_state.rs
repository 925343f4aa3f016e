//! What changes from one replay of a step to the next.

/// A step's varying values, in one small structure that kernels read from device memory: the arguments of a
/// captured step never change.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct StepState {
    /// Key of every random draw, one for each run and stage.
    pub seed: u64,
    /// Replay number, from 0.
    pub step: u64,
    /// Learning rates of the step's optimisers, by optimiser slot.
    pub lr: [f32; 4],
}
