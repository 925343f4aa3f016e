//! A run that is killed at any moment and resumed gives the same bits as one that was never killed.
//!
//! `DFKA_KILLS` is the number of kills (`scripts/kill_test.sh 30`), `DFKA_KILL_SEED` draws the moments.

use crate::common::Lab;
use dfka_engine::device::philox::{Draws, below};
use dfka_engine::report::METRICS;
use dfka_engine::report::metrics::Record;
use dfka_engine::summary::Summary;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A checkpoint after every step, and two more students, so that half of the time goes into writing files.
const SETS: [&str; 5] = [
    "checkpoint_seconds=0",
    "generator.steps=5",
    "dual.steps=[4, 4, 4, 4]",
    "baselines.noise=true",
    "baselines.ka=ka.npz",
];

fn start(lab: &Lab, out: &str) -> Child {
    // Without its config in the folder, a run was killed before it began, and cannot be resumed.
    let resume = lab.path(out).join("resolved.toml").exists().then_some("--resume");
    let sets = SETS.iter().flat_map(|s| ["--set", s]);
    let args: Vec<&str> = ["run", "c.toml", "--out", out].into_iter().chain(sets).chain(resume).collect();
    lab.program(&args).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return vec![] };
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// When to kill.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Any,
    /// While a temporary file of a checkpoint exists.
    Checkpoint,
    LastStage,
    Evaluation,
    Report,
}

const MOMENTS: [Moment; 6] =
    [Moment::Any, Moment::Checkpoint, Moment::Evaluation, Moment::Any, Moment::LastStage, Moment::Report];

impl Moment {
    fn has_come(self, out: &Path) -> bool {
        let has = |name: &str| out.join(name).exists();
        match self {
            Moment::Any => true,
            Moment::Checkpoint => names(out).iter().any(|n| n.starts_with(".checkpoint")),
            Moment::LastStage => has("ka.student-block3.npz"),
            Moment::Evaluation => has("ka.student.npz"),
            Moment::Report => has("summary.json"),
        }
    }
}

/// Kills `child` once `delay` is over and the moment has come; false if it had ended before.
fn kill(mut child: Child, delay: Duration, moment: Moment, out: &Path) -> bool {
    std::thread::sleep(delay);
    while !moment.has_come(out) {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::yield_now();
    }
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap().code().is_none()
}

/// Files that must not depend on kills, besides the students and the sample images.
const KEPT: [&str; 4] = ["resolved.toml", "generator.npz", "labels.json", "label_statistics.json"];

/// Stage, step and losses of each line of the log.
type LoggedSteps = Vec<(String, usize, String)>;

/// What must be the same: files by name, the logged steps, and the summary without its times.
fn result(lab: &Lab, out: &str) -> (BTreeMap<String, Vec<u8>>, LoggedSteps, String) {
    let folder = lab.path(out);
    let is_compared = |n: &String| n.contains("student") || n.contains("samples") || KEPT.contains(&&**n);
    let files = names(&folder).into_iter().filter(is_compared);
    let files = files.map(|n| (n.clone(), fs::read(folder.join(n)).unwrap())).collect();
    let log = fs::read_to_string(folder.join(METRICS)).unwrap();
    let steps = log.lines().map(|line| {
        let r: Record = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        (r.stage, r.step, format!("{:?}", r.metrics))
    });
    let mut s: Summary = serde_json::from_slice(&lab.bytes(&format!("{out}/summary.json"))).unwrap();
    s.seconds.clear();
    let temporary: Vec<String> = names(&folder).into_iter().filter(|n| n.ends_with(".tmp")).collect();
    assert!(temporary.is_empty() && folder.join("report.html").exists(), "{temporary:?}");
    (files, steps.collect(), format!("{s:?}"))
}

#[test]
fn a_run_killed_anywhere_and_resumed_gives_the_same_bits() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |v| v.parse().unwrap_or_else(|e| panic!("{name}={v}: {e}")))
    };
    let (kills, seed) = (number("DFKA_KILLS", 6), number("DFKA_KILL_SEED", 1));
    let lab = Lab::new();
    let begun = Instant::now();
    let whole = start(&lab, "whole").wait_with_output().unwrap();
    let duration = begun.elapsed();
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let expected = result(&lab, "whole");
    assert_eq!(expected.1.len(), 5 + 3 * 4 * 4);

    let mut done = 0;
    let mut temporaries = 0;
    let mut draws = (0..).map(|i| Draws::new(seed, 80, 0).words(i, 0)[0]);
    for i in 0..kills {
        let (moment, out) = (MOMENTS[i as usize % MOMENTS.len()], format!("killed{i}"));
        let mut killed = 0;
        // One to three kills, soon after each other or late. A run that ended before it was killed does not
        // count.
        let rounds = 1 + draws.next().unwrap() % 3;
        for round in 0..rounds.max(1) + 20 {
            if killed >= rounds {
                break;
            }
            let most = match moment {
                Moment::Any | Moment::Checkpoint => duration.as_millis() as usize / (1 + round as usize),
                Moment::LastStage | Moment::Evaluation | Moment::Report => 1,
            };
            let delay = Duration::from_millis(below(draws.next().unwrap(), most.max(1)) as u64);
            let was_killed = kill(start(&lab, &out), delay, moment, &lab.path(&out));
            killed += u32::from(was_killed);
            temporaries += u32::from(names(&lab.path(&out)).iter().any(|n| n.ends_with(".tmp")));
            if !was_killed && killed == 0 {
                fs::remove_dir_all(lab.path(&out)).unwrap();
            }
            if !was_killed && killed > 0 {
                break;
            }
        }
        assert!(killed > 0, "{out}: always done before it could be killed");
        let end = start(&lab, &out).wait_with_output().unwrap();
        assert!(end.status.success(), "{out}, {moment:?}: {}", String::from_utf8_lossy(&end.stderr));
        let found = result(&lab, &out);
        assert!(found.0.keys().eq(expected.0.keys()), "{out}, {moment:?}: {:?}", found.0.keys());
        for (name, bytes) in &expected.0 {
            assert!(found.0[name] == *bytes, "{out}, killed {killed} times at {moment:?}: {name} differs");
        }
        assert_eq!(found.1, expected.1, "{out}, {moment:?}: logged steps");
        assert_eq!(found.2, expected.2, "{out}, {moment:?}");
        fs::remove_dir_all(lab.path(&out)).unwrap();
        done += 1;
    }
    // To the terminal, for scripts/kill_test.sh: the harness hides what a passing test prints.
    let line =
        format!("{done} of {kills} bit-identical (seed {seed}; {temporaries} kills met a half-written file)");
    writeln!(std::io::stderr(), "{line}").unwrap();
    assert!(done == kills && kills > 0);
}
