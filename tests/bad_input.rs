//! What the program answers when it is asked for something wrong: exit code, place, and within two seconds.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const GOOD: &str = r#"name = "demo"
seed = 1

[[teachers]]
name = "left"
weights = "left.npz"

[[teachers]]
name = "right"
weights = "right.npz"

[student]
labels = ["bus", "table"]

[generator]
learning_rate = 0.001

[dual]
steps = [10, 10]
"#;

fn call(folder: &Path, args: &[&str]) -> Output {
    let begun = Instant::now();
    let out =
        Command::new(env!("CARGO_BIN_EXE_dfka-engine")).args(args).current_dir(folder).output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{args:?} took {:?}", begun.elapsed());
    out
}

/// Standard error, after a look at the exit code.
fn error(folder: &Path, args: &[&str], code: i32) -> String {
    let out = call(folder, args);
    let text = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(code), "{args:?}\n{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn folder_with(text: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

#[test]
fn bad_configs_name_their_line() {
    let edit = |from: &str, to: &str| {
        assert!(GOOD.contains(from), "{from}");
        GOOD.replace(from, to)
    };
    let cases = [
        (
            edit("learning_rate", "lerning_rate"),
            "c.toml:16: unknown key `lerning_rate`; did you mean `learning_rate`?",
        ),
        (edit("[generator]", "[genertor]"), "c.toml:15: unknown key `genertor`; did you mean `generator`?"),
        (
            edit("0.001", "\"fast\""),
            "c.toml:16: `generator.learning_rate`: found string \"fast\", expected a number",
        ),
        (edit("0.001", "0.0"), "c.toml:16: `generator.learning_rate` is 0; expected above 0 and at most 1"),
        (edit("0.001", "nan"), "c.toml:16: `generator.learning_rate` is NaN"),
        (edit("0.001", "0.001\ngroups = 0"), "c.toml:17: `generator.groups` is 0; expected at least 1"),
        (edit("\"table\"]", "\"bus\"]"), "c.toml:13: label `bus` is listed twice"),
        (edit("[10, 10]", "[10, -1]"), "c.toml:19: `dual.steps.1` is -1"),
        (edit("[10, 10]", "10"), "c.toml:19: `dual.steps`: found integer `10`, expected a list"),
        (edit("steps = [10, 10]", ""), "c.toml:18: missing key `dual.steps`"),
        (edit("weights = \"right.npz\"", ""), "c.toml:8: missing key `teachers.1.weights`"),
        (edit("name = \"right\"", "name = \"left\""), "c.toml:9: two teachers are named `left`"),
        (edit("seed = 1", "seed = 99999999999999999999"), "c.toml:2: "),
        (edit("seed = 1", "seed = -1"), "c.toml:2: `seed` is -1"),
        (edit("seed = 1", "seed = "), "c.toml:2: not valid TOML"),
        (edit("seed = 1", "name = \"again\""), "c.toml:2: not valid TOML: duplicate key"),
        (edit("\"demo\"", "\"../demo\""), "c.toml:1: `name` names the output folder"),
        (
            edit("[dual]", "[dual]\nimages = \"nosie\""),
            "c.toml:19: unknown `dual.images` \"nosie\"; did you mean `noise`?",
        ),
        (
            edit("[student]", "[student]\ninit = \"teacher:lfet\""),
            "c.toml:13: `student.init` names no teacher: `lfet`; did you mean `left`?",
        ),
        (
            edit("[dual]", "[loss]\nrecipe = \"balanced\"\nmax_labels = 3\n[dual]"),
            "c.toml:20: `loss.max_labels` applies to recipe = \"conditional\" only",
        ),
        ("[".repeat(100_000), "c.toml:1: not valid TOML"),
        (format!("name = {}1{}", "[".repeat(50_000), "]".repeat(50_000)), "c.toml:1: "),
        (String::new(), "c.toml: missing key `name`"),
        ("\0".into(), "c.toml:1: not valid TOML"),
    ];
    for (text, expected) in cases {
        let (dir, _) = folder_with(text.as_bytes());
        for command in ["run", "check"] {
            let e = error(dir.path(), &[command, "c.toml"], 3);
            assert!(e.starts_with(&format!("error: {expected}")), "{e}\nexpected {expected}");
            assert_eq!(e.lines().count(), 1, "{e}");
        }
        assert!(!dir.path().join("runs").exists(), "nothing is made for a bad config");
    }
}

#[test]
fn files_that_are_no_text_or_not_there() {
    let (dir, _) = folder_with(b"name = 'a'\n\xff\xfe");
    assert!(error(dir.path(), &["run", "c.toml"], 3).contains("c.toml:2: not UTF-8"));
    assert!(error(dir.path(), &["run", "no.toml"], 3).contains("no.toml: cannot read the config"));
    assert!(error(dir.path(), &["run", "."], 3).contains("cannot read the config"));
}

#[test]
fn overrides_name_themselves() {
    let (dir, _) = folder_with(GOOD.as_bytes());
    let set = |assignment: &str, code| error(dir.path(), &["check", "c.toml", "--set", assignment], code);
    let e = set("generator.batch=0", 3);
    assert!(e.contains("--set generator.batch=0: `generator.batch` is 0; expected at least 1"), "{e}");
    let e = set("generator.bacth=8", 3);
    assert!(e.contains("--set generator.bacth=8: unknown key `bacth`; did you mean `batch`?"), "{e}");
    assert!(set("generator.batch", 2).contains("expected KEY=VALUE"));
    error(dir.path(), &["check", "c.toml", "--seed", "-1"], 2);
    error(dir.path(), &["check", "c.toml", "--seed", "18446744073709551615"], 2);
}

#[test]
fn usage() {
    let (dir, _) = folder_with(GOOD.as_bytes());
    assert!(error(dir.path(), &["ruin"], 2).contains("unrecognized subcommand"));
    error(dir.path(), &[], 2);
    error(dir.path(), &["run"], 2);
    error(dir.path(), &["run", "c.toml", "--device", "gpu"], 2);
    error(dir.path(), &["run", "c.toml", "--resume", "--force"], 2);
    assert!(error(dir.path(), &["run", "c.toml", "--resume"], 2).contains("nothing to go on with"));
    assert_eq!(call(dir.path(), &["--help"]).status.code(), Some(0));
    assert_eq!(call(dir.path(), &["--version"]).status.code(), Some(0));
}

#[test]
fn an_output_folder_with_files_is_left_alone() {
    let (dir, _) = folder_with(GOOD.as_bytes());
    let runs = dir.path().join("runs/demo-seed4");
    std::fs::create_dir_all(&runs).unwrap();
    std::fs::write(runs.join("student.npz"), b"precious").unwrap();
    let e = error(dir.path(), &["run", "c.toml", "--seed", "4"], 2);
    assert!(e.contains("output folder runs/demo-seed4 is not empty") && e.contains("--force"), "{e}");
    let e = error(dir.path(), &["run", "c.toml", "--out", "c.toml"], 2);
    assert!(e.contains("in the way"), "{e}");
    assert_eq!(std::fs::read_dir(&runs).unwrap().count(), 1);
}

#[test]
fn absent_devices_are_said_to_be_absent() {
    let (dir, _) = folder_with(GOOD.as_bytes());
    // No machine has a thousand of them; what it says depends on whether there is a driver.
    let e = error(dir.path(), &["run", "c.toml", "--device", "cuda:1000"], 5);
    assert!(e.contains("cuda:1000") && (e.contains("libcuda.so.1") || e.contains("the driver has")), "{e}");
    assert!(e.contains("or use --device cpu"), "{e}");
    let e = error(dir.path(), &["run", "c.toml", "--device", "cpu", "--profile", "1..2"], 2);
    assert!(e.contains("--profile") && e.contains("--device cuda"), "{e}");
    assert!(!dir.path().join("runs").exists(), "a device that is not there left something behind");
}

#[test]
fn doctor_speaks_and_bears_a_closed_pipe() {
    let dir = tempfile::tempdir().unwrap();
    let out = call(dir.path(), &["doctor"]);
    assert!(out.status.success() && String::from_utf8(out.stdout).unwrap().contains("libcuda"));

    let mut child = Command::new(env!("CARGO_BIN_EXE_dfka-engine"))
        .arg("doctor")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(out.stderr.is_empty());
}
