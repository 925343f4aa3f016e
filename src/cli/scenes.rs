//! `scenes`: composes a set of the demo's images from the public archives.

use std::path::PathBuf;

use clap::Args;

use crate::data::scenes::{self, Sources, Split};
use crate::error::Result;
use crate::weights;

/// One to three objects of 11 to 15 pixels that keep clear of each other where they can: teachers reach about 90 mAP.
/// (With 14 to 20 pixels anywhere, objects hide each other and teachers stay near 71.)
const DEMO_SCENES: scenes::Spec = scenes::Spec { objects: 1..=3, side: 11..=15, tries: 10 };

#[derive(Args)]
pub struct ScenesArgs {
    /// Folder of the archives that scripts/fetch_demo_data.sh obtains
    archives: PathBuf,
    /// The npz to write
    out: PathBuf,
    /// Which source images to use; the two splits share none
    #[arg(long, value_enum)]
    split: SplitArg,
    #[arg(long)]
    count: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Leave the labels out: images for KA
    #[arg(long)]
    unlabelled: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum SplitArg {
    Train,
    Eval,
}

pub fn scenes(args: &ScenesArgs) -> Result<String> {
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
