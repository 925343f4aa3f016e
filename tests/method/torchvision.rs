//! torchvision's ResNets of every depth, from files as PyTorch saves them, against torchvision's own logits.
//!
//! `tests/fixtures/torchvision_golden.py` made the fixture and has the same formula for the weights as
//! [`uniform`]. One test runs that script and `scripts/torch_to_npz.py` with the first of `DFKA_PYTHON`,
//! `.venv/bin/python` and python3 that has torchvision. Without one the test is skipped, or fails if
//! `DFKA_REQUIRE_PYTHON` is set.

use crate::common::{Lab, load, mapped, network, root, skipped};
use dfka_engine::data::unlabelled::ImageSet;
use dfka_engine::error::Result;
use dfka_engine::models::resnet::{Normalisation, ResNetSpec, StridePlace};
use dfka_engine::pipeline::Device;
use dfka_engine::pipeline::predictor::Predictor;
use dfka_engine::pipeline::spec::{Stated, TeacherSpec};
use dfka_engine::pipeline::teacher_file::{Backbone, TeacherFile};
use dfka_engine::weights::{self, Tensors, npz};
use std::path::{Path, PathBuf};
use std::process::Command;

const LABELS: [&str; 5] = ["bus", "car", "cat", "dog", "table"];

/// The largest allowed difference at every depth, in float32, of logits of the order 1 to 10.
pub const BOUND: f32 = 1e-4;

/// 32 random bits for an index: FNV-1a of the name, then a mixing function of Wellons (Prospecting for Hash
/// Functions).
fn words(name: &str) -> impl Fn(u32) -> u32 + use<> {
    let h = name.bytes().fold(0x811C_9DC5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    move |i| {
        let x = i.wrapping_mul(0x9E37_79B9).wrapping_add(h);
        let x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
        let x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
        x ^ (x >> 16)
    }
}

/// Uniform from `low` to `high`: 24 bits as a fraction, times the width, plus `low`, each operation rounded
/// to float32.
fn uniform(name: &str, count: usize, low: f64, high: f64) -> Vec<f32> {
    let (bits, width) = (words(name), (high - low) as f32);
    let value = |i| (bits(i) >> 8) as f32 * 2f32.powi(-24) * width + low as f32;
    (0..count as u32).map(value).collect()
}

/// The range of a made-up tensor: `head` is the bound of the head's weights, `last` the end of the name of a
/// residual branch's last gamma.
fn range_of(name: &str, shape: &[usize], head: f64, last: &str) -> (f64, f64) {
    let around = |bound: f64| (-bound, bound);
    match name {
        "fc.weight" => around(head),
        _ if shape.len() == 4 => around((6.0 / shape[1..].iter().product::<usize>() as f64).sqrt()),
        _ if name.ends_with("running_var") => (0.5, 1.5),
        _ if name.starts_with("layer") && name.ends_with(last) => (0.125, 0.375),
        _ if name.ends_with(".weight") => (0.5, 1.5),
        _ => around(0.25),
    }
}

pub fn pixels(n: usize, size: usize) -> ImageSet {
    let bits = words(&format!("images {size}"));
    let all = (0..(n * size * size * 3) as u32).map(|i| (bits(i) >> 24) as u8).collect();
    ImageSet::new(all, [n, size, size, 3], "made up").unwrap()
}

/// A state dict under torchvision's names, with the prefix of a wrapper.
fn made_up(golden: &Tensors, depth: usize, wrapper: &str) -> Tensors {
    let head = match depth {
        18 => 1.0 / 8.0,
        34 => 1.0 / 16.0,
        50 => 1.0 / 64.0,
        101 => 1.0 / 256.0,
        _ => 1.0 / 512.0,
    };
    state_dict(golden, &format!("resnet{depth}"), head, wrapper)
}

/// The made-up state dict of the network that the fixture has under this name.
pub fn state_dict(golden: &Tensors, network: &str, head: f64, wrapper: &str) -> Tensors {
    let networks = golden.meta_as::<serde_json::Value>("networks").unwrap();
    let index: Vec<(String, Vec<usize>)> = serde_json::from_value(networks[network].clone()).unwrap();
    let is_bottleneck = index.iter().any(|(name, _)| name.contains(".conv3."));
    let last = if is_bottleneck { "bn3.weight" } else { "bn2.weight" };
    let mut out = Tensors::new();
    for (name, shape) in index {
        let count = shape.iter().product();
        let (low, high) = range_of(&name, &shape, head, last);
        let values = match name.ends_with("num_batches_tracked") {
            true => vec![7.0],
            false => uniform(&name, count, low, high),
        };
        out.insert(format!("{wrapper}{name}"), &shape, values).unwrap();
    }
    out
}

pub fn stated(size: usize) -> Stated {
    let labels = LABELS.map(String::from).to_vec();
    Stated { labels, image_size: Some(size), ..Stated::default() }
}

pub fn logits_of(file: &Path, stated: Stated, images: &ImageSet) -> Result<Vec<f32>> {
    let teacher = TeacherSpec { stated, ..TeacherSpec::new("t", file) };
    Predictor::open_teacher(&teacher, &Device::default())?.logits(images)
}

pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Logits of a ResNet of that depth on `n` images of `size` pixels, from a file that the engine wrote.
fn depth_agrees(depth: usize, size: usize, n: usize, wrapper: &str, extension: &str) {
    let golden = load(&root().join("tests/fixtures/torchvision_golden.npz"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(format!("w.{extension}"));
    weights::save(&file, &made_up(&golden, depth, wrapper)).unwrap();
    let found = logits_of(&file, stated(size), &pixels(n, size)).unwrap();
    let of = |what: &str| &golden.get(&format!("{what}.{depth}.{size}")).unwrap().data;
    let (off, exactly) = (distance(&found, of("logits")), distance(&found, of("exact")));
    let largest = found.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    println!("resnet{depth} {size}: logits to {largest:.2}, off by {off:.1e}; by {exactly:.1e} from float64");
    assert!(off <= BOUND && exactly <= BOUND, "resnet{depth}: {off} from float32, {exactly} from float64");
    assert!((1.0..20.0).contains(&largest));
}

#[test]
fn resnet18() {
    depth_agrees(18, 64, 2, "", "npz");
    depth_agrees(18, 224, 1, "module.", "safetensors");
}

#[test]
fn resnet34() {
    depth_agrees(34, 64, 2, "model.", "safetensors");
}

#[test]
fn resnet50() {
    depth_agrees(50, 64, 2, "_orig_mod.module.backbone.", "safetensors");
}

#[test]
fn resnet101() {
    depth_agrees(101, 64, 2, "encoder.", "safetensors");
}

#[test]
fn resnet152() {
    depth_agrees(152, 64, 2, "", "safetensors");
}

/// The shapes of weights do not determine stride and normalisation: the config does, and they change the
/// result.
#[test]
fn the_config_decides_stride_and_normalisation() {
    let golden = load(&root().join("tests/fixtures/torchvision_golden.npz"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("w.safetensors");
    weights::save(&file, &made_up(&golden, 50, "")).unwrap();
    let off_from = |what: &str, change: &dyn Fn(&mut Stated)| {
        let mut s = stated(64);
        change(&mut s);
        distance(&logits_of(&file, s, &pixels(2, 64)).unwrap(), &golden.get(what).unwrap().data)
    };
    let off = |change: &dyn Fn(&mut Stated)| off_from("logits.50.64", change);
    // torchvision's own network with its strides moved.
    let v1 = off_from("logits.50v1.64", &|s| s.stride = Some(StridePlace::First));
    println!("resnet50, stride 1x1: off by {v1:.1e}");
    assert!(v1 <= BOUND, "{v1}");
    assert!(off(&|s| s.normalisation = Some(Normalisation::imagenet())) <= BOUND);
    assert!(off(&|s| s.stride = Some(StridePlace::Middle)) <= BOUND);
    assert!(off(&|s| s.network = ResNetSpec::torchvision(50, 64)) <= BOUND);
    let (stride, plain) = (
        off(&|s| s.stride = Some(StridePlace::First)),
        off(&|s| s.normalisation = Some(Normalisation { mean: vec![0.5; 3], std: vec![0.5; 3] })),
    );
    println!("the other stride is off by {stride:.1e}, no normalisation by {plain:.1e}");
    assert!(stride > 100.0 * BOUND && plain > 100.0 * BOUND, "{stride} {plain}");
}

/// A run from torchvision's kind of files (names, wrapper, format, labels) has the same bits as one from the
/// engine's own.
#[test]
fn a_run_has_the_same_bits_from_every_format() {
    let lab = Lab::new();
    for name in ["left", "right"] {
        let ours = load(&lab.path(&format!("{name}.npz")));
        let mut theirs = Tensors::new();
        for (tensor, t) in ours.iter() {
            theirs.insert(format!("module.model.{tensor}"), &t.shape, t.data.clone()).unwrap();
        }
        theirs.insert("module.model.bn1.num_batches_tracked", &[], vec![3.0]).unwrap();
        weights::save(lab.path(&format!("{name}.safetensors")), &theirs).unwrap();
    }
    let sets = [
        "teachers.0.weights=left.safetensors",
        "teachers.1.weights=right.safetensors",
        "teachers.0.labels=['bus', 'car', 'dog']",
        "teachers.1.labels=['cat', 'table']",
        "teachers.0.image_size=16",
        "teachers.1.image_size=16",
        "student.init=right.safetensors",
    ];
    let a = lab.run("a", &["student.init=right.npz"]).unwrap();
    let b = lab.run("b", &sets).unwrap();
    assert_eq!(lab.bytes("a/student.npz"), lab.bytes("b/student.npz"));
    assert_eq!(a.teachers["mean"].ap, b.teachers["mean"].ap);
    assert_eq!(a.teachers["mean"].ap.len(), 5);
}

/// The student gets normalised images too: its file says so, and it predicts the same when loaded again.
#[test]
fn a_student_of_normalised_teachers_is_normalised() {
    let lab = Lab::new();
    let normalisation = Some(Normalisation { mean: vec![0.3], std: vec![0.2] });
    for name in ["left", "right"] {
        let mut t = load(&lab.path(&format!("{name}.npz")));
        let spec = ResNetSpec { normalisation: normalisation.clone(), ..network() };
        t.meta.insert("network".into(), serde_json::to_value(spec).unwrap());
        npz::save(lab.path(&format!("{name}.npz")), &t).unwrap();
    }
    let images = crate::common::images(8, [16, 16, 1], 3);
    let students = ["plain", "normalised"].map(|out| {
        if out == "plain" {
            let plain = Lab::new();
            plain.run(out, &[]).unwrap();
            return load(&plain.path("plain/student.npz"));
        }
        lab.run(out, &[]).unwrap();
        load(&lab.path("normalised/student.npz"))
    });
    let [plain, student] = students;
    assert_eq!(plain.len(), student.len(), "no tensor of its own");
    let spec: dfka_engine::models::targetnet::TargetNetSpec = student.meta_as("student").unwrap();
    assert_eq!(spec.network.normalisation, normalisation);
    let file = lab.path("normalised/student.npz");
    let logits = |file: &Path| Predictor::open(file, &Device::default()).unwrap().logits(&images).unwrap();
    let normalised = logits(&file);
    let mut without = student.clone();
    let mut spec = spec;
    spec.network.normalisation = None;
    without.meta.insert("student".into(), serde_json::to_value(spec).unwrap());
    npz::save(lab.path("without.npz"), &without).unwrap();
    assert!(distance(&normalised, &logits(&lab.path("without.npz"))) > 1e-3);
}

#[test]
fn a_backbone_determines_the_network_and_must_hold_every_tensor() {
    let golden = load(&root().join("tests/fixtures/torchvision_golden.npz"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("w.safetensors");
    let whole = made_up(&golden, 18, "module.");
    let without_head =
        mapped(&whole, |n, shape, v| (!n.contains(".fc.")).then(|| (shape.to_vec(), v.to_vec())));
    let [whole, headless] = [whole, without_head].map(|t| {
        weights::save(&file, &t).unwrap();
        load(&file)
    });
    let backbone = Backbone::open(&file).unwrap();
    assert_eq!(backbone.normalisation, Some(Normalisation::imagenet()));
    assert_eq!(backbone.stride, StridePlace::Middle);
    let resnet18 = ResNetSpec::torchvision(18, 32).unwrap();
    let tensors = backbone.fitting(&resnet18).unwrap();
    assert!(tensors.get("layer4.1.bn2.running_var").is_some());
    let other = Backbone::open(&file).unwrap().fitting(&ResNetSpec::torchvision(34, 32).unwrap());
    let e = other.unwrap_err().to_string();
    assert!(e.contains("tensors of ResNet-34: 80 missing (layer1.2.bn1.bias"), "{e}");
    let e = TeacherFile::read(headless, &stated(32)).map(|_| ()).unwrap_err().to_string();
    assert!(e.contains("tensors of ResNet-18: 2 missing (fc.bias, fc.weight)"), "{e}");
    let e = TeacherFile::read(whole, &Stated::default()).map(|_| ()).unwrap_err().to_string();
    assert!(e.contains("labels: expected 5, one for each row of fc.weight, found none"), "{e}");
}

#[test]
fn networks_of_other_kinds_are_refused_with_a_clear_message() {
    let of = |names: &[(&str, &[usize])]| {
        let mut t = Tensors::new();
        for (name, shape) in names {
            t.insert(*name, shape, vec![0.5; shape.iter().product()]).unwrap();
        }
        TeacherFile::read(t, &stated(32)).map(|_| ()).unwrap_err()
    };
    let vgg: &[(&str, &[usize])] = &[("features.0.weight", &[4, 3, 3, 3]), ("features.0.bias", &[4])];
    let deep_stem: &[(&str, &[usize])] = &[("conv1.0.weight", &[4, 3, 3, 3])];
    let patches: &[(&str, &[usize])] = &[("conv1.weight", &[4, 3, 16, 16])];
    for names in [&[][..], vgg, deep_stem, patches] {
        let e = of(names);
        assert_eq!(e.exit_code(), 4);
        assert!(e.to_string().contains("a ResNet under torchvision's names was expected"), "{e}");
    }
    let stem: (&str, &[usize]) = ("conv1.weight", &[4, 3, 7, 7]);
    for (name, expected) in [
        ("layer99999999.0.conv1.weight", "no ResNet of 2 tensors"),
        ("layer1.99999999.conv1.weight", "no ResNet of 2 tensors"),
        ("layer0.0.conv1.weight", "no ResNet of 2 tensors"),
        ("layer2.0.conv1.weight", "layer1.0.bn2.weight"),
        ("layer18446744073709551616.0.x", "torchvision's names"),
        ("layer1", "torchvision's names"),
    ] {
        let e = of(&[stem, (name, &[4, 4, 3, 3])]);
        assert!(e.exit_code() == 4 && e.to_string().contains(expected), "{name}: {e}");
    }
}

/// A Python that has the packages of the live test.
fn python() -> Option<PathBuf> {
    let venv = root().join(".venv/bin/python");
    let named = std::env::var_os("DFKA_PYTHON").map(PathBuf::from);
    let all = [named, Some(venv), Some("python3".into())];
    let has_torch = |p: &PathBuf| {
        let import = ["-c", "import torch, torchvision, safetensors"];
        Command::new(p).args(import).output().is_ok_and(|o| o.status.success())
    };
    all.into_iter().flatten().find(has_torch)
}

#[test]
fn files_that_pytorch_saves_today() {
    let Some(python) = python() else {
        assert!(std::env::var_os("DFKA_REQUIRE_PYTHON").is_none(), "no Python with torchvision");
        return skipped("no Python with torch, torchvision and safetensors (DFKA_PYTHON)");
    };
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let script = |name: &str| root().join(name).to_string_lossy().into_owned();
    let call = |args: &[&str]| {
        let out = Command::new(&python).args(args).output().unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (made, message) = call(&[&script("tests/fixtures/torchvision_golden.py"), "live", &file("")]);
    assert!(made, "{message}");
    let convert = |args: &[&str]| call(&[&[&script("scripts/torch_to_npz.py")[..]], args].concat());

    let labels = LABELS.join(",");
    for depth in [18, 50] {
        let expected = load(Path::new(&file(&format!("{depth}.logits.npz"))));
        let expected = &expected.get("logits").unwrap().data;
        let (from, arch) = (file(&format!("{depth}.pth")), format!("resnet{depth}"));
        // A bare state dict lacks what the config then states; a converted file has it.
        let mut found =
            vec![("safetensors as saved", file(&format!("{depth}.plain.safetensors")), stated(64))];
        for extension in ["npz", "safetensors"] {
            let to = file(&format!("{depth}.{extension}"));
            let said = ["--labels", &labels, "--image-size", "64", "--arch", &arch];
            let (ok, message) = convert(&[&[&from[..], &to], &said[..]].concat());
            assert!(ok, "{message}");
            found.push((extension, to, Stated::default()));
        }
        for (what, path, stated) in found {
            let logits = logits_of(Path::new(&path), stated, &pixels(2, 64)).unwrap();
            let off = distance(&logits, expected);
            println!("resnet{depth}, {what}: off by {off:.1e}");
            assert!(off <= BOUND, "resnet{depth}, {what}: {off}");
        }
    }

    let lines = dir.path().join("labels.txt");
    std::fs::write(&lines, LABELS.join("\n")).unwrap();
    let (to, numbers) = (file("module.npz"), "0.25,0.5,0.75");
    let module = [&file("module.pt")[..], &to, "--labels-file", lines.to_str().unwrap()];
    // The module's strides are found, and its logits compared.
    let rest = ["--mean", numbers, "--std", numbers, "--unsafe"];
    let (ok, message) = convert(&[&module[..], &rest[..]].concat());
    assert!(ok, "{message}");
    let known = TeacherFile::open(&TeacherSpec::new("t", &to)).unwrap().known;
    let n = Some(Normalisation { mean: vec![0.25, 0.5, 0.75], std: vec![0.25, 0.5, 0.75] });
    assert_eq!((known.network.normalisation, known.network.stride), (n, StridePlace::First));
    assert_eq!((known.network.image, &known.labels[..]), ([224, 224, 3], &LABELS.map(String::from)[..]));

    for (args, expected) in [
        (vec![&file("module.pt")[..], &to], "--unsafe"),
        (vec![&file("18.pth"), &file("x.bin")], ".npz or .safetensors"),
        (vec![&file("18.pth"), &to, "--labels", "a,b"], "expected 5 labels"),
        (vec![&file("18.pth"), &to, "--arch", "resnet50"], "expected resnet50"),
        (vec![&file("18.pth"), &to, "--mean", numbers], "must be given together"),
        (vec![&file("18.pth"), &to, "--mean", "1,1", "--std", "1,1"], "expected 3 numbers"),
        (vec![&file("none.pth"), &to], "cannot load"),
    ] {
        let (ok, message) = convert(&args);
        assert!(!ok && message.starts_with("error: ") && message.contains(expected), "{args:?}: {message}");
    }
}

/// The tensors of a 3x3 stem do not show its stride: the config states it, or 1 is assumed and a note says so.
#[test]
fn the_stride_of_a_small_stem_is_stated_or_assumed() {
    let file = root().join("weights/demo/teacher_a.npz");
    let original = TeacherSpec::new("t", &file);
    let known = TeacherFile::open(&original).unwrap().known;
    let bare = || {
        let mut bare = Tensors::new();
        for (name, t) in load(&file).iter() {
            bare.insert(name.to_string(), &t.shape, t.data.to_vec()).unwrap();
        }
        bare
    };
    let stated = |stem_stride| Stated {
        labels: known.labels.clone(),
        image_size: Some(32),
        stem_stride,
        ..Stated::default()
    };
    let assumes =
        |t: &TeacherFile| t.tensors.notes.iter().any(|n| n.contains("stride 1 and no max pool are assumed"));
    let right = TeacherFile::read(bare(), &stated(Some(2))).unwrap();
    assert_eq!((right.known.network.stem, assumes(&right)), (known.network.stem, false));
    let assumed = TeacherFile::read(bare(), &stated(None)).unwrap();
    assert_eq!((assumed.known.network.stem.stride, assumes(&assumed)), (1, true));
    let wrong = Stated { stem_stride: Some(1), ..Stated::default() };
    let e = TeacherFile::open(&TeacherSpec { stated: wrong, ..original }).err().unwrap().to_string();
    assert!(e.contains("the config's stem_stride is 1, the file's 2"), "{e}");
}
