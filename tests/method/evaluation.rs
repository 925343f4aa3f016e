//! Photographs as the input of a run: PASCAL VOC and MS-COCO as evaluation sets, a folder of images for KA
//! (knowledge amalgamation on real images). Each gives the same bits as an npz of the same pixels.

use crate::common::{Lab, images, network, teacher_tensors};
use dfka_engine::data::folder;
use dfka_engine::data::labelled::LabelledSet;
use dfka_engine::data::unlabelled::ImageSet;
use dfka_engine::models::resnet::ResNetSpec;
use dfka_engine::pipeline::spec::EvaluationData;
use dfka_engine::summary::Score;
use dfka_engine::weights::npz;
use std::path::PathBuf;

const IMAGE: [usize; 3] = [24, 24, 3];

fn fixtures() -> PathBuf {
    crate::common::root().join("tests/fixtures")
}

fn year() -> PathBuf {
    fixtures().join("voc/VOCdevkit/VOC2007")
}

/// A lab whose teachers take colour images of 24x24 pixels and have labels of VOC.
fn lab() -> Lab {
    let lab = Lab::new();
    let network = ResNetSpec { image: IMAGE, ..network() };
    for (name, labels, seed) in [("left", &["bus", "car"][..], 1), ("right", &["diningtable", "person"], 2)] {
        npz::save(lab.path(&format!("{name}.npz")), &teacher_tensors(&network, labels, seed)).unwrap();
    }
    lab
}

/// The trainval images of the fixture as an npz.
fn as_npz(lab: &Lab) -> PathBuf {
    let all = folder::load(&year().join("JPEGImages"), IMAGE).unwrap();
    let names: Vec<String> = folder::list(&year().join("JPEGImages"))
        .unwrap()
        .iter()
        .map(|f| f.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    // The targets of scripts/make_fixtures.py: bus, car, diningtable, person; 2 means difficult.
    let targets = [
        ("000005", [1, 0, 0, 1]),
        ("000007", [0, 0, 1, 0]),
        ("000009", [1, 2, 0, 0]),
        ("000012", [0, 2, 0, 0]),
        ("000016", [0, 0, 0, 1]),
        ("000017", [0, 0, 1, 0]),
    ];
    let pixels: Vec<u8> = targets
        .iter()
        .flat_map(|(name, _)| all.image(names.iter().position(|n| n == name).unwrap()).to_vec())
        .collect();
    let [h, w, c] = IMAGE;
    let set = LabelledSet::new(
        ImageSet::new(pixels, [6, h, w, c], "").unwrap(),
        targets.iter().flat_map(|t| t.1).collect(),
        ["bus", "car", "diningtable", "person"].map(String::from).to_vec(),
    );
    let path = lab.path("voc.npz");
    set.unwrap().save(&path).unwrap();
    path
}

fn json(lab: &Lab, args: &[&str]) -> Score {
    let out = lab.call(args);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// The labels that have a score.
fn scored(score: &Score) -> Vec<&str> {
    score.ap.iter().filter(|(_, ap)| ap.is_finite()).map(|(label, _)| label.as_str()).collect()
}

#[test]
fn voc_gives_the_same_scores_as_an_npz_of_the_same_pixels() {
    let lab = lab();
    let voc = format!("{}:trainval", year().display());
    let npz = as_npz(&lab);
    for teacher in ["left.npz", "right.npz"] {
        let found = json(&lab, &["eval", teacher, &voc, "--json"]);
        let expected = json(&lab, &["eval", teacher, npz.to_str().unwrap(), "--json"]);
        assert_eq!(found, expected);
    }
    // All cars are difficult, so that no ranking is better than another.
    let left = json(&lab, &["eval", "left.npz", &voc, "--json"]);
    assert_eq!(scored(&left), ["bus"]);
    assert_eq!(left.ap.len(), 2);
    let test = json(&lab, &["eval", "left.npz", year().to_str().unwrap(), "--json"]);
    assert_eq!(scored(&test), ["bus"], "a folder alone means its list `test`");
}

#[test]
fn coco_is_scored_by_its_category_names() {
    let lab = lab();
    let network = ResNetSpec { image: IMAGE, ..network() };
    let labels = ["dining table", "bus"];
    npz::save(lab.path("coco.npz"), &teacher_tensors(&network, &labels, 3)).unwrap();
    let root = fixtures().join("coco");
    let (annotations, images) = (root.join("annotations/instances_val2017.json"), root.join("images"));
    let (annotations, images) = (annotations.to_str().unwrap(), images.to_str().unwrap());
    let score = json(&lab, &["eval", "coco.npz", annotations, "--images", images, "--json"]);
    assert_eq!(scored(&score), ["bus", "dining table"]);

    let error = |args: &[&str], code: i32, part: &str| {
        let out = lab.call(args);
        let text = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.code() == Some(code) && text.contains(part), "{text}");
    };
    error(&["eval", "left.npz", annotations, "--images", images], 4, "expected a label \"car\", found only");
    error(&["eval", "coco.npz", annotations], 2, "name their folder with --images");
    error(&["eval", "coco.npz", images], 4, "test.txt: cannot read");
    error(&["eval", "coco.npz", &format!("{}:tset", year().display())], 4, "tset.txt: cannot read");
}

#[test]
fn a_run_is_scored_on_voc_which_does_not_change_its_student() {
    let lab = lab();
    let mut spec = lab.spec(&[]);
    spec.evaluation = None;
    lab.run_spec("without", &spec).unwrap();
    spec.evaluation = Some(EvaluationData::Npz(as_npz(&lab)));
    let npz = lab.run_spec("npz", &spec).unwrap();
    spec.evaluation = Some(EvaluationData::Voc { folder: year(), split: "trainval".into() });
    let voc = lab.run_spec("voc", &spec).unwrap();
    assert_eq!((voc.student, voc.teachers), (npz.student, npz.teachers));
    for out in ["npz", "voc"] {
        assert!(lab.bytes("without/student.npz") == lab.bytes(&format!("{out}/student.npz")), "{out}");
    }
}

#[test]
fn check_opens_every_file_that_a_run_would_read() {
    let lab = lab();
    let check = |sets: &[&str], code: i32, part: &str| {
        let sets: Vec<&str> = sets.iter().flat_map(|s| ["--set", s]).collect();
        let out = lab.call(&[&["check", "c.toml"], &sets[..]].concat());
        let text = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.code() == Some(code) && text.contains(part), "{sets:?}: {text}");
    };
    let config = std::fs::read_to_string(lab.path("c.toml")).unwrap();
    let root = fixtures().join("voc/VOCdevkit");
    let voc = format!("[evaluation.voc]\nroot = {root:?}\nsplit = \"trainval\"\n");
    let edited = config.replace("[evaluation]\ndata = \"evaluation.npz\"\n", &voc);
    assert_ne!(config, edited);
    std::fs::write(lab.path("c.toml"), edited).unwrap();
    let real = format!("dual.images='real:{}'", fixtures().join("folder").display());
    check(&[], 0, "");
    check(&[&real], 0, "");
    check(&["evaluation.voc.year=2012"], 4, "VOC2012/ImageSets/Main/trainval.txt: cannot read");
    check(&["dual.images='real:.'"], 4, "expected .jpg, .jpeg or .png files, found none");
    npz::save(
        lab.path("right.npz"),
        &teacher_tensors(&ResNetSpec { image: IMAGE, ..network() }, &["table"], 2),
    )
    .unwrap();
    check(&[], 4, "expected a label \"table\", found only aeroplane, bicycle");
}

#[test]
fn a_folder_of_images_trains_the_same_student_as_an_npz_of_them() {
    let lab = lab();
    let from = fixtures().join("folder");
    folder::load(&from, IMAGE).unwrap().save(lab.path("ka.npz")).unwrap();
    let run = |out: &str, images: &str| {
        let mut spec = lab.spec(&[&format!("dual.images='real:{images}'")]);
        spec.evaluation = None;
        lab.run_spec(out, &spec).map(|_| lab.bytes(&format!("{out}/student.npz")))
    };
    let folder = from.to_str().unwrap();
    let (a, b) = (run("folder", folder).unwrap(), run("npz", "ka.npz").unwrap());
    assert!(a == b, "the students differ");
    images(8, IMAGE, 9).save(lab.path("ka.npz")).unwrap();
    assert!(run("other", "ka.npz").unwrap() != a, "other images made the same student");
}
