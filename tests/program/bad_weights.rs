//! What the program answers when a file that a run needs is missing, damaged or of another kind: exit code
//! 4, and a message that names the file and the tensor, within two seconds and before an output folder is
//! made.

use crate::common::{LEFT, Lab, RIGHT, load, mapped, network, teacher_tensors};
use dfka_engine::models::resnet::{Normalisation, ResNetSpec, StridePlace};
use dfka_engine::weights::npz::{self, Array, CompressionMethod, Elems};
use dfka_engine::weights::{self, Tensors};
use std::time::{Duration, Instant};

/// Changes a tensor's shape and values; `None` leaves the tensor out.
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
    refused(&lab, &[], &["right.npz", "1 missing (layer2.0.conv1.weight)"]);

    // One message lists the first five missing tensors and the first five unexpected ones.
    let renamed = |n: &str| n.replace("conv2", "convolution");
    let mut other = Tensors::new();
    for (n, t) in good.iter() {
        other.insert(renamed(n), &t.shape, t.data.clone()).unwrap();
    }
    for i in 0..6 {
        other.insert(format!("aux.{i}"), &[1, 1], vec![0.0]).unwrap();
    }
    other.meta = good.meta.clone();
    npz::save(lab.path("right.npz"), &other).unwrap();
    let missing = "4 missing (layer1.0.conv2.weight, layer2.0.conv2.weight, layer3.0.conv2.weight, \
                   layer4.0.conv2.weight)";
    let unexpected = "10 unexpected (aux.0, aux.1, aux.2, aux.3, aux.4, ...)";
    refused(&lab, &[], &["right.npz", missing, unexpected]);

    let transposed = |shape: &[usize], v: &[f32]| Some((vec![shape[1], shape[0], 3, 3], v.to_vec()));
    npz::save(lab.path("right.npz"), &replaced(&transposed)).unwrap();
    refused(&lab, &[], &["right.npz", name, "expected shape [8, 4, 3, 3], found [4, 8, 3, 3]"]);

    let mut extra = good.clone();
    extra.insert("layer5.0.conv1.weight", &[1], vec![0.0]).unwrap();
    npz::save(lab.path("right.npz"), &extra).unwrap();
    refused(&lab, &[], &["right.npz", "1 unexpected (layer5.0.conv1.weight)"]);

    let negative = mapped(&good, |n, shape, v| {
        let v = if n == "bn1.running_var" { vec![-1.0; v.len()] } else { v.to_vec() };
        Some((shape.to_vec(), v))
    });
    npz::save(lab.path("right.npz"), &negative).unwrap();
    refused(&lab, &[], &["right.npz", "bn1.running_var", "found -1"]);

    // Another dtype: bytes where floats belong. Written by hand, because `save` cannot write it.
    let arrays: Vec<Array> = good
        .iter()
        .map(|(n, t)| {
            let elems = if n == name { Elems::U8(&[7; 8 * 4 * 9]) } else { Elems::F32(&t.data) };
            Array { name: n, shape: &t.shape, elems }
        })
        .collect();
    npz::write(lab.path("right.npz"), &arrays, &good.meta, CompressionMethod::Stored).unwrap();
    refused(&lab, &[], &["right.npz", name, "uint8"]);

    // Not a number: the writer refuses it, so the test replaces the bytes of a stored 1.0 and mends the
    // checksum.
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

/// Replaces the first `marker` by NaN and mends the zip's checksums of that entry.
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
fn metadata_that_is_missing_or_wrong() {
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
    // Without an architecture in its metadata, a file's shapes determine the network, for images of 224
    // pixels.
    with("network", None);
    refused(
        &lab,
        &[],
        &["right.npz", "images of 16 x 16 pixels and 1 channel (224 x 224", "images of one size"],
    );
    with("network", Some(serde_json::json!(7)));
    refused(&lab, &[], &["left.npz", "__meta__", "network"]);
    with("network", Some(good.meta["network"].clone()));
    with("labels", None);
    refused(&lab, &[], &["left.npz", "labels: expected 3", "fc.weight", "found none"]);
    with("labels", Some(serde_json::json!(["bus", "car", "bus"])));
    refused(&lab, &[], &["left.npz", "found \"bus\" at places 1 and 3"]);
    with("labels", Some(serde_json::json!(["bus"])));
    refused(&lab, &[], &["left.npz", "labels: expected 3, one for each row of fc.weight, found 1"]);
    with("network", Some(serde_json::json!({ "block": "basic" })));
    refused(&lab, &[], &["left.npz", "network"]);
    let huge = ResNetSpec { widths: vec![60_000, 8, 8, 16], ..network() };
    with("network", Some(serde_json::to_value(huge).unwrap()));
    refused(&lab, &["student.filter_reduction=4"], &["left.npz"]);
    let deep = ResNetSpec { depths: vec![65_536; 4], ..network() };
    with("network", Some(serde_json::to_value(deep).unwrap()));
    refused(&lab, &[], &["left.npz", "262144 residual units"]);
    for (mean, std, expected) in
        [(0.5, 0.0, "deviations from 0.001 to 10, found 0"), (127.0, 0.5, "means from 0 to 1, found 127")]
    {
        let normalisation = Some(Normalisation { mean: vec![mean], std: vec![std] });
        let odd = ResNetSpec { normalisation, ..network() };
        with("network", Some(serde_json::to_value(odd).unwrap()));
        refused(&lab, &[], &["left.npz", "network", expected]);
    }
}

#[test]
fn a_config_that_its_teachers_contradict() {
    let lab = Lab::new();
    for (set, expected) in [
        ("teachers.0.image_size=32", "the config's image_size is 32, the file's 16 x 16"),
        ("teachers.0.network=resnet18", "the config's network is ResNet-18"),
        ("teachers.0.labels=['bus', 'car']", "the config's labels are bus, car, the file's bus, car, dog"),
    ] {
        refused(&lab, &[set], &["left.npz", expected]);
    }
    let sets = ["teachers.0.mean=[0.5, 0.4, 0.5]", "teachers.0.std=[0.2, 0.2, 0.2]"];
    refused(
        &lab,
        &sets,
        &["left.npz", "expected 1, one for each input channel of conv1.weight, found 3 and 3"],
    );
    let mut said = load(&lab.path("left.npz"));
    let of = |mean: f32| ResNetSpec {
        normalisation: Some(Normalisation { mean: vec![mean; 3], std: vec![0.5; 3] }),
        stride: StridePlace::First,
        image: [16, 16, 3],
        ..network()
    };
    said = mapped(&said, |n, shape, v| match n {
        "conv1.weight" => Some((vec![shape[0], 3, 3, 3], v.repeat(3))),
        _ => Some((shape.to_vec(), v.to_vec())),
    });
    said.meta.insert("network".into(), serde_json::to_value(of(0.25)).unwrap());
    npz::save(lab.path("left.npz"), &said).unwrap();
    let sets = ["teachers.0.mean=[0.5, 0.5, 0.5]", "teachers.0.std=[0.5, 0.5, 0.5]"];
    refused(
        &lab,
        &sets,
        &[
            "left.npz",
            "the config's normalisation is mean 0.5, 0.5, 0.5 and std 0.5, 0.5, 0.5, the file's mean",
            "0.25",
        ],
    );
    refused(&lab, &["teachers.0.stride=3x3"], &["left.npz", "the config's stride is 3x3, the file's 1x1"]);
    // Teachers of different images cannot share a run's images.
    refused(
        &lab,
        &[],
        &["right.npz", "images of 16 x 16 pixels and 1 channel (", "in left.npz)", "images of one size"],
    );
}

/// The same faults in safetensors, and files in PyTorch's own format.
#[test]
fn damaged_safetensors_and_files_of_other_programs() {
    let lab = Lab::new();
    let good = load(&lab.path("right.npz"));
    let set = ["teachers.1.weights=right.safetensors"];
    let write = |bytes: &[u8]| std::fs::write(lab.path("right.safetensors"), bytes).unwrap();
    weights::save(lab.path("right.safetensors"), &good).unwrap();
    let whole = lab.bytes("right.safetensors");
    for share in [0, 1, 30, 60, 99] {
        write(&whole[..whole.len() * share / 100]);
        refused(&lab, &set, &["right.safetensors"]);
    }
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for claim in [u64::MAX, 1 << 40, 9 << 20, whole.len() as u64] {
        write(&[&claim.to_le_bytes()[..], &whole[8..]].concat());
        refused(&lab, &set, &["right.safetensors", "header of at most"]);
    }
    let mut nan = whole.clone();
    nan[8 + length..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    write(&nan);
    refused(&lab, &set, &["right.safetensors", "expected finite numbers, found NaN at index [0]"]);
    let header = std::str::from_utf8(&whole[8..8 + length]).unwrap();
    for (from, to, expected) in [
        ("F32", "I32", "expected dtype F32"),
        ("[2,16]", "[2,17]", "invalid shape"),
        ("[0,", "[4,", "offset"),
        ("fc.weight", "fc.wieght", "1 missing (fc.weight), 1 unexpected (fc.wieght)"),
    ] {
        let header = header.replacen(from, to, 1);
        assert_eq!(header.len(), length);
        write(&[&whole[..8], header.as_bytes(), &whole[8 + length..]].concat());
        refused(&lab, &set, &["right.safetensors", expected]);
    }
    write(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.");
    refused(&lab, &set, &["right.safetensors", "pickle", "scripts/torch_to_npz.py"]);
    let mut zip = zip::ZipWriter::new(std::fs::File::create(lab.path("right.safetensors")).unwrap());
    zip.start_file("archive/data.pkl", zip::write::SimpleFileOptions::default()).unwrap();
    zip.finish().unwrap();
    refused(&lab, &set, &["right.safetensors", "pickle", "scripts/torch_to_npz.py"]);
    write(b"GIF89a and so on");
    refused(&lab, &set, &["right.safetensors", "found a GIF image"]);
}

#[test]
fn teachers_of_different_architectures() {
    let lab = Lab::new();
    let wide = ResNetSpec { widths: vec![4, 8, 12, 16], ..network() };
    npz::save(lab.path("right.npz"), &teacher_tensors(&wide, &RIGHT, 2)).unwrap();
    refused(
        &lab,
        &[],
        &["right.npz", "channels by block 4, 8, 12, 16 (4, 8, 8, 16 in left.npz)", "set student.network"],
    );
}

#[test]
fn images_that_do_not_fit() {
    let lab = Lab::new();
    crate::common::images(3, [16, 12, 1], 1).save(lab.path("ka.npz")).unwrap();
    for set in ["dual.images=real:ka.npz", "baselines.ka=ka.npz"] {
        refused(&lab, &[set], &["ka.npz", "expect [16, 16, 1], found [16, 12, 1]"]);
    }
    // A file with targets is not a set of unlabelled images.
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
    refused(&lab, &["student.init=backbone.npz"], &["backbone.npz", "10 unexpected (layer2.1.bn1.bias"]);
    let mut student = Tensors::new();
    student.meta.insert("student".into(), serde_json::json!({}));
    npz::save(lab.path("student.npz"), &student).unwrap();
    refused(&lab, &["student.init=student.npz"], &["student.npz", "a student"]);
}

#[test]
fn an_evaluation_set_that_cannot_score_the_student() {
    let lab = Lab::new();
    crate::common::labelled(4, [16, 16, 1], &["bus", "car", "dog", "cat"], 1)
        .save(lab.path("evaluation.npz"))
        .unwrap();
    refused(&lab, &[], &["evaluation.npz", "expected a label \"table\", found only bus, car, dog, cat"]);
    crate::common::labelled(4, [8, 8, 1], &["bus", "car", "dog", "cat", "table"], 1)
        .save(lab.path("evaluation.npz"))
        .unwrap();
    refused(&lab, &[], &["evaluation.npz", "expect [16, 16, 1], found [8, 8, 1]"]);
    std::fs::remove_file(lab.path("evaluation.npz")).unwrap();
    refused(&lab, &[], &["evaluation.npz", "cannot open"]);
}
