//! The honesty rule: no label of an image can reach the training of a student. The proof is the import graph:
//! no path of imports leads from a file of the pipeline, or of the modules below it, to a file that reads
//! labels.

use crate::imports::{edges, paths};
use crate::{Source, module, sources};
use std::collections::{BTreeMap, BTreeSet};

/// The modules that train a student.
const BLIND: [&str; 5] = ["pipeline", "models", "autograd", "ops", "device"];
/// The files of `data` that read, hold or score labels (`digits` and `idx` read the classes of single
/// objects). The module `labelled` is their only user below the command line.
const WITH_LABELS: [&str; 11] = [
    "average_precision",
    "coco",
    "csv",
    "dataset",
    "digits",
    "idx",
    "labelled",
    "loader",
    "scenes",
    "targets",
    "voc",
];
/// The other files of `data`.
const WITHOUT_LABELS: [&str; 8] =
    ["files", "folder", "image", "jpeg", "mod", "rng", "transform", "unlabelled"];

/// The module of `data` that a file belongs to: `data/scenes/compose.rs` to `scenes`.
fn reader(file: &str) -> Option<&str> {
    file.strip_prefix("data/")?.split(['/', '.']).next()
}

/// The path of imports from `from` to a file that sees labels, if there is one.
fn path_to_labels(graph: &BTreeMap<String, BTreeMap<String, String>>, from: &str) -> Option<Vec<String>> {
    let sees =
        |file: &str| module(file) == "labelled" || reader(file).is_some_and(|n| WITH_LABELS.contains(&n));
    let mut before: BTreeMap<&str, &str> = BTreeMap::new();
    let mut open = vec![from];
    while let Some(at) = open.pop() {
        if sees(at) {
            let mut path = vec![at.to_string()];
            while let Some(previous) = before.get(path[0].as_str()).filter(|_| path[0] != from) {
                path.insert(0, previous.to_string());
            }
            return Some(path);
        }
        for to in graph.get(at).into_iter().flat_map(BTreeMap::keys) {
            if to != from && !before.contains_key(to.as_str()) {
                before.insert(to, at);
                open.push(to);
            }
        }
    }
    None
}

#[test]
fn no_import_leads_from_the_training_of_a_student_to_a_label() {
    let all = sources();
    let graph = edges(&all);
    let (mut held, mut wrong) = (0, Vec::new());
    for s in all.iter().filter(|s| BLIND.contains(&module(&s.name))) {
        held += 1;
        if let Some(path) = path_to_labels(&graph, &s.name) {
            wrong.push(path.join(" -> "));
        }
        // An import of the whole module would hide which of its files are used.
        for path in paths(&s.code) {
            if matches!(path.join("::").as_str(), "crate::data" | "crate::data::self") {
                wrong.push(format!("{}: imports all of data", s.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(held > 60, "only {held} files were held to the rule");
}

/// A new reader of data must be put on one of the two lists.
#[test]
fn every_file_of_data_is_known_to_have_labels_or_none() {
    let all = sources();
    let found: BTreeSet<&str> = all.iter().filter_map(|s| reader(&s.name)).collect();
    for name in &found {
        let is_known = WITH_LABELS.contains(name) != WITHOUT_LABELS.contains(name);
        assert!(is_known, "data/{name}.rs must be in one of the lists WITH_LABELS and WITHOUT_LABELS");
    }
    for name in WITH_LABELS {
        assert!(found.contains(name), "data/{name}.rs does not exist");
    }
}

#[test]
fn a_path_to_a_label_is_found_through_other_files_and_facades() {
    let file = |name: &str, code: &str| Source { name: name.into(), text: String::new(), code: code.into() };
    let mut all = vec![
        file("data/mod.rs", "pub mod voc;\npub mod image;"),
        file("data/voc.rs", "pub fn open() {}"),
        file("data/image.rs", "pub fn decode() {}"),
        file("models/mod.rs", "pub mod a;"),
        file("models/a.rs", "use crate::data::{image, voc::open};\nfn g() {}"),
        file("pipeline/mod.rs", "mod b;\nmod c;\npub use c::f;"),
        file("pipeline/b.rs", "use super::f;\nstruct B;"),
        file("pipeline/c.rs", "pub fn f() { crate::models::a::g() }"),
    ];
    let expected: Vec<String> =
        ["pipeline/b.rs", "pipeline/c.rs", "models/a.rs", "data/voc.rs"].map(String::from).into();
    assert_eq!(path_to_labels(&edges(&all), "pipeline/b.rs"), Some(expected));
    all[4].code = "use crate::data::image;\nfn g() {}".into();
    assert_eq!(path_to_labels(&edges(&all), "pipeline/b.rs"), None);
}
