//! `init`: a commented config for teachers' files.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::preset::Preset;
use crate::config::{RESERVED, load_run_text};
use crate::error::{Error, Result};
use crate::models::resnet::ResNetSpec;
use crate::models::state_dict;
use crate::models::torchvision::Head;
use crate::pipeline::likeness::{SHARED, likeness};
use crate::pipeline::spec::Stated;
use crate::pipeline::teacher_file::{TeacherFile, assumed_stem};
use crate::weights;

#[derive(Args)]
pub struct InitArgs {
    /// The teachers' weights: safetensors or npz
    #[arg(required = true, value_name = "TEACHER")]
    teachers: Vec<PathBuf>,
    /// Height and width of the images in pixels, where a file does not say it [default: 224, and 32 for a network
    /// with a 3x3 stem]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(8..=4096))]
    image_size: Option<u32>,
    /// Name of the run [default: the teachers' names]
    #[arg(long)]
    name: Option<String>,
    /// How long the training is: quick, balanced or best. The config gets these numbers of steps, and `run --preset` is
    /// a factor on them
    #[arg(long, default_value = "balanced")]
    preset: Preset,
}

/// A teacher's file, and what the config must say of it.
struct Teacher {
    name: String,
    path: String,
    file: TeacherFile,
    /// Whether the file names its labels.
    has_labels: bool,
    /// The side that the config must state, because the file does not.
    stated_side: Option<usize>,
    /// Whether the stride of the stem is assumed.
    assumes_stem: bool,
}

/// Characters of a run's name that is made of its teachers' names. The loader takes no more.
const LONGEST_NAME: usize = 80;

/// Returns the config's text, which loads.
///
/// Errors: a file that is no teacher's; teachers that cannot teach one student; a path that a config cannot name; a text
/// that does not load.
pub fn init(args: &InitArgs) -> Result<String> {
    let mut teachers: Vec<Teacher> = Vec::new();
    for path in &args.teachers {
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or("teacher");
        let plain: String =
            stem.chars().map(|c| if c.is_alphanumeric() || c == '_' { c } else { '-' }).collect();
        let taken = |name: &str| teachers.iter().any(|t| t.name == name) || RESERVED.contains(&name);
        let numbered = (2..).map(|n| format!("{plain}-{n}"));
        let name = std::iter::once(plain.clone()).chain(numbered).find(|n| !taken(n)).unwrap_or_default();
        teachers.push(open(path, name, args.image_size.map(|n| n as usize))?);
    }
    let (first, others) = teachers.split_first().ok_or_else(|| Error::Usage("no teacher is named".into()))?;
    for other in others {
        let (a, b) = (&first.file.known.network, &other.file.known.network);
        a.fits_beside(b).map_err(|e| {
            let message = format!("{e}, unlike {}: the teachers of a run must agree in this", first.path);
            Error::data(&other.path, message)
        })?;
    }
    let likeness = likeness(&teachers.iter().map(|t| &t.file.tensors).collect::<Vec<_>>());
    let name = match &args.name {
        Some(name) => name.clone(),
        None => {
            let all = teachers.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join("-");
            all.chars().take(LONGEST_NAME).collect()
        }
    };
    let text = config(&name, &teachers, likeness, args.preset)?;
    match load_run_text(Path::new("the new config"), text.clone()) {
        Ok(_) => Ok(text),
        Err(e) => Err(Error::Usage(format!("no config is written, because it would not load: {e}"))),
    }
}

fn open(path: &Path, name: String, side: Option<usize>) -> Result<Teacher> {
    let shown = path.to_str().ok_or_else(|| {
        let message = "the path is not UTF-8, so no config can name it; rename the file or its folder";
        Error::Usage(format!("{}: {message}", path.display()))
    })?;
    let tensors = state_dict::network_of(weights::load(path)?, Head::Wanted)?;
    let has_labels = tensors.meta.contains_key("labels");
    let rows = tensors.get("fc.weight").and_then(|t| t.shape.first().copied()).unwrap_or(0);
    let labels = if has_labels { vec![] } else { (0..rows).map(|i| format!("{name}-{i}")).collect() };
    let says_side = tensors.meta.contains_key("network") || tensors.meta.contains_key("image_size");
    let is_small = tensors.get("conv1.weight").is_some_and(|t| t.shape.last() == Some(&3));
    let stated_side = match (says_side, side) {
        (true, _) => None,
        (false, Some(side)) => Some(side),
        (false, None) => Some(if is_small { 32 } else { 224 }),
    };
    let stated = Stated { labels, image_size: stated_side, ..Stated::default() };
    let file = TeacherFile::read(tensors, &stated)?;
    let assumes_stem = assumed_stem(&file.tensors, &file.known.network).is_some();
    Ok(Teacher { name, path: shown.into(), file, has_labels, stated_side, assumes_stem })
}

/// A text as TOML writes it in one line, so that it can also be a part of a comment.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out += &format!("\\u{:04X}", u32::from(c)),
            c => out.push(c),
        }
    }
    out + "\""
}

impl Teacher {
    /// The teacher's table in the config.
    fn table(&self) -> String {
        let list = |labels: &[String]| labels.iter().map(|l| quoted(l)).collect::<Vec<_>>().join(", ");
        let (mut out, known) = (String::new(), &self.file.known);
        let _ = write!(out, "\n[[teachers]]           # {}\n", known.network.in_words());
        let _ = writeln!(out, "name = {}\nweights = {}", quoted(&self.name), quoted(&self.path));
        if let Some(side) = self.stated_side {
            let _ = writeln!(out, "image_size = {side}       # the file does not say it: check it");
        }
        if self.assumes_stem {
            let _ = writeln!(
                out,
                "stem_stride = {}        # of conv1, and no max pool follows it; the file does not say it: check it",
                known.network.stem.stride
            );
        }
        match self.has_labels {
            true => {
                let _ = writeln!(out, "# labels in the file: {}", list(&known.labels));
            }
            false => {
                let _ = writeln!(
                    out,
                    "# The file does not name its labels: replace these names, one for each row of fc.weight in order.\n\
                     labels = [{}]",
                    list(&known.labels)
                );
            }
        }
        out
    }
}

/// What `filter = "stitch"` means.
const STITCH: &str = "# a 1x1 convolution to each teacher's channels";

/// The lines of a student whose teachers differ in their architecture: that of the smallest of them, `network`, as its own. Also
/// of one whose teachers were trained apart.
fn own_lines(network: &ResNetSpec, differ: bool, are_apart: bool) -> Result<String> {
    let filter = format!("filter = \"stitch\"      {STITCH}\n");
    if !differ {
        return Ok(if are_apart { filter } else { String::new() });
    }
    let table = toml::Value::try_from(network.stated())
        .map_err(|e| Error::Run(format!("the student's network as TOML: {e}")))?;
    let why = "the smallest teacher's; any other whose blocks have maps of the same sizes will do";
    Ok(format!("network = {table}  # {why}\n{filter}"))
}

fn config(name: &str, teachers: &[Teacher], likeness: Option<f64>, preset: Preset) -> Result<String> {
    let mut out =
        format!("# Paths are relative to the folder of this file.\nname = {}\nseed = 0\n", quoted(name));
    teachers.iter().for_each(|t| out += &t.table());
    let smallest = teachers.iter().min_by_key(|t| {
        let network = &t.file.known.network;
        network.parameters(1..=network.blocks())
    });
    let network = &smallest.unwrap_or(&teachers[0]).file.known.network;
    let bare = |n: &ResNetSpec| ResNetSpec { normalisation: None, ..n.clone() };
    let nets = || teachers.iter().map(|t| &t.file.known.network);
    let differ = nets().any(|n| bare(n) != bare(network));
    let is_normalised_alike = nets().all(|n| n.normalisation == network.normalisation);
    let (shares, why) = match likeness {
        _ if differ => (false, "the teachers have different architectures".to_string()),
        _ if !is_normalised_alike => (false, "the teachers normalise images differently".to_string()),
        None => (true, "there is one teacher".to_string()),
        Some(l) if l >= SHARED => (true, format!("the teachers' convolutions are alike: mean cosine {l:.2}")),
        Some(l) => {
            (false, format!("the teachers were trained apart: mean cosine of their convolutions {l:.2}"))
        }
    };
    let (start, norm) = if shares { ("mean", "stored") } else { ("scratch", "batch") };
    let own = own_lines(network, differ, likeness.is_some_and(|l| l < SHARED))?;
    let side = network.image[0];
    let is_small = side <= 64;
    let (widths, groups) =
        if is_small { ("[128, 64, 32, 32, 16]", 4) } else { ("[512, 512, 256, 128, 64, 32]", 2) };
    let base = Preset::steps(is_small, shares, network.blocks());
    let (generator, dual) = preset.scale(&base);
    let shift = (side * 3 / 32).clamp(1, 16);
    let _ = write!(
        out,
        r#"
[student]
labels = "all"         # or a list of those that the student is to predict
init = "{start}"{start_pad}# {why}
norm = "{norm}"
{own}branch_least = {least}       # before this block a student would save nothing

[generator]
groups = {groups}
latent = 128
widths = {widths}
steps = {generator}           # preset {preset}
batch = 64
learning_rate = {rate}
shift = {shift}

[loss]
statistics = 10.0

[dual]
steps = {dual:?}  # for each block; preset {preset}
batch = 64
learning_rate = {dual_rate}
feature = 1.0
late_features = 1.0
bank = {bank}          # images kept from the generator's later steps

[dual.augment]
shift = {shift}
flip = 0.5
mix_max = 0.5
cutmix = 0.3

# Labelled images, if you have any, are opened only after the last student is saved:
# [evaluation]
# data = "images.npz"  # or a table evaluation.voc, evaluation.coco or evaluation.csv (docs/config.md)
"#,
        start_pad = " ".repeat(16usize.saturating_sub(start.len())),
        rate = if is_small { "3e-3" } else { "1e-3" },
        dual_rate = if is_small { "2e-3" } else { "1e-3" },
        bank = if is_small { 25_600 } else { 8192 },
        groups = groups.min(network.blocks()),
        least = network.blocks().min(2),
    );
    Ok(out)
}
