//! The config of a run. Defaults are ours unless a comment names their source.

use std::ops::Bound::{Excluded, Included};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::evaluation::RawEvaluation;
use super::fixed;
use super::keys::{folder_name, only_with, or, seed};
use super::labels::{Block, Labels};
use super::loaded::{Loaded, print};
use super::source::{Override, Source};
use super::suggest::suggest;
use super::teacher::{RawTeacher, teachers};
use crate::error::Result;
use crate::pipeline::Device;
use crate::pipeline::session::CHECKPOINT_SECONDS;
use crate::pipeline::spec::{
    AugmentSpec, Branch, DualSpec, GeneratorOptions, ImageSource, LossSpec, Recipe, RunSpec, StudentInit,
    StudentNorm, StudentOptions, TeacherSpec,
};
use crate::tensor::Elem;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawRun {
    name: String,
    seed: Option<i64>,
    checkpoint_seconds: Option<f64>,
    precision: Option<Elem>,
    teachers: Vec<RawTeacher>,
    #[serde(default)]
    student: RawStudent,
    #[serde(default)]
    generator: RawGenerator,
    #[serde(default)]
    loss: RawLoss,
    dual: RawDual,
    evaluation: Option<RawEvaluation>,
    #[serde(default)]
    baselines: RawBaselines,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawStudent {
    labels: Option<Labels>,
    init: Option<String>,
    norm: Option<StudentNorm>,
    branch: Option<Block>,
    branch_least: Option<i64>,
    filter_reduction: Option<i64>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawGenerator {
    groups: Option<i64>,
    latent: Option<i64>,
    widths: Option<Vec<i64>>,
    steps: Option<i64>,
    batch: Option<i64>,
    learning_rate: Option<f64>,
    #[serde(default, deserialize_with = "fixed::optional")]
    betas: Option<[f64; 2]>,
    shift: Option<i64>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawLoss {
    recipe: Option<String>,
    max_labels: Option<i64>,
    share: Option<f64>,
    alpha: Option<f64>,
    beta: Option<f64>,
    gamma: Option<f64>,
    statistics: Option<f64>,
    least_diversity: Option<f64>,
    least_entropy: Option<f64>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawDual {
    images: Option<String>,
    steps: Vec<i64>,
    batch: Option<i64>,
    learning_rate: Option<f64>,
    feature: Option<f64>,
    late_features: Option<f64>,
    freeze_earlier: Option<bool>,
    #[serde(default, deserialize_with = "fixed::optional")]
    lambda_in: Option<[f64; 2]>,
    bank: Option<i64>,
    #[serde(default)]
    augment: RawAugment,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawAugment {
    shift: Option<i64>,
    flip: Option<f64>,
    mix_max: Option<f64>,
    cutmix: Option<f64>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawBaselines {
    noise: Option<bool>,
    ka: Option<String>,
}

const STEPS: std::ops::RangeInclusive<i64> = 1..=100_000_000;
const BATCH: std::ops::RangeInclusive<i64> = 1..=65_536;
/// Beyond 1 no optimiser here converges; it is a slip such as 1e3 for 1e-3.
const LEARNING_RATE: (std::ops::Bound<f64>, std::ops::Bound<f64>) = (Excluded(0.0), Included(1.0));

/// Reads and validates a run's config, as far as that goes without the teachers' files.
pub fn load_run(file: &Path, overrides: &[Override]) -> Result<Loaded<RunSpec>> {
    let (source, mut raw) = Source::open::<RawRun>(file, overrides)?;
    let spec = build(&source, &mut raw)?;
    Ok(Loaded { spec, resolved: print(&raw)?, source })
}

fn build(source: &Source, raw: &mut RawRun) -> Result<RunSpec> {
    let teachers = teachers(source, &mut raw.teachers)?;
    let generator = generator(source, &mut raw.generator)?;
    Ok(RunSpec {
        name: folder_name(source, "name", &raw.name)?,
        seed: seed(source, "seed", or(&mut raw.seed, 0))?,
        // bf16 halves the memory traffic that most kernels wait for, and keeps f32's range.
        precision: or(&mut raw.precision, Elem::Bf16),
        device: Device::default(),
        checkpoint_seconds: source.number(
            "checkpoint_seconds",
            or(&mut raw.checkpoint_seconds, CHECKPOINT_SECONDS.into()),
            0.0..=1e6,
        )?,
        student: student(source, &mut raw.student, &teachers)?,
        loss: loss(source, &mut raw.loss)?,
        dual: dual(source, &mut raw.dual, generator.batch)?,
        generator,
        evaluation: match &mut raw.evaluation {
            Some(e) => Some(e.build(source)?),
            None => None,
        },
        baselines: baselines(source, &mut raw.baselines)?,
        teachers,
    })
}

fn student(source: &Source, raw: &mut RawStudent, teachers: &[TeacherSpec]) -> Result<StudentOptions> {
    let labels = or(&mut raw.labels, Labels::Word("all".into()));
    Ok(StudentOptions {
        labels: labels.names(source, "student.labels")?,
        init: student_init(source, raw.init.get_or_insert("scratch".into()), teachers)?,
        norm: or(&mut raw.norm, StudentNorm::Stored),
        branch: branch(source, raw)?,
        // Supplement 1.2.
        filter_reduction: source.count(
            "student.filter_reduction",
            or(&mut raw.filter_reduction, 4),
            1..=1024,
        )?,
    })
}

fn student_init(source: &Source, raw: &mut String, teachers: &[TeacherSpec]) -> Result<StudentInit> {
    if raw == "scratch" {
        return Ok(StudentInit::Scratch);
    }
    if raw == "mean" {
        return Ok(StudentInit::Mean);
    }
    let Some(name) = raw.strip_prefix("teacher:") else {
        return Ok(StudentInit::Weights(source.file("student.init", raw)?));
    };
    match teachers.iter().position(|t| t.name == name) {
        Some(i) => Ok(StudentInit::Teacher(i)),
        None => {
            let known: Vec<&str> = teachers.iter().map(|t| t.name.as_str()).collect();
            let message = format!("`student.init` names no teacher: `{name}`; {}", suggest(name, &known));
            Err(source.fail("student.init", message))
        }
    }
}

fn branch(source: &Source, raw: &mut RawStudent) -> Result<Branch> {
    match or(&mut raw.branch, Block::Word("auto".into())) {
        Block::Word(word) if word == "auto" => {
            let least = source.count("student.branch_least", or(&mut raw.branch_least, 1), 1..=64)?;
            Ok(Branch::Auto { least })
        }
        Block::Word(word) => {
            let message =
                format!("`student.branch` is \"{word}\"; expected \"auto\" or the number of a block");
            Err(source.fail("student.branch", message))
        }
        Block::Number(block) => {
            // A floor for the rule says nothing about a block that is named: `--set student.branch=3` needs no more.
            raw.branch_least = None;
            Ok(Branch::Block(source.count("student.branch", block, 1..=64)?))
        }
    }
}

fn generator(source: &Source, raw: &mut RawGenerator) -> Result<GeneratorOptions> {
    Ok(GeneratorOptions {
        // The paper's best on VOC 2007 (docs/method.md 5).
        groups: source.count("generator.groups", or(&mut raw.groups, 2), 1..=64)?,
        latent: source.count("generator.latent", or(&mut raw.latent, 128), 1..=65_536)?,
        widths: widths(source, or(&mut raw.widths, vec![128, 64, 32, 32, 16]))?,
        steps: source.count("generator.steps", or(&mut raw.steps, 400), STEPS)?,
        batch: source.count("generator.batch", or(&mut raw.batch, 64), BATCH)?,
        learning_rate: source.number(
            "generator.learning_rate",
            or(&mut raw.learning_rate, 1e-3),
            LEARNING_RATE,
        )?,
        betas: numbers(source, "generator.betas", or(&mut raw.betas, [0.5, 0.999]), 0.0..1.0)?,
        shift: source.count("generator.shift", or(&mut raw.shift, 6), 0..=64)?,
    })
}

fn widths(source: &Source, raw: Vec<i64>) -> Result<Vec<usize>> {
    if raw.is_empty() {
        return Err(
            source.fail("generator.widths", "`generator.widths` is empty; expected channels, deepest first")
        );
    }
    let all = raw.iter().enumerate();
    all.map(|(i, n)| source.count(&format!("generator.widths.{i}"), *n, 1..=8192)).collect()
}

/// What a recipe weighs its terms with unless the file says otherwise.
struct Weights {
    alpha: f64,
    beta: f64,
    gamma: f64,
    statistics: f64,
}

/// Supplement 1: alpha 1, beta 1, gamma 5; nothing else.
const PUBLISHED: Weights = Weights { alpha: 1.0, beta: 1.0, gamma: 5.0, statistics: 0.0 };
/// Both recipes of ours choose the labels themselves, which is what L_ie and L_dis are for.
const CHOSEN_LABELS: Weights = Weights { alpha: 0.1, beta: 0.0, gamma: 0.0, statistics: 5.0 };

fn loss(source: &Source, raw: &mut RawLoss) -> Result<LossSpec> {
    let name = or(&mut raw.recipe, "conditional".into());
    if name != "conditional" {
        only_with(source, "loss.max_labels", raw.max_labels.is_some(), "recipe = \"conditional\"")?;
    }
    if name != "balanced" {
        only_with(source, "loss.share", raw.share.is_some(), "recipe = \"balanced\"")?;
    }
    let (recipe, weights) = match name.as_str() {
        "published" => (Recipe::Published, PUBLISHED),
        "conditional" => {
            let max_labels = source.count("loss.max_labels", or(&mut raw.max_labels, 3), 1..=10_000)?;
            (Recipe::Conditional { max_labels }, CHOSEN_LABELS)
        }
        "balanced" => {
            let within = (Excluded(0.0), Excluded(1.0));
            let share = source.number("loss.share", or(&mut raw.share, 0.08), within)?;
            (Recipe::Balanced { share }, CHOSEN_LABELS)
        }
        other => {
            let known = ["published", "conditional", "balanced"];
            let message = format!("unknown `loss.recipe` \"{other}\"; {}", suggest(other, &known));
            return Err(source.fail("loss.recipe", message));
        }
    };
    Ok(LossSpec {
        recipe,
        alpha: source.number("loss.alpha", or(&mut raw.alpha, weights.alpha), 0.0..=1e6)?,
        beta: source.number("loss.beta", or(&mut raw.beta, weights.beta), 0.0..=1e6)?,
        gamma: source.number("loss.gamma", or(&mut raw.gamma, weights.gamma), 0.0..=1e6)?,
        statistics: source.number(
            "loss.statistics",
            or(&mut raw.statistics, weights.statistics),
            0.0..=1e6,
        )?,
        least_diversity: source.number(
            "loss.least_diversity",
            or(&mut raw.least_diversity, 0.05),
            0.0..=2.0,
        )?,
        least_entropy: source.number("loss.least_entropy", or(&mut raw.least_entropy, 0.15), 0.0..=1.0)?,
    })
}

/// `batch`: of the generator.
fn dual(source: &Source, raw: &mut RawDual, batch: usize) -> Result<DualSpec> {
    let images = images(source, raw.images.get_or_insert("generator".into()))?;
    let bank = source.count("dual.bank", or(&mut raw.bank, 4096), 1..=100_000_000)?;
    if images == ImageSource::Generator && bank < batch {
        let message = format!(
            "`dual.bank` is {bank}; expected at least a batch of the generator's, which is {batch} images"
        );
        return Err(source.fail("dual.bank", message));
    }
    Ok(DualSpec {
        images,
        steps: dual_steps(source, &raw.steps)?,
        batch: source.count("dual.batch", or(&mut raw.batch, 64), BATCH)?,
        learning_rate: source.number(
            "dual.learning_rate",
            or(&mut raw.learning_rate, 1e-3),
            LEARNING_RATE,
        )?,
        feature: source.number("dual.feature", or(&mut raw.feature, 0.0), 0.0..=1e6)?,
        late_features: source.number("dual.late_features", or(&mut raw.late_features, 0.0), 0.0..=1e6)?,
        freeze_earlier: or(&mut raw.freeze_earlier, false),
        // Supplement 2: both 1.
        lambda_in: numbers(source, "dual.lambda_in", or(&mut raw.lambda_in, [1.0, 1.0]), 0.0..=1e6)?,
        bank,
        augment: augment(source, &mut raw.augment)?,
    })
}

fn dual_steps(source: &Source, raw: &[i64]) -> Result<Vec<usize>> {
    if raw.is_empty() {
        let message = "`dual.steps` is empty; expected one number of steps for each block";
        return Err(source.fail("dual.steps", message));
    }
    raw.iter().enumerate().map(|(i, &n)| source.count(&format!("dual.steps.{i}"), n, STEPS)).collect()
}

fn images(source: &Source, raw: &mut String) -> Result<ImageSource> {
    match raw.as_str() {
        "generator" => return Ok(ImageSource::Generator),
        "noise" => return Ok(ImageSource::Noise),
        _ => {} // a path, or an error
    }
    let Some(path) = raw.strip_prefix("real:") else {
        let hint = suggest(raw, &["generator", "noise", "real:PATH"]);
        return Err(source.fail("dual.images", format!("unknown `dual.images` \"{raw}\"; {hint}")));
    };
    let mut path = path.to_owned();
    let joined = source.file("dual.images", &mut path)?;
    *raw = format!("real:{path}");
    Ok(ImageSource::Real(joined))
}

fn augment(source: &Source, raw: &mut RawAugment) -> Result<AugmentSpec> {
    Ok(AugmentSpec {
        shift: source.count("dual.augment.shift", or(&mut raw.shift, 0), 0..=64)?,
        flip: source.number("dual.augment.flip", or(&mut raw.flip, 0.0), 0.0..=1.0)?,
        mix_max: source.number("dual.augment.mix_max", or(&mut raw.mix_max, 0.0), 0.0..=1.0)?,
        cutmix: source.number("dual.augment.cutmix", or(&mut raw.cutmix, 0.0), 0.0..=1.0)?,
    })
}

fn baselines(source: &Source, raw: &mut RawBaselines) -> Result<Vec<ImageSource>> {
    let mut baselines = Vec::new();
    if or(&mut raw.noise, false) {
        baselines.push(ImageSource::Noise);
    }
    if let Some(path) = &mut raw.ka {
        baselines.push(ImageSource::Real(source.file("baselines.ka", path)?));
    }
    Ok(baselines)
}

fn numbers(
    source: &Source,
    path: &str,
    values: [f64; 2],
    range: impl std::ops::RangeBounds<f64> + Clone,
) -> Result<[f32; 2]> {
    Ok([
        source.number(&format!("{path}.0"), values[0], range.clone())?,
        source.number(&format!("{path}.1"), values[1], range)?,
    ])
}
