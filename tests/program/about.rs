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
