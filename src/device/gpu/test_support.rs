//! Shared by tests that need a machine.

use crate::error::Error;
use std::io::Write;

/// Prints that a test did not run, and why. It writes to standard error itself, because the test harness
/// hides what `eprintln!` prints in a test that passes.
///
/// Panics: if `DFKA_REQUIRE_EMU` is set.
#[allow(clippy::explicit_write)]
pub fn skipped(why: &Error) {
    assert!(std::env::var_os("DFKA_REQUIRE_EMU").is_none(), "{why}");
    writeln!(std::io::stderr(), "SKIPPED: {why}").expect("standard error is open");
}
