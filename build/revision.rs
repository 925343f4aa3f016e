//! The git revision that the program is built from, for `--version`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Sets `DFKA_VERSION` for the program: its version, and the revision in brackets where the sources are a git
/// repository of their own. A missing git, or sources in another project's repository, leave the revision out.
pub fn set() {
    let version = env::var("CARGO_PKG_VERSION").expect("cargo sets CARGO_PKG_VERSION");
    let version = revision().map_or(version.clone(), |revision| format!("{version} ({revision})"));
    println!("cargo:rustc-env=DFKA_VERSION={version}");
}

/// The short hash of the commit that is checked out. Tells cargo to run the script again when another one is.
fn revision() -> Option<String> {
    let sources = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?);
    let whole = |path: &Path| path.canonicalize().ok();
    if whole(Path::new(&git(&["rev-parse", "--show-toplevel"])?)) != whole(&sources) {
        return None;
    }
    watch("HEAD");
    // Absent if a commit is checked out and not a branch; `HEAD` itself changes then.
    if let Some(branch) = git(&["symbolic-ref", "--quiet", "HEAD"]) {
        watch(&branch);
    }
    git(&["rev-parse", "--short", "HEAD"])
}

/// Watches a file of the repository. Cargo would run the script every time if it watched a file that does not
/// exist, so for a branch whose hash is packed it watches the nearest folder, where a commit creates the file.
fn watch(name: &str) {
    if let Some(path) = git(&["rev-parse", "--git-path", name])
        && let Some(found) = Path::new(&path).ancestors().find(|p| p.exists() && !p.as_os_str().is_empty())
    {
        println!("cargo:rerun-if-changed={}", found.display());
    }
}

/// A line that git prints; `None` if there is no git, or if it fails.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
