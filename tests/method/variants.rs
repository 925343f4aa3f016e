//! Networks that differ from He et al.'s, against PyTorch's own logits, as teachers and as a student's architecture.
//!
//! `tests/fixtures/variants_golden.py` made the fixture; weights and images are made up as in `torchvision.rs`.

use super::torchvision::{BOUND, distance, logits_of, pixels, state_dict, stated};
use crate::common::{Lab, images, load, network, root};
use dfka_engine::models::resnet::{BlockKind, ResNetSpec, Shortcut, Variant};
use dfka_engine::models::targetnet::TargetNetSpec;
use dfka_engine::pipeline::Device;
use dfka_engine::pipeline::export::{STUDENTS, export};
use dfka_engine::pipeline::predictor::Predictor;
use dfka_engine::pipeline::spec::TeacherSpec;
use dfka_engine::pipeline::teacher_file::TeacherFile;
use dfka_engine::weights::{self, Tensors};

fn golden() -> Tensors {
    load(&root().join("tests/fixtures/variants_golden.npz"))
}

/// The network's logits on images of these sizes are the fixture's, in float32 and float64, and its file says which network
/// it is.
fn agrees(name: &str, words: &str, sizes: &[usize]) {
    let golden = golden();
    let heads = golden.meta_as::<serde_json::Value>("heads").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("w.safetensors");
    weights::save(&file, &state_dict(&golden, name, heads[name].as_f64().unwrap(), "module.")).unwrap();
    for size in sizes {
        let of = |what: &str| &golden.get(&format!("{what}.{name}.{size}")).unwrap().data;
        let images = pixels(of("exact").len() / stated(*size).labels.len(), *size);
        let found = logits_of(&file, stated(*size), &images).unwrap();
        let (off, exactly) = (distance(&found, of("logits")), distance(&found, of("exact")));
        let largest = found.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        println!("{name} {size}: logits to {largest:.2}, off by {off:.1e}; by {exactly:.1e} from float64");
        assert!(off <= BOUND && exactly <= BOUND, "{name}: {off} from float32, {exactly} from float64");
        assert!((1.0..20.0).contains(&largest), "{largest}");
    }
    let teacher = TeacherSpec { stated: stated(64), ..TeacherSpec::new("t", &file) };
    let network = TeacherFile::open(&teacher).unwrap().known.network;
    assert_eq!(network.in_words(), words);
    if let Some(named) = ResNetSpec::named(name, 64) {
        assert_eq!(network.architecture(), named.architecture());
    }
}

#[test]
fn wide_resnet50() {
    agrees("wide_resnet50_2", "Wide ResNet-50-2", &[64, 72]);
}

#[test]
fn wide_resnet101() {
    agrees("wide_resnet101_2", "Wide ResNet-101-2", &[64]);
}

/// Trains a student of two teachers of this network for a few steps on the CPU. Its files in all formats have the same
/// logits, and the file that comes back from ONNX has the same bytes.
fn trains_a_student(variant: Variant, block: BlockKind) {
    let network = ResNetSpec { block, variant, ..network() };
    let lab = Lab::of(&network);
    let summary = lab.run("out", &[]).unwrap();
    assert!(summary.student.unwrap().score.map.is_finite());
    let images = images(6, network.image, 3);
    let logits =
        |file: &str| Predictor::open(&lab.path(file), &Device::default()).unwrap().logits(&images).unwrap();
    let expected = logits("out/student.npz");
    assert!(expected.iter().any(|v| v.abs() > 0.01), "all logits are near zero: {expected:?}");
    for file in STUDENTS {
        assert_eq!(logits(&format!("out/{file}")), expected, "{file}");
    }
    export(&lab.path("out/student.onnx"), &lab.path("again.npz")).unwrap();
    assert!(lab.bytes("again.npz") == lab.bytes("out/student.npz"));
    let student: TargetNetSpec = load(&lab.path("out/student.npz")).meta_as("student").unwrap();
    assert_eq!(student.network, network);
}

#[test]
fn wide_teachers_train_a_wide_student() {
    let variant = Variant { inner_widths: vec![2, 4, 3, 6], ..Variant::default() };
    trains_a_student(variant, BlockKind::Bottleneck);
}

#[test]
fn deep_teachers_train_a_deep_student() {
    let shortcut = Shortcut::AveragePool;
    for block in [BlockKind::Basic, BlockKind::Bottleneck] {
        let deep_stem = Some([3, 2]);
        trains_a_student(Variant { deep_stem, shortcut, ..Variant::default() }, block);
    }
}

#[test]
fn resnet_d() {
    agrees("resnet18d", "ResNet-18-D", &[64, 72]);
    agrees("resnet34d", "ResNet-34-D", &[64]);
    agrees("resnet50d", "ResNet-50-D", &[64, 72]);
}

#[test]
fn deep_stems_of_other_kinds() {
    let resnet50 = "a ResNet of bottleneck blocks, widths [256, 512, 1024, 2048], depths [3, 4, 6, 3]";
    let stem = |channels: &str, more: &str| {
        format!("{resnet50}, a deep stem of {channels} channels{more}, a 3x3 stem on 3 channels")
    };
    agrees("resnet50c", &stem("32 and 32", ""), &[64]);
    agrees("resnet50t", &stem("24 and 32", ", average-pool shortcuts"), &[72]);
}
