//! `export`: trained weights in another format.

use std::path::PathBuf;

use clap::Args;

use super::output;
use crate::error::Result;
use crate::pipeline;
use crate::pipeline::export::Floats;
use crate::weights;

#[derive(Args)]
pub struct ExportArgs {
    /// Weights in any of the formats, or the folder of a run for its student
    from: PathBuf,
    /// File to write; its extension (.npz, .safetensors or .onnx) sets the format
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Write an ONNX file of half the size, whose weights and operators are float16; images and logits stay
    /// float32
    #[arg(long)]
    half: bool,
}

/// Converts the file; returns a line that describes the result.
pub fn export(args: &ExportArgs) -> Result<String> {
    let floats = if args.half { Floats::Half } else { Floats::Single };
    let facts = pipeline::export::export_as(&args.from, &args.to, floats)?;
    output::notes(&facts.notes);
    let [h, w, c] = facts.image;
    Ok(format!(
        "{}: images of {h} x {w} pixels and {c} channels, {} labels ({}), sha256 {}\n",
        args.to.display(),
        facts.labels.len(),
        facts.labels.join(", "),
        weights::sha256(&args.to)?
    ))
}
