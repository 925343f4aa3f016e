//! Batches of photographs for training, to be compared with PyTorch's:
//! `cargo bench --bench loader -- FOLDER [SECONDS [THREADS]]`.
//!
//! FOLDER has JPEGs (`benches/torch/loader.py --make FOLDER` draws some); the loader crops, resizes to 224,
//! mirrors and makes batches of 64. Prints images per second, and processor milliseconds per image, which
//! other load on the machine hardly changes. The first line has the time of decoding alone.

use dfka_engine::data::dataset::Dataset;
use dfka_engine::data::folder;
use dfka_engine::data::image;
use dfka_engine::data::loader::Loader;
use dfka_engine::data::transform::Transform;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BATCH: usize = 64;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let Some(folder) = args.first() else {
        println!("loader: no folder of JPEGs was named; benches/torch/loader.py --make FOLDER draws some");
        return;
    };
    let number = |i: usize, default: f64| args.get(i).map_or(default, |a| a.parse().expect("a number"));
    let (seconds, threads) = (number(1, 5.0), number(2, 2.0) as usize);
    let folder = Path::new(folder);
    let paths = folder::list(folder).expect("a folder of images");
    let set = Arc::new(one_label(folder, &paths));

    let files: Vec<Vec<u8>> = paths.iter().map(|f| std::fs::read(f).unwrap()).collect();
    let mut decoded = 0;
    let cpu = cpu_seconds();
    let begun = Instant::now();
    while begun.elapsed().as_secs_f64() < seconds / 4.0 {
        let bytes = &files[decoded % files.len()];
        image::decode(bytes, folder).unwrap();
        decoded += 1;
    }
    println!("decode      {:6.3} ms of processor an image", 1e3 * (cpu_seconds() - cpu) / decoded as f64);

    let transform = Transform::train([224, 224, 3]);
    let mut loader = Loader::with_threads(set.clone(), transform, BATCH, 1, threads).unwrap();
    let mut images = vec![0.0; BATCH * transform.len()];
    let mut targets = vec![0.0; BATCH * set.labels.len()];
    let (mut step, mut begun, mut cpu) = (0, Instant::now(), cpu_seconds());
    let mut first = 0;
    let mut is_warm = false;
    loop {
        loader.fill(step, &mut images[..], &mut targets).unwrap();
        step += 1;
        let elapsed = begun.elapsed();
        if !is_warm && elapsed > Duration::from_secs(1) {
            (begun, cpu, first, is_warm) = (Instant::now(), cpu_seconds(), step, true);
        } else if is_warm && elapsed.as_secs_f64() > seconds {
            break;
        }
    }
    let n = (step - first) as f64 * BATCH as f64;
    println!(
        "loader      {:6.3} ms of processor an image, {:7.1} images/s, {threads} threads",
        1e3 * (cpu_seconds() - cpu) / n,
        n / begun.elapsed().as_secs_f64()
    );
}

/// The files as a set with one label, which none of them has.
fn one_label(folder: &Path, files: &[PathBuf]) -> Dataset {
    let images: Vec<_> = files
        .iter()
        .enumerate()
        .map(|(id, f)| serde_json::json!({ "id": id, "file_name": f.file_name().unwrap().to_str() }))
        .collect();
    let all = serde_json::json!({ "images": images, "annotations": [], "categories": [{ "id": 1, "name": "none" }] });
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("instances.json");
    std::fs::write(&json, all.to_string()).unwrap();
    Dataset::coco(folder, &json).unwrap()
}

/// Processor time of all threads of this process so far; 0 where `/proc` does not have it.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name in brackets: state is field 3, user and system time 14 and 15, in hundredths on Linux.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
