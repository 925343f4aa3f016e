//! The longest that files and functions may be.

use crate::{files, root, sources};
use std::fs;

/// Limits in lines: for a source file without its tests, for a function, for a header of the kernels.
const FILE: usize = 450;
const FUNCTION: usize = 80;
const HEADER: usize = 350;

/// The functions of a formatted file: first line, name and length. A body ends at a brace that is indented
/// like its `fn`.
fn functions(code: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let indent = |l: &str| l.len() - l.trim_start().len();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(at) = words.iter().position(|w| *w == "fn") else { continue };
        let known = ["pub", "const", "unsafe", "async", "extern"];
        if words[..at].iter().any(|w| !known.iter().any(|k| w.starts_with(k)) && !w.starts_with('"')) {
            continue;
        }
        let name = words.get(at + 1).map_or("", |w| w.split(['(', '<']).next().unwrap());
        let ends = |l: &&str| indent(l) == indent(line) && (l.trim() == "}" || l.trim_end().ends_with(';'));
        let is_one_line = line.trim_end().ends_with('}') || line.trim_end().ends_with(';');
        let length = if is_one_line { 0 } else { lines[i + 1..].iter().position(ends).unwrap_or(0) + 1 };
        found.push((i + 1, name.to_string(), length + 1));
    }
    found
}

#[test]
fn functions_are_at_most_80_lines() {
    let (mut read, mut long) = (0, Vec::new());
    for s in sources() {
        for (line, name, length) in functions(&s.code) {
            read += 1;
            if length > FUNCTION {
                long.push(format!("{}:{line}: {name} has {length} lines", s.name));
            }
        }
    }
    assert!(read > 1000, "only {read} functions were found");
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn files_are_at_most_450_lines() {
    let mut long: Vec<String> = Vec::new();
    for s in sources() {
        let lines = s.code.lines().count();
        if lines > FILE {
            long.push(format!("src/{} has {lines} lines", s.name));
        }
    }
    for path in files(&root().join("kernels")) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        let is_header = path.extension().is_some_and(|e| e == "cuh" || e == "h");
        if is_header && lines > HEADER || lines > FILE && path.extension().is_some_and(|e| e == "cu") {
            long.push(format!("{} has {lines} lines", path.display()));
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn the_counter_counts_functions() {
    let code = "impl A {\n    pub fn short(&self) -> u32 { 1 }\n    fn long(\n        a: u32,\n    ) -> u32 {\n        a\n    }\n}\n";
    let found = functions(code);
    assert_eq!(found, [(2, "short".into(), 1), (3, "long".into(), 5)]);
}
