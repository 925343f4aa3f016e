//! What the program says about itself.

use crate::common::{Lab, root};
use std::process::Command;

#[test]
fn the_version_has_the_revision_that_it_was_built_from() {
    let output = Lab::new().call(&["--version"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rest = text.strip_prefix(concat!("dfka-engine ", env!("CARGO_PKG_VERSION"))).unwrap().trim();
    let revision = rest.strip_prefix('(').and_then(|r| r.strip_suffix(')'));
    // Sources without a repository, or a machine without git.
    if rest.is_empty() {
        return;
    }
    let revision = revision.unwrap();
    assert!(revision.len() >= 4 && revision.bytes().all(|b| b.is_ascii_hexdigit()), "{text}");
    if root().join(".git").exists()
        && let Ok(git) = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(root()).output()
    {
        assert!(String::from_utf8_lossy(&git.stdout).starts_with(revision), "{text}");
    }
}

#[test]
fn the_citation_has_the_programs_version_and_the_paper() {
    // Where the tests were built on another machine, there is no citation.
    let Ok(text) = std::fs::read_to_string(root().join("CITATION.cff")) else { return };
    assert!(text.contains(concat!("\nversion: ", env!("CARGO_PKG_VERSION"), "\n")), "{text}");
    assert!(text.contains("arXiv:2003.09088") && text.contains("family-names: Ye"), "{text}");
}

#[test]
fn the_number_of_threads_changes_no_bit_and_v_prints_what_a_run_costs() {
    let lab = Lab::new();
    let run = |out: &str, more: &[&str]| {
        let base = ["run", "c.toml", "--device", "cpu", "--out", out];
        let output = lab.call(&[&base[..], more].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    let said = run("one", &["--threads", "1", "-v"]);
    for expected in
        ["\ncpu: ", ", 1 thread\n", "\nmemory: ", "generator: a step of 8 images takes ", "block4: a step"]
    {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    // Two teachers and the students of four blocks, on 40 images each.
    assert!(said.contains("evaluation: 240/240 (100 %) in "), "{said}");
    assert!(said.contains(" left  run: ") && said.contains("block4: 3/3 (100 %)"), "{said}");
    assert!(!run("three", &["--threads", "3"]).contains("a step of"));
    assert!(lab.bytes("one/student.npz") == lab.bytes("three/student.npz"));
    let origin: serde_json::Value = serde_json::from_slice(&lab.bytes("three/run.json")).unwrap();
    assert_eq!(origin["calls"][0]["threads"], 3);
    let refused = lab.call(&["run", "c.toml", "--threads", "0"]);
    assert_eq!(refused.status.code(), Some(2));
}
