//! Every seed, and every input that once broke a reader, through the functions that the fuzz targets call.
//! This needs no fuzzer.

#[path = "../../fuzz/src/readers/mod.rs"]
mod readers;

use readers::{ALL, Outcome, read};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The inputs of a folder, with their names; none where there is no such folder.
fn inputs(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|p| (p.display().to_string(), std::fs::read(&p).unwrap())).collect()
}

/// What the reader made of an input; a panic names the input.
fn outcome(target: &str, name: &str, bytes: &[u8]) -> Outcome {
    std::panic::catch_unwind(|| read(target, bytes)).unwrap_or_else(|_| panic!("{target} panics on {name}"))
}

#[test]
fn every_reader_has_seeds_that_it_accepts_and_seeds_that_it_refuses() {
    for reader in ALL {
        let found: Vec<(String, Outcome)> = inputs(&fuzz().join("seeds").join(reader.name))
            .into_iter()
            .map(|(name, bytes)| (name.clone(), outcome(reader.name, &name, &bytes)))
            .collect();
        for wanted in [Outcome::Accepted, Outcome::Refused] {
            assert!(found.iter().any(|(_, o)| *o == wanted), "{}: none {wanted:?} of {found:?}", reader.name);
        }
    }
}

#[test]
fn seeds_cut_short_or_with_a_byte_changed_panic_nowhere() {
    for reader in ALL {
        for (name, bytes) in inputs(&fuzz().join("seeds").join(reader.name)) {
            // About fifty places of each input: all of them would take minutes.
            for at in (0..bytes.len()).step_by(bytes.len() / 50 + 1) {
                outcome(reader.name, &format!("the first {at} bytes of {name}"), &bytes[..at]);
                let mut changed = bytes.clone();
                changed[at] ^= 1 << (at % 8);
                outcome(reader.name, &format!("{name} with a flipped bit in byte {at}"), &changed);
            }
        }
    }
}

#[test]
fn inputs_that_once_broke_a_reader_no_longer_do() {
    for reader in ALL {
        for (name, bytes) in inputs(&fuzz().join("regressions").join(reader.name)) {
            outcome(reader.name, &name, &bytes);
        }
    }
}

#[test]
fn every_reader_is_a_target_and_the_seeds_stay_small() {
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(fuzz().join(folder)).unwrap();
        entries.map(|e| e.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    let readers: BTreeSet<String> = ALL.iter().map(|r| r.name.to_string()).collect();
    assert_eq!(names("targets"), readers);
    assert_eq!(names("seeds"), readers);
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for name in &readers {
        assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name} is not in Cargo.toml");
    }
    let all = readers.iter().flat_map(|name| inputs(&fuzz().join("seeds").join(name)));
    let bytes: usize = all.map(|(_, b)| b.len()).sum();
    assert!(bytes < 300 << 10, "{bytes} bytes of seeds");
}
