//! Image sets with and without labels.

use super::config::TEACH;
use super::{Case, Lab, edit, nothing, pipe, put};
use crate::common::{images, labelled};
use dfka_engine::weights::Meta;
use dfka_engine::weights::npz::{self, Array, CompressionMethod, Elems};

const fn case(what: &'static str, spoil: fn(&Lab), words: &'static [&'static str]) -> Case {
    Case { what, spoil, args: "* c.toml", code: 4, words }
}

const ALL: [&str; 7] = ["bus", "car", "dog", "cat", "table", "sofa", "tree"];

/// Writes three images whose targets have this shape and are all `target`, with these labels.
fn write_set(lab: &Lab, shape: &[usize], target: u8, labels: serde_json::Value) {
    let set = images(3, [16, 16, 1], 1);
    let targets = vec![target; shape.iter().product()];
    let arrays = [
        Array { name: "images", shape: &set.shape(), elems: Elems::U8(&set.images) },
        Array { name: "targets", shape, elems: Elems::U8(&targets) },
    ];
    let mut meta = Meta::new();
    meta.insert("labels".into(), labels);
    npz::write(lab.path("evaluation.npz"), &arrays, &meta, CompressionMethod::Stored).unwrap();
}

#[rustfmt::skip] // one line per case
pub const CASES: &[Case] = &[
    case("no evaluation set", |l| std::fs::remove_file(l.path("evaluation.npz")).unwrap(), &["evaluation.npz: cannot open"]),
    case("an evaluation set of no bytes", |l| put(l, "evaluation.npz", ""), &["evaluation.npz: expected an npz file"]),
    case("an evaluation set without a label", |l| labelled(4, [16, 16, 1], &["bus", "car", "dog", "cat"], 1).save(l.path("evaluation.npz")).unwrap(), &["evaluation.npz: expected a label \"table\", found only bus, car, dog, cat"]),
    case("evaluation images of another size", |l| labelled(4, [8, 8, 1], &ALL, 1).save(l.path("evaluation.npz")).unwrap(), &["evaluation.npz: images: the networks expect [16, 16, 1], found [8, 8, 1]"]),
    case("evaluation images in colour", |l| labelled(4, [16, 16, 3], &ALL, 1).save(l.path("evaluation.npz")).unwrap(), &["expect [16, 16, 1], found [16, 16, 3]"]),
    case("a teacher for an evaluation set", |l| edit(l, "evaluation.npz", "left.npz"), &["left.npz: expected the arrays [\"images\", \"targets\"], found"]),
    case("labels that are one text", |l| write_set(l, &[3, 7], 0, "bus".into()), &["evaluation.npz: array \"__meta__\": entry \"labels\": invalid type"]),
    case("an evaluation set without a positive", |l| write_set(l, &[3, 7], 0, ALL.as_slice().into()), &["evaluation.npz: no label can be scored: no image has bus, car, dog, cat, table"]),
    case("an evaluation set of positives", |l| write_set(l, &[3, 7], 1, ALL.as_slice().into()), &["evaluation.npz: no label can be scored: no image lacks bus, car, dog, cat, table"]),
    Case { what: "weights to score on no positives", spoil: |l| write_set(l, &[3, 7], 0, ALL.as_slice().into()), args: "eval left.npz evaluation.npz", code: 4, words: &["evaluation.npz: no label can be scored: no image has bus, car, dog"] },
    Case { what: "labels to learn that no image has", spoil: |l| { write_set(l, &[3, 7], 0, ALL.as_slice().into()); put(l, "t.toml", TEACH) }, args: "teach t.toml --quiet", code: 4, words: &["evaluation.npz: no image has any of the labels to learn: bus, car, dog"] },
    Case { what: "a table of labels that is not there", spoil: nothing, args: "eval left.npz labels.csv", code: 4, words: &["labels.csv: cannot read"] },
    Case { what: "a table with semicolons", spoil: |l| put(l, "labels.csv", "file;bus;car;dog\n"), args: "eval left.npz labels.csv", code: 4, words: &["labels.csv: line 1: expected `file` and then the labels, with commas between them"] },
    Case { what: "a table of words", spoil: |l| put(l, "labels.csv", "file,bus,car,dog\na.jpg,1,0,yes\n"), args: "eval left.npz labels.csv", code: 4, words: &["labels.csv: line 2: dog: expected 1 (present), 0 (absent) or nothing (ignored), found \"yes\""] },
    Case { what: "a table in UTF-16", spoil: |l| put(l, "labels.csv", b"\xff\xfef\0i\0"), args: "eval left.npz labels.csv", code: 4, words: &["labels.csv: line 1: not UTF-8 text but UTF-16; save the file as UTF-8"] },
    Case { what: "compressed annotations", spoil: |l| put(l, "a.json.gz", b"\x1f\x8b\x08\0"), args: "eval left.npz a.json.gz --images .", code: 4, words: &["a.json.gz: expected COCO's instances, found a gzip file: unpack it with gunzip"] },
    Case { what: "transposed targets", spoil: |l| write_set(l, &[7, 3], 0, ALL.as_slice().into()), args: "eval left.npz evaluation.npz", code: 4, words: &["evaluation.npz: array \"targets\": expected shape [3, 7], found [7, 3]"] },
    Case { what: "targets beyond 2", spoil: |l| write_set(l, &[3, 7], 9, ALL.as_slice().into()), args: "eval left.npz evaluation.npz", code: 4, words: &["evaluation.npz: array \"targets\": expected 0, 1 or 2, found 9 for image 0, label \"bus\""] },
    Case { what: "a label twice in the data", spoil: |l| write_set(l, &[3, 4], 0, ["bus", "car", "dog", "bus"].as_slice().into()), args: "eval left.npz evaluation.npz", code: 4, words: &["evaluation.npz: labels: expected each label once, found \"bus\" at places 1 and 4"] },
    Case { what: "an empty label in the data", spoil: |l| write_set(l, &[3, 4], 0, ["bus", "car", "dog", ""].as_slice().into()), args: "eval left.npz evaluation.npz", code: 4, words: &["evaluation.npz: labels: expected names, found an empty label at place 4"] },
    Case { what: "data without the model's labels", spoil: |l| write_set(l, &[3, 2], 0, ["bus", "car"].as_slice().into()), args: "eval left.npz evaluation.npz", code: 4, words: &["evaluation.npz: expected a label \"dog\", found only bus, car"] },
    Case { what: "data of another size than the model's", spoil: |l| labelled(4, [8, 8, 1], &ALL, 1).save(l.path("evaluation.npz")).unwrap(), args: "eval left.npz evaluation.npz", code: 4, words: &["evaluation.npz: images: the networks expect [16, 16, 1], found [8, 8, 1]"] },
    Case { what: "images of another size for KA", spoil: |l| images(3, [16, 12, 1], 1).save(l.path("ka.npz")).unwrap(), args: "* c.toml --set dual.images=real:ka.npz", code: 4, words: &["ka.npz", "expect [16, 16, 1], found [16, 12, 1]"] },
    Case { what: "labelled images for KA", spoil: nothing, args: "* c.toml --set baselines.ka=evaluation.npz", code: 4, words: &["evaluation.npz: expected the arrays [\"images\"], found [\"images\", \"targets\"]"] },
    Case { what: "no images for KA", spoil: nothing, args: "* c.toml --set baselines.ka=none.npz", code: 4, words: &["none.npz: cannot open"] },
    Case { what: "no training data", spoil: |l| put(l, "t.toml", TEACH.replace("evaluation.npz", "none.npz")), args: "teach t.toml --quiet", code: 4, words: &["none.npz: cannot open"] },
    Case { what: "training data without a wanted label", spoil: |l| put(l, "t.toml", TEACH.replace("[data]", "[data]\nlabels = [\"bus\", \"tram\"]")), args: "teach t.toml --quiet", code: 4, words: &["expected a label \"tram\", found only bus, car, dog"] },
    Case { what: "no archives for scenes", spoil: nothing, args: "scenes none out.npz --split train --count 3", code: 4, words: &["none"] },
    Case { what: "archives of nonsense for scenes", spoil: |l| { std::fs::create_dir(l.path("raw")).unwrap(); put(l, "raw/0.json", "{}") }, args: "scenes raw out.npz --split eval --count 3", code: 4, words: &["raw"] },
    Case { what: "scenes without their archives", spoil: |l| put(l, "t.toml", TEACH.replace("train = \"evaluation.npz\"", "scenes = { archives = \"nowhere\", count = 9 }")), args: "teach t.toml", code: 4, words: &["nowhere/", "cannot read"] },
    Case { what: "a start of other shapes", spoil: |l| put(l, "t.toml", TEACH.replace("[data]", "init = \"left.npz\"\n[data]")), args: "teach t.toml", code: 4, words: &["left.npz: "] },
    case("a pipe of evaluation images", |l| { std::fs::remove_file(l.path("evaluation.npz")).unwrap(); pipe(l, "evaluation.npz") }, &["evaluation.npz: expected a file, found a pipe"]),
    Case { what: "a pipe of an image", spoil: |l| pipe(l, "a.png"), args: "predict left.npz a.png", code: 4, words: &["a.png: expected a file, found a pipe"] },
    Case { what: "a page for a teacher's training", spoil: |l| put(l, "resolved.toml", TEACH), args: "report .", code: 4, words: &[".: expected the folder of a run, found that of a teacher's training"] },
];
