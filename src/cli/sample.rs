//! `sample`: draws images from a run's generator.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::DeviceArgs;
use super::output::pretty;
use crate::config;
use crate::error::{Error, Result};
use crate::pipeline::export::student_file;
use crate::pipeline::sample::{Drawn, Sampler, save_grid};
use crate::pipeline::{Device, captions};
use crate::report;
use crate::summary::Captions;
use crate::weights::write_atomic;

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
    /// Ask every image for exactly these labels; only for a conditional generator [default: random labels]
    #[arg(long, value_delimiter = ',', value_name = "LABEL,LABEL,...")]
    labels: Vec<String>,
    /// Also write a JSON file beside the PNG with the labels of each image: those asked for, and those that the teachers
    /// predict, or else the student
    #[arg(long)]
    captions: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Draws the images and writes them as one PNG; returns a line for each file.
pub fn sample(args: &SampleArgs) -> Result<String> {
    let captions_file = args.out.with_extension("json");
    if args.captions && captions_file.as_os_str().eq_ignore_ascii_case(&args.out) {
        return Err(Error::Usage(format!(
            "--out {}: the captions would replace the picture; name a .png file, and they go to the .json file beside it",
            args.out.display()
        )));
    }
    let (choice, _) = args.device.open()?;
    let device = Device { choice, ..Device::default() };
    let mut sampler = Sampler::open(&args.from, &device)?;
    let count = args.count as usize;
    let asked = (!args.labels.is_empty()).then(|| asked(&sampler, &args.labels)).transpose()?;
    let labels = if args.captions { sampler.labels()?.map(<[String]>::to_vec) } else { None };
    let drawn = match asked {
        Some(asked) => sampler.draw_asked(count, args.seed, &asked)?,
        None => sampler.draw(count, args.seed, None)?,
    };
    let image = sampler.image();
    drop(sampler);
    let captions = args.captions.then(|| captions_of(args, &drawn, labels.as_deref(), image, &device));
    let captions = captions.transpose()?;
    save_grid(&args.out, &drawn.images, image)?;
    let mut text = format!("{}: {} images\n", args.out.display(), args.count);
    if let Some((by, json)) = captions {
        write_atomic(&captions_file, |w| w.write_all(json.as_bytes()))?;
        text += &format!("{}: their labels, as {by} them\n", captions_file.display());
    }
    Ok(text)
}

/// For each label of the generator, whether it is one of `wanted`. A label of several teachers is asked of all of them.
///
/// Errors: a generator that is not conditional, or whose file does not name its labels; an unknown label; too many.
fn asked(sampler: &Sampler, wanted: &[String]) -> Result<Vec<bool>> {
    let Some(labels) = sampler.labels()? else {
        return Err(Error::Usage(
            "--labels: this generator is not conditional, so its images cannot be asked for labels; only the recipe \
             \"conditional\" (loss.recipe) trains one that is"
                .into(),
        ));
    };
    let known: Vec<&str> = labels.iter().map(String::as_str).collect();
    if let Some(unknown) = wanted.iter().find(|w| !known.contains(&w.as_str())) {
        let hint = config::suggest(unknown, &known);
        return Err(Error::Usage(format!("--labels: the generator has no label `{unknown}`; {hint}")));
    }
    let most = sampler.max_labels();
    let distinct = wanted.iter().collect::<BTreeSet<_>>().len();
    if distinct > most {
        return Err(Error::Usage(format!(
            "--labels: expected at most {most}, as in the generator's training (loss.max_labels), found {distinct}"
        )));
    }
    Ok(labels.iter().map(|l| wanted.contains(l)).collect())
}

/// The text of the captions' file, and who predicts.
///
/// Errors: neither teachers nor a student to predict with.
fn captions_of(
    args: &SampleArgs,
    drawn: &Drawn,
    labels: Option<&[String]>,
    image: [usize; 3],
    device: &Device,
) -> Result<(&'static str, String)> {
    let folder = if args.from.is_dir() { args.from.clone() } else { args.from.with_file_name("") };
    let run = if folder.as_os_str().is_empty() { ".".into() } else { folder };
    let images = captions::as_images(&drawn.images, image)?;
    let resolved = run.join(report::CONFIG);
    let teachers =
        if resolved.exists() { config::load_run(&resolved, &[])?.spec.teachers } else { Vec::new() };
    let (by, predicted) = if !teachers.is_empty() && teachers.iter().all(|t| t.weights.exists()) {
        ("the teachers predict", captions::by_teachers(&teachers, &images, device)?)
    } else {
        ("the student predicts", captions::by_student(&student_file(&run)?, &images, device)?)
    };
    let by_whom = if by.contains("teachers") { "teachers" } else { "student" };
    Ok((by, pretty(&json!(Captions::new(by_whom, labels, &drawn.asked, predicted)))?))
}
