//! Models in weights files, and checkpoints. The inputs are the records of [`recorded`], except for ONNX.

use super::archives::recorded;
use super::{Outcome, refused, scratch, written};
use dfka_engine::autograd::Store;
use dfka_engine::pipeline::predictor::Predictor;
use dfka_engine::pipeline::sample::Sampler;
use dfka_engine::pipeline::spec::TeacherSpec;
use dfka_engine::pipeline::teachers::Teachers;
use dfka_engine::pipeline::{Device, checkpoint as format};
use dfka_engine::weights::{onnx as onnx_file, seal};
use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Opens a teacher as a run does: first the metadata, then every tensor.
pub fn teacher(bytes: &[u8]) -> Outcome {
    let path = written("t.npz", &recorded(bytes));
    let mut store = Store::<f32>::default();
    match Teachers::load(&mut store, &[TeacherSpec::new("t", &path)]) {
        Ok(teachers) => {
            assert!(teachers.parameters() > 0 && teachers.labels().count() > 0);
            assert!(format::not_finite(&store).is_none());
            Outcome::Accepted
        }
        Err(e) => refused(&e, 4, &path),
    }
}

/// Opens a teacher's or a student's file as `eval` does.
pub fn student(bytes: &[u8]) -> Outcome {
    let path = written("s.npz", &recorded(bytes));
    match Predictor::open(&path, &Device::default()) {
        Ok(predictor) => {
            assert!(!predictor.labels.is_empty());
            Outcome::Accepted
        }
        Err(e) => refused(&e, 4, &path),
    }
}

/// Opens a generator's file as `sample` does.
pub fn generator(bytes: &[u8]) -> Outcome {
    let path = written("g.npz", &recorded(bytes));
    match Sampler::open(&path, &Device::default()) {
        Ok(mut sampler) => {
            let [h, w, c] = sampler.image();
            // A mutation may ask for images of 4096 x 4096, which are valid but would take too long here.
            if h.max(w) <= 64 {
                let images = sampler.images(1, None, None).expect("an accepted generator draws images");
                assert_eq!(images.len(), h * w * c);
            }
            Outcome::Accepted
        }
        Err(e) => refused(&e, 4, &path),
    }
}

/// Opens a folder with a checkpoint as `--resume` does; the checkpoint's checksum is correct. If the
/// checkpoint is accepted, its progress must be the same after saving and loading.
pub fn checkpoint(bytes: &[u8]) -> Outcome {
    let folder = scratch("out");
    std::fs::create_dir_all(&folder).expect("a folder in the scratch folder");
    let path = folder.join(format::FILE);
    sealed(&path, &recorded(bytes)).expect("a file in the scratch folder");
    let progress = match format::find(&folder) {
        Ok(found) => found.expect("the file is there").progress,
        Err(e) => return refused(&e, 4, &path),
    };
    let mut store = Store::<f32>::default();
    store.add("generator.project", dfka_engine::tensor::Shape::new(2, 1, 1, 3));
    match format::restore(&path, &mut store) {
        Ok(()) => {}
        Err(e) => return refused(&e, 4, &path),
    }
    format::save(&folder, &progress, &store).expect("content that was read can be written");
    let found =
        format::find(&folder).expect("a file that was written can be read").expect("the file is there");
    assert_eq!((found.progress, found.fell_back), (progress, None));
    std::fs::remove_file(folder.join(format::PREVIOUS)).expect("the previous checkpoint is kept");
    Outcome::Accepted
}

fn sealed(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    let mut w = BufWriter::new(file);
    w.write_all(contents)?;
    seal::append(&mut w)?;
    w.flush()
}

/// The input is an ONNX file. An accepted file is checked but not written again, because the exporter needs
/// a network.
pub fn onnx(bytes: &[u8]) -> Outcome {
    let path = Path::new("s.onnx");
    match onnx_file::parse(bytes, path) {
        Ok(tensors) => {
            for (name, t) in tensors.iter() {
                assert_eq!(t.shape.iter().product::<usize>(), t.data.len(), "{name}");
                assert!(t.data.iter().all(|v| v.is_finite()), "{name}");
            }
            Outcome::Accepted
        }
        Err(e) => refused(&e, 4, path),
    }
}
