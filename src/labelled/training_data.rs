//! The images and targets of a teacher's training.

use super::spec::{CropSpec, TeachSpec, TrainingData};
use crate::autograd::{Engine, Store, TensorId};
use crate::data::dataset::Dataset;
use crate::data::labelled::loss_target;
use crate::data::loader::Loader;
use crate::data::scenes::{self, Sources, Split};
use crate::data::transform::{Transform, View};
use crate::data::unlabelled::to_inputs;
use crate::error::{Error, Result};
use crate::pipeline::seed::stage_seed;
use crate::pipeline::stage::Feed;
use crate::tensor::Shape;
use crate::text::label;
use std::sync::Arc;

/// The training data, with the wanted labels only.
pub(super) struct Data {
    pub(super) set: Dataset,
    /// Height, width and channels of an image as the network takes it.
    pub(super) image: [usize; 3],
    /// How images are cropped to that size; `None` where all of them have it.
    crop: Option<CropSpec>,
}

impl Data {
    /// Opens the data. Of image files, only names and targets are read.
    ///
    /// Errors: data that does not open, a label that it does not have, images of another size than the
    /// config's.
    pub(super) fn open(spec: &TeachSpec) -> Result<Data> {
        let (set, crop) = match &spec.data {
            TrainingData::Labelled(path) => (Dataset::npz(path)?, None),
            TrainingData::Scenes { archives, count, seed, objects, side, tries } => {
                let scene =
                    scenes::Spec { objects: objects[0]..=objects[1], side: side[0]..=side[1], tries: *tries };
                let set = Sources::open(archives)?.labelled(Split::Train, *count, *seed, &scene)?;
                (Dataset::from_set(set, archives), None)
            }
            TrainingData::Voc { folder, split, crop } => (Dataset::voc(folder, split)?, Some(*crop)),
            TrainingData::Csv { folder, table, crop } => (Dataset::csv(folder, table)?, Some(*crop)),
            TrainingData::Coco { images, annotations, crop } => {
                (Dataset::coco(images, annotations)?, Some(*crop))
            }
        };
        let set = if spec.labels.is_empty() { set } else { set.select(&spec.labels)? };
        let image = match (set.image_size(), spec.image_size) {
            (Some([h, w, _]), Some(size)) if [h, w] != [size, size] => {
                let message = format!("images: the config says {size} pixels a side, found {h} x {w}");
                return Err(Error::data(&set.file, message));
            }
            (Some(found), _) => found,
            (None, Some(size)) => [size, size, 3],
            (None, None) => {
                let message = "images of any size: expected `image_size` in the config, found none";
                return Err(Error::data(&set.file, message));
            }
        };
        Ok(Data { set, image, crop })
    }

    pub(super) fn labels(&self) -> &[String] {
        &self.set.labels
    }

    /// A sentence that names the labels that no image has; `None` where there is no such label.
    ///
    /// Errors: no image has any label.
    pub(super) fn absent_labels(&self) -> Result<Option<String>> {
        let labels = self.labels().iter().enumerate();
        let absent: Vec<String> =
            labels.filter(|(c, _)| !self.set.has_target(*c, 1)).map(|(_, name)| label(name)).collect();
        if absent.len() == self.labels().len() {
            let message = format!("no image has any of the labels to learn: {}", absent.join(", "));
            return Err(Error::data(&self.set.file, message));
        }
        let sentence = || {
            let file = self.set.file.display();
            format!(
                "{file}: no image has {}; the network learns that they are always absent",
                absent.join(", ")
            )
        };
        Ok((!absent.is_empty()).then(sentence))
    }

    /// Images that the store holds at a time: all, or those of a step.
    pub(super) fn stored(&self, spec: &TeachSpec) -> usize {
        if self.crop.is_some() { spec.training.batch } else { self.set.len() }
    }

    /// Adds images and targets to the store. Images of the network's size are all stored, and each step draws
    /// from them. For others the store holds the batch of one step, and the feed that is returned fills it,
    /// from step `first_step` on.
    ///
    /// Errors: an image that cannot be read.
    pub(super) fn place(
        self,
        engine: &mut Engine<f32>,
        spec: &TeachSpec,
        first_step: u64,
    ) -> Result<([TensorId; 2], Option<Feed>)> {
        let ([h, w, c], labels) = (self.image, self.labels().len());
        let store = &mut engine.store;
        let Some(CropSpec { scale, ratio, flip }) = self.crop else {
            let n = self.set.len();
            let images = store.add_alone("data.images", Shape::new(n, h, w, c));
            let targets = store.add_alone("data.targets", Shape::rows(n, labels));
            for (i, to) in engine.store.get_mut(images).chunks_exact_mut(h * w * c).enumerate() {
                to_inputs(&self.set.pixels(i)?.data, to);
            }
            for (i, to) in engine.store.get_mut(targets).chunks_exact_mut(labels).enumerate() {
                to.iter_mut().zip(self.set.targets(i)).for_each(|(t, y)| *t = loss_target(*y));
            }
            return Ok(([images, targets], None));
        };
        let n = spec.training.batch;
        let images = store.add_images("data.images", Shape::new(n, h, w, c));
        let targets = store.add_alone("data.targets", Shape::rows(n, labels));
        let transform = Transform { image: self.image, view: View::RandomCrop { scale, ratio, flip } };
        let seed = stage_seed(spec.seed, "teach.data");
        let mut loader = Loader::new(Arc::new(self.set), transform, n, seed, first_step)?;
        let mut wanted = vec![0.0; n * labels];
        let feed = move |step: u64, store: &mut Store<f32>| {
            loader.fill(step, store.images_mut(images), &mut wanted)?;
            store.get_mut(targets).copy_from_slice(&wanted);
            Ok(())
        };
        Ok(([images, targets], Some(Box::new(feed))))
    }
}
