//! Experiments in parts: units listed as commands, run one by one and at once, by this program and by `run`, killed and
//! repeated. The students and the table are always those of the serial command.

use crate::common::Lab;
use serde_json::Value as Json;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

const EXPERIMENT: &str = "title = \"t\"\nsource = \"s\"\nseeds = [0, 1]\nscales.demo.config = \"c.toml\"\n\
    [[rows]]\nname = \"teachers\"\nteachers_of = \"ours\"\n\
    [[rows]]\nname = \"ours\"\nrun = \"ours\"\n\
    [[rows]]\nname = \"noise\"\nrun = \"noise\"\nset = [\"dual.images=noise\"]\n";

const UNITS: [&str; 4] = ["ours-seed0", "ours-seed1", "noise-seed0", "noise-seed1"];

fn lab() -> Lab {
    let lab = Lab::new();
    fs::write(lab.path("e.toml"), EXPERIMENT).unwrap();
    lab
}

fn go(lab: &Lab, out: &str, more: &[&str]) -> Output {
    lab.call(&[&["experiment", "e.toml", "--scale", "demo", "--device", "cpu", "--out", out], more].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs the experiment by the serial command, into the folder `serial`.
fn serial(lab: &Lab) {
    let serial = go(lab, "serial", &["--quiet"]);
    assert!(serial.status.success(), "{}", text(&serial.stderr));
}

/// The students and the table in `out` are those of the serial command.
fn expect_same_as_serial(lab: &Lab, out: &str) {
    for unit in UNITS {
        let student = |out: &str| lab.bytes(&format!("{out}/demo/{unit}/student.npz"));
        assert!(student("serial") == student(out), "{out}: {unit} has another student");
    }
    assert_eq!(text(&lab.bytes("serial/demo/e.json")), text(&lab.bytes(&format!("{out}/demo/e.json"))));
    assert_eq!(text(&lab.bytes("serial/demo/e.md")), text(&lab.bytes(&format!("{out}/demo/e.md"))));
}

#[test]
fn the_listed_commands_make_what_the_serial_command_makes() {
    let lab = lab();
    serial(&lab);
    let list = go(&lab, "parts", &["--quiet", "--list"]);
    assert!(list.status.success() && !lab.path("parts").exists(), "{}", text(&list.stderr));
    let commands: Vec<String> = text(&list.stdout).lines().map(String::from).collect();
    assert_eq!(commands.len(), UNITS.len());

    let none = go(&lab, "parts", &["--collect"]);
    let missing = text(&none.stderr);
    assert!(none.status.code() == Some(2) && missing.contains("4 of 4 units have not finished"), "{missing}");
    assert!(UNITS.iter().all(|unit| missing.contains(&format!("{unit} (it has not begun)"))), "{missing}");

    // Last unit first, and the first one twice.
    let shell = |command: &String| {
        Command::new("sh").args(["-c", command]).current_dir(lab.path("")).output().unwrap()
    };
    for (i, command) in commands.iter().enumerate().rev() {
        let unit = shell(command);
        let printed = text(&unit.stdout);
        assert!(unit.status.success(), "{command}: {}", text(&unit.stderr));
        assert!(printed.starts_with(&format!("{}: finished, ", UNITS[i])), "{printed}");
        assert_eq!(printed.lines().count(), 1, "{printed}");
        if i == 1 {
            let some = go(&lab, "parts", &["--collect"]);
            let missing = text(&some.stderr);
            assert!(some.status.code() == Some(2) && missing.contains("1 of 4"), "{missing}");
            assert!(missing.contains("ours-seed0 (it has not begun)"), "{missing}");
        }
    }
    let before = lab.bytes("parts/demo/ours-seed0/run.json");
    assert!(shell(&commands[0]).status.success());
    assert_eq!(before, lab.bytes("parts/demo/ours-seed0/run.json"), "a finished unit was touched");

    let states = go(&lab, "parts", &["--list", "--json"]);
    let states: Json = serde_json::from_slice(&states.stdout).unwrap();
    for (i, unit) in UNITS.iter().enumerate() {
        assert_eq!(
            (states[i]["unit"].as_str(), states[i]["state"].as_str()),
            (Some(*unit), Some("finished"))
        );
        assert_eq!(states[i]["folder"].as_str(), Some(format!("parts/demo/{unit}").as_str()));
        let only = format!("--only={}/4", i + 1);
        let command = states[i]["command"].as_array().unwrap();
        assert!(command.iter().any(|a| a.as_str() == Some(&only)), "{command:?}");
        assert!(command.iter().all(|a| !["--list", "--json"].contains(&a.as_str().unwrap())), "{command:?}");
    }
    let collected = go(&lab, "parts", &["--collect"]);
    assert!(collected.status.success(), "{}", text(&collected.stderr));
    expect_same_as_serial(&lab, "parts");
}

#[test]
fn two_processes_share_the_units_and_none_is_done_twice() {
    let lab = lab();
    serial(&lab);
    let args = [
        "experiment",
        "e.toml",
        "--scale",
        "demo",
        "--device",
        "cpu",
        "--quiet",
        "--out",
        "both",
        "--only",
        "1/1",
    ];
    let start = || lab.program(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let both = [start(), start()].map(|child| child.wait_with_output().unwrap());
    for process in &both {
        assert!(process.status.success(), "{}", text(&process.stderr));
        assert_eq!(text(&process.stdout).lines().count(), 4);
    }
    for unit in UNITS {
        let origin: Json = serde_json::from_slice(&lab.bytes(&format!("both/demo/{unit}/run.json"))).unwrap();
        assert_eq!(origin["calls"].as_array().unwrap().len(), 1, "{unit} was begun twice");
    }
    assert!(go(&lab, "both", &["--collect"]).status.success());
    expect_same_as_serial(&lab, "both");
}

#[test]
fn a_killed_unit_is_resumed() {
    let lab = lab();
    let sets = ["--set", "checkpoint_seconds=0", "--set", "dual.steps=[5, 5, 5, 5]"];
    let whole = go(&lab, "serial", &[&sets[..], &["--quiet"]].concat());
    assert!(whole.status.success(), "{}", text(&whole.stderr));
    let base =
        ["experiment", "e.toml", "--scale", "demo", "--device", "cpu", "--out", "killed", "--only", "2/4"];
    let args = [&base[..], &sets].concat();
    let mut child = lab.program(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("block2")), "the unit did not reach block 2");
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    let states = go(&lab, "killed", &["--list", "--json"]);
    let states: Json = serde_json::from_slice(&states.stdout).unwrap();
    assert_eq!((states[0]["state"].as_str(), states[1]["state"].as_str()), (Some("absent"), Some("started")));
    let again = lab.call(&args);
    assert!(again.status.success(), "{}", text(&again.stderr));
    let origin: Json = serde_json::from_slice(&lab.bytes("killed/demo/ours-seed1/run.json")).unwrap();
    assert_eq!(origin["calls"].as_array().unwrap().len(), 2);
    let student = |out: &str| lab.bytes(&format!("{out}/demo/ours-seed1/student.npz"));
    assert!(student("serial") == student("killed"), "the resumed unit has another student");
}

#[test]
fn a_unit_that_run_made_counts_however_its_paths_were_spelled() {
    let lab = lab();
    serial(&lab);
    fs::create_dir(lab.path("elsewhere")).unwrap();
    let by_run = |weights: &str| {
        let out = format!("../by-run-{}/demo/ours-seed0", weights.len());
        let teacher = format!("teachers.0.weights={weights}");
        let args = [
            "run",
            "../c.toml",
            "--device",
            "cpu",
            "--quiet",
            "--seed",
            "0",
            "--out",
            &out,
            "--set",
            &teacher,
        ];
        let run = lab.program(&args).current_dir(lab.path("elsewhere")).output().unwrap();
        assert!(run.status.success(), "{}", text(&run.stderr));
        out.trim_start_matches("../").trim_end_matches("/demo/ours-seed0").to_string()
    };
    let out = by_run("elsewhere/../elsewhere/../left.npz");
    let before = lab.bytes(&format!("{out}/demo/ours-seed0/run.json"));
    let done = go(&lab, &out, &["--quiet"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(before, lab.bytes(&format!("{out}/demo/ours-seed0/run.json")), "the unit was run again");
    expect_same_as_serial(&lab, &out);

    // The evaluation data changes after the unit was scored.
    let image = crate::common::network().image;
    crate::common::labelled(9, image, &["bus", "car", "dog", "cat", "table"], 4321)
        .save(lab.path("evaluation.npz"))
        .unwrap();
    let refused = go(&lab, &out, &["--collect"]);
    let said = text(&refused.stderr);
    assert!(said.contains("this run read a different evaluation data"), "{said}");
    assert_eq!(refused.status.code(), Some(2));
}

/// A killed process left a summary and no report: the unit is finished by the next one.
#[test]
fn a_unit_without_its_last_file_is_completed() {
    let lab = lab();
    serial(&lab);
    let student = lab.bytes("serial/demo/ours-seed1/student.npz");
    fs::remove_file(lab.path("serial/demo/ours-seed1/report.html")).unwrap();
    let missing = text(&go(&lab, "serial", &["--collect"]).stderr);
    assert!(
        missing.contains("1 of 4") && missing.contains("ours-seed1 (it began and has not finished)"),
        "{missing}"
    );
    let again = go(&lab, "serial", &["--quiet"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert!(lab.path("serial/demo/ours-seed1/report.html").exists());
    assert!(student == lab.bytes("serial/demo/ours-seed1/student.npz"));
}

/// A unit that fails does not keep the others of its part from being tried, and its exit code is that of the process.
#[test]
fn a_part_goes_on_after_a_unit_that_fails() {
    let lab = lab();
    let rows = EXPERIMENT.replace("run = \"ours\"", "run = \"ours\"\nset = [\"loss.least_diversity=2.0\"]");
    fs::write(lab.path("e.toml"), rows).unwrap();
    let part = go(&lab, "out", &["--quiet", "--only", "1/1"]);
    let (printed, said) = (text(&part.stdout), text(&part.stderr));
    assert_eq!(part.status.code(), Some(7), "{said}");
    let lines: Vec<&str> = printed.lines().collect();
    assert!(
        lines.len() == 4 && lines[0].starts_with("ours-seed0: failed: generator: collapsed"),
        "{printed}"
    );
    assert!(lines[2..].iter().all(|line| line.contains(": finished")), "{printed}");
}

#[test]
fn parts_that_do_not_go_together_are_refused() {
    let lab = lab();
    for (more, expected) in [
        (&["--only", "5/4"][..], "expected K/N with K from 1 to N"),
        (&["--only", "1/4", "--collect"], "cannot be used with"),
        (&["--list", "--collect"], "cannot be used with"),
        (&["--json"], "--list"),
    ] {
        let refused = go(&lab, "out", more);
        let said = text(&refused.stderr);
        assert!(refused.status.code() == Some(2) && said.contains(expected), "{more:?}: {said}");
        assert!(!lab.path("out").exists());
    }
}

/// A row that repeats a run shows the same student, and no unit is made for it.
#[test]
fn rows_of_one_run_share_it() {
    let lab = lab();
    fs::write(
        lab.path("e.toml"),
        EXPERIMENT.replace("run = \"noise\"\nset = [\"dual.images=noise\"]", "run = \"ours\""),
    )
    .unwrap();
    let list = go(&lab, "out", &["--list"]);
    assert!(list.status.success(), "{}", text(&list.stderr));
    assert_eq!(text(&list.stdout).lines().count(), 2);
}

/// What lies in the folder of a finished unit was copied, edited, or deleted in part.
#[test]
fn a_unit_whose_files_are_not_those_of_its_run_is_refused() {
    let lab = lab();
    let seed = ["--quiet", "--seeds", "1"];
    let one = go(&lab, "out", &seed);
    assert!(one.status.success(), "{}", text(&one.stderr));
    let at = |name: &str| lab.path(&format!("out/demo/ours-seed1/{name}"));
    let whole: Json = serde_json::from_slice(&fs::read(at("summary.json")).unwrap()).unwrap();
    let refused = |expected: &str| {
        for mode in [&[][..], &["--collect"]] {
            let refused = go(&lab, "out", &[&seed, mode].concat());
            let said = text(&refused.stderr);
            assert_eq!(refused.status.code(), Some(4), "{expected}: {said}");
            assert!(
                said.contains("ours-seed1") && said.contains(expected) && said.lines().count() == 1,
                "{said}"
            );
        }
    };
    let edits: [(&str, Json, &str); 7] = [
        ("/seed", 0.into(), "summary.json: `seed` is 0; expected 1, as the folder's name says; remove "),
        (
            "/name",
            "other".into(),
            "summary.json: `name` is other; expected that of the config, tiny; remove ",
        ),
        ("/student", Json::Null, "summary.json: `student` is null; expected scores"),
        (
            "/student/map",
            900.into(),
            "summary.json: not a run's summary: `student.map` is 900; expected a percentage",
        ),
        ("/student/map_11_point", Json::Null, "`student.map_11_point` is null; expected the mean"),
        ("/teachers/mean/map", (-1).into(), "`teachers.mean.map` is -1; expected a percentage"),
        ("/teachers", serde_json::json!({}), "summary.json: `teachers` has no `mean`"),
    ];
    for (key, value, expected) in edits {
        let mut edited = whole.clone();
        *edited.pointer_mut(key).unwrap() = value;
        fs::write(at("summary.json"), serde_json::to_vec(&edited).unwrap()).unwrap();
        refused(expected);
    }
    fs::write(at("summary.json"), serde_json::to_vec(&whole).unwrap()).unwrap();
    let origin = fs::read(at("run.json")).unwrap();
    for wrong in [None, Some("{")] {
        fs::remove_file(at("run.json")).unwrap();
        wrong.iter().for_each(|wrong| fs::write(at("run.json"), wrong).unwrap());
        refused("run.json: missing, or not as a run writes it");
        fs::write(at("run.json"), &origin).unwrap();
    }
    assert!(go(&lab, "out", &[&seed[..], &["--collect"]].concat()).status.success());
    for name in ["student.npz", "student.safetensors", "student.onnx"] {
        fs::remove_file(at(name)).unwrap();
    }
    refused("expected a run's folder with one of student.npz, ");
}
