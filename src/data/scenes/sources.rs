//! The source images that scenes are made of: Fashion-MNIST articles and MNIST digits, by label.

use std::path::Path;

use crate::data::{digits, idx};
use crate::error::{Error, Result};

/// The labels: Fashion-MNIST's articles in the order of its classes, then the digits.
pub const LABELS: [&str; 20] = [
    "tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot", "0", "1",
    "2", "3", "4", "5", "6", "7", "8", "9",
];

/// Height and width of a source image in pixels.
pub const SOURCE: usize = 28;

/// Which source images a set uses. The two splits never share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Fashion-MNIST's training file and the first 85 % of each digit's images.
    Train,
    /// Fashion-MNIST's test file and the other 15 % of each digit's images.
    Eval,
}

/// The source images of every label, one after the other, by split. The outer index is that of [`LABELS`].
pub struct Sources {
    pub(super) train: Vec<Vec<u8>>,
    pub(super) eval: Vec<Vec<u8>>,
}

impl Sources {
    /// Reads the sources from `dir`, in the layout in which `scripts/fetch_demo_data.sh` unpacks them:
    ///
    /// ```text
    /// usr/share/datasets/fashion-mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz
    /// package/src/digits/{0..9}.json
    /// ```
    ///
    /// Errors: a file that is missing, damaged or of another shape, a class without images.
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
}

/// Reads Fashion-MNIST's images of `part` (`train` or `t10k`), by class.
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

    /// Writes a small copy of the archives: `per_class` articles of each class and `digits` images of each
    /// digit.
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
    fn sources_are_read_from_the_documented_layout_and_split() {
        let dir = raw_folder(2, 20);
        let s = Sources::open(dir.path()).unwrap();
        assert_eq!((s.train.len(), s.eval.len()), (20, 20));
        assert!(s.train[..10].iter().all(|c| *c == [1; 2 * 784]));
        assert!(s.eval[..10].iter().all(|c| *c == [2; 2 * 784]));
        for d in 10..20 {
            // 17 of 20 images are for training; image i has the grey level i everywhere.
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
    fn the_real_archives_have_the_known_counts() {
        let s = Sources::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("data/raw")).unwrap();
        let count = |c: &Vec<u8>| c.len() / 784;
        assert!(s.train[..10].iter().all(|c| count(c) == 6000));
        assert!(s.eval[..10].iter().all(|c| count(c) == 1000));
        let digits = [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978];
        for (d, n) in digits.into_iter().enumerate() {
            assert_eq!(count(&s.train[10 + d]), n * 85 / 100);
            assert_eq!(count(&s.train[10 + d]) + count(&s.eval[10 + d]), n);
        }
    }
}
