//! Weights files as models, and checkpoints: what stands behind the npz format.

use super::archives::recorded;
use super::{Outcome, refused, scratch, written};
use dfka_engine::autograd::Store;
use dfka_engine::pipeline::evaluate::Predictor;
use dfka_engine::pipeline::spec::TeacherSpec;
use dfka_engine::pipeline::teachers::Teachers;
use dfka_engine::pipeline::{Device, checkpoint as format};

/// As a run opens its teacher: metadata, then every tensor into its place.
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

/// As `eval` opens what it is given: a teacher's file or a student's.
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

/// As `--resume` opens a folder; accepted progress is the same after saving.
pub fn checkpoint(bytes: &[u8]) -> Outcome {
    let folder = scratch("out");
    std::fs::create_dir_all(&folder).expect("the scratch folder takes a folder");
    let path = format::path(&folder);
    std::fs::write(&path, recorded(bytes)).expect("the scratch folder takes a file");
    let progress = match format::progress(&folder) {
        Ok(progress) => progress.expect("the file is there"),
        Err(e) => return refused(&e, 4, &path),
    };
    let mut store = Store::<f32>::default();
    store.add("generator.project", dfka_engine::tensor::Shape::new(2, 1, 1, 3));
    match format::restore(&folder, &mut store) {
        Ok(()) => {}
        Err(e) => return refused(&e, 4, &path),
    }
    format::save(&folder, &progress, &store).expect("what was read can be written");
    assert_eq!(format::progress(&folder).expect("what was written can be read"), Some(progress));
    Outcome::Accepted
}
