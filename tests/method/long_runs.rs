//! What can happen to a run that takes days: it is told to stop, the disk is full, a checkpoint is damaged.

use crate::common::{Lab, skipped};
use dfka_engine::labelled::run::run;
use dfka_engine::pipeline::checkpoint;
use dfka_engine::pipeline::observer::{Observer, Stop};
use dfka_engine::pipeline::spec::RunSpec;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// Requests a stop after a number of steps; records the notes.
struct StopAfter {
    left: i64,
    notes: Vec<String>,
}

impl StopAfter {
    fn new(left: i64) -> StopAfter {
        StopAfter { left, notes: vec![] }
    }
}

impl Observer for StopAfter {
    fn stage(&mut self, _: &str, _: usize) {}
    fn step(&mut self, _: usize, _: &mut dyn Iterator<Item = (&str, f32)>) {
        self.left -= 1;
    }
    fn note(&mut self, line: &str) {
        if !line.starts_with("resumed ") {
            self.notes.push(line.into());
        }
    }
    fn should_stop(&self) -> Option<Stop> {
        (self.left <= 0).then_some(Stop { why: "enough", exit_code: 143 })
    }
}

const NEVER: i64 = i64::MAX;

fn students(lab: &Lab, out: &str) -> Vec<Vec<u8>> {
    ["student.npz", "student-block1.npz", "student-block4.npz"]
        .map(|name| lab.bytes(&format!("{out}/{name}")))
        .to_vec()
}

fn go(lab: &Lab, spec: &RunSpec, out: &str, resume: bool, steps: i64) -> (Option<u8>, String, Vec<String>) {
    let mut observer = StopAfter::new(steps);
    let done = run(spec, &lab.path(out), resume, &mut observer);
    let (code, text) = match done {
        Ok(_) => (None, String::new()),
        Err(e) => (Some(e.exit_code()), e.to_string()),
    };
    (code, text, observer.notes)
}

#[test]
fn a_run_that_is_told_to_stop_resumes_to_the_same_bits() {
    let lab = Lab::new();
    lab.run("whole", &[]).unwrap();
    let spec = lab.spec(&["checkpoint_seconds=1000"]);
    // In the middle of a stage, after its last step, between two stages, twice in a row. The run has 6 + 4 x
    // 3 steps.
    for (i, stops) in [&[3][..], &[6], &[7, 1, 1], &[18]].into_iter().enumerate() {
        let out = format!("stopped{i}");
        for (round, steps) in stops.iter().enumerate() {
            let (code, text, _) = go(&lab, &spec, &out, round > 0, *steps);
            assert_eq!(code, Some(143), "{stops:?}: {text}");
            assert!(text.starts_with("enough: stopped ") && text.contains("--resume"), "{text}");
        }
        let (code, text, notes) = go(&lab, &spec, &out, true, NEVER);
        assert!(code.is_none() && notes.is_empty(), "{stops:?}: {text} {notes:?}");
        assert!(students(&lab, "whole") == students(&lab, &out), "stopped after {stops:?}");
    }
    let (_, text, _) = go(&lab, &spec, "message", false, 7);
    assert!(text.contains("stopped after step 2 of 3 of block1"), "{text}");
}

fn damage(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_damaged_checkpoint_falls_back_to_the_one_before() {
    let lab = Lab::new();
    lab.run("whole", &[]).unwrap();
    let spec = lab.spec(&["checkpoint_seconds=0"]);
    go(&lab, &spec, "out", false, 11);
    let files = [checkpoint::FILE, checkpoint::PREVIOUS].map(|name| lab.path("out").join(name));
    damage(&files[0]);
    let (code, text, notes) = go(&lab, &spec, "out", true, 3);
    assert_eq!(code, Some(143), "{text}");
    let note = &notes[0];
    assert!(note.contains("checkpoint.npz is damaged: its checksum is "), "{note}");
    assert!(note.ends_with("checkpoint-previous.npz"), "{note}");

    // Cut short, as if the file system had lost the last blocks; then once more to the end.
    let bytes = fs::read(&files[0]).unwrap();
    fs::write(&files[0], &bytes[..bytes.len() - 100]).unwrap();
    let kept: Vec<Vec<u8>> = files.iter().map(|f| fs::read(f).unwrap()).collect();
    let (code, text, notes) = go(&lab, &spec, "out", true, NEVER);
    assert!(code.is_none() && notes.len() == 1, "{text} {notes:?}");
    assert!(students(&lab, "whole") == students(&lab, "out"));

    for (file, bytes) in files.iter().zip(kept) {
        fs::write(file, bytes).unwrap();
    }
    damage(&files[1]);
    let (code, text, _) = go(&lab, &spec, "out", true, NEVER);
    assert_eq!(code, Some(4), "{text}");
    for file in &files {
        assert!(text.contains(&format!("{} is damaged", file.display())), "{text}");
    }
}

#[test]
fn a_run_whose_checkpoint_would_not_be_finite_has_diverged() {
    let lab = Lab::new();
    let mut spec = lab.spec(&["checkpoint_seconds=0"]);
    spec.generator.learning_rate = f32::INFINITY;
    let (code, text, _) = go(&lab, &spec, "out", false, NEVER);
    assert_eq!(code, Some(7), "{text}");
    assert!(text.starts_with("generator: generator.") && text.contains("not finite after step 0"), "{text}");
}

#[test]
fn other_contents_of_ka_images_and_initial_weights_are_another_run() {
    let lab = Lab::new();
    let backbone = crate::common::teacher_tensors(&crate::common::network(), &["x"], 9);
    dfka_engine::weights::npz::save(lab.path("backbone.npz"), &backbone).unwrap();
    let spec = lab.spec(&["dual.images=\"real:ka.npz\"", "student.init=\"backbone.npz\""]);
    for (name, change) in [
        (
            "ka.npz",
            &(|| {
                crate::common::images(24, crate::common::network().image, 7).save(lab.path("ka.npz")).unwrap()
            }) as &dyn Fn(),
        ),
        ("backbone.npz", &|| {
            let other = crate::common::teacher_tensors(&crate::common::network(), &["x"], 10);
            dfka_engine::weights::npz::save(lab.path("backbone.npz"), &other).unwrap();
        }),
    ] {
        let out = format!("out-{name}");
        let (code, text, _) = go(&lab, &spec, &out, false, 2);
        assert_eq!(code, Some(143), "{name}: {text}");
        let (code, text, _) = go(&lab, &spec, &out, true, 2);
        assert_eq!(code, Some(143), "{name}: {text}");
        change();
        let (code, text, _) = go(&lab, &spec, &out, true, NEVER);
        assert_eq!(code, Some(2), "{name}: {text}");
        assert!(text.contains("--force"), "{text}");
    }
}

/// A file of another run has the right names and shapes, and would be built on without a word.
#[test]
fn a_run_resumes_only_on_the_files_that_it_wrote() {
    let lab = Lab::new();
    let spec = lab.spec(&["checkpoint_seconds=1000"]);
    lab.run("whole", &[]).unwrap();
    lab.run("other", &["seed=9"]).unwrap();
    let (code, text, _) = go(&lab, &spec, "out", false, 6 + 3 + 2);
    assert_eq!(code, Some(143), "{text}");
    for name in ["generator.npz", "label_statistics.json", "student-block1.npz"] {
        let (own, file) = (lab.bytes(&format!("out/{name}")), lab.path("out").join(name));
        fs::write(&file, lab.bytes(&format!("other/{name}"))).unwrap();
        let (code, text, _) = go(&lab, &spec, "out", true, NEVER);
        assert_eq!(code, Some(4), "{name}: {text}");
        let expected =
            format!("{}: expected the file that this run wrote, contents with the hash ", file.display());
        assert!(text.starts_with(&expected) && text.contains(", found contents with the hash "), "{text}");
        assert!(text.ends_with("put the run's own file back, or start over with --force"), "{text}");
        fs::remove_file(&file).unwrap();
        let (code, text, _) = go(&lab, &spec, "out", true, NEVER);
        assert!(code == Some(4) && text.contains("found no file"), "{name}: {text}");
        fs::write(&file, own).unwrap();
    }
    // The second time, the students of single blocks have thresholds.
    for _ in 0..2 {
        let (code, text, _) = go(&lab, &spec, "out", true, NEVER);
        assert!(code.is_none(), "{text}");
        assert!(students(&lab, "whole") == students(&lab, "out"));
    }
}

#[test]
fn a_resumed_run_says_that_its_log_lacks_steps() {
    let lab = Lab::new();
    let resumed = |more: &[&str]| {
        let out = start(&lab, "", "out", more).wait_with_output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        text(&out)
    };
    resumed(&[]);
    let log = lab.path("out/metrics.jsonl");
    assert!(!resumed(&["--resume"]).contains("metrics.jsonl"));
    let all = fs::read_to_string(&log).unwrap();
    for kept in [7, 0] {
        let lines: Vec<&str> = all.split_inclusive('\n').take(kept).collect();
        fs::write(&log, lines.concat()).unwrap();
        if kept == 0 {
            fs::remove_file(&log).unwrap();
        }
        let said = resumed(&["--resume"]);
        let note =
            format!("note: out/metrics.jsonl: expected the 18 steps before the checkpoint, found {kept};");
        assert!(said.contains(&note), "{said}");
    }
}

/// So many steps that any machine is still in stage one when the signal comes.
const LONG: [&str; 4] = ["--set", "generator.steps=400", "--set", "checkpoint_seconds=0.01"];

fn start(lab: &Lab, shell: &str, out: &str, more: &[&str]) -> Child {
    let program = crate::common::executable();
    // Resets what the tests may have inherited: nohup, or a script's background, ignores signals.
    let mut c = Command::new("env");
    c.args(["--default-signal=INT,HUP,TERM", "bash", "-c", &format!("{shell} exec \"$0\" \"$@\"")]);
    c.arg(program).current_dir(lab.path(""));
    c.args(["run", "c.toml", "--out", out]).args(more);
    c.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn wait_for(child: &mut Child, file: &Path) {
    while !file.exists() {
        assert!(child.try_wait().unwrap().is_none(), "done before {} was there", file.display());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

fn send(child: &Child, signals: &[&str]) {
    for signal in signals {
        let sent = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success(), "{signal}");
    }
}

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[cfg(target_os = "linux")]
#[test]
fn signals_stop_a_run_that_can_be_resumed() {
    let lab = Lab::new();
    let whole = start(&lab, "", "whole", &LONG).wait_with_output().unwrap();
    assert!(whole.status.success(), "{}", text(&whole));
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let mut child = start(&lab, "", signal, &LONG);
        wait_for(&mut child, &lab.path(signal).join(checkpoint::FILE));
        send(&child, &[signal]);
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(code), "{}", text(&out));
        let last = text(&out).lines().last().unwrap().to_string();
        assert!(last.starts_with(&format!("SIG{signal}: stopped after step ")), "{last}");
        assert!(last.contains(" of 400 of generator; the same command with --resume"), "{last}");
        let more: Vec<&str> = LONG.into_iter().chain(["--resume"]).collect();
        let end = start(&lab, "", signal, &more).wait_with_output().unwrap();
        let said = text(&end);
        assert!(end.status.success(), "{said}");
        let step = last.split_whitespace().nth(4).unwrap();
        assert!(said.contains(&format!("resumed at step {step} of generator\n")), "{last}\n{said}");
        assert!(students(&lab, "whole") == students(&lab, signal), "{signal}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_second_signal_ends_it_at_once_and_an_ignored_one_does_nothing() {
    let lab = Lab::new();
    // Both signals are pending when it runs again. Usually one thread handles both; if two threads handle them at the
    // same moment, neither is the second, and the run stops as after one signal.
    let ends_at_once = |i: usize| {
        let out = format!("twice-{i}");
        let mut child = start(&lab, "", &out, &LONG);
        wait_for(&mut child, &lab.path(&out).join(checkpoint::FILE));
        send(&child, &["STOP", "INT", "TERM", "CONT"]);
        let output = child.wait_with_output().unwrap();
        let code = output.status.code();
        assert!(matches!(code, Some(130 | 143)), "{:?} {}", output.status, text(&output));
        checkpoint::find(&lab.path(&out)).unwrap().unwrap();
        !text(&output).contains("stopped")
    };
    assert!((0..10).any(ends_at_once), "ten times, a second signal did not end the run");

    // As nohup does.
    let mut child = start(&lab, "trap '' HUP;", "ignored", &LONG);
    wait_for(&mut child, &lab.path("ignored").join(checkpoint::FILE));
    send(&child, &["HUP"]);
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
}

/// Every shell can limit the size of files (`ulimit -f`); the write then fails as on a full disk.
#[cfg(target_os = "linux")]
#[test]
fn an_error_names_the_file_that_may_not_grow() {
    let lab = Lab::new();
    lab.run("whole", &[]).unwrap();
    let out = start(&lab, "ulimit -f 40;", "out", &[]).wait_with_output().unwrap();
    let said = text(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("error: cannot write out/") && said.contains("File too large"), "{said}");
    let end = start(&lab, "", "out", &["--resume"]).wait_with_output().unwrap();
    assert!(end.status.success(), "{}", text(&end));
    assert!(students(&lab, "whole") == students(&lab, "out"));
}

/// A file system in memory, with less and less room. Needs user namespaces, or root.
#[cfg(target_os = "linux")]
#[test]
fn an_error_names_the_file_on_a_full_disk_and_the_run_resumes_once_there_is_room() {
    let lab = Lab::new();
    lab.run("whole", &[]).unwrap();
    let disk = lab.path("disk");
    fs::create_dir(&disk).unwrap();
    const MOUNT: &str = "mount -t tmpfs -o size=32k none disk";
    let unshare = |script: &str| {
        let mut c = Command::new("unshare");
        c.args(["--map-root-user", "--mount", "bash", "-c", script]).arg(crate::common::executable());
        c.current_dir(lab.path("")).output()
    };
    match unshare(MOUNT) {
        Ok(out) if out.status.success() => {}
        Ok(out) => return skipped(&format!("cannot mount a file system: {}", text(&out).trim())),
        Err(e) => return skipped(&format!("cannot mount a file system: unshare: {e}")),
    }
    let mut at_fault = std::collections::BTreeSet::new();
    for room in ["48k", "160k", "240k", "320k", "400k", "480k", "560k", "640k", "720k", "800k", "960k"] {
        let script = format!(
            "{MOUNT} && mount -o remount,size={room} disk || exit 99
            run() {{ \"$0\" run c.toml --out disk/out --quiet --set checkpoint_seconds=0 \"$@\"; }}
            run; code=$?; ls -A disk/out >&2
            mount -o remount,size=64m disk || exit 99
            if [ -e disk/out/resolved.toml ]; then run --resume; else run; fi || exit 98
            rm -rf out{room}; cp -r disk/out out{room}; exit $code"
        );
        let out = unshare(&script).unwrap();
        let said = text(&out);
        assert!(matches!(out.status.code(), Some(0 | 1)), "{room}: {said}");
        if out.status.code() == Some(1) {
            let line = said.lines().find(|l| l.starts_with("error: ")).unwrap_or_default();
            assert!(said.starts_with("error: "), "{room}: {said}");
            assert!(line.contains(" disk/out") && line.contains("No space left on device"), "{room}: {said}");
            assert!(!said.contains(".tmp"), "a temporary file stayed: {said}");
            at_fault.insert(line.to_string());
        }
        assert!(students(&lab, "whole") == students(&lab, &format!("out{room}")), "{room}: {said}");
    }
    assert!(at_fault.len() >= 2, "{at_fault:?}");
}
