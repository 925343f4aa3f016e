//! The verdict on real runs: a good student, one at chance, and a generator that has collapsed. Exit code, last lines and
//! the report's badge must agree.

use crate::common::{Lab, root};

/// A config for the demo's teachers and evaluation data, as `init` writes it.
fn config(lab: &Lab) {
    std::os::unix::fs::symlink(root().join("weights"), lab.path("weights")).unwrap();
    let output =
        lab.call(&["init", "weights/demo/teacher_a.npz", "weights/demo/teacher_b.npz", "--name", "d"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = text + "[evaluation]\ndata = \"weights/demo/evaluation.npz\"\n";
    std::fs::write(lab.path("d.toml"), text).unwrap();
}

/// Runs with changes to the config. Returns the exit code, the first of the last three lines or else the error, and the
/// report.
fn run(lab: &Lab, out: &str, sets: &[&str]) -> (i32, String, String) {
    let base = ["run", "d.toml", "--preset", "quick", "--device", "cpu", "--quiet", "--out", out];
    let args: Vec<&str> = base.into_iter().chain(sets.iter().flat_map(|s| ["--set", s])).collect();
    let output = lab.call(&args);
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let line = said.lines().rev().nth(2).map_or_else(|| error.trim().to_string(), str::to_string);
    let report = std::fs::read_to_string(lab.path(&format!("{out}/report.html"))).unwrap();
    (output.status.code().unwrap(), line, report)
}

#[test]
fn a_good_student_one_at_chance_and_a_collapsed_generator_are_told_apart() {
    let lab = Lab::new();
    config(&lab);
    // In so short a training the early blocks are the best ones.
    let (code, line, report) = run(&lab, "good", &["student.branch=2", "dual.steps=[25, 100, 1, 1]"]);
    assert!(code == 0 && line.starts_with("good: the student has a mAP of "), "{code} {line}");
    assert!(report.contains("<span class=\"badge\">good</span>"), "the badge of a good student");
    assert!(
        report.contains("evaluation.npz") && report.contains("mAP against size"),
        "the report's evidence"
    );

    let few =
        ["student.init='scratch'", "student.norm='batch'", "generator.steps=32", "dual.steps=[1, 1, 1, 1]"];
    let never = ["loss.least_diversity=0", "loss.least_information=0", "loss.least_found=0"];
    let (code, line, report) = run(&lab, "chance", &[&few[..], &never].concat());
    assert!(code == 7 && line.starts_with("failed: "), "{code} {line}");
    assert!(report.contains("<span class=\"badge bad\">failed</span>"), "the badge of a student at chance");
    assert!(lab.path("chance/student.npz").exists(), "a failed student is written all the same");

    // Every generator is less diverse than 2.
    let (code, line, report) = run(&lab, "collapsed", &["generator.steps=16", "loss.least_diversity=2"]);
    assert!(code == 7 && line.starts_with("error: generator: collapsed: "), "{code} {line}");
    assert!(report.contains("<span class=\"badge bad\">failed</span>"), "the badge of a collapsed run");
}
