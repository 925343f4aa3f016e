//! Images from a trained generator: writing its file at the end of stage one, and drawing images from that
//! file.

use super::seed::stage_seed;
use super::snapshots::{MOST_IMAGES, images_at_once};
use super::spec::{AugmentSpec, RunSpec};
use super::stage_one::{Draw, StageOne};
use super::teachers::Teachers;
use super::{Device, engine_on};
use crate::autograd::tape::Learn;
use crate::autograd::{Engine, Plan, Store, Tape};
use crate::device::StepState;
use crate::error::{Error, Result};
use crate::models::generator::Generator;
use crate::models::resnet::ResNetSpec;
use crate::models::targetnet::torch_shape;
use crate::models::{Recorder, fold};
use crate::report::grid_png;
use crate::tensor::{Elem, Shape};
use crate::weights::{self, Tensors, write_atomic};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the labels to show, in a store.
const ASKED: &str = "data.asked";

/// Name of the generator's file in a run's folder.
pub const GENERATOR: &str = "generator.npz";

/// How the names of the generator's tensors begin in a store, before their names in its file.
const PREFIX: &str = "generator";

/// The description of a generator, as its file's metadata holds it under `generator`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SavedGenerator {
    /// The teachers' architecture, whose features and image the generator produces.
    network: ResNetSpec,
    groups: usize,
    /// As in the config.
    widths: Vec<usize>,
    draw: Draw,
    /// Images that are drawn at once, as for the run's report. Batch norm uses the batch's statistics, so an
    /// image depends on the others of its batch: the batch is therefore always of this size, whatever number
    /// of images is wanted.
    batch: usize,
    /// The run's seed.
    seed: u64,
    /// The labels that condition the generator, in the order of its input. Empty for an unconditional one, and in files
    /// of versions that did not write them.
    #[serde(default)]
    labels: Vec<String>,
}

impl SavedGenerator {
    /// Errors: a description that no generator can have, or that is beyond the limits of a config.
    fn validate(&self) -> Result<(), String> {
        self.network.validate()?;
        let [h, w, _] = self.network.image;
        let Draw { latent, conditions, max_labels } = self.draw;
        let is_conditional = conditions > 0;
        let fits = (1..=self.network.blocks()).contains(&self.groups)
            && (1..=64).contains(&self.widths.len())
            && self.widths.iter().all(|w| (1..=8192).contains(w))
            && h.max(w) <= 4096
            && (1..=65_536).contains(&latent)
            && conditions <= 65_536
            && (1..=MOST_IMAGES).contains(&self.batch)
            && (!is_conditional || (1..=conditions).contains(&max_labels))
            && (self.labels.is_empty() || self.labels.len() == conditions);
        if fits {
            return Ok(());
        }
        Err(format!(
            "no generator for {} has {} groups, {} widths, {latent} numbers of noise, {conditions} conditions \
             of which {max_labels} at most are drawn, {} labels, and batches of {}",
            self.network.in_words(),
            self.groups,
            self.widths.len(),
            self.labels.len(),
            self.batch
        ))
    }

    fn build(&self, store: &mut Store<f32>) -> Generator {
        let (net, inputs) = (&self.network, self.draw.latent + self.draw.conditions);
        Generator::new(store, PREFIX, net, self.groups, inputs, &self.widths, 0)
    }
}

/// Writes stage one's generator, with the description that it can be built from.
pub fn save(
    path: &Path,
    one: &StageOne,
    store: &Store<f32>,
    spec: &RunSpec,
    teachers: &Teachers,
) -> Result<()> {
    let mut out = Tensors::new();
    for id in one.generator.tensors() {
        let (name, shape) = (store.name(*id), store.shape(*id));
        let name = name.strip_prefix(PREFIX).and_then(|n| n.strip_prefix('.')).unwrap_or(name);
        out.insert(name, &torch_shape(shape), fold::to_oihw(shape, &store.to_f32(*id)))?;
    }
    let (groups, widths) = (spec.generator.groups, spec.generator.widths.clone());
    let (network, draw, seed) = (teachers.network.clone(), one.draw.clone(), spec.seed);
    let labels = if draw.conditions > 0 { teachers.distinct_labels().0 } else { Vec::new() };
    let batch = images_at_once(spec);
    let description = SavedGenerator { network, groups, widths, draw, batch, seed, labels };
    let json =
        serde_json::to_value(description).map_err(|e| Error::Run(format!("generator metadata: {e}")))?;
    out.meta.insert("generator".into(), json);
    weights::save(path, &out)
}

/// Images that were drawn, and what they were asked to show.
pub struct Drawn {
    /// `[n, h, w, c]` in [-1, 1].
    pub images: Vec<f32>,
    /// For each image, whether it was asked to show each of the generator's labels: `[n, labels]`; empty for an
    /// unconditional generator.
    pub asked: Vec<bool>,
}

/// A generator from its file, ready to draw images.
pub struct Sampler {
    file: PathBuf,
    engine: Engine<f32>,
    generator: Generator,
    spec: SavedGenerator,
}

impl Sampler {
    /// Opens a generator's file. `path` may also be a run's folder, or the file of its student in that
    /// folder.
    ///
    /// Errors: no generator, or one whose description and tensors do not fit.
    pub fn open(path: &Path, device: &Device) -> Result<Sampler> {
        let mut path: PathBuf = if path.is_dir() { path.join(GENERATOR) } else { path.into() };
        let mut tensors = weights::load(&path)?;
        if tensors.meta.contains_key("student") {
            let beside = path.with_file_name(GENERATOR);
            if !beside.exists() {
                let message =
                    format!("a student, which draws no images; expected its run's {GENERATOR} beside it");
                return Err(Error::data(&path, message));
            }
            tensors = weights::load(&beside)?;
            path = beside;
        }
        let spec: SavedGenerator = tensors.meta_as("generator")?;
        spec.validate().map_err(|e| Error::data(&path, format!("__meta__: generator: {e}")))?;
        // Shapes are compared first, in a store without memory: a description may claim more than the file
        // holds.
        let mut planned = Store::planned(None);
        let generator = spec.build(&mut planned);
        let mut values = Vec::new();
        for id in generator.tensors() {
            let (name, shape) = (planned.name(*id), planned.shape(*id));
            let part = name.strip_prefix(PREFIX).and_then(|n| n.strip_prefix('.')).unwrap_or(name);
            values.push(fold::from_oihw(shape, &tensors.take(part, &torch_shape(shape))?));
        }
        tensors.finish()?;
        let mut engine = engine_on(&Device { choice: device.choice, ..Device::default() }, Elem::F32)?;
        let generator = spec.build(&mut engine.store);
        generator.tensors().iter().zip(&values).for_each(|(id, v)| engine.store.set(*id, v));
        Ok(Sampler { file: path, engine, generator, spec })
    }

    /// Height, width and channels of an image.
    pub fn image(&self) -> [usize; 3] {
        self.spec.network.image
    }

    /// The labels that images can be asked to show; absent for an unconditional generator.
    ///
    /// Errors: a file that does not name them.
    pub fn labels(&self) -> Result<Option<&[String]>> {
        match (self.spec.draw.conditions, self.spec.labels.is_empty()) {
            (0, _) => Ok(None),
            (_, false) => Ok(Some(&self.spec.labels)),
            (expected, true) => Err(Error::data(
                &self.file,
                format!(
                    "__meta__: generator: expected the names of {expected} labels, found none: an earlier version of the \
                     program wrote the file; train the generator again"
                ),
            )),
        }
    }

    /// Most labels that one image was asked to show in training; 0 for an unconditional generator.
    pub fn max_labels(&self) -> usize {
        self.spec.draw.max_labels
    }

    /// Draws `count` images `[count, h, w, c]` in [-1, 1], augmented within each batch if that is asked for. Without a
    /// seed the run's is used, which gives the images of the run's report.
    pub fn images(
        &mut self,
        count: usize,
        seed: Option<u64>,
        augment: Option<&AugmentSpec>,
    ) -> Result<Vec<f32>> {
        Ok(self.draw(count, seed, augment)?.images)
    }

    /// The same, with what the images were asked to show.
    pub fn draw(&mut self, count: usize, seed: Option<u64>, augment: Option<&AugmentSpec>) -> Result<Drawn> {
        let (Sampler { engine, generator, spec, .. }, mut tape) = (self, Tape::default());
        let mut r = Recorder { tape: &mut tape, store: &engine.store };
        let (levels, wanted) = spec.draw.record(&mut r, generator, spec.batch, Learn::Frozen)?;
        let mut image = levels[levels.len() - 1];
        // There is nothing to mix one image with.
        if let Some(augment) = augment.filter(|_| spec.batch > 1) {
            image = r.apply(augment.op(), &[image])?;
        }
        tape.output(image);
        wanted.iter().for_each(|w| tape.output(*w));
        let mut plan = Plan::compile(&tape, &engine.store, None, &[])?;
        plan.reserve(engine)?;
        let (len, seed) =
            (count * tape.shape(image).per_sample(), stage_seed(seed.unwrap_or(spec.seed), "samples"));
        let mut drawn = Drawn { images: Vec::with_capacity(len), asked: Vec::new() };
        for step in 0..count.div_ceil(spec.batch) as u64 {
            plan.replay(engine, &StepState { seed, step, ..Default::default() })?;
            drawn.images.extend_from_slice(&plan.output(engine, image)?);
            if let Some(wanted) = wanted {
                drawn.asked.extend(plan.output(engine, wanted)?.iter().map(|w| *w > 0.5));
            }
        }
        drawn.images.truncate(len);
        drawn.asked.truncate(count * spec.draw.conditions);
        Ok(drawn)
    }

    /// Draws `count` images that are asked to show exactly the labels for which `asked` holds.
    ///
    /// Batch norm would subtract what all images of a batch have in common, and so these labels themselves. Therefore
    /// only an eighth of each batch is asked for them, and the rest, which is not returned, for random labels as in
    /// training.
    pub fn draw_asked(&mut self, count: usize, seed: Option<u64>, asked: &[bool]) -> Result<Drawn> {
        let Sampler { engine, generator, spec, .. } = self;
        let conditions = spec.draw.conditions;
        if conditions == 0 || asked.len() != conditions {
            let message = format!("expected {conditions} choices of labels, found {}", asked.len());
            return Err(Error::shape("sample", message));
        }
        let (seed, rows) = (stage_seed(seed.unwrap_or(spec.seed), "samples"), (spec.batch / 8).max(1));
        let id = match engine.store.id(ASKED) {
            Some(id) => id,
            None => engine.store.add(ASKED, Shape::rows(spec.batch, conditions)),
        };
        let mut tape = Tape::default();
        let mut r = Recorder { tape: &mut tape, store: &engine.store };
        let wanted = r.leaf(id, Learn::Frozen);
        let levels = spec.draw.record_for(&mut r, generator, spec.batch, Learn::Frozen, Some(wanted))?;
        let image = levels[levels.len() - 1];
        tape.output(image);
        let mut plan = Plan::compile(&tape, &engine.store, None, &[])?;
        plan.reserve(engine)?;
        let per = tape.shape(image).per_sample();
        let mut images = Vec::with_capacity(count * per);
        for step in 0..count.div_ceil(rows) as u64 {
            engine.store.set(id, &spec.draw.labels_of_a_batch(spec.batch, rows, asked, seed, step));
            engine.push()?;
            plan.replay(engine, &StepState { seed, step, ..Default::default() })?;
            images.extend_from_slice(&plan.output(engine, image)?[..rows * per]);
        }
        images.truncate(count * per);
        Ok(Drawn { images, asked: asked.repeat(count) })
    }
}

/// Writes images `[n, h, w, c]` in [-1, 1] as one PNG.
pub fn save_grid(path: &Path, images: &[f32], [h, w, c]: [usize; 3]) -> Result<()> {
    let png = grid_png(images, images.len() / (h * w * c), h, w, c)?;
    write_atomic(path, |file| file.write_all(&png))
}
