//! What a newcomer types: a config from two files, a short run, predictions, without editing a file.

use crate::common::{LEFT, Lab, images, network, root, teacher_tensors};
use dfka_engine::pipeline::Device;
use dfka_engine::pipeline::predictor::Predictor;
use dfka_engine::weights::{Tensors, npz};
use std::process::Output;

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Calls the program, which must succeed, and returns its standard output.
fn call(lab: &Lab, args: &[&str]) -> String {
    let output = lab.call(args);
    let (out, err) = text(&output);
    assert!(output.status.success(), "{args:?}: {err}");
    out
}

#[test]
fn a_config_is_made_from_teachers_files_checked_and_run() {
    let lab = Lab::new();
    let config = call(&lab, &["init", "left.npz", "right.npz"]);
    assert!(config.contains("\nname = \"left-right\"\n"), "{config}");
    assert!(config.contains("# labels in the file: \"bus\", \"car\", \"dog\"\n"), "{config}");
    // The Lab's teachers have random weights.
    assert!(
        config.contains("init = \"scratch\"") && config.contains("the teachers were trained apart"),
        "{config}"
    );
    assert!(config.contains("\nfilter = \"stitch\" "), "docs/students.md advises it: {config}");
    std::fs::write(lab.path("my.toml"), &config).unwrap();
    let few = ["--set", "generator.steps=2", "--set", "dual.steps=[1, 1, 1, 1]", "--set", "dual.bank=64"];
    call(&lab, &[&["check", "my.toml", "--card", "h200", "--preset", "quick"][..], &few].concat());
    let never = [
        "--set",
        "loss.least_diversity=0",
        "--set",
        "loss.least_information=0",
        "--set",
        "loss.least_found=0",
    ];
    let run = ["run", "my.toml", "--preset", "quick", "--device", "cpu", "--out", "out", "--quiet"];
    let table = call(&lab, &[&run[..], &few, &never].concat());
    let last: Vec<&str> = table.lines().rev().take(3).collect();
    assert!(last[2].starts_with("weak: ") && last[1].starts_with("size: "), "{table}");
    assert!(
        last[0].ends_with("student and report in out; next: dfka-engine predict out IMAGE..."),
        "{table}"
    );
    let resolved = std::fs::read_to_string(lab.path("out/resolved.toml")).unwrap();
    assert!(resolved.contains("steps = 2\n"), "--set has the last word over the preset: {resolved}");

    let card = std::fs::read_to_string(lab.path("out/README.md")).unwrap();
    assert!(card.contains("\n# left-right\n") && card.contains("**Verdict: weak.**"), "{card}");
    assert!(
        card.contains("\n| bus | 0.")
            && card.contains("| left |")
            && card.contains("run my.toml --preset quick")
    );
    assert!(card.contains("teacher right | ") && !card.contains("## Scores"), "{card}");

    let photographs = root().join("tests/fixtures/voc/VOCdevkit/VOC2007/JPEGImages");
    let json = call(&lab, &["predict", "out", photographs.to_str().unwrap(), "--json", "--device", "cpu"]);
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), std::fs::read_dir(&photographs).unwrap().count());
    let probabilities = rows[0]["probabilities"].as_object().unwrap();
    assert!(
        probabilities.len() == 5
            && probabilities.values().all(|p| (0.0..=1.0).contains(&p.as_f64().unwrap()))
    );
    let line = call(&lab, &["predict", "out/student.onnx", photographs.join("000001.jpg").to_str().unwrap()]);
    assert!(line.contains("000001.jpg  ") && line.lines().count() == 1, "{line}");
}

/// A probe holds images as PyTorch takes them, and logits.
#[test]
fn a_probe_accepts_the_same_network_and_refuses_another_one_under_its_names() {
    let lab = Lab::new();
    let [h, w, c] = network().image;
    let set = images(3, [h, w, c], 4);
    let mut model = Predictor::open(&lab.path("left.npz"), &Device::default()).unwrap();
    let logits = model.logits(&set).unwrap();
    let planes = |n: usize, k: usize, at: usize| f32::from(set.image(n)[at * c + k]) / 255.0;
    let all = (0..3).flat_map(|n| (0..c).flat_map(move |k| (0..h * w).map(move |at| (n, k, at))));
    let mut probe = Tensors::new();
    probe.insert("images", &[3, c, h, w], all.map(|(n, k, at)| planes(n, k, at)).collect()).unwrap();
    probe.insert("logits", &[3, 3], logits).unwrap();
    npz::save(lab.path("probe.npz"), &probe).unwrap();
    let said = call(&lab, &["probe", "left.npz", "probe.npz"]);
    assert!(said.starts_with("left.npz: the logits of 3 images are those of probe.npz to "), "{said}");

    npz::save(lab.path("other.npz"), &teacher_tensors(&network(), &LEFT, 8)).unwrap();
    for (weights, expected) in [
        ("other.npz", "other.npz: computes other logits than the network that probe.npz was made with"),
        ("right.npz", "probe.npz: array \"logits\": right.npz takes [3, 2], found [3, 3]"),
    ] {
        let output = lab.call(&["probe", weights, "probe.npz"]);
        let said = text(&output).1;
        assert!(output.status.code() == Some(4) && said.contains(expected), "{said}");
    }
}

#[test]
fn teachers_from_one_backbone_are_recognised_and_unlike_ones_refused() {
    let lab = Lab::new();
    std::fs::copy(lab.path("left.npz"), lab.path("mean.npz")).unwrap();
    let config = call(&lab, &["init", "left.npz", "mean.npz", "--name", "pair", "--preset", "best"]);
    assert!(config.contains("\nname = \"pair\"\n") && config.contains("mean cosine 1.00"), "{config}");
    assert!(config.contains("name = \"mean-2\"") && config.contains("init = \"mean\""), "{config}");
    assert!(
        config.contains("steps = 1500 ") && config.contains("steps = [300, 1200, 2400, 3900]"),
        "{config}"
    );
    let output = lab.call(&["init", "c.toml"]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output).1);
}

/// Names of files and labels may have characters that TOML escapes.
#[test]
fn strange_names_give_a_config_that_loads_or_none() {
    let lab = Lab::new();
    let labels = ["a \"quoted\" bus", "# = [ \\", "'''"];
    let odd = "odd \"name\"\n'b'.npz";
    npz::save(lab.path(odd), &teacher_tensors(&network(), &labels, 1)).unwrap();
    let long = "ü".repeat(100) + ".npz";
    let mut bare = teacher_tensors(&network(), &["x", "y"], 2);
    bare.meta.remove("labels");
    npz::save(lab.path(&long), &bare).unwrap();
    let config = call(&lab, &["init", odd, &long]);
    let listed = r##"# labels in the file: "a \"quoted\" bus", "# = [ \\", "'''""##;
    assert!(config.lines().any(|line| line == listed), "{config}");
    std::fs::write(lab.path("my.toml"), &config).unwrap();
    let spec = dfka_engine::config::load_run(&lab.path("my.toml"), &[]).unwrap().spec;
    let files: Vec<_> = spec.teachers.iter().map(|t| t.weights.clone()).collect();
    assert_eq!(files, [lab.path(odd), lab.path(&long)]);
    assert_eq!(spec.name, format!("odd--name---b--{}", "ü".repeat(65)));
    assert_eq!(spec.teachers[1].stated.labels.len(), 2);

    use std::os::unix::ffi::OsStringExt;
    let not_utf8 = std::ffi::OsString::from_vec(b"caf\xe9.npz".to_vec());
    std::fs::copy(lab.path("left.npz"), lab.path("").join(&not_utf8)).unwrap();
    let refused = lab.program(&["init"]).arg(&not_utf8).output().unwrap();
    let (out, err) = text(&refused);
    assert!(refused.status.code() == Some(2) && out.is_empty(), "{err}");
    assert!(err.contains(".npz: the path is not UTF-8, so no config can name it"), "{err}");
    for name in ["a/b", "", "two\nlines", &"x".repeat(81)] {
        let refused = lab.call(&["init", "left.npz", "--name", name]);
        let (out, err) = text(&refused);
        assert!(
            refused.status.code() == Some(2) && out.is_empty() && err.lines().count() == 1,
            "{name:?}: {err}"
        );
        assert!(
            err.contains("no config is written") && err.contains("`name` names the output folder"),
            "{err}"
        );
    }
}
