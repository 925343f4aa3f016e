//! The architecture that `lib.rs` describes, checked by tests: which module may use which, which files may
//! see labels, where `unsafe` is allowed, how long files and functions may be, and which headings an op's
//! docstring has.

mod imports;
mod labels;
mod sizes;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The chain of modules. Each may use those to its right.
const CHAIN: [&str; 9] =
    ["main", "cli", "config", "labelled", "pipeline", "models", "autograd", "ops", "device"];
/// The leaves, and what each may use beside the vocabulary. The modules before `autograd` in the chain may
/// use a leaf.
const LEAVES: [(&str, &[&str]); 3] = [("weights", &[]), ("data", &["weights"]), ("report", &["weights"])];
/// Modules that every module may use.
const VOCABULARY: [&str; 6] = ["error", "tensor", "text", "splitmix", "summary", "machine"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder`, except in hidden folders and in folders that git ignores.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_ours =
            !name.starts_with('.') && !["target", "runs"].contains(&name) && !path.ends_with("data/raw");
        if path.is_dir() && is_ours {
            out.extend(files(&path));
        } else if path.is_file() {
            out.push(path);
        }
    }
    out.sort();
    out
}

/// A source file: its path below `src`, and its code without comments and without its tests.
struct Source {
    name: String,
    text: String,
    code: String,
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    let rust = files(&src).into_iter().filter(|p| p.extension().is_some_and(|e| e == "rs"));
    rust.map(|path| {
        let name = path.strip_prefix(&src).unwrap().to_str().unwrap().replace('\\', "/");
        let text = fs::read_to_string(&path).unwrap();
        let kept = if is_test(&name) { "" } else { without_tests(&text) };
        let code = kept.lines().map(|l| l.split("//").next().unwrap()).collect::<Vec<_>>().join("\n");
        Source { name, text, code }
    })
    .collect()
}

fn is_test(name: &str) -> bool {
    name.ends_with("/tests.rs") || name.starts_with("ops/op_check")
}

/// The text before the tests, which are the last item of a file.
fn without_tests(text: &str) -> &str {
    let is_start = |at: usize| text[at..].lines().nth(1).is_some_and(|l| l.contains("mod tests"));
    let end = text.match_indices("#[cfg(test)]\n").map(|(at, _)| at).find(|at| is_start(*at));
    &text[..end.unwrap_or(text.len())]
}

/// The top-level module of a file: `ops/conv2d.rs` is in `ops`.
fn module(name: &str) -> &str {
    name.split('/').next().unwrap().trim_end_matches(".rs")
}

/// The modules that follow `prefix` in `code`, in single paths and in lists in braces.
fn reached(code: &str, prefix: &str) -> BTreeSet<String> {
    let word =
        |s: &str| s.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut out = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            out.insert(word(rest));
            continue;
        };
        let (mut depth, mut start) = (1, 0);
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if (c == ',' && depth == 1) || depth == 0 {
                out.insert(word(&list[start..i]));
                start = i + 1;
            }
            if depth == 0 {
                break;
            }
        }
    }
    out.remove("");
    out
}

fn may_use(from: &str, to: &str) -> bool {
    let rank = |m: &str| CHAIN.iter().position(|c| *c == m);
    if from == to || VOCABULARY.contains(&to) {
        return true;
    }
    if let Some((_, allowed)) = LEAVES.iter().find(|(leaf, _)| *leaf == from) {
        return allowed.contains(&to);
    }
    match (rank(from), rank(to)) {
        (Some(from), Some(to)) => from < to,
        (Some(from), None) => LEAVES.iter().any(|(leaf, _)| *leaf == to) && from < rank("autograd").unwrap(),
        _ => false,
    }
}

#[test]
fn the_reader_of_paths_reads_paths() {
    let code = "use crate::ops::{conv2d, bce};\nuse crate::{error::Result, models::{a, b}, cli};\nlet x = crate::data::f();";
    let found: Vec<String> = reached(code, "crate::").into_iter().collect();
    assert_eq!(found, ["cli", "data", "error", "models", "ops"]);
    assert!(may_use("models", "ops") && may_use("pipeline", "report") && may_use("data", "weights"));
    assert!(!may_use("ops", "autograd") && !may_use("weights", "data") && !may_use("ops", "weights"));
    assert!(!may_use("tensor", "ops") && !may_use("models", "somewhere"));
}

#[test]
fn no_arrow_points_back() {
    let mut wrong = Vec::new();
    for s in sources().iter().filter(|s| s.name != "lib.rs") {
        let from = module(&s.name);
        for (prefix, is_allowed_at_all) in [("crate::", true), ("dfka_engine::", from == "main")] {
            for to in reached(&s.code, prefix) {
                if !is_allowed_at_all || !may_use(from, &to) {
                    wrong.push(format!("{}: {from} uses {to}", s.name));
                }
            }
        }
        // `super` must not leave the top-level module either: paths to other modules begin with `crate`.
        let depth = s.name.matches('/').count() + usize::from(!s.name.ends_with("/mod.rs"));
        if s.code.contains(&"super::".repeat(depth)) {
            wrong.push(format!("{}: leaves {from} through `super`", s.name));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_module_has_its_place() {
    let known: BTreeSet<&str> =
        CHAIN.into_iter().chain(LEAVES.map(|l| l.0)).chain(VOCABULARY).chain(["lib"]).collect();
    let found: BTreeSet<String> = sources().iter().map(|s| module(&s.name).to_string()).collect();
    assert_eq!(found.iter().map(String::as_str).collect::<BTreeSet<_>>(), known);
}

#[test]
fn unsafe_is_used_in_device_only_and_has_a_safety_comment() {
    let mut found = 0;
    for s in sources() {
        let is_word = |l: &str| l.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe");
        let lines: Vec<&str> = s.text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            // A declaration of foreign functions needs no comment, because only calling them is unsafe.
            let code = line.split("//").next().unwrap().replace("unsafe extern", "extern");
            if !is_word(&code) {
                continue;
            }
            found += 1;
            assert!(s.name.starts_with("device/"), "{}:{}: unsafe outside src/device", s.name, i + 1);
            let says_why = lines[i.saturating_sub(5)..i].iter().any(|l| l.contains("// SAFETY:"));
            assert!(says_why, "{}:{}: unsafe without a SAFETY comment", s.name, i + 1);
        }
    }
    assert!(found > 0, "the test finds no unsafe at all");
}

/// The kernels of the ops of a kind.
fn kernels_of(kind: &str) -> Vec<PathBuf> {
    let folder = root().join("kernels").join(kind);
    if folder.exists() { files(&folder) } else { Vec::new() }
}

#[test]
fn every_op_documents_itself() {
    let all = sources();
    let registry = &all.iter().find(|s| s.name == "ops/mod.rs").unwrap().code;
    let list = registry.split("\nregistry! {").nth(1).unwrap().split('}').next().unwrap();
    let ops: Vec<(String, &str)> = list
        .split(',')
        .filter_map(|l| l.trim().rsplit_once("::"))
        .map(|(file, op)| (file.replace("::", "/"), op))
        .collect();
    assert!(ops.len() > 20, "{ops:?}");
    for (file, op) in &ops {
        let names = [format!("ops/{file}.rs"), format!("ops/{file}/mod.rs")];
        let s = all.iter().find(|s| names.contains(&s.name)).unwrap_or_else(|| panic!("{names:?}"));
        let before = s.text.split(&format!("\npub struct {op}")).next().unwrap();
        assert!(before.len() < s.text.len(), "{}: no struct {op}", s.name);
        let doc: Vec<&str> =
            before.lines().rev().take_while(|l| l.starts_with("///") || l.starts_with("#[")).collect();
        for heading in ["Shapes", "Source", "Backward", "Errors", "Cost"] {
            let is_there = doc.iter().any(|l| l.starts_with(&format!("/// {heading}: ")));
            assert!(is_there, "{}: the docstring of {op} has no `{heading}:`", s.name);
        }
    }
    // An op has two files with one stem, such as `ops/losses/bce.rs` and `kernels/losses/bce.cu`. A large op
    // has a folder in `ops`, and several kernel files whose names begin with its own. `kernels/engine` has
    // the kernels that no op launches.
    let registered: BTreeSet<&str> = ops.iter().map(|(file, _)| file.as_str()).collect();
    let kinds = ["layers", "losses", "movement", "optim", "random", "ranks"];
    for kind in kinds {
        for s in all.iter().filter_map(|s| s.name.strip_prefix("ops/")?.strip_prefix(kind)) {
            let stem = s.trim_start_matches('/').split(['/', '.']).next().unwrap();
            let is_shared = ["mod", "common"].contains(&stem);
            let file = format!("{kind}/{stem}");
            assert!(registered.contains(file.as_str()) || is_shared, "ops/{file} is not registered");
        }
        let has_op = |kernel: &str| {
            let is_its = |op: &&&str| kernel == **op || kernel.starts_with(&format!("{op}_"));
            registered.iter().find(is_its).is_some()
        };
        for path in kernels_of(kind) {
            let kernel = format!("{kind}/{}", path.file_stem().unwrap().to_str().unwrap());
            assert!(has_op(&kernel), "kernels/{kernel}.cu belongs to no op");
        }
    }
    // Those of a divided batch run on the CPU only, and `gather_columns` launches kernels of `concat_columns`.
    let without = ["ranks/own_rows", "ranks/all_rows", "ranks/gather_columns"];
    for op in registered.iter().filter(|op| !without.contains(op)) {
        let kernels = kernels_of(op.split('/').next().unwrap());
        let is_its =
            |p: &PathBuf| p.file_stem().unwrap().to_str().unwrap().starts_with(op.split('/').nth(1).unwrap());
        assert!(kernels.iter().any(is_its), "kernels/{op}.cu is missing");
    }
}

#[test]
fn errors_are_values_and_only_the_edge_prints() {
    let edge = ["main", "cli", "report"];
    for s in sources().iter().filter(|s| !edge.contains(&module(&s.name))) {
        for wrong in [".unwrap()", "println!", "print!", "process::exit", "dbg!", "panic!", "unimplemented!"]
        {
            assert!(!s.code.contains(wrong), "{}: {wrong}", s.name);
        }
    }
}

#[test]
fn nothing_is_left_for_later() {
    let later = ["TO", "DO"].concat();
    let mut read = 0;
    for path in files(&root()) {
        // Weights and archives are not text.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        read += 1;
        let line = text.lines().position(|l| l.contains(&later));
        assert!(line.is_none(), "{}:{}: {later}", path.display(), line.unwrap_or(0) + 1);
    }
    assert!(read > 80, "only {read} files were read");
}
