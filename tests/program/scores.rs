//! Scores of labels that cannot be scored, and evaluation images that cannot be read.

use crate::common::{LEFT, Lab, RIGHT, images, load, network, root, teacher_tensors};
use dfka_engine::data::labelled::LabelledSet;
use dfka_engine::labelled::evaluate;
use dfka_engine::models::resnet::ResNetSpec;
use dfka_engine::pipeline::spec::EvaluationData;
use dfka_engine::weights::npz;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Twelve images. `target` gives the target of an image for a label.
fn write_set(path: &Path, target: impl Fn(usize, &str) -> u8) {
    let labels: Vec<String> = LEFT.iter().chain(&RIGHT).map(|l| l.to_string()).collect();
    let targets = (0..12).flat_map(|i| labels.iter().map(move |l| (i, l))).map(|(i, l)| target(i, l));
    let targets: Vec<u8> = targets.collect();
    LabelledSet::new(images(12, [16, 16, 1], 3), targets, labels).unwrap().save(path).unwrap();
}

/// Every second image has a label, but none has `table` and all have `bus`.
fn target(i: usize, label: &str) -> u8 {
    match label {
        "table" => 0,
        "bus" => 1,
        _ => (i % 2) as u8,
    }
}

#[test]
fn labels_without_a_score_are_null_and_named_and_count_in_no_mean() {
    let lab = Lab::new();
    write_set(&lab.path("evaluation.npz"), target);
    let out = lab.call(&["eval", "right.npz", "evaluation.npz", "--device", "cpu", "--json"]);
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(said, "note: evaluation.npz: no image has table; such a label gets no score\n");
    let score: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(score["ap"]["table"].is_null() && score["ap"]["cat"].is_number(), "{score}");
    assert_eq!(score["map"], score["ap"]["cat"]);
    let out = lab.call(&["eval", "left.npz", "evaluation.npz", "--device", "cpu"]);
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(said, "note: evaluation.npz: no image lacks bus; such a label gets no score\n");
    let table = String::from_utf8(out.stdout).unwrap();
    let row = table.lines().find(|line| line.starts_with("bus")).unwrap();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["bus", "-", "-", "100.0"]);
}

/// The teacher `right` has one label that is scored. With `cat` ignored, it has none.
#[test]
fn a_run_has_no_mean_where_a_teacher_has_no_scored_label() {
    let lab = Lab::new();
    write_set(&lab.path("evaluation.npz"), |i, label| if label == "cat" { 2 } else { target(i, label) });
    let out = lab.call(&["run", "c.toml", "--device", "cpu", "--out", "out", "--set", "generator.steps=1"]);
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success(), "{said}");
    assert!(said.contains("note: ") && said.contains("no image has cat, table"), "{said}");
    let summary: Value = serde_json::from_slice(&lab.bytes("out/summary.json")).unwrap();
    assert!(summary["teachers"]["right"]["map"].is_null(), "{}", summary["teachers"]);
    assert!(summary["teachers"]["mean"]["map"].is_number());
    let table = String::from_utf8(out.stdout).unwrap();
    let row = table.lines().find(|line| line.starts_with("cat")).unwrap();
    assert!(row.split_whitespace().skip(1).all(|cell| cell == "-"), "{row}");
    for text in [&table, &String::from_utf8(lab.bytes("out/report.html")).unwrap()] {
        assert!(!text.contains("NaN") && !text.contains("-0.0"), "{text}");
    }
    // The summary can be read again.
    let again = lab.call(&["report", "out"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
}

/// A folder of images with a table of labels, for `eval`, `[evaluation]` and `teach`.
#[test]
fn a_csv_of_labels_is_data_for_every_command() {
    let lab = Lab::new();
    let spec = ResNetSpec { image: [16, 16, 3], ..network() };
    for (name, labels, seed) in [("left", &LEFT[..], 1), ("right", &RIGHT, 2)] {
        npz::save(lab.path(&format!("{name}.npz")), &teacher_tensors(&spec, labels, seed)).unwrap();
    }
    fs::create_dir_all(lab.path("pics/more")).unwrap();
    let mut table = "\u{feff}file,bus,car,dog,cat,table\r\n".to_owned();
    for (i, name) in ["a.jpg", "d.jpg", "more/g.png", "more/h.jpg"].iter().enumerate() {
        fs::copy(root().join("tests/fixtures/folder").join(name), lab.path("pics").join(name)).unwrap();
        table += &format!("{name},{},{},1,{},\r\n", i % 2, (i + 1) % 2, i / 2);
    }
    fs::write(lab.path("pics/labels.csv"), &table).unwrap();
    let out = lab.call(&["eval", "left.npz", "pics/labels.csv", "--device", "cpu", "--json"]);
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(said, "note: pics/labels.csv: no image lacks dog; such a label gets no score\n");
    let score: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(score["ap"]["bus"].is_number() && score["ap"]["dog"].is_null(), "{score}");

    fs::write(lab.path("elsewhere.csv"), &table).unwrap();
    let config = fs::read_to_string(lab.path("c.toml")).unwrap();
    for csv in ["{ folder = \"pics\" }", "{ folder = \"pics\", labels = \"./elsewhere.csv\" }"] {
        let edited = config.replace("data = \"evaluation.npz\"", &format!("csv = {csv}"));
        fs::write(lab.path("c.toml"), edited).unwrap();
        let out = lab.call(&["check", "c.toml", "--card", "h200"]);
        let said = String::from_utf8(out.stderr).unwrap();
        assert!(
            out.status.success()
                && said.contains("no image has table")
                && said.contains("no image lacks dog"),
            "{said}"
        );
    }
    let teach = "name = \"t\"\nimage_size = 16\n[data]\ncsv = { folder = \"pics\", flip = 0.0 }\n[network]\nblock = \"basic\"\n\
                 widths = [4, 8]\ndepths = [1, 1]\nstem = { width = 4, kernel = 3, stride = 1, max_pool = false }\n\
                 [training]\nsteps = 2\nbatch = 4\n[evaluation.csv]\nfolder = \"pics\"\n";
    fs::write(lab.path("t.toml"), teach).unwrap();
    let out = lab.call(&["teach", "t.toml", "--device", "cpu"]);
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success(), "{said}");
    assert!(
        said.contains("labels.csv: no image has table; the network learns that they are always absent"),
        "{said}"
    );
    assert_eq!(
        load(&lab.path("runs/t-seed0/weights.npz")).meta["labels"],
        serde_json::json!(["bus", "car", "dog", "cat", "table"])
    );

    fs::remove_file(lab.path("pics/d.jpg")).unwrap();
    let out = lab.call(&["eval", "left.npz", "pics/labels.csv", "--device", "cpu"]);
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        out.status.code() == Some(4)
            && said.contains("labels.csv: expected d.jpg in pics, found no such file"),
        "{said}"
    );
}

#[test]
fn damaged_images_are_found_and_named_before_the_training() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = root().join("tests/fixtures/coco");
    for entry in fs::read_dir(fixture.join("images")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let annotations = fixture.join("annotations/instances_val2017.json");
    let data = EvaluationData::Coco { images: dir.path().into(), annotations };
    let wanted = ["bus".to_owned()];
    assert!(evaluate::check(&data, [32, 32, 3], &wanted).unwrap().is_empty());
    let cut = |name: &str| {
        let file = dir.path().join(name);
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    };
    cut("000000000632.jpg");
    let e = evaluate::check(&data, [32, 32, 3], &wanted).unwrap_err();
    assert!(e.exit_code() == 4 && e.to_string().contains("000000000632.jpg: not a whole JPEG"), "{e}");
    cut("000000000776.jpg");
    let e = evaluate::check(&data, [32, 32, 3], &wanted).unwrap_err().to_string();
    assert!(e.contains("000000000632.jpg: not a whole JPEG"), "{e}");
    assert!(e.ends_with("; further images that cannot be read: 000000000776.jpg"), "{e}");
}
