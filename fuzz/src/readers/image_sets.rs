//! Image sets with and without labels, and the archives of which the demo's scenes are composed.

use super::archives::recorded;
use super::{Outcome, refused, scratch, written};
use dfka_engine::data::labelled::LabelledSet;
use dfka_engine::data::unlabelled::ImageSet;
use dfka_engine::data::{digits as digit_file, idx as idx_file};

pub fn labelled(bytes: &[u8]) -> Outcome {
    let path = written("l.npz", &recorded(bytes));
    let described = LabelledSet::describe(&path);
    let set = match LabelledSet::load(&path) {
        Ok(set) => set,
        Err(e) => {
            if let Err(e) = described {
                refused(&e, 4, &path);
            }
            return refused(&e, 4, &path);
        }
    };
    assert_eq!(
        described.expect("a set that loads can be described"),
        (set.labels.clone(), set.images.shape())
    );
    let copy = scratch("copy.npz");
    set.save(&copy).expect("content that was read can be written");
    assert_eq!(LabelledSet::load(&copy).expect("a file that was written can be read"), set);
    assert!(set.targets.iter().all(|t| *t <= 2));
    Outcome::Accepted
}

pub fn unlabelled(bytes: &[u8]) -> Outcome {
    let path = written("u.npz", &recorded(bytes));
    let shape = ImageSet::shape_of(&path);
    let set = match ImageSet::load(&path) {
        Ok(set) => set,
        Err(e) => {
            if let Err(e) = shape {
                refused(&e, 4, &path);
            }
            return refused(&e, 4, &path);
        }
    };
    assert_eq!(shape.expect("a set that loads has a shape"), set.shape());
    let copy = scratch("copy.npz");
    set.save(&copy).expect("content that was read can be written");
    assert_eq!(ImageSet::load(&copy).expect("a file that was written can be read"), set);
    let mut pixels = vec![f32::NAN; set.image_len()];
    set.gather(&[set.n - 1], &mut pixels[..]).expect("the last image");
    assert!(pixels.iter().all(|p| (-1.0..=1.0).contains(p)));
    Outcome::Accepted
}

pub fn idx(bytes: &[u8]) -> Outcome {
    let path = written("a.idx", bytes);
    match idx_file::read(&path) {
        Ok(idx) => {
            assert_eq!(idx.shape.iter().product::<usize>(), idx.data.len());
            Outcome::Accepted
        }
        Err(e) => refused(&e, 4, &path),
    }
}

pub fn digits(bytes: &[u8]) -> Outcome {
    let path = written("0.json", bytes);
    match digit_file::read(&path) {
        Ok(pixels) => {
            assert!(!pixels.is_empty() && pixels.len().is_multiple_of(digit_file::PIXELS));
            Outcome::Accepted
        }
        Err(e) => refused(&e, 4, &path),
    }
}
