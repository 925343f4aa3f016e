//! `scenes`: composes a set of the demo's images from the public archives.

use std::path::PathBuf;

use clap::Args;

use super::args::start_threads;
use crate::data::scenes::{self, Sources, Split};
use crate::error::Result;
use crate::weights;

/// One to three objects of 11 to 15 pixels, placed without overlap if ten tries allow it: teachers reach
/// about 90 mAP. With objects of 14 to 20 pixels placed anywhere, they hide each other and teachers stay near
/// 71 mAP.
const DEMO_SCENES: scenes::Spec = scenes::Spec { objects: 1..=3, side: 11..=15, tries: 10 };

#[derive(Args)]
pub struct ScenesArgs {
    /// Folder of the archives that scripts/fetch_demo_data.sh downloads
    archives: PathBuf,
    /// Npz file to write
    out: PathBuf,
    /// Source images to use; the two splits have none in common
    #[arg(long, value_enum)]
    split: SplitArg,
    /// Number of images
    #[arg(long)]
    count: usize,
    /// Seed of the random composition
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write images without labels, for the KA baseline
    #[arg(long)]
    unlabelled: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum SplitArg {
    Train,
    Eval,
}

/// Composes the images; returns a line with the number and the hash of the file.
pub fn scenes(args: &ScenesArgs) -> Result<String> {
    start_threads(None)?;
    let split = match args.split {
        SplitArg::Train => Split::Train,
        SplitArg::Eval => Split::Eval,
    };
    let (sources, spec) = (Sources::open(&args.archives)?, DEMO_SCENES);
    if args.unlabelled {
        sources.unlabelled(split, args.count, args.seed, &spec)?.save(&args.out)?;
    } else {
        sources.labelled(split, args.count, args.seed, &spec)?.save(&args.out)?;
    }
    Ok(format!("{}: {} scenes, sha256 {}\n", args.out.display(), args.count, weights::sha256(&args.out)?))
}
