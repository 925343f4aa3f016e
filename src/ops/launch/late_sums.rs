//! Gradients of trained tensors and of folded filters, whose parts are added after backward. Nothing waits for them but an
//! optimiser and the backward of the folded filters, which runs last, so that one launch can add the parts of all of them.

use super::chunks::Chunks;
use crate::device::Slot;
use crate::device::gpu::launch::{KernelArg, Launch, THREADS};
use crate::device::gpu::target::Target;
use crate::error::Result;
use crate::ops::operands::Write;
use std::collections::HashMap;

/// The kernel that adds some parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// Few parts of many elements: one after the other, in f32.
    Few,
    /// Many parts of few elements: 32 threads for each element, in f64.
    Many,
}

/// `to[i] (+)= sum over p < count of parts[p * stride + i]`, for i below `len`.
#[derive(Clone, Copy, Debug)]
pub struct LateSum {
    /// The gradient, f32.
    pub to: Slot,
    /// Whether to store the sum or to add it.
    pub write: Write,
    /// The parts, f32.
    pub parts: Slot,
    /// Elements of the gradient.
    pub len: usize,
    /// Elements from one part to the next.
    pub stride: usize,
    /// Number of parts.
    pub count: usize,
    /// How they are added.
    pub fold: Fold,
}

impl Fold {
    fn kernel(self) -> &'static str {
        match self {
            Fold::Few => "late_sums_few",
            Fold::Many => "late_sums_many",
        }
    }
    /// Elements of a chunk. With many parts, a block of 256 threads adds eight elements at a time.
    fn chunk(self) -> usize {
        match self {
            Fold::Few => 4096,
            Fold::Many => 8,
        }
    }
}

/// One launch for each kernel that the sums need, with the positions of its sums in `sums`. Sums of one gradient are added in
/// their order; they have the same kernel and length.
///
/// Errors: those of [`Launch::new`].
pub fn launches(sums: &[LateSum], target: &Target) -> Result<Vec<(Launch, Vec<usize>)>> {
    let mut all = Vec::new();
    for fold in [Fold::Few, Fold::Many] {
        let of_fold: Vec<usize> = (0..sums.len()).filter(|i| sums[*i].fold == fold).collect();
        if !of_fold.is_empty() {
            all.push((
                launch(&of_fold.iter().map(|i| &sums[*i]).collect::<Vec<_>>(), fold, target)?,
                of_fold,
            ));
        }
    }
    Ok(all)
}

fn launch(sums: &[&LateSum], fold: Fold, target: &Target) -> Result<Launch> {
    // By gradient, in the order of their first sums.
    let mut gradients: Vec<Vec<&LateSum>> = Vec::new();
    let mut place = HashMap::new();
    for sum in sums {
        let at = *place.entry(sum.to).or_insert_with(|| {
            gradients.push(Vec::new());
            gradients.len() - 1
        });
        gradients[at].push(sum);
    }
    let cell = |n: usize| KernelArg::I64(n as i64);
    let (mut rows, mut sources) = (Vec::new(), Vec::new());
    for sums in &gradients {
        let add = i64::from(sums[0].write == Write::Add);
        rows.push([
            KernelArg::Slot(sums[0].to),
            cell(sums[0].len),
            cell(sources.len()),
            cell(sums.len()),
            add.into(),
        ]);
        sources.extend(sums.iter().map(|s| [KernelArg::Slot(s.parts), cell(s.stride), cell(s.count)]));
    }
    let chunks = Chunks::of(gradients.iter().map(|sums| sums[0].len), fold.chunk(), target);
    let args =
        vec![KernelArg::table(rows), KernelArg::table(sources), chunks.table, chunks.count, chunks.size];
    Launch::new(fold.kernel(), [chunks.grid, 1, 1], THREADS, 0, args)
}
