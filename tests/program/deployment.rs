//! Images of any shape have the same predictions in the program and in the code that docs/students.md shows.

use crate::common::{Lab, images, root, skipped, teacher_tensors};
use dfka_engine::models::resnet::{BlockKind, Normalisation, ResNetSpec, Stem};
use dfka_engine::weights::npz;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::process::Command;

/// Height and width: portraits, landscapes, squares, the network's own size, smaller than it, extreme ratios.
const SHAPES: [[usize; 2]; 12] = [
    [60, 80],
    [80, 60],
    [33, 97],
    [224, 224],
    [256, 340],
    [20, 28],
    [28, 20],
    [15, 11],
    [300, 24],
    [24, 300],
    [101, 100],
    [47, 46],
];

/// Runs the snippet of the section "ONNX" for each image, and prints the probabilities as JSON.
const PYTHON: &str = r###"
import json, pathlib, re, sys
sys.path.insert(0, sys.argv[1] + "/python")
from PIL import Image
text = pathlib.Path(sys.argv[1], "docs/students.md").read_text()
snippet = re.search(r"## ONNX\n.*?```python\n(.*?)```", text, re.DOTALL)[1].replace("print(", "str(")
found = []
for path in sys.argv[2:]:
    names = {"picture": Image.open(path)}
    exec(snippet, names)
    found.append(names["probabilities"][0].tolist())
print(json.dumps(found))
"###;

fn save_png(path: &Path, [h, w]: [usize; 2], channels: usize, seed: u64) {
    let set = images(1, [h, w, channels], seed);
    let mut encoder = png::Encoder::new(BufWriter::new(File::create(path).unwrap()), w as u32, h as u32);
    encoder.set_color(if channels == 3 { png::ColorType::Rgb } else { png::ColorType::Grayscale });
    encoder.write_header().unwrap().write_image_data(set.image(0)).unwrap();
}

fn logit(p: f64) -> f64 {
    (p / (1.0 - p)).ln()
}

#[test]
fn the_documented_snippet_predicts_what_the_program_predicts() {
    let python = root().join(".venv/bin/python");
    let has = Command::new(&python).args(["-c", "import numpy, onnxruntime, PIL"]).output();
    if !has.is_ok_and(|o| o.status.success()) {
        assert!(std::env::var_os("DFKA_REQUIRE_ONNX").is_none(), ".venv has no onnxruntime or no pillow");
        return skipped("no Python with onnxruntime and pillow in .venv");
    }
    for channels in [3, 1] {
        let lab = Lab::new();
        let stem = Stem { width: 4, kernel: 3, stride: 2, max_pool: false };
        let mut network = ResNetSpec::new(BlockKind::Basic, [20, 28, channels], stem, vec![8, 8], vec![1, 1]);
        network.normalisation = Some(Normalisation { mean: vec![0.4; channels], std: vec![0.25; channels] });
        npz::save(lab.path("t.npz"), &teacher_tensors(&network, &["bus", "car", "dog"], 5)).unwrap();
        assert!(lab.call(&["export", "t.npz", "--to", "student.onnx"]).status.success());
        let mut files = Vec::new();
        for (i, shape) in SHAPES.into_iter().enumerate() {
            files.push(format!("{i}.png"));
            save_png(&lab.path(&files[i]), shape, channels, i as u64);
        }
        let names: Vec<&str> = files.iter().map(String::as_str).collect();
        let args = [&["predict", "t.npz", "--json", "--device", "cpu"][..], &names].concat();
        let output = lab.call(&args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let ours: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut snippet = Command::new(&python);
        snippet.current_dir(lab.path("")).args(["-c", PYTHON]).arg(root()).args(&names);
        let output = snippet.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let theirs: Vec<Vec<f64>> = serde_json::from_slice(&output.stdout).unwrap();
        for (i, shape) in SHAPES.iter().enumerate() {
            for (label, name) in ["bus", "car", "dog"].iter().enumerate() {
                let ours = ours[i]["probabilities"][name].as_f64().unwrap();
                let apart = (logit(ours) - logit(theirs[i][label])).abs();
                assert!(apart <= 1e-4, "{shape:?} {name}: {ours} {}", theirs[i][label]);
            }
        }
    }
}
