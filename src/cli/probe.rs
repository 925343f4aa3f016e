//! `probe`: whether imported weights compute what the network computed where it was trained.

use std::path::PathBuf;

use clap::Args;

use super::args::ThreadArgs;
use crate::error::Result;
use crate::pipeline::probe;

#[derive(Args)]
pub struct ProbeArgs {
    /// Weights of a teacher or a student in any of the formats
    weights: PathBuf,
    /// An npz with `images` (float32, N x channels x height x width, in [0, 1]) and the `logits` that PyTorch gives
    /// for them; `scripts/torch_to_npz.py --probe` writes one
    file: PathBuf,
    #[command(flatten)]
    threads: ThreadArgs,
}

/// Returns a line that says how far apart the logits are.
pub fn probe_weights(args: &ProbeArgs) -> Result<String> {
    args.threads.start()?;
    let found = probe::probe(&args.weights, &args.file)?;
    Ok(format!(
        "{}: the logits of {} images are those of {} to {:.1e}; the largest is {:.2}\n",
        args.weights.display(),
        found.images,
        args.file.display(),
        found.apart,
        found.scale
    ))
}
