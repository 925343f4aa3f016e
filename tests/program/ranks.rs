//! Runs on several ranks: the same bits as one process, and an end in every kind of failure.
//!
//! `common/mpi.rs` says which launchers are tried. `DFKA_RANK_KILLS` is the number of signals, `DFKA_KILL_SEED` draws their moments.

use crate::common::mpi::Mpi;
use crate::common::{Lab, network, skipped, teacher_tensors};
use dfka_engine::device::philox::Draws;
use dfka_engine::weights::{self, Tensors, npz};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn run<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["run", "c.toml", "--device", "cpu", "--threads", "1", "--out", out], more].concat()
}

/// The files that a run leaves, but for its times, its command and its logs.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let is_exported = |name: &String| {
        let kept = ["resolved.toml", "generator.npz", "labels.json", "label_statistics.json"];
        name.contains("student") || name.contains("samples") || kept.contains(&name.as_str())
    };
    let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(is_exported).map(|n| (n.clone(), fs::read(folder.join(n)).unwrap())).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs the lab on one process, which is the reference, and checks that `out` has the same files.
fn expect_same(lab: &Lab, sets: &[&str], out: &str) {
    let alone = lab.path("alone");
    if !alone.exists() {
        let done = lab.call(&run("alone", sets));
        assert!(done.status.success(), "{}", text(&done.stderr));
    }
    let (expected, found) = (files(&alone), files(&lab.path(out)));
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>(), "{out}");
    expected.iter().for_each(|(name, bytes)| assert!(*bytes == found[name], "{out}/{name} differs"));
    assert!(expected.len() > 10, "{:?}", expected.keys());
}

/// Four teachers, of which the last knows labels of others.
const FOUR: [&str; 6] = [
    "--set",
    r#"teachers=[{name="left",weights="left.npz"},{name="right",weights="right.npz"},{name="third",weights="third.npz"},{name="fourth",weights="fourth.npz"}]"#,
    "--set",
    r#"student.teachers_of={tree="fourth",dog="fourth"}"#,
    "--set",
    "baselines.noise=true",
];

#[test]
fn four_teachers_on_two_or_four_ranks_give_the_bits_of_one_process() {
    let lab = Lab::new();
    npz::save(lab.path("fourth.npz"), &teacher_tensors(&network(), &["dog", "tree"], 9)).unwrap();
    for (i, mpi) in Mpi::all().iter().enumerate() {
        for ranks in [2, 4] {
            let out = format!("mpi{i}-{ranks}");
            let done = mpi.call(&lab, ranks, &run(&out, &FOUR));
            assert!(done.status.success(), "{ranks} ranks: {}", text(&done.stderr));
            assert_eq!(text(&done.stdout).matches("student and report in").count(), 1, "rank 0 alone prints");
            expect_same(&lab, &FOUR, &out);
        }
    }
}

#[test]
fn a_label_of_two_teachers_and_teachers_in_turns_are_shared_too() {
    let Some(mpi) = Mpi::first() else { return };
    let lab = Lab::new();
    // The second teacher knows a label of the first.
    let second = teacher_tensors(&network(), &["bus", "table"], 2);
    npz::save(lab.path("right.npz"), &second).unwrap();
    let sets = ["--set", "generator.teachers_at_once=1"];
    let done = mpi.call(&lab, 2, &run("two", &sets));
    assert!(done.status.success(), "{}", text(&done.stderr));
    expect_same(&lab, &sets, "two");
}

/// A few steps on the emulator, in f32.
fn run_emulated<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let few = [
        "--set",
        "precision=f32",
        "--set",
        "generator={latent=6, widths=[8, 8, 6], steps=2, batch=2, shift=1}",
        "--set",
        "dual.steps=[2, 1, 1, 1]",
        "--set",
        "dual.batch=2",
    ];
    [&["run", "c.toml", "--device", "emu", "--threads", "1", "--out", out], &few[..], more].concat()
}

/// In f32 the emulated kernels add the gradients of two teachers in the order of one process.
#[test]
fn two_emulated_cards_give_the_bits_of_one() {
    let Some(mpi) = Mpi::first() else { return };
    let lab = Lab::new();
    let one = lab.call(&run_emulated("alone", &[]));
    if text(&one.stderr).contains("the kernel emulator is not in this program") {
        return skipped("built without the emulator");
    }
    let two = mpi.call(&lab, 2, &run_emulated("two", &[]));
    assert!(one.status.success() && two.status.success(), "{} {}", text(&one.stderr), text(&two.stderr));
    expect_same(&lab, &[], "two");
}

/// Of three teachers one rank has two, in turns or together: a card runs the ops of a step in another order then, but all
/// ranks must exchange in the same order.
#[test]
fn ranks_with_different_numbers_of_teachers_exchange_in_one_order() {
    let Some(mpi) = Mpi::first() else { return };
    let lab = Lab::new();
    let three = [
        "--set",
        r#"teachers=[{name="left",weights="left.npz"},{name="right",weights="right.npz"},{name="third",weights="third.npz"}]"#,
        "--set",
        "loss={recipe=\"conditional\", statistics=1.0, least_diversity=0, least_information=0, least_found=0}",
    ];
    let turns = [&three[..], &["--set", "generator.teachers_at_once=1"]].concat();
    for (out, sets) in [("together", &three[..]), ("turns", &turns)] {
        let two = mpi.call(&lab, 2, &run_emulated(out, sets));
        if text(&two.stderr).contains("the kernel emulator is not in this program") {
            return skipped("built without the emulator");
        }
        assert!(two.status.success(), "{out}: {}", text(&two.stderr));
    }
    for file in ["generator.npz", "student.npz", "student.onnx"] {
        assert!(lab.bytes(&format!("together/{file}")) == lab.bytes(&format!("turns/{file}")), "{file}");
    }
}

/// Has so many steps that a signal arrives during the training, because afterwards rank 0 works alone.
const LONG: [&str; 4] = ["--set", "checkpoint_seconds=0", "--set", "generator.steps=200"];

/// Starts two ranks that write a checkpoint after every step, and waits for the first one.
fn started(mpi: &Mpi, lab: &Lab, out: &str, sets: &[&str], limit: &str) -> Child {
    let mut command = mpi.program(lab, 2, &run(out, sets));
    command.env("DFKA_RANK_TIMEOUT", limit).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let begun = Instant::now();
    while !lab.path(out).join("checkpoint.npz").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint after a minute");
        if child.try_wait().unwrap().is_some() {
            panic!("ended too early: {}", text(&child.wait_with_output().unwrap().stderr));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

/// The process that its launcher gives this rank, and that runs into this folder; `None` after its end.
fn process_of(rank: usize, out: &str) -> Option<u32> {
    let holds = |pid: &str, file: &str, what: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        bytes.split(|b| *b == 0).any(|word| word == what.as_bytes())
    };
    let all = fs::read_dir("/proc").unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let has_rank = |pid: &str, name: &str| holds(pid, "environ", &format!("{name}={rank}"));
    let is_it = |pid: &String| {
        holds(pid, "cmdline", out) && (has_rank(pid, "OMPI_COMM_WORLD_RANK") || has_rank(pid, "PMI_RANK"))
    };
    all.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit())).find(is_it)?.parse().ok()
}

/// Waits for the launcher, at most half a minute.
fn ended(mut child: Child, what: &str) -> Output {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}: still running after half a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// Sends a signal to a rank at a random moment after the first checkpoint. Returns how the launcher ended; `None` if the run
/// had ended before.
fn signalled(
    mpi: &Mpi,
    lab: &Lab,
    out: &str,
    sets: &[&str],
    (signal, draw): (&str, [u32; 4]),
) -> Option<Output> {
    // A rank that is stopped is missed after two seconds.
    let child = started(mpi, lab, out, sets, if signal == "STOP" { "2" } else { "120" });
    std::thread::sleep(Duration::from_millis(u64::from(draw[0] % 400)));
    let rank = draw[1] as usize % 2;
    let sent = process_of(rank, out).map(|pid| {
        Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).stderr(Stdio::null()).status()
    });
    let done = ended(child, signal);
    println!("{signal} to rank {rank} of {out}: {}", done.status);
    sent.filter(|_| !done.status.success()).map(|_| done)
}

#[test]
fn a_rank_that_is_killed_stopped_or_asked_to_stop_ends_all_and_the_run_resumes() {
    let number = |name: &str, default: usize| {
        std::env::var(name).map_or(default, |v| v.parse().unwrap_or_else(|e| panic!("{name}={v}: {e}")))
    };
    let (lab, all) = (Lab::new(), Mpi::all());
    let kills = if all.is_empty() { 0 } else { number("DFKA_RANK_KILLS", 3 * all.len()) };
    let mut draws = (0..).map(|i| Draws::new(number("DFKA_KILL_SEED", 1) as u64, 81, 0).words(i, 0));
    for i in 0..kills {
        // MPICH's launcher may pass on the 9 of the rank that it kills, after the 8 of the one that gave up.
        let (signal, codes) = [("KILL", &[9, 137][..]), ("STOP", &[8, 9]), ("TERM", &[143])][i % 3];
        let mpi = &all[i / 3 % all.len()];
        let tries = (0..20).map(|k| format!("{signal}-{i}-{k}-{}", std::process::id()));
        let found = tries.into_iter().find_map(|out| {
            let done = signalled(mpi, &lab, &out, &LONG, (signal, draws.next().unwrap()))?;
            Some((out, done))
        });
        let (out, done) = found.unwrap_or_else(|| panic!("{signal}: the run always ended before it"));
        let text = text(&done.stderr);
        let code = done.status.code().unwrap_or(-1);
        assert!(codes.contains(&code), "{signal}: {code}: {text}");
        let is_lost = text.contains("no answer from the other ranks for 2 s");
        assert!(signal != "STOP" || is_lost, "{text}");
        // On another number of ranks, and on the same.
        let again = run(&out, &[&LONG[..], &["--resume"]].concat());
        let done = if signal == "TERM" { mpi.call(&lab, 2, &again) } else { lab.call(&again) };
        assert!(done.status.success(), "{signal}: {}", self::text(&done.stderr));
        expect_same(&lab, &LONG, &out);
    }
}

/// Stops a run of two ranks in the middle of its first stage, and copies what it has written so far.
fn interrupted(mpi: &Mpi, lab: &Lab, sets: &[&str], copies: &[&str]) {
    let tries = (0..20).map(|k| format!("interrupted-{k}-{}", std::process::id()));
    let stopped = |out: &String| {
        signalled(mpi, lab, out, sets, ("TERM", [100, 0, 0, 0])).is_some_and(|d| d.status.code() == Some(143))
    };
    let out = tries.into_iter().find(stopped).expect("the run always ended before the signal");
    for copy in copies {
        fs::create_dir(lab.path(copy)).unwrap();
        for file in fs::read_dir(lab.path(&out)).unwrap().map(|e| e.unwrap()) {
            if file.file_type().unwrap().is_file() {
                fs::copy(file.path(), lab.path(copy).join(file.file_name())).unwrap();
            }
        }
    }
}

#[test]
fn a_run_of_two_ranks_goes_on_with_four_and_with_one_process_to_the_same_bits() {
    let Some(mpi) = Mpi::first() else { return };
    let lab = Lab::new();
    npz::save(lab.path("fourth.npz"), &teacher_tensors(&network(), &["dog", "tree"], 9)).unwrap();
    let sets = [&LONG[..], &FOUR].concat();
    interrupted(&mpi, &lab, &sets, &["four", "one"]);
    let again = [&sets[..], &["--resume"]].concat();
    let on_four = mpi.call(&lab, 4, &run("four", &again));
    assert!(on_four.status.success(), "{}", text(&on_four.stderr));
    let alone = lab.call(&run("one", &again));
    assert!(alone.status.success(), "{}", text(&alone.stderr));
    expect_same(&lab, &sets, "four");
    expect_same(&lab, &sets, "one");
}

/// A divided batch (the first two words), and one that only two ranks can divide.
const DIVIDED: [&str; 4] = ["--set", "parallel.split=batch", "--set", "generator.batch=6"];

#[test]
fn a_divided_batch_gives_the_bits_of_one_process_and_goes_on_to_them_on_any_number_of_ranks() {
    let lab = Lab::new();
    let sets = [&LONG[..], &DIVIDED[..2]].concat();
    for (i, mpi) in Mpi::all().iter().enumerate() {
        for ranks in [2, 4] {
            let out = format!("out{i}-{ranks}");
            let done = mpi.call(&lab, ranks, &run(&out, &sets));
            assert!(done.status.success(), "{ranks} ranks: {}", text(&done.stderr));
            expect_same(&lab, &sets, &out);
        }
    }
    let Some(mpi) = Mpi::first() else { return };
    interrupted(&mpi, &lab, &sets, &["one", "two", "four"]);
    let again = [&sets[..], &["--resume"]].concat();
    for (out, ranks) in [("one", 1), ("two", 2), ("four", 4)] {
        let args = run(out, &again);
        let done = if ranks == 1 { lab.call(&args) } else { mpi.call(&lab, ranks, &args) };
        assert!(done.status.success(), "{out}: {}", text(&done.stderr));
        expect_same(&lab, &sets, out);
    }
}

#[test]
fn a_batch_of_six_has_shares_for_two_ranks() {
    let Some(mpi) = Mpi::first() else { return };
    let lab = Lab::new();
    let done = mpi.call(&lab, 2, &run("two", &DIVIDED));
    assert!(done.status.success(), "{}", text(&done.stderr));
    expect_same(&lab, &DIVIDED, "two");
}

/// Every stage has one step.
const STEP: [&str; 8] = [
    "--set",
    "generator.steps=1",
    "--set",
    "dual.steps=[1, 1, 1, 1]",
    "--set",
    "checkpoint_seconds=0",
    "--set",
    "loss.recipe=conditional",
];

/// What a run has in its store after the last stage, which its checkpoints no longer hold at its end.
fn last_state(mut child: Child, lab: &Lab, out: &str) -> Tensors {
    let (last, checkpoint) = (lab.path(out).join("student-block4.npz"), lab.path(out).join("checkpoint.npz"));
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(60), "{out}: no last stage after a minute");
        // The stage's student is written before the checkpoint, and the next checkpoint after the evaluation.
        let state = if last.exists() { load_checkpoint(&checkpoint) } else { None };
        if let Some(state) = state.filter(|s| s.iter().any(|(name, _)| name.starts_with("block4.moments"))) {
            child.wait().unwrap();
            return state;
        }
        if let Some(status) = child.try_wait().unwrap() {
            panic!("{out}: ended with {status} before its last checkpoint was read");
        }
    }
}

/// A checkpoint, unless it is being replaced.
fn load_checkpoint(file: &Path) -> Option<Tensors> {
    weights::load(file).ok()
}

/// The relative distance of all tensors together whose names contain `what`.
fn distance(a: &Tensors, b: &Tensors, what: &str) -> f64 {
    let (mut away, mut all) = (0.0, 0.0);
    for (name, tensor) in a.iter().filter(|(name, _)| name.contains(what)) {
        let other = &b.get(name).unwrap().data;
        for (x, y) in tensor.data.iter().zip(other) {
            (away, all) = (away + f64::from(x - y).powi(2), all + f64::from(*x).powi(2));
        }
    }
    assert!(all > 0.0, "{what}");
    (away / all).sqrt()
}

/// Adam's first moment after one step is a tenth (in stage one a half) of the gradient. A process that does not divide its
/// batch adds in another order, which these small networks' batch norms over eight samples enlarge in single precision
/// (`tests/method/ranks.rs` compares in double precision).
#[test]
fn a_batch_on_two_ranks_has_the_gradients_of_one_process() {
    let Some(mpi) = Mpi::first() else { return };
    let lab = Lab::new();
    for (i, init) in ["scratch", "mean"].into_iter().enumerate() {
        let init = format!("student.init={init}");
        let whole = [&STEP[..], &["--set", &init]].concat();
        let divided = [&whole[..], &["--set", "parallel.split=batch"]].concat();
        let state = |out: &str, mut command: Command| {
            last_state(command.stdout(Stdio::null()).spawn().unwrap(), &lab, out)
        };
        let [a, b, c] = ["whole", "one", "two"].map(|name| format!("{name}{i}"));
        let whole = state(&a, lab.program(&run(&a, &whole)));
        let one = state(&b, lab.program(&run(&b, &divided)));
        let two = state(&c, mpi.program(&lab, 2, &run(&c, &divided)));
        for stage in ["generator", "block1", "block2", "block3", "block4"] {
            let moments = format!("{stage}.moments.first");
            assert_eq!(distance(&one, &two, &moments), 0.0, "{init}, {stage}");
            let found = distance(&whole, &two, &moments);
            println!("{init}, {stage}: {found:.1e}");
            assert!(found <= 1e-5, "{init}, {stage}: {found}");
        }
        assert_eq!(distance(&one, &two, "generator.bank"), 0.0, "the images");
    }
}

#[test]
fn more_ranks_than_teachers_are_refused() {
    let Some(mpi) = Mpi::first() else { return };
    let done = mpi.call(&Lab::new(), 3, &run("out", &[]));
    let text = text(&done.stderr);
    assert!(!done.status.success() && text.contains("3 ranks for 2 tasks of the student"), "{text}");
}

#[test]
fn a_missing_library_and_another_device_are_one_line() {
    let lab = Lab::new();
    let missing = "error: started as rank 0 of 2, but the launcher's MPI library does not open; DFKA_MPI names /nowhere/libmpi.so; it must be the library of the launcher (/nowhere/libmpi.so: cannot open shared object file";
    let divided =
        "error: 2 ranks divide the batch (parallel.split), which they can do on the CPU only so far";
    for (device, split, expected) in [("cpu", "batch", missing), ("emu", "batch", divided)] {
        let set = format!("parallel.split={split}");
        let mut c = lab.program(&["run", "c.toml", "--out", "out", "--device", device, "--set", &set]);
        c.env("OMPI_COMM_WORLD_RANK", "0")
            .env("OMPI_COMM_WORLD_SIZE", "2")
            .env("DFKA_MPI", "/nowhere/libmpi.so");
        let done = c.output().unwrap();
        let text = text(&done.stderr);
        if text.contains("the kernel emulator is not in this program") {
            skipped("built without the emulator");
            continue;
        }
        assert!(done.status.code() == Some(5) && text.starts_with(expected), "{text}");
        assert!(!lab.path("out").exists(), "nothing was written");
    }
}
