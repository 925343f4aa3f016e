//! The layers are what the crate's first page says they are: this reads the sources and fails on what breaks a rule.

use std::path::{Path, PathBuf};

/// From top to bottom; a module may use those below it.
const LAYERS: [&str; 8] = ["main", "cli", "config", "pipeline", "models", "autograd", "ops", "device"];
/// Beside the layers: who a leaf may use, apart from vocabulary.
const LEAVES: [(&str, &[&str]); 3] = [("weights", &[]), ("data", &["weights"]), ("report", &["weights"])];
/// Layers that may use leaves.
const USERS_OF_LEAVES: [&str; 4] = ["main", "cli", "pipeline", "models"];
/// Words that everybody may use.
const VOCABULARY: [&str; 3] = ["error", "tensor", "summary"];

/// What holds labels, and the only places that may look at it: evaluation, the teachers' own training, the commands.
const LABELLED: [&str; 3] = ["labelled", "average_precision", "scenes"];
const MAY_SEE_LABELS: [&str; 4] = ["pipeline/evaluate.rs", "pipeline/run.rs", "pipeline/teach.rs", "cli.rs"];

struct Source {
    /// Below `src`, with forward slashes.
    path: String,
    text: String,
}

impl Source {
    /// The top module that the file belongs to.
    fn module(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap_or_default()
    }
    /// Lines with their numbers, without what is compiled for tests only.
    fn lines(&self) -> Vec<(usize, &str)> {
        let mut out = Vec::new();
        let mut lines = self.text.lines().enumerate().map(|(i, l)| (i + 1, l));
        while let Some((i, line)) = lines.next() {
            if line.trim() != "#[cfg(test)]" {
                out.push((i, line));
                continue;
            }
            let indent = &line[..line.len() - line.trim_start().len()];
            let item = lines.by_ref().map(|(_, l)| l).find(|l| !l.trim_start().starts_with("#["));
            if item.is_some_and(|l| !l.ends_with(';')) {
                let end = format!("{indent}}}");
                assert!(lines.any(|(_, l)| l == end), "{}:{i}: the tests have no end", self.path);
            }
        }
        out
    }
}

/// Every source file that the crate consists of, except the files that hold tests only.
fn sources() -> Vec<Source> {
    fn walk(root: &Path, at: &Path, out: &mut Vec<Source>) {
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            let only_tests = name.ends_with("/tests.rs") || name == "ops/gates.rs";
            if path.is_dir() && name != "bin" {
                walk(root, &path, out);
            } else if name.ends_with(".rs") && !only_tests {
                out.push(Source { path: name, text: std::fs::read_to_string(&path).unwrap() });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut out = Vec::new();
    walk(&root, &root, &mut out);
    assert!(out.len() > 60, "only {} source files", out.len());
    out
}

/// Every path of the crate's in a line: its segments, up to the first that is no plain name.
fn mentions(line: &str) -> Vec<Vec<&str>> {
    let starts = ["crate::", "dfka_engine::"].map(|s| line.match_indices(s).map(|(i, s)| i + s.len()));
    starts
        .into_iter()
        .flatten()
        .map(|i| {
            let path = line[i..].split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).next();
            path.unwrap_or_default().split("::").collect()
        })
        .collect()
}

fn may_use(from: &str, to: &str) -> bool {
    let layer = |m: &str| LAYERS.iter().position(|l| *l == m);
    let leaf = |m: &str| LEAVES.iter().find(|(l, _)| *l == m);
    if from == to || VOCABULARY.contains(&to) {
        return true;
    }
    match (layer(from), leaf(from)) {
        (Some(upper), _) if layer(to).is_some_and(|lower| upper < lower) => true,
        (Some(_), _) => leaf(to).is_some() && USERS_OF_LEAVES.contains(&from),
        (_, Some((_, allowed))) => allowed.contains(&to),
        _ => false,
    }
}

/// Fails with all violations at once.
fn expect_none(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

#[test]
fn the_rule_itself() {
    for (from, to) in [
        ("main", "cli"),
        ("cli", "device"),
        ("pipeline", "data"),
        ("data", "weights"),
        ("ops", "ops"),
        ("device", "tensor"),
        ("report", "summary"),
    ] {
        assert!(may_use(from, to), "{from} -> {to}");
    }
    for (from, to) in [
        ("ops", "autograd"),
        ("models", "pipeline"),
        ("config", "cli"),
        ("weights", "data"),
        ("data", "report"),
        ("report", "data"),
        ("ops", "weights"),
        ("autograd", "weights"),
        ("config", "data"),
        ("tensor", "device"),
        ("weights", "models"),
    ] {
        assert!(!may_use(from, to), "{from} -> {to}");
    }
    assert_eq!(
        mentions("use crate::ops::{Arg, Op}; crate::data::idx"),
        [vec!["ops", ""], vec!["data", "idx"]]
    );
}

#[test]
fn no_arrow_points_back() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for source in sources().iter().filter(|s| s.path != "lib.rs") {
        let from = source.module();
        let known = LAYERS.contains(&from)
            || VOCABULARY.contains(&from)
            || LEAVES.iter().any(|(leaf, _)| *leaf == from);
        if !known {
            wrong.push(format!("{}: module {from} has no place in the order", source.path));
        }
        for (i, line) in source.lines() {
            for path in mentions(line) {
                seen += 1;
                if !may_use(from, path[0]) {
                    wrong.push(format!("{}:{i}: {from} must not use {:?}", source.path, path[0]));
                }
            }
        }
    }
    expect_none("main -> cli -> config -> pipeline -> models -> autograd -> ops -> device", &wrong);
    assert!(seen > 150, "only {seen} uses found");
}

/// Training cannot reach a label: nothing below evaluation, teaching and the commands even names what holds them.
#[test]
fn labels_stay_outside_training() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for source in sources().iter().filter(|s| s.module() != "data" && s.path != "lib.rs") {
        for (i, line) in source.lines() {
            for path in mentions(line).iter().filter(|p| p[0] == "data") {
                seen += 1;
                let part = path.get(1).copied().unwrap_or_default();
                // A path that ends at `data` could bring in anything.
                let labelled = part.is_empty() || LABELLED.contains(&part);
                if labelled && !MAY_SEE_LABELS.contains(&source.path.as_str()) {
                    wrong.push(format!("{}:{i}: {}", source.path, line.trim()));
                }
            }
        }
    }
    expect_none("labelled data is for evaluation and for training teachers", &wrong);
    assert!(seen > 3, "only {seen} uses of data found");
}

/// Whether `word` stands in `line` outside comments and not inside a longer word.
fn says(line: &str, word: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|w| w == word)
}

#[test]
fn unsafe_is_below_the_device() {
    let mut wrong = Vec::new();
    let (device, others): (Vec<_>, Vec<_>) = sources().into_iter().partition(|s| s.module() == "device");
    for source in others {
        let lines = source.text.lines().enumerate().filter(|(_, l)| says(l, "unsafe"));
        wrong.extend(lines.map(|(i, l)| format!("{}:{}: {}", source.path, i + 1, l.trim())));
    }
    expect_none("unsafe code is the device's", &wrong);
    assert!(device.iter().any(|s| s.text.lines().any(|l| says(l, "unsafe"))));
}

#[test]
fn the_engine_neither_prints_nor_unwraps() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|s| !["main", "cli", "report"].contains(&s.module())) {
        for (i, line) in source.lines() {
            let code = line.split("//").next().unwrap_or_default();
            let printing = ["println", "print", "eprintln", "eprint", "dbg"];
            if code.contains(".unwrap()")
                || printing.iter().any(|p| says(line, p) && code.contains(&format!("{p}!")))
            {
                wrong.push(format!("{}:{i}: {}", source.path, line.trim()));
            }
        }
    }
    expect_none("errors are returned, and only the commands print", &wrong);
}

/// Every op of the registry has a file of its own name, and documents the same five things in the same order.
#[test]
fn every_op_says_what_it_does() {
    const HEADINGS: [&str; 5] = ["Shapes:", "Source:", "Backward:", "Errors:", "Cost:"];
    let all = sources();
    let registry = &all.iter().find(|s| s.path == "ops/mod.rs").unwrap().text;
    let list = registry.split("\nregistry! {\n").nth(1).unwrap().split('}').next().unwrap();
    let ops: Vec<(&str, &str)> =
        list.lines().filter_map(|l| l.trim().trim_end_matches(',').split_once("::")).collect();
    assert!(ops.len() > 20, "{ops:?}");
    let mut wrong = Vec::new();
    for source in all.iter().filter(|s| s.module() == "ops") {
        let name = source.path.trim_start_matches("ops/").trim_end_matches(".rs");
        if !["mod", "scalar"].contains(&name) && !ops.iter().any(|(module, _)| *module == name) {
            wrong.push(format!("{}: not in the registry", source.path));
        }
    }
    for (module, op) in ops {
        let source = all.iter().find(|s| s.path == format!("ops/{module}.rs")).unwrap();
        let lines: Vec<&str> = source.text.lines().collect();
        let declared = |l: &&str| {
            l.strip_prefix("pub struct ")
                .is_some_and(|rest| rest.split(|c: char| !c.is_alphanumeric()).next() == Some(op))
        };
        let at = lines.iter().position(declared).unwrap_or_else(|| panic!("{module}: no struct {op}"));
        let docs: Vec<&str> = lines[..at]
            .iter()
            .rev()
            .take_while(|l| l.starts_with("///") || l.starts_with("#["))
            .filter_map(|l| l.strip_prefix("/// "))
            .collect();
        let found: Vec<&str> = docs
            .iter()
            .rev()
            .filter_map(|l| {
                HEADINGS.into_iter().find(|h| l.strip_prefix(h).is_some_and(|t| !t.trim().is_empty()))
            })
            .collect();
        if found != HEADINGS {
            wrong.push(format!("{}: {op}: expected {HEADINGS:?}, found {found:?}", source.path));
        }
    }
    expect_none("an op's documentation", &wrong);
}
