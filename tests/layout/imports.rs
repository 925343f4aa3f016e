//! The import graph between files, read from the source text: no two files may import each other, directly or
//! in a longer circle. `super::`, `self::`, `crate::` and calls through a declared child module all count.

use crate::{Source, sources};
use std::collections::{BTreeMap, BTreeSet};

/// A token of Rust source, as far as paths need it.
#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    /// `::`
    Joint,
    Other(char),
}

/// Words, `::` and single characters; string and character literals are left out.
fn tokens(code: &str) -> Vec<Token> {
    let chars: Vec<char> = code.chars().collect();
    let (mut out, mut i) = (Vec::new(), 0);
    while i < chars.len() {
        let c = chars[i];
        if c == '"' {
            i += 1;
            while i < chars.len() && chars[i] != '"' {
                i += if chars[i] == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if c == '\'' && chars.get(i + 2) == Some(&'\'') {
            i += 3;
        } else if c.is_alphabetic() || c == '_' {
            let start = i;
            while i < chars.len() && (chars[i].is_alphanumeric() || chars[i] == '_') {
                i += 1;
            }
            out.push(Token::Word(chars[start..i].iter().collect()));
        } else if c == ':' && chars.get(i + 1) == Some(&':') {
            out.push(Token::Joint);
            i += 2;
        } else {
            if !c.is_whitespace() && c != '$' {
                out.push(Token::Other(c));
            }
            i += 1;
        }
    }
    out
}

/// Reads the paths that continue `prefix` from token `at` on, through the braces of a `use` tree. Returns the
/// token after them.
fn read_path(tokens: &[Token], mut at: usize, mut prefix: Vec<String>, out: &mut Vec<Vec<String>>) -> usize {
    loop {
        match tokens.get(at) {
            Some(Token::Word(w)) => {
                prefix.push(w.clone());
                at += 1;
                if tokens.get(at) == Some(&Token::Joint) {
                    at += 1;
                    continue;
                }
                out.push(prefix);
                return at;
            }
            Some(Token::Other('{')) => {
                at += 1;
                while at < tokens.len() && tokens[at] != Token::Other('}') {
                    match &tokens[at] {
                        Token::Other('*') | Token::Word(_) | Token::Other('{') => {
                            at = read_path(tokens, at, prefix.clone(), out);
                        }
                        _ => at += 1,
                    }
                }
                return at + 1;
            }
            _ => {
                // A glob, or the generic arguments of a type.
                out.push(prefix);
                return at + 1;
            }
        }
    }
}

/// All paths of two segments or more in `code`.
pub fn paths(code: &str) -> Vec<Vec<String>> {
    let tokens = tokens(code);
    let (mut out, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let begins = matches!(tokens[at], Token::Word(_)) && tokens.get(at + 1) == Some(&Token::Joint);
        at = if begins { read_path(&tokens, at, Vec::new(), &mut out) } else { at + 1 };
    }
    out
}

/// The module that a file holds: `ops/mod.rs` is `ops`, `ops/fusion.rs` is `ops::fusion`.
fn module_of(name: &str) -> Vec<String> {
    let stem = name.trim_end_matches(".rs").trim_end_matches("/mod");
    if stem == "lib" { Vec::new() } else { stem.split('/').map(str::to_string).collect() }
}

/// Whether a file only declares modules and re-exports names.
fn is_facade(code: &str) -> bool {
    let defines = ["fn ", "struct ", "enum ", "trait ", "impl", "const ", "static ", "type ", "macro_rules!"];
    code.lines().all(|l| {
        let l = l.trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ");
        let l = l.trim_start_matches("pub ").trim_start_matches("unsafe ");
        !defines.iter().any(|d| l.starts_with(d))
    })
}

/// For every file, the files that it imports, each with the path in the source.
pub fn edges(all: &[Source]) -> BTreeMap<String, BTreeMap<String, String>> {
    let modules: BTreeMap<Vec<String>, &Source> = all.iter().map(|s| (module_of(&s.name), s)).collect();
    let mut graph = BTreeMap::new();
    for s in all {
        let here = module_of(&s.name);
        let mut found = BTreeMap::new();
        for path in paths(&s.code) {
            if let Some(to) = resolve(&modules, &here, &path, 0)
                && to != s.name
            {
                found.entry(to).or_insert_with(|| path.join("::"));
            }
        }
        // A facade has no imports here: a name that it re-exports counts as imported from the defining file.
        graph.insert(s.name.clone(), if is_facade(&s.code) { BTreeMap::new() } else { found });
    }
    graph
}

/// The file that defines what a path in module `here` names; none if it is outside the crate.
fn resolve(
    modules: &BTreeMap<Vec<String>, &Source>,
    here: &[String],
    path: &[String],
    depth: usize,
) -> Option<String> {
    let mut full: Vec<String> = match path[0].as_str() {
        "crate" => Vec::new(),
        "self" => here.to_vec(),
        "super" => here[..here.len().checked_sub(1)?].to_vec(),
        child => {
            let inside = [here, &[child.to_string()]].concat();
            modules.contains_key(&inside).then_some(inside)?
        }
    };
    for word in &path[1..] {
        if word == "super" {
            full.pop();
        } else if word != "self" {
            full.push(word.clone());
        }
    }
    let known = (0..=full.len()).rev().find(|n| modules.contains_key(&full[..*n]))?;
    let target = modules[&full[..known]];
    if !is_facade(&target.code) {
        return Some(target.name.clone());
    }
    // Follow the name through the facade's own imports.
    let name = full.get(known)?;
    assert!(depth < 9, "{path:?} leads from facade to facade");
    let passed = paths(&target.code);
    let from = passed.iter().find(|p| p.last() == Some(name))?;
    resolve(modules, &full[..known], from, depth + 1)
}

/// The files on circles, in groups whose members all import each other directly or indirectly.
fn circles(graph: &BTreeMap<String, BTreeMap<String, String>>) -> Vec<Vec<String>> {
    let reach = |from: &String| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(at) = open.pop() {
            for to in graph.get(&at).into_iter().flat_map(BTreeMap::keys) {
                if seen.insert(to.clone()) {
                    open.push(to.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> = graph.keys().map(|f| (f, reach(f))).collect();
    let mut groups: BTreeSet<Vec<String>> = BTreeSet::new();
    for (file, seen) in reached.iter().filter(|(f, seen)| seen.contains(**f)) {
        groups.insert(seen.iter().filter(|o| reached[o].contains(*file)).cloned().collect());
    }
    groups.into_iter().collect()
}

#[test]
fn no_two_files_import_each_other() {
    let graph = edges(&sources());
    let count: usize = graph.values().map(BTreeMap::len).sum();
    assert!(count > 400, "only {count} imports were found");
    let mut found = Vec::new();
    for group in circles(&graph) {
        let inside = |(from, to): (&String, &BTreeMap<String, String>)| {
            let to = to.iter().filter(|(t, _)| group.contains(t));
            to.map(|(t, path)| format!("{from} -> {t} ({path})")).collect::<Vec<_>>()
        };
        let lines: Vec<String> = graph.iter().filter(|(f, _)| group.contains(f)).flat_map(inside).collect();
        found.push(lines.join("\n    "));
    }
    assert!(found.is_empty(), "{} circles:\n\n    {}", found.len(), found.join("\n\n    "));
}

#[test]
fn the_scan_finds_a_circle_of_every_kind() {
    let file = |name: &str, code: &str| Source { name: name.into(), text: String::new(), code: code.into() };
    let circles_of = |files: &[(&str, &str)]| {
        let all: Vec<Source> = files.iter().map(|(n, c)| file(n, c)).collect();
        circles(&edges(&all))
    };
    let parent_and_child = [
        ("a/mod.rs", "mod b;\npub struct A;\nfn f() { b::g() }"),
        ("a/b.rs", "use super::A;\npub fn g() {}"),
    ];
    assert_eq!(circles_of(&parent_and_child), [["a/b.rs", "a/mod.rs"]]);
    let through_a_facade = [
        ("a/mod.rs", "mod b;\nmod c;\npub use b::B;\npub use c::C;"),
        ("a/b.rs", "use crate::a::C;\npub struct B;"),
        ("a/c.rs", "use crate::{a::{self, B}};\npub struct C;"),
    ];
    assert_eq!(circles_of(&through_a_facade), [["a/b.rs", "a/c.rs"]]);
    let one_way = [
        ("a/mod.rs", "mod b;\npub use b::B;"),
        ("a/b.rs", "pub(super) struct B;\nfn f() -> crate::c::C<{ \"crate::d\"; 1 }> {}"),
        ("c.rs", "pub struct C;"),
        ("d.rs", "use crate::a::B;\nstruct D;"),
    ];
    assert!(circles_of(&one_way).is_empty());
    let long = [
        ("a.rs", "fn f() { crate::b::g() }"),
        ("b.rs", "fn g() { super::c::h() }"),
        ("c.rs", "use crate::a::f;\nfn h() {}"),
    ];
    assert_eq!(circles_of(&long), [["a.rs", "b.rs", "c.rs"]]);
}
