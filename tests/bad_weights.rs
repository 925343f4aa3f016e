//! What the program answers when a file that a run needs is missing, damaged or of another kind: exit code 4, the file
//! and the tensor, within two seconds, and before an output folder is made.

mod common;

use common::{LEFT, Lab, RIGHT, load, mapped, network, teacher_tensors};
use dfka_engine::models::resnet::ResNetSpec;
use dfka_engine::weights::npz::{self, Array, CompressionMethod, Elems};
use std::time::{Duration, Instant};

/// What becomes of a tensor's shape and values; `None` leaves it out.
type Change = dyn Fn(&[usize], &[f32]) -> Option<(Vec<usize>, Vec<f32>)>;

/// `run` and `check` must both refuse, naming every part of `expected`.
fn refused(lab: &Lab, sets: &[&str], expected: &[&str]) {
    let sets: Vec<&str> = sets.iter().flat_map(|s| ["--set", s]).collect();
    for command in ["run", "check"] {
        let begun = Instant::now();
        let out = lab.call(&[&[command, "c.toml"], &sets[..]].concat());
        let took = begun.elapsed();
        let text = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(4), "{command} {sets:?}: {text}");
        assert!(took < Duration::from_secs(2), "{command} {sets:?} took {took:?}");
        assert!(text.starts_with("error: ") && text.lines().count() == 1, "{text}");
        for part in expected {
            assert!(text.contains(part), "{command} {sets:?}: {text}\nexpected {part:?}");
        }
        assert!(!lab.path("runs").exists(), "{command} {sets:?} made an output folder");
    }
}

#[test]
fn damaged_teachers() {
    let lab = Lab::new();
    let good = load(&lab.path("right.npz"));
    let name = "layer2.0.conv1.weight";
    let replaced = |f: &Change| {
        mapped(&good, |n, shape, v| if n == name { f(shape, v) } else { Some((shape.to_vec(), v.to_vec())) })
    };

    npz::save(lab.path("right.npz"), &replaced(&|_, _| None)).unwrap();
    refused(&lab, &[], &["right.npz", name, "found no such tensor"]);

    let turned = |shape: &[usize], v: &[f32]| Some((vec![shape[1], shape[0], 3, 3], v.to_vec()));
    npz::save(lab.path("right.npz"), &replaced(&turned)).unwrap();
    refused(&lab, &[], &["right.npz", name, "expected shape [8, 4, 3, 3], found [4, 8, 3, 3]"]);

    let mut extra = good.clone();
    extra.insert("layer5.0.conv1.weight", &[1], vec![0.0]).unwrap();
    npz::save(lab.path("right.npz"), &extra).unwrap();
    refused(&lab, &[], &["right.npz", "layer5.0.conv1.weight", "no place for"]);

    let negative = mapped(&good, |n, shape, v| {
        let v = if n == "bn1.running_var" { vec![-1.0; v.len()] } else { v.to_vec() };
        Some((shape.to_vec(), v))
    });
    npz::save(lab.path("right.npz"), &negative).unwrap();
    refused(&lab, &[], &["right.npz", "bn1.running_var", "found -1"]);

    // Another dtype: bytes where floats belong. Written by hand, for `save` would not.
    let arrays: Vec<Array> = good
        .iter()
        .map(|(n, t)| {
            let elems = if n == name { Elems::U8(&[7; 8 * 4 * 9]) } else { Elems::F32(&t.data) };
            Array { name: n, shape: &t.shape, elems }
        })
        .collect();
    npz::write(lab.path("right.npz"), &arrays, &good.meta, CompressionMethod::Stored).unwrap();
    refused(&lab, &[], &["right.npz", name, "uint8"]);

    // Not a number: the writer refuses to, so the bytes of a stored 1.0 are exchanged, and its checksum with them.
    let marked = replaced(&|shape, v| Some((shape.to_vec(), vec![1.2345678; v.len()])));
    let arrays: Vec<Array> =
        marked.iter().map(|(name, t)| Array { name, shape: &t.shape, elems: Elems::F32(&t.data) }).collect();
    npz::write(lab.path("right.npz"), &arrays, &marked.meta, CompressionMethod::Stored).unwrap();
    let bytes = with_nan(&lab.bytes("right.npz"), 1.2345678f32.to_le_bytes());
    std::fs::write(lab.path("right.npz"), bytes).unwrap();
    refused(&lab, &[], &["right.npz", name, "expected finite numbers, found NaN at index [0, 0, 0, 0]"]);

    npz::save(lab.path("right.npz"), &good).unwrap();
    let whole = lab.bytes("right.npz");
    for share in [0, 1, 30, 60, 99] {
        std::fs::write(lab.path("right.npz"), &whole[..whole.len() * share / 100]).unwrap();
        refused(&lab, &[], &["right.npz"]);
    }
    std::fs::remove_file(lab.path("right.npz")).unwrap();
    refused(&lab, &[], &["right.npz", "cannot open"]);
    std::fs::create_dir(lab.path("right.npz")).unwrap();
    refused(&lab, &[], &["right.npz"]);
}

/// Exchanges the first `marker` for NaN and mends the zip's checksums of that entry.
fn with_nan(zip: &[u8], marker: [u8; 4]) -> Vec<u8> {
    let find =
        |from: usize, what: &[u8]| from + zip[from..].windows(what.len()).position(|w| w == what).unwrap();
    let at = find(0, &marker);
    // The entry's local header is the last one before it; the central directory repeats its checksum.
    let local = (0..at).rev().find(|i| zip[*i..].starts_with(b"PK\x03\x04")).unwrap();
    let word = |at: usize| u32::from_le_bytes(zip[at..at + 4].try_into().unwrap());
    let length = |at: usize| u16::from_le_bytes(zip[at..at + 2].try_into().unwrap()) as usize;
    let data = local + 30 + length(local + 26) + length(local + 28);
    let old = word(local + 14).to_le_bytes();
    let mut out = zip.to_vec();
    out[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let end = find(data, b"PK");
    let new = crc32(&out[data..end]).to_le_bytes();
    for i in (0..zip.len() - 4).filter(|i| zip[*i..*i + 4] == old) {
        out[i..i + 4].copy_from_slice(&new);
    }
    out
}

/// The zip format's checksum, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, b| {
        (0..8).fold(crc ^ u32::from(*b), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xEDB8_8320 } else { c >> 1 })
    })
}

#[test]
fn metadata_that_says_nothing_or_nonsense() {
    let lab = Lab::new();
    let good = load(&lab.path("left.npz"));
    let with = |key: &str, value: Option<serde_json::Value>| {
        let mut t = good.clone();
        match value {
            Some(v) => t.meta.insert(key.into(), v),
            None => t.meta.remove(key),
        };
        npz::save(lab.path("left.npz"), &t).unwrap();
    };
    with("network", None);
    refused(&lab, &[], &["left.npz", "__meta__", "network"]);
    with("labels", Some(serde_json::json!(["bus", "car", "bus"])));
    refused(&lab, &[], &["left.npz", "\"bus\" stands twice"]);
    with("labels", Some(serde_json::json!(["bus"])));
    refused(&lab, &[], &["left.npz", "fc.weight", "expected shape [1, 16], found [3, 16]"]);
    with("network", Some(serde_json::json!({ "block": "basic" })));
    refused(&lab, &[], &["left.npz", "network"]);
    let huge = ResNetSpec { widths: vec![60_000, 8, 8, 16], ..network() };
    with("network", Some(serde_json::to_value(huge).unwrap()));
    refused(&lab, &["student.filter_reduction=4"], &["left.npz"]);
}

#[test]
fn teachers_of_different_architectures() {
    let lab = Lab::new();
    let wide = ResNetSpec { widths: vec![4, 8, 12, 16], ..network() };
    npz::save(lab.path("right.npz"), &teacher_tensors(&wide, &RIGHT, 2)).unwrap();
    refused(&lab, &[], &["right.npz", "one architecture", "[4, 8, 8, 16]", "[4, 8, 12, 16]"]);
}

#[test]
fn images_that_do_not_fit() {
    let lab = Lab::new();
    common::images(3, [16, 12, 1], 1).save(lab.path("ka.npz")).unwrap();
    for set in ["dual.images=real:ka.npz", "baselines.ka=ka.npz"] {
        refused(&lab, &[set], &["ka.npz", "expect [16, 16, 1], found [16, 12, 1]"]);
    }
    // A file with targets is no set of unlabelled images.
    refused(&lab, &["baselines.ka=evaluation.npz"], &["evaluation.npz", "expected the arrays [\"images\"]"]);
    refused(&lab, &["baselines.ka=none.npz"], &["none.npz", "cannot open"]);
}

#[test]
fn a_student_that_starts_from_the_wrong_file() {
    let lab = Lab::new();
    let deep = ResNetSpec { depths: vec![1, 2, 1, 1], ..network() };
    npz::save(lab.path("backbone.npz"), &teacher_tensors(&deep, &LEFT, 9)).unwrap();
    let wide = ResNetSpec { widths: vec![4, 8, 12, 16], ..network() };
    npz::save(lab.path("wide.npz"), &teacher_tensors(&wide, &LEFT, 9)).unwrap();
    refused(&lab, &["student.init=wide.npz"], &["wide.npz", "layer3.0.conv1.weight"]);
    refused(&lab, &["student.init=none.npz"], &["none.npz", "cannot open"]);
    refused(&lab, &["student.init=backbone.npz"], &["backbone.npz", "layer2.1"]);
}

#[test]
fn an_evaluation_set_that_cannot_score_the_student() {
    let lab = Lab::new();
    common::labelled(4, [16, 16, 1], &["bus", "car", "dog", "cat"], 1)
        .save(lab.path("evaluation.npz"))
        .unwrap();
    refused(&lab, &[], &["evaluation.npz", "expected a label \"table\", found only bus, car, dog, cat"]);
    common::labelled(4, [8, 8, 1], &["bus", "car", "dog", "cat", "table"], 1)
        .save(lab.path("evaluation.npz"))
        .unwrap();
    refused(&lab, &[], &["evaluation.npz", "expect [16, 16, 1], found [8, 8, 1]"]);
    std::fs::remove_file(lab.path("evaluation.npz")).unwrap();
    refused(&lab, &[], &["evaluation.npz", "cannot open"]);
}
