//! Weights files. `bad_weights.rs` has the cases of single damaged tensors.

use super::{Case, Lab, edit, nothing, pipe, put};
use crate::common::{RIGHT, load, mapped, network, teacher_tensors};
use dfka_engine::models::resnet::ResNetSpec;
use dfka_engine::weights::{Tensors, npz};
use serde_json::json;

const fn case(what: &'static str, spoil: fn(&Lab), words: &'static [&'static str]) -> Case {
    Case { what, spoil, args: "* c.toml", code: 4, words }
}

/// Replaces a teacher's file by a changed copy.
fn changed(lab: &Lab, change: impl Fn(&str, &[usize], &[f32]) -> Option<(Vec<usize>, Vec<f32>)>) {
    npz::save(lab.path("right.npz"), &mapped(&load(&lab.path("right.npz")), change)).unwrap();
}

fn with_meta(lab: &Lab, change: impl Fn(&mut Tensors)) {
    let mut t = load(&lab.path("right.npz"));
    change(&mut t);
    npz::save(lab.path("right.npz"), &t).unwrap();
}

fn truncated(lab: &Lab, percent: usize) {
    let whole = lab.bytes("right.npz");
    put(lab, "right.npz", &whole[..whole.len() * percent / 100]);
}

/// An npz whose one array would inflate to 5 GB.
fn bomb() -> Vec<u8> {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let deflated = zip::write::SimpleFileOptions::default();
    zip.start_file("x.npy", deflated).unwrap();
    zip.write_all(b"\x93NUMPY\x01\x00\x40\x00").unwrap();
    zip.write_all(
        format!("{:<63}\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (9,), }").as_bytes(),
    )
    .unwrap();
    let zeros = vec![0u8; 1 << 20];
    (0..8).for_each(|_| zip.write_all(&zeros).unwrap());
    let mut bytes = zip.finish().unwrap().into_inner();
    // The inflated size that the directory claims: byte 24 of its last entry.
    let entry = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    bytes[entry + 24..entry + 28].copy_from_slice(&u32::MAX.to_le_bytes());
    bytes
}

#[rustfmt::skip] // one line per case
pub const CASES: &[Case] = &[
    case("a teacher that is not there", |l| std::fs::remove_file(l.path("right.npz")).unwrap(), &["right.npz: cannot open", "No such file"]),
    case("a teacher that is a folder", |l| { std::fs::remove_file(l.path("right.npz")).unwrap(); std::fs::create_dir(l.path("right.npz")).unwrap() }, &["right.npz", "directory"]),
    case("a teacher of no bytes", |l| put(l, "right.npz", ""), &["right.npz: expected an npz, safetensors or ONNX file, found"]),
    case("a teacher that is a text", |l| put(l, "right.npz", "weights"), &["right.npz: expected an npz, safetensors or ONNX file, found"]),
    case("a teacher without end", |l| edit(l, "left.npz", "/dev/zero"), &["/dev/zero: expected a file, found a pipe, a device or a socket"]),
    case("a teacher cut in half", |l| truncated(l, 50), &["right.npz: expected an npz file"]),
    case("a teacher cut by its last bytes", |l| truncated(l, 99), &["right.npz: expected an npz file"]),
    case("a teacher that is a pickle", |l| put(l, "right.npz", b"\x80\x02}q\0."), &["right.npz: expected an npz", "found a PyTorch pickle", "scripts/torch_to_npz.py"]),
    case("a Git LFS pointer", |l| put(l, "right.npz", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 102469840\n"), &["right.npz: expected an npz, safetensors or ONNX file, found a Git LFS pointer, not the file itself: run `git lfs pull`"]),
    case("a page in place of a teacher", |l| put(l, "right.npz", "<!DOCTYPE html><html><title>404</title>"), &["right.npz: expected an npz, safetensors or ONNX file, found an HTML page", "download the file itself"]),
    case("a compressed teacher", |l| put(l, "right.npz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03"), &["right.npz: expected an npz, safetensors or ONNX file, found a gzip file: unpack it with gunzip"]),
    case("an archive of teachers", |l| put(l, "right.npz", [vec![b'a'; 257], b"ustar\0".to_vec(), vec![0; 300]].concat()), &["found a tar archive: unpack it"]),
    case("a PyTorch checkpoint", |l| put(l, "right.npz", zip_of("archive/data.pkl", b"\x80\x02}q\0.")), &["right.npz: expected an npz", "found a PyTorch pickle", "scripts/torch_to_npz.py"]),
    case("a PyTorch checkpoint cut short", |l| put(l, "right.npz", &zip_of("archive/data.pkl", b"\x80\x02}q\0.")[..60]), &["right.npz: expected an npz file", "found the beginning of a PyTorch checkpoint, a zip that ends early: copy or download it again"]),
    case("JSON in place of a teacher", |l| put(l, "right.npz", "{\"architecture\": \"resnet50\"}"), &["right.npz: expected an npz, safetensors or ONNX file, found JSON text without a `weight_map`"]),
    case("an index of shards that are not there", |l| put(l, "right.npz", "{\"weight_map\": {\"conv1.weight\": \"model-00001-of-00002.safetensors\"}}"), &["model-00001-of-00002.safetensors: cannot open this shard of", "right.npz"]),
    case("an index that leads out of its folder", |l| put(l, "right.npz", "{\"weight_map\": {\"conv1.weight\": \"../x.safetensors\"}}"), &["right.npz: weight_map: expected a file in the folder of the index or below it, found \"../x.safetensors\""]),
    case("two networks in a file", |l| with_meta(l, |t| t.insert("ema.conv1.weight", &[1], vec![0.0]).and_then(|()| t.insert("ema.layer1.0.conv1.weight", &[1], vec![0.0])).unwrap()), &["right.npz: expected one network, found 2: conv1.weight, ema.conv1.weight; keep only the tensors of one of them"]),
    case("two heads in a file", |l| with_meta(l, |t| t.insert("classifier.weight", &[2, 16], vec![0.0; 32]).unwrap()), &["right.npz: expected one fully connected layer as the head, found classifier.weight, fc.weight; a head of several layers"]),
    case("squeeze-and-excitation", |l| with_meta(l, |t| t.insert("layer1.0.se.fc1.weight", &[1], vec![0.0]).unwrap()), &["right.npz: squeeze-and-excitation blocks, as in seresnet50, are not supported (the file has layer1.0.se.fc1.weight)"]),
    case("grouped convolutions", |l| changed(l, |n, s, v| Some(if n == "layer2.0.conv2.weight" { (vec![8, 2, 3, 3], v[..144].to_vec()) } else { (s.to_vec(), v.to_vec()) })), &["right.npz: grouped convolutions, as in resnext50_32x4d, are not supported (the file has layer2.0.conv2.weight with 8 filters of 2 channels)"]),
    case("anti-aliased convolutions", |l| with_meta(l, |t| t.insert("layer2.0.aa.filt", &[1], vec![0.0]).unwrap()), &["right.npz: anti-aliased convolutions, as in resnetblur50, are not supported"]),
    case("a zip bomb", |l| put(l, "right.npz", bomb()), &["right.npz", "expected", "found"]),
    case("a zip of other files", |l| put(l, "right.npz", zip_of("readme.txt", b"hello")), &["right.npz: expected only .npy entries, found \"readme.txt\""]),
    case("an array that is none", |l| put(l, "right.npz", zip_of("x.npy", b"hello")), &["right.npz: array \"x\": expected an npy header"]),
    case("a tensor left out", |l| changed(l, |n, s, v| (n != "layer2.0.conv1.weight").then(|| (s.to_vec(), v.to_vec()))), &["right.npz: expected the tensors of a ResNet of basic blocks", "1 missing (layer2.0.conv1.weight)"]),
    case("a transposed tensor", |l| changed(l, |n, s, v| Some((if n == "fc.weight" { vec![s[1], s[0]] } else { s.to_vec() }, v.to_vec()))), &["right.npz: __meta__: labels: expected 16, one for each row of fc.weight, found 2"]),
    case("a tensor too many", |l| with_meta(l, |t| t.insert("layer5.0.conv1.weight", &[1], vec![0.0]).unwrap()), &["right.npz: expected the tensors of a ResNet of basic blocks", "1 unexpected (layer5.0.conv1.weight)"]),
    case("a variance below 0", |l| changed(l, |n, s, v| Some((s.to_vec(), if n == "bn1.running_var" { vec![-1.0; v.len()] } else { v.to_vec() }))), &["right.npz", "bn1.running_var", "found -1"]),
    case("no metadata", |l| with_meta(l, |t| t.meta.clear()), &["right.npz: labels: expected 2, one for each row of fc.weight, found none in the file or the config"]),
    case("no labels", |l| with_meta(l, |t| t.meta["labels"] = json!([])), &["right.npz: labels: expected 2, one for each row of fc.weight, found none in the file or the config"]),
    case("a label twice in a file", |l| with_meta(l, |t| t.meta["labels"] = json!(["cat", "cat"])), &["right.npz: __meta__: labels: expected each label once, found \"cat\" at places 1 and 2"]),
    case("an empty label in a file", |l| with_meta(l, |t| t.meta["labels"] = json!(["cat", " "])), &["right.npz: __meta__: labels: expected names, found an empty label at place 2"]),
    case("a label with control characters in a file", |l| with_meta(l, |t| t.meta["labels"] = json!(["cat", "ta\u{1b}[31mble"])), &["right.npz: __meta__: labels: expected names without control characters, found \"ta\\u{1b}[31mble\" at place 2"]),
    case("a head of an unknown kind", |l| with_meta(l, |t| { t.meta.insert("head".into(), json!("foo")); }), &["right.npz: __meta__: head: expected \"sigmoid\", \"softmax\" or \"unknown\", found \"foo\""]),
    case("a pipe in place of a teacher", |l| { std::fs::remove_file(l.path("right.npz")).unwrap(); pipe(l, "right.npz") }, &["right.npz: expected a file, found a pipe, a device or a socket"]),
    Case { what: "a tensor of another shape to export", spoil: |l| changed(l, |n, s, v| Some(if n == "layer2.0.conv2.weight" { (vec![8, 8, 9, 1], v.to_vec()) } else { (s.to_vec(), v.to_vec()) })), args: "export right.npz --to out.safetensors", code: 4, words: &["right.npz", "layer2.0.conv2.weight"] },
    Case { what: "weights beyond half precision", spoil: |l| changed(l, |n, s, v| Some((s.to_vec(), if n == "fc.weight" { vec![7e4; v.len()] } else { v.to_vec() }))), args: "export right.npz --to out.onnx --half", code: 4, words: &["right.npz: array \"fc.weight\": 70000 is beyond float16"] },
    Case { what: "a pipe to export to", spoil: |l| pipe(l, "out.npz"), args: "export right.npz --to out.npz", code: 1, words: &["cannot write out.npz: it is a device, a pipe or a socket; name a regular file"] },
    Case { what: "a probe of no images", spoil: |l| { let mut t = Tensors::new(); t.insert("images", &[0, 1, 16, 16], vec![]).unwrap(); t.insert("logits", &[0, 2], vec![]).unwrap(); npz::save(l.path("p.npz"), &t).unwrap() }, args: "probe right.npz p.npz --threads 1", code: 4, words: &["p.npz: array \"images\": expected at least one image, found none"] },
    case("labels of another type", |l| with_meta(l, |t| t.meta["labels"] = json!({"cat": 1})), &["right.npz: array \"__meta__\": entry \"labels\": invalid type"]),
    case("fewer labels than the head has", |l| with_meta(l, |t| t.meta["labels"] = json!(["cat"])), &["right.npz: __meta__: labels: expected 2, one for each row of fc.weight, found 1"]),
    case("half a network", |l| with_meta(l, |t| t.meta["network"] = json!({"block": "basic"})), &["right.npz: array \"__meta__\": entry \"network\": missing field"]),
    case("an unknown block", |l| with_meta(l, |t| t.meta["network"]["block"] = json!("dense")), &["right.npz", "unknown variant `dense`", "basic", "bottleneck"]),
    case("a network of no blocks", |l| with_meta(l, |t| { t.meta["network"]["widths"] = json!([]); t.meta["network"]["depths"] = json!([]) }), &["right.npz: __meta__: network: "]),
    case("an even stem", |l| with_meta(l, |t| t.meta["network"]["stem"]["kernel"] = json!(4)), &["right.npz: __meta__: network: the stem's kernel must be odd and at most 15, found 4"]),
    case("a stem of stride 0", |l| with_meta(l, |t| t.meta["network"]["stem"]["stride"] = json!(0)), &["right.npz: __meta__: network: every size must be between 1 and 65536"]),
    case("a network deeper than any", |l| with_meta(l, |t| t.meta["network"]["depths"] = json!([60000, 60000, 60000, 60000])), &["right.npz"]),
    case("teachers of two architectures", |l| npz::save(l.path("right.npz"), &teacher_tensors(&ResNetSpec { widths: vec![4, 8, 12, 16], ..network() }, &RIGHT, 2)).unwrap(), &["right.npz: channels by block 4, 8, 12, 16 (4, 8, 8, 16 in left.npz); teachers that differ need a student whose architecture the config names: set student.network"]),
    case("teachers of two image sizes", |l| npz::save(l.path("right.npz"), &teacher_tensors(&ResNetSpec { image: [20, 16, 1], ..network() }, &RIGHT, 2)).unwrap(), &["right.npz: images of 20 x 16 pixels and 1 channel (16 x 16 pixels and 1 channel in left.npz); all teachers"]),
    case("teachers of two depths", |l| npz::save(l.path("right.npz"), &teacher_tensors(&ResNetSpec { depths: vec![2, 1, 1, 1], ..network() }, &RIGHT, 2)).unwrap(), &["right.npz: residual units by block 2, 1, 1, 1 (1, 1, 1, 1 in left.npz); teachers that differ need"]),
    case("a mean that is not the file's", |l| edit(l, "weights = \"left.npz\"", "weights = \"left.npz\", mean = [0.1, 0.2, 0.3], std = [1.0, 1.0, 1.0]"), &["left.npz: the config's mean and std: expected 1, one for each input channel of conv1.weight, found 3 and 3"]),
    case("one mean that is not the file's", |l| edit(l, "weights = \"left.npz\"", "weights = \"left.npz\", mean = [0.1], std = [1.0]"), &["left.npz: the config's normalisation is mean 0.1 and std 1, the file's mean 0.5 and std 0.5"]),
    case("means for other channels in a file", |l| with_meta(l, |t| { t.meta.remove("network"); t.meta.insert("image_size".into(), json!(16)); t.meta.insert("mean".into(), json!([0.5, 0.5])); t.meta.insert("std".into(), json!([0.5, 0.5])); }), &["right.npz: the file's mean and std: expected 1, one for each input channel of conv1.weight, found 2 and 2"]),
    case("a deviation of 0 in a file", |l| with_meta(l, |t| { t.meta.remove("network"); t.meta.insert("image_size".into(), json!(16)); t.meta.insert("mean".into(), json!([0.5])); t.meta.insert("std".into(), json!([0.0])); }), &["right.npz: network: expected deviations from 0.001 to 10, found 0"]),
    case("a stem of another width than the config says", |l| edit(l, "weights = \"left.npz\"", "weights = \"left.npz\", mean = [0.5], std = [0.5], network = { block = \"basic\", widths = [4, 8, 8, 16], depths = [1, 1, 1, 1], stem = { width = 5, kernel = 3, stride = 1, max_pool = false } }"), &["left.npz: the config's network has a stem of 5 channels, stride 1, max_pool false, the file's 4 channels"]),
    case("another network than the config says", |l| edit(l, "weights = \"left.npz\"", "weights = \"left.npz\", network = \"resnet18\", labels = [\"bus\"]"), &["left.npz: the config's network is ResNet-18, the file's a ResNet of basic blocks"]),
    case("a backbone that is not there", |l| edit(l, "\"mean\"", "\"none.npz\""), &["none.npz: cannot open"]),
    case("a backbone of another width", |l| { edit(l, "\"mean\"", "\"b.npz\""); npz::save(l.path("b.npz"), &teacher_tensors(&ResNetSpec { widths: vec![4, 8, 12, 16], ..network() }, &RIGHT, 2)).unwrap() }, &["b.npz", "layer3.0.conv1.weight", "expected shape"]),
    Case { what: "weights to score that are not there", spoil: nothing, args: "eval none.npz evaluation.npz", code: 4, words: &["none.npz: cannot open"] },
    Case { what: "images for weights", spoil: nothing, args: "eval ka.npz evaluation.npz", code: 4, words: &["ka.npz: array \"images\": expected dtype float32"] },
    Case { what: "a student of nonsense", spoil: |l| with_meta(l, |t| { t.meta.insert("student".into(), json!({"tasks": 3})); }), args: "eval right.npz evaluation.npz", code: 4, words: &["right.npz: array \"__meta__\": entry \"student\""] },
];

fn zip_of(name: &str, bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(bytes).unwrap();
    zip.finish().unwrap().into_inner()
}
