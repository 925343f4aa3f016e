//! The kernel sources below `kernels/`: which files there are, which kernels each declares, and the
//! fingerprint by which a build knows that a file must be compiled again.

use crate::source;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// One `kernels/**/<stem>.cu`.
pub struct Module {
    pub stem: String,
    pub path: PathBuf,
    /// The path below `kernels/`, for the compilers' messages.
    pub name: String,
    pub text: String,
    pub kernels: Vec<source::Declared>,
}

/// Everything that is compiled.
pub struct Sources {
    /// The folder `kernels/`.
    pub root: PathBuf,
    /// Sorted by stem; a stem is unique.
    pub modules: Vec<Module>,
    /// Path below `kernels/`, as sources include it, and text: `lib/**/*.cuh`.
    pub headers: Vec<(String, String)>,
    /// The same for the emulator's own headers, `emu/*.h`.
    pub emulator_headers: Vec<(String, String)>,
    /// The emulator's runtime, `emu/*.cpp`.
    pub runtime: Vec<PathBuf>,
}

impl Sources {
    pub fn read() -> Sources {
        let root = fs::canonicalize("kernels").expect("the folder kernels/");
        let (lib, emu) = (root.join("lib"), root.join("emu"));
        let with_text = |paths: Vec<PathBuf>| paths.iter().map(|p| (name(&root, p), read(p))).collect();
        let headers: Vec<(String, String)> = with_text(files(&lib, "cuh"));
        let all_headers: String = headers.iter().map(|(_, text)| text.as_str()).collect();
        // kernels/lab is compiled too: benches/lab.rs times its kernels and tests/engine/lab.rs checks them.
        let sources = files(&root, "cu").into_iter().filter(|p| !p.starts_with(&lib) && !p.starts_with(&emu));
        let mut modules: Vec<Module> = sources.map(|p| Module::read(&root, p, &all_headers)).collect();
        modules.sort_by(|a, b| a.stem.cmp(&b.stem));
        for pair in modules.windows(2) {
            let [a, b] = pair else { continue };
            assert!(a.stem != b.stem, "kernels/{} and kernels/{}: expected different names", a.name, b.name);
        }
        let (emulator_headers, runtime) = (with_text(files(&emu, "h")), files(&emu, "cpp"));
        Sources { root, modules, headers, emulator_headers, runtime }
    }

    /// A number that changes when `text`, a header that it includes (directly or through others), or
    /// `settings` changes. The text of comments does not count. The number of lines does, because machine
    /// code and messages have line numbers.
    pub fn fingerprint(&self, text: &str, settings: &impl Hash) -> u64 {
        let headers: BTreeMap<&str, &str> = self
            .headers
            .iter()
            .chain(&self.emulator_headers)
            .map(|(n, t)| (n.as_str(), t.as_str()))
            .collect();
        let (mut seen, mut open) = (BTreeSet::new(), included(text));
        while let Some(header) = open.pop() {
            if let Some(text) = headers.get(header)
                && seen.insert(header)
            {
                open.extend(included(text));
            }
        }
        let mut hash = DefaultHasher::new();
        (source::without_comments(text), settings).hash(&mut hash);
        seen.iter().for_each(|header| (header, source::without_comments(headers[header])).hash(&mut hash));
        hash.finish()
    }
}

/// The headers that `text` includes by `#include "..."`.
fn included(text: &str) -> Vec<&str> {
    text.lines().filter_map(|l| l.trim_start().strip_prefix("#include \"")?.split('"').next()).collect()
}

impl Module {
    fn read(root: &Path, path: PathBuf, headers: &str) -> Module {
        let text = read(&path);
        let kernels = source::kernels(&text, headers).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(!kernels.is_empty(), "{}: no INSTANCE(...) line, so nothing to launch", path.display());
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Module { stem, name: name(root, &path), path, text, kernels }
    }

    /// The indices and instances of the kernels that `target` gets.
    pub fn instances(&self, target: &str) -> (Vec<usize>, Vec<String>) {
        let all = self.kernels.iter().enumerate();
        all.filter(|(_, k)| source::runs_on(k.needs_90a, target))
            .map(|(i, k)| (i, k.instance.clone()))
            .unzip()
    }
}

/// The path of a file below `root`, with `/`.
fn name(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/")
}

pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Files with this extension in `folder` and the folders below it, sorted.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut found = Vec::new();
    for path in entries.flatten().map(|e| e.path()) {
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Whether a switch such as `DFKA_REQUIRE_EMU` is set.
pub fn required(switch: &str) -> bool {
    env::var(switch).is_ok_and(|v| v != "0" && !v.is_empty())
}
