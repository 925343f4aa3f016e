//! `sample`: draws images from a run's generator.

use std::path::PathBuf;

use clap::Args;

use super::args::DeviceArgs;
use crate::error::Result;
use crate::pipeline::Device;
use crate::pipeline::sample::{Sampler, save_grid};

#[derive(Args)]
pub struct SampleArgs {
    /// A run's folder, its generator.npz, or a student file in the same folder
    from: PathBuf,
    /// Number of images
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    count: u32,
    /// Seed of the noise and labels [default: the run's, which gives the images of its report]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// PNG file to write
    #[arg(long, default_value = "grid.png", value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Draws the images and writes them as one PNG; returns a line that says so.
pub fn sample(args: &SampleArgs) -> Result<String> {
    let (choice, _) = args.device.open()?;
    let mut sampler = Sampler::open(&args.from, &Device { choice, ..Device::default() })?;
    let images = sampler.images(args.count as usize, args.seed, None)?;
    save_grid(&args.out, &images, sampler.image())?;
    Ok(format!("{}: {} images\n", args.out.display(), args.count))
}
