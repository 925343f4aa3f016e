//! Exported students: the same tensors in every format, the same logits in every program that opens them,
//! and what `run`, `export`, `eval` and `sample` write and print.
//!
//! PyTorch and ONNX Runtime run in the Python of `DFKA_PYTHON`, of the repository's `.venv`, or `python3`.
//! Without the package a test prints that it is skipped; with `DFKA_REQUIRE_TORCH` or `DFKA_REQUIRE_ONNX`
//! set it fails.

use crate::common::{LEFT, Lab, images, load, root, skipped, teacher_tensors};
use dfka_engine::autograd::Store;
use dfka_engine::data::unlabelled::ImageSet;
use dfka_engine::device::Choice;
use dfka_engine::device::philox::Draws;
use dfka_engine::models::filter::{Filter, FilterKind, FilterSpec};
use dfka_engine::models::resnet::{Build, ResNet, ResNetSpec, Source, Stem};
use dfka_engine::models::targetnet::{TargetNetSpec, TaskSpec};
use dfka_engine::pipeline::Device;
use dfka_engine::pipeline::export::{Floats, PREPROCESSING, STUDENTS, export, export_as};
use dfka_engine::pipeline::predictor::Predictor;
use dfka_engine::weights::npz::Archive;
use dfka_engine::weights::onnx::{CONSTANT, proto};
use dfka_engine::weights::{self, Tensors};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The largest allowed difference from another program's logits, both in f32.
const MOST: f32 = 1e-4;
/// The same for weights and operators of half precision, whose numbers have 11 bits, in units of the largest logit,
/// or of 1 if that is smaller.
const MOST_HALF: f32 = 5e-3;

/// Labels of each task, and the block that it leaves the trunk after.
type Tasks<'a> = &'a [(&'a [&'a str], usize)];

/// Folded blocks and head of a random teacher.
fn folded(network: &ResNetSpec, labels: &[&str], seed: u64) -> (Store<f32>, ResNet) {
    let (mut store, mut t) = (Store::default(), teacher_tensors(network, labels, seed));
    let blocks = 1..=network.blocks();
    let (head, source) = (Some(labels.len()), Source::Tensors(&mut t));
    let net = ResNet::new(&mut store, "t", network, blocks, head, Build::Folded, source).unwrap();
    (store, net)
}

/// A student with random weights, in the form in which a run stores it, whose teachers have the trunk's architecture.
fn student(network: Value, reduction: usize, tasks: Tasks, order: &[&str]) -> Tensors {
    let teachers = vec![network.clone(); tasks.len()];
    student_of(network, &teachers, FilterKind::Gain, reduction, tasks, order)
}

/// The same with a teacher of its own architecture for each task.
fn student_of(
    network: Value,
    teachers: &[Value],
    filter: FilterKind,
    reduction: usize,
    tasks: Tasks,
    order: &[&str],
) -> Tensors {
    let network_of = |json: Value| serde_json::from_value::<ResNetSpec>(json).unwrap();
    let network = network_of(network);
    let (mut out, last) = (Tensors::new(), network.blocks());
    let deepest = tasks.iter().map(|t| t.1).max().unwrap();
    let (store, net) = folded(&network, &["x"], 1);
    net.export(&store, 1..=deepest, "trunk.", Build::Folded, &mut out).unwrap();
    let mut specs = Vec::new();
    for (i, ((labels, block), teacher)) in tasks.iter().zip(teachers).enumerate() {
        let teacher = network_of(teacher.clone());
        let (store, net) = folded(&teacher, labels, 2 + i as u64);
        let prefix = format!("task{i}.");
        if *block < last {
            net.export(&store, block + 1..=last, &prefix, Build::Folded, &mut out).unwrap();
        }
        let sizes = FilterSpec::new(filter, network.widths[block - 1], teacher.widths[block - 1], reduction);
        for (k, (what, shape)) in sizes.shapes().into_iter().enumerate() {
            let draws = Draws::new(9, i as u32, k as u64);
            let values = (0..shape.elems()).map(|e| (draws.uniforms(e as u32, 0)[0] - 0.5) as f32).collect();
            out.insert(format!("{prefix}filter.{what}"), &Filter::file_shape(what, shape), values).unwrap();
        }
        let [w, b] = net.head.unwrap();
        let c = teacher.widths[last - 1];
        // Scaled to logits of order one, because a new head starts with small weights.
        let louder = store.to_f32(w).iter().map(|v| 3.0 * v).collect();
        out.insert(format!("{prefix}fc.weight"), &[labels.len(), c], louder).unwrap();
        out.insert(format!("{prefix}fc.bias"), &[labels.len()], store.to_f32(b)).unwrap();
        let labels: Vec<String> = labels.iter().map(|l| l.to_string()).collect();
        specs.push(TaskSpec::new(&format!("teacher{i}"), &labels, *block, &teacher, &network));
    }
    let labels = order.iter().map(|l| l.to_string()).collect();
    let spec = TargetNetSpec { network, filter_reduction: reduction, filter, tasks: specs, labels };
    out.meta.insert("student".into(), serde_json::to_value(spec).unwrap());
    out
}

/// Students of several shapes, by name.
fn students() -> Vec<(&'static str, Tensors)> {
    let stem = |width: usize, kernel: usize, stride: usize, max_pool: bool| {
        serde_json::to_value(Stem { width, kernel, stride, max_pool }).unwrap()
    };
    let gray = json!({
        "block": "basic", "image": [16, 16, 1], "stem": stem(4, 3, 1, false),
        "widths": [4, 8, 8, 16], "depths": [1, 1, 1, 1],
    });
    let bottleneck = json!({
        "block": "bottleneck", "image": [32, 32, 3], "stem": stem(8, 7, 2, true),
        "widths": [16, 32, 32], "depths": [2, 1, 2],
    });
    let oblong = json!({
        "block": "basic", "image": [40, 24, 3], "stem": stem(8, 5, 2, true),
        "widths": [8, 16, 16, 32], "depths": [2, 1, 1, 1],
        "normalisation": { "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225] },
    });
    let v1 = json!({
        "block": "bottleneck", "image": [32, 32, 3], "stem": stem(8, 3, 1, false),
        "widths": [16, 32], "depths": [1, 2],
        "stride": "1x1", "normalisation": { "mean": [0.1, 0.5, 0.9], "std": [0.5, 0.25, 1.0] },
    });
    let wide = json!({
        "block": "bottleneck", "image": [32, 32, 3], "stem": stem(8, 7, 2, true),
        "widths": [16, 24, 32], "depths": [2, 1, 1], "variant": { "inner_widths": [8, 16, 12] },
    });
    // Blocks of 10x6, 5x3 and 3x2 pixels: windows of the average pool are cut at odd edges.
    let deep = json!({
        "block": "bottleneck", "image": [40, 24, 3], "stem": stem(8, 3, 2, true),
        "widths": [16, 24, 32], "depths": [1, 2, 1],
        "variant": { "deep_stem": [4, 6], "shortcut": "average_pool" },
    });
    let (left, right, third) = (&["bus", "car", "dog"][..], &["cat", "table"][..], &["sofa"][..]);
    // Maps of 16, 8 and 4 pixels, like those of a basic network of other widths and depths.
    let small = json!({
        "block": "basic", "image": [32, 32, 3], "stem": stem(8, 3, 2, false),
        "widths": [8, 12, 16], "depths": [1, 1, 1],
    });
    let large = json!({
        "block": "bottleneck", "image": [32, 32, 3], "stem": stem(16, 7, 2, false),
        "widths": [16, 24, 32], "depths": [2, 1, 2],
        "normalisation": { "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225] },
    });
    let unlike = [large, small.clone()];
    vec![
        (
            "unlike_teachers",
            student_of(
                small.clone(),
                &unlike,
                FilterKind::Gain,
                4,
                &[(left, 1), (right, 2)],
                &["table", "dog", "car", "bus", "cat"],
            ),
        ),
        (
            "stitched",
            student_of(
                small,
                &unlike,
                FilterKind::Stitch,
                2,
                &[(left, 3), (right, 1)],
                &["bus", "car", "dog", "cat", "table"],
            ),
        ),
        (
            "two_tasks",
            student(gray.clone(), 2, &[(left, 2), (right, 3)], &["table", "dog", "car", "bus", "cat"]),
        ),
        ("one_label", student(gray.clone(), 1, &[(third, 4)], third)),
        ("one_hidden_unit", student(gray, 4, &[(left, 1)], left)),
        ("bottleneck", student(bottleneck.clone(), 4, &[(left, 1)], &["dog", "bus", "car"])),
        (
            "same_block",
            student(bottleneck, 8, &[(left, 3), (right, 3)], &["bus", "car", "dog", "cat", "table"]),
        ),
        (
            "normalised",
            student(
                oblong,
                4,
                &[(right, 1), (third, 4), (left, 4)],
                &["sofa", "cat", "bus", "car", "dog", "table"],
            ),
        ),
        ("wide", student(wide, 4, &[(left, 1), (right, 2)], &["cat", "bus", "dog", "table", "car"])),
        ("deep", student(deep, 4, &[(left, 1), (right, 2)], &["cat", "bus", "dog", "table", "car"])),
        ("strides_first", student(v1, 4, &[(left, 1), (right, 2)], &["cat", "bus", "dog", "table", "car"])),
    ]
}

fn logits(path: &Path, images: &ImageSet) -> Vec<f32> {
    let device = Device { choice: Choice::Cpu, ..Device::default() };
    Predictor::open(path, &device).unwrap().logits(images).unwrap()
}

fn most_apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Fails unless both have the same names, shapes and bits.
fn assert_same(a: &Tensors, b: &Tensors, what: &str) {
    assert_eq!(
        a.iter().map(|t| t.0).collect::<Vec<_>>(),
        b.iter().map(|t| t.0).collect::<Vec<_>>(),
        "{what}"
    );
    for ((name, a), (_, b)) in a.iter().zip(b.iter()) {
        let bits = |t: &weights::HostTensor| t.data.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(a.shape == b.shape && bits(a) == bits(b), "{what}: {name} differs");
    }
}

/// A model's name, its folder with every format and `images.npz`, and those images.
type Case = (&'static str, PathBuf, ImageSet);

fn lay_out(dir: &Path, name: &'static str, tensors: &Tensors, image: [usize; 3]) -> Case {
    let (folder, bare) = (dir.join(name), dir.join("bare.npz"));
    std::fs::create_dir(&folder).unwrap();
    weights::save(&bare, tensors).unwrap();
    STUDENTS.iter().for_each(|file| drop(export(&bare, &folder.join(file)).unwrap()));
    export_as(&bare, &folder.join("half.onnx"), Floats::Half).unwrap();
    std::fs::remove_file(bare).unwrap();
    let set = images(5, image, 11);
    set.save(folder.join("images.npz")).unwrap();
    (name, folder, set)
}

fn laid_out() -> (tempfile::TempDir, Vec<Case>) {
    let dir = tempfile::tempdir().unwrap();
    let case = |(name, t): (&'static str, Tensors)| {
        let spec: TargetNetSpec = t.meta_as("student").unwrap();
        lay_out(dir.path(), name, &t, spec.network.image)
    };
    let cases = students().into_iter().map(case).collect();
    (dir, cases)
}

#[test]
fn every_format_holds_the_same_bits() {
    let (dir, cases) = laid_out();
    for (name, folder, set) in &cases {
        let first = load(&folder.join("student.npz"));
        let mut from = folder.join("student.npz");
        for to in ["a.safetensors", "b.onnx", "c.npz"] {
            let to = dir.path().join(to);
            export(&from, &to).unwrap();
            assert_same(&first, &weights::load(&to).unwrap(), &format!("{name}: {}", to.display()));
            assert_eq!(first.meta, weights::load(&to).unwrap().meta, "{name}");
            assert_eq!(
                logits(&folder.join("student.npz"), set),
                logits(&to, set),
                "{name}: {}",
                to.display()
            );
            from = to;
        }
        let bytes = |p: PathBuf| std::fs::read(p).unwrap();
        assert!(bytes(folder.join("student.npz")) == bytes(from), "{name}: another file after three formats");
    }
}

/// A file in half precision is smaller, and is read back with its weights rounded.
#[test]
fn half_precision_takes_half_the_bytes_and_is_read_back() {
    let (_dir, cases) = laid_out();
    for (name, folder, set) in &cases {
        let (whole, half) = (folder.join("student.onnx"), folder.join("half.onnx"));
        let exact = logits(&whole, set);
        let scale = exact.iter().fold(1.0, |m: f32, v| m.max(v.abs()));
        let apart = most_apart(&exact, &logits(&half, set));
        assert!(apart > 0.0 && apart <= MOST_HALF * scale, "{name}: {apart}");
        let weights: usize = load(&whole).iter().map(|(_, t)| t.data.len()).sum();
        let bytes = |file: &Path| std::fs::metadata(file).unwrap().len() as usize;
        let saved = bytes(&whole) - bytes(&half);
        assert!(saved.abs_diff(2 * weights) < 2000, "{name}: {saved} bytes saved, {weights} weights");
        let largest =
            load(&whole).iter().flat_map(|(_, t)| t.data.clone()).fold(0.0, |m: f32, v| m.max(v.abs()));
        for ((tensor, a), (_, b)) in load(&whole).iter().zip(load(&half).iter()) {
            assert_eq!(a.shape, b.shape, "{name}: {tensor}");
            assert!(most_apart(&a.data, &b.data) <= largest / 2048.0, "{name}: {tensor}");
        }
        assert_eq!(load(&whole).meta, load(&half).meta, "{name}");
    }
}

/// A teacher keeps its batch norms in ONNX, so it comes back as it was.
#[test]
fn a_teacher_goes_through_every_format() {
    let lab = Lab::new();
    let set = images(3, crate::common::network().image, 12);
    let mut teacher = load(&lab.path("left.npz"));
    teacher.meta["network"]["normalisation"] = json!({ "mean": [0.3], "std": [0.2] });
    weights::save(lab.path("left.npz"), &teacher).unwrap();
    let expected = logits(&lab.path("left.npz"), &set);
    let mut from = lab.path("left.npz");
    for to in ["t.onnx", "t.safetensors", "back.npz"] {
        export(&from, &lab.path(to)).unwrap();
        assert_eq!(logits(&lab.path(to), &set), expected, "{to}");
        from = lab.path(to);
    }
    assert_same(&load(&lab.path("left.npz")), &load(&from), "left.npz");
    let meta = |path: &Path| load(path).meta_as::<ResNetSpec>("network").unwrap();
    assert_eq!(meta(&lab.path("left.npz")), meta(&from));
}

/// PyTorch's logits of a student that is in the repository, from tests/fixtures/student_golden.py.
#[test]
fn a_stored_student_has_pytorchs_logits() {
    let fixture = |name: &str| root().join("tests/fixtures").join(name);
    let mut expected = Archive::open(fixture("student_golden_logits.npz")).unwrap();
    let (shape, pixels) = expected.bytes("images").unwrap();
    let set = ImageSet::new(pixels, shape.try_into().unwrap(), "golden").unwrap();
    let wanted = expected.floats("logits").unwrap().data;
    assert!(wanted.iter().any(|v| v.abs() > 0.5), "all logits are near zero: {wanted:?}");
    let dir = tempfile::tempdir().unwrap();
    for to in STUDENTS {
        let to = dir.path().join(to);
        export(&fixture("student_golden.npz"), &to).unwrap();
        let apart = most_apart(&logits(&to, &set), &wanted);
        assert!(apart <= MOST, "{}: {apart} from PyTorch's", to.display());
    }
}

/// What `tests/fixtures/run_student.py` prints for the students in `folder`; `None`, with a line on the
/// terminal, where Python or a package is missing.
fn python_logits(what: &str, folder: &Path) -> Option<Value> {
    let venv = root().join(".venv/bin/python");
    let python = std::env::var_os("DFKA_PYTHON").map(PathBuf::from).or(venv.exists().then_some(venv));
    let python = python.unwrap_or("python3".into());
    let script = root().join("tests/fixtures/run_student.py");
    let out = Command::new(&python).arg(script).arg(what).arg(folder).output();
    let why = match &out {
        Err(e) => format!("{}: {e}", python.display()),
        Ok(out) if out.status.success() => return Some(serde_json::from_slice(&out.stdout).unwrap()),
        // The script exits with 3 when an import fails, and Python with 1 when numpy is missing, which the
        // script needs first.
        Ok(out) => {
            let text = String::from_utf8_lossy(&out.stderr).trim().to_string();
            let is_missing = out.status.code() == Some(3) || text.contains("No module named 'numpy'");
            assert!(is_missing, "{what}: {text}");
            text
        }
    };
    let required = format!("DFKA_REQUIRE_{}", what.to_uppercase());
    assert!(std::env::var_os(&required).is_none(), "{required} is set: {why}");
    skipped(&format!("students in {what}: {why}"));
    None
}

fn compare(what: &str, kinds: &[&str], cases: &[Case], found: &Value) {
    for (name, folder, set) in cases {
        let ours = logits(&folder.join("student.npz"), set);
        assert!(ours.iter().any(|v| v.abs() > 0.1), "{name}: all logits are near zero: {ours:?}");
        for kind in kinds {
            let theirs: Vec<f32> = serde_json::from_value(found[name][kind].clone()).unwrap();
            let apart = most_apart(&ours, &theirs);
            let largest = ours.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            println!("{name}: {what} {kind}: at most {apart:.2e} apart, logits up to {largest:.2}");
            let most = if *kind == "half" { MOST_HALF * largest.max(1.0) } else { MOST };
            assert!(apart <= most, "{name}: {what} {kind}: {apart} apart");
        }
    }
}

/// ONNX requires that every node's operands are defined before it and that no name is defined twice.
#[test]
fn onnx_graphs_are_well_formed() {
    let (_dir, cases) = laid_out();
    for (name, folder, _) in &cases {
        let bytes = std::fs::read(folder.join("student.onnx")).unwrap();
        let model = <proto::ModelProto as prost::Message>::decode(&bytes[..]).unwrap();
        let graph = model.graph.unwrap();
        let given = graph.initializer.iter().flat_map(|t| t.name.clone());
        let mut known: BTreeSet<String> =
            given.chain(graph.input.iter().flat_map(|v| v.name.clone())).collect();
        assert_eq!(known.len(), graph.initializer.len() + 1, "{name}");
        for node in &graph.node {
            node.input.iter().for_each(|i| assert!(known.contains(i), "{name}: {i} comes from nowhere"));
            node.output.iter().for_each(|o| assert!(known.insert(o.clone()), "{name}: {o} is given twice"));
        }
        assert!(graph.output.iter().all(|o| known.contains(o.name.as_ref().unwrap())), "{name}");
        let tensors = load(&folder.join("student.npz")).len();
        let own = graph.initializer.iter().filter(|t| t.name.as_ref().unwrap().starts_with(CONSTANT)).count();
        assert_eq!(graph.initializer.len(), tensors + own, "{name}: weights left out");
    }
}

#[test]
fn onnx_runtime_gives_our_logits() {
    let (dir, mut cases) = laid_out();
    for (student, name) in [("strides_first", "teacher"), ("deep", "deep_teacher")] {
        let file = dir.path().join(student).join("student.npz");
        let spec: TargetNetSpec = load(&file).meta_as("student").unwrap();
        let teacher = teacher_tensors(&spec.network, &LEFT, 21);
        cases.push(lay_out(dir.path(), name, &teacher, spec.network.image));
    }
    let Some(found) = python_logits("onnx", dir.path()) else { return };
    compare("ONNX Runtime", &["together", "alone", "half"], &cases, &found);
    for (name, folder, _) in &cases {
        let labels: Vec<String> = load(&folder.join("student.npz")).meta_as("labels").unwrap();
        assert_eq!((&found[name]["labels"], &found[name]["opset"]), (&json!(labels), &json!(17)), "{name}");
    }
}

#[test]
fn pytorch_gives_our_logits() {
    let (dir, cases) = laid_out();
    let Some(found) = python_logits("torch", dir.path()) else { return };
    compare("PyTorch", &["npz", "safetensors"], &cases, &found);
}

/// The files of a run, and what the commands make of them.
#[test]
fn a_run_writes_its_student_in_every_format() {
    let lab = Lab::new();
    let call = |args: &[&str]| {
        let out = lab.call(args);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{args:?}: {text}");
        String::from_utf8(out.stdout).unwrap()
    };
    call(&[
        "run",
        "c.toml",
        "--out",
        "out",
        "--quiet",
        "--device",
        "cpu",
        "--set",
        "student.labels=['cat', 'bus']",
    ]);
    let labels: Value = serde_json::from_slice(&lab.bytes("out/labels.json")).unwrap();
    let expected = json!({
        "labels": ["cat", "bus"], "teachers": ["right", "left"], "thresholds": [0.5, 0.5],
        "mean": [0.5], "std": [0.5], "image": [16, 16, 1], "preprocessing": PREPROCESSING,
    });
    assert_eq!(labels, expected);
    let student = load(&lab.path("out/student.npz"));
    assert_eq!(student.meta_as::<Vec<f32>>("thresholds").unwrap(), [0.5, 0.5]);

    let eval = |file: &str| call(&["eval", file, "evaluation.npz", "--json", "--device", "cpu"]);
    let score = eval("out/student.npz");
    assert!(score.contains("\"cat\""), "{score}");
    for name in STUDENTS {
        let file = format!("out/{name}");
        assert_same(&student, &weights::load(lab.path(&file)).unwrap(), name);
        assert_eq!(eval(&file), score, "{name}");
    }
    assert_eq!(call(&["eval", "out", "--json", "--device", "cpu"]), score, "a run's folder alone");
    let said = call(&["export", "out", "--to", "mine.onnx"]);
    assert!(
        said.starts_with("mine.onnx: images of 16 x 16 pixels and 1 channels, 2 labels (cat, bus)"),
        "{said}"
    );
    assert!(lab.bytes("mine.onnx") == lab.bytes("out/student.onnx"));
    call(&["export", "out", "--to", "half.onnx", "--half"]);
    assert!(lab.bytes("half.onnx").len() < lab.bytes("mine.onnx").len());
    assert!(eval("half.onnx").contains("\"cat\""));

    // The run's own seed draws the images of its report, another seed draws others, and fewer images are the
    // first ones.
    call(&["sample", "out", "--count", "16", "--out", "grid.png", "--device", "cpu"]);
    assert!(lab.bytes("grid.png") == lab.bytes("out/samples.png"), "not the images of the report");
    // From a student's file in any format, the generator beside it is found.
    for student in ["student.safetensors", "student.onnx", "student.npz", "student-block3.npz"] {
        call(&["sample", &format!("out/{student}"), "--count", "16", "--out", "same.png", "--device", "cpu"]);
        assert!(lab.bytes("grid.png") == lab.bytes("same.png"), "{student}");
    }
    std::fs::copy(lab.path("out/student.onnx"), lab.path("alone.onnx")).unwrap();
    let out = lab.call(&["sample", "alone.onnx"]);
    let text = String::from_utf8(out.stderr).unwrap();
    assert!(
        out.status.code() == Some(4) && text.contains("alone.onnx: a student, which draws no images"),
        "{text}"
    );
    call(&["sample", "out/generator.npz", "--seed", "6", "--out", "other.png", "--device", "cpu"]);
    assert!(lab.bytes("grid.png") != lab.bytes("other.png"));
    call(&["sample", "out", "--count", "5", "--out", "five.png", "--device", "cpu"]);
    let size = |name: &str| {
        let png = std::fs::File::open(lab.path(name)).unwrap();
        let reader = png::Decoder::new(std::io::BufReader::new(png)).read_info().unwrap();
        (reader.info().width, reader.info().height)
    };
    // Images of twice 16 pixels, one pixel apart: 8 by 2, 8 by 8 (the default), 3 by 2.
    let grid = |columns: u32, rows: u32| (columns * 33 - 1, rows * 33 - 1);
    assert_eq!(["grid.png", "other.png", "five.png"].map(size), [grid(8, 2), grid(8, 8), grid(3, 2)]);
}

/// A refusal has its exit code and a line that names the file, and writes nothing.
#[test]
fn what_cannot_be_exported_or_sampled_is_refused_with_the_reason() {
    let lab = Lab::new();

    let refused = |args: &[&str], code: i32, parts: &[&str]| {
        let out = lab.call(args);
        let text = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
        for part in parts {
            assert!(text.contains(part), "{args:?}: {text}\nexpected {part:?}");
        }
    };
    refused(&["export", "left.npz", "--to", "left.pth"], 2, &["left.pth", ".npz, .safetensors or .onnx"]);
    refused(&["export", "none.npz", "--to", "a.onnx"], 4, &["none.npz"]);
    refused(&["export", "left.npz", "--half", "--to", "a.npz"], 2, &["a.npz: --half is for ONNX", ".onnx"]);
    let mut loud = load(&lab.path("left.npz"));
    loud = crate::common::mapped(&loud, |name, shape, v| {
        let v = if name == "fc.bias" { vec![1e5; v.len()] } else { v.to_vec() };
        Some((shape.to_vec(), v))
    });
    weights::save(lab.path("loud.npz"), &loud).unwrap();
    refused(
        &["export", "loud.npz", "--half", "--to", "a.onnx"],
        4,
        &["loud.npz: array \"fc.bias\": 100000 is beyond float16", "export in float32"],
    );
    std::fs::create_dir(lab.path("empty")).unwrap();
    refused(&["export", "empty", "--to", "a.onnx"], 4, &["empty", "student.npz"]);
    refused(&["sample", "empty"], 4, &["generator.npz"]);
    refused(&["sample", "left.npz"], 4, &["left.npz", "generator"]);
    refused(&["sample", "left.npz", "--count", "0"], 2, &["--count"]);
    assert!(!lab.path("a.onnx").exists() && !lab.path("grid.png").exists());

    // Thresholds that belong to other labels.
    let mut t = load(&lab.path("left.npz"));
    t.meta.insert("thresholds".into(), json!([0.5]));
    weights::save(lab.path("left.npz"), &t).unwrap();
    refused(&["export", "left.npz", "--to", "a.onnx"], 4, &["left.npz", "expected 3 probabilities"]);

    // A generator whose metadata claims a large network is refused by its shapes, before memory is allocated.
    let network = json!({
        "block": "basic", "image": [2048, 2048, 3], "widths": [8192, 8192], "depths": [1, 1],
        "stem": { "width": 8192, "kernel": 3, "stride": 1, "max_pool": false },
    });
    let claim = |latent: u64, conditions: u64, max_labels: u64| {
        let draw = json!({ "latent": latent, "conditions": conditions, "max_labels": max_labels });
        let mut t = Tensors::new();
        t.insert("project.weight", &[1], vec![0.0]).unwrap();
        t.meta.insert(
            "generator".into(),
            json!({
                "network": network, "groups": 2, "widths": [8192], "draw": draw, "batch": 16, "seed": 1,
            }),
        );
        weights::save(lab.path("g.npz"), &t).unwrap();
    };
    claim(65_536, 0, 0);
    refused(&["sample", "g.npz"], 4, &["g.npz", "project.weight", "found [1]"]);
    // Longer noise than a config allows; more labels per image than there are, and none.
    for (latent, conditions, max_labels) in [(1 << 40, 0, 0), (4, 2, 3), (4, 2, 0)] {
        claim(latent, conditions, max_labels);
        refused(
            &["sample", "g.npz"],
            4,
            &["g.npz", "__meta__: generator: no generator for a ResNet of basic blocks"],
        );
    }
}
