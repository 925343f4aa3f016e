//! Images that are asked to show labels, and their captions.

use crate::common::{Lab, load};
use dfka_engine::weights;
use serde_json::Value;

fn call(lab: &Lab, args: &[&str]) -> String {
    let out = lab.call(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn refused(lab: &Lab, args: &[&str], code: i32, part: &str) {
    let out = lab.call(args);
    let text = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.code() == Some(code) && text.contains(part), "{args:?}: {text}");
}

#[test]
fn images_show_the_labels_asked_for_and_captions_name_them() {
    let lab = Lab::new();
    lab.run("out", &[]).unwrap();
    std::fs::write(lab.path("out/resolved.toml"), std::fs::read_to_string(lab.path("c.toml")).unwrap())
        .unwrap();
    let teachers = ["left.npz", "right.npz"];
    for teacher in teachers {
        std::fs::copy(lab.path(teacher), lab.path(&format!("out/{teacher}"))).unwrap();
    }
    let base = ["sample", "out", "--count", "5", "--captions", "--device", "cpu"];
    let said = call(&lab, &[&base[..], &["--labels", "dog,cat", "--out", "a.png"]].concat());
    assert!(said.contains("a.png: 5 images\na.json: their labels, as the teachers predict them\n"), "{said}");
    let captions: Value = serde_json::from_slice(&lab.bytes("a.json")).unwrap();
    assert_eq!(captions["predicted_by"], "teachers");
    let images = captions["images"].as_array().unwrap();
    assert!(images.len() == 5 && images[4]["image"] == 5, "{captions}");
    assert!(images.iter().all(|i| i["asked"] == serde_json::json!(["dog", "cat"])), "{captions}");

    // Other labels give other images of the same noise; without teachers the student predicts.
    call(&lab, &[&base[..], &["--labels", "bus", "--out", "b.png"]].concat());
    assert!(lab.bytes("a.png") != lab.bytes("b.png"));
    teachers.iter().for_each(|t| std::fs::remove_file(lab.path(&format!("out/{t}"))).unwrap());
    let said = call(&lab, &[&base[..], &["--out", "c.png"]].concat());
    assert!(said.ends_with("c.json: their labels, as the student predicts them\n"), "{said}");
    let captions: Value = serde_json::from_slice(&lab.bytes("c.json")).unwrap();
    let asked = |i: usize| captions["images"][i]["asked"].as_array().unwrap().len();
    assert!((0..5).all(|i| (1..=3).contains(&asked(i))), "{captions}");

    refused(&lab, &["sample", "out", "--labels", "cab"], 2, "no label `cab`; did you mean `ca");
    refused(&lab, &["sample", "out", "--labels", "bus,car,dog,cat"], 2, "expected at most 3, as in");
    // A file of an earlier version.
    let mut t = load(&lab.path("out/generator.npz"));
    let Some(Value::Object(about)) = t.meta.get_mut("generator") else { panic!("no metadata") };
    about.remove("labels");
    weights::save(lab.path("old.npz"), &t).unwrap();
    refused(
        &lab,
        &["sample", "old.npz", "--labels", "bus"],
        4,
        "old.npz: __meta__: generator: expected the names of 5",
    );
    call(&lab, &["sample", "old.npz", "--out", "old.png", "--device", "cpu"]);
}

#[test]
fn a_generator_without_conditions_cannot_be_asked() {
    let lab = Lab::new();
    lab.run("out", &["loss.recipe='published'"]).unwrap();
    refused(&lab, &["sample", "out", "--labels", "bus"], 2, "this generator is not conditional");
    assert!(!lab.path("grid.png").exists());
}
