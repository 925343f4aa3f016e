//! Several ranks, each with a card of its own: NCCL's stand-in (`tests/fakecuda/nccl.cpp`) moves the data. The processes are
//! started as torchrun starts them, and by a launcher of MPI where there is one.

use super::{calls, driver, stderr};
use crate::common::Lab;
use crate::common::mpi::Mpi;
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

const FEW: [&str; 10] = [
    "--set",
    "generator.batch=2",
    "--set",
    "dual.batch=2",
    "--set",
    "dual.bank=4",
    "--set",
    "generator.steps=4",
    "--set",
    "dual.steps=[3, 2, 1, 1]",
];

fn arguments<'a>(out: &'a str, device: &'a str, sets: &[&'a str]) -> Vec<&'a str> {
    let sets = sets.iter().flat_map(|s| ["--set", s]);
    let command = ["run", "c.toml", "--out", out, "--force", "--device", device, "--threads", "1"];
    command.into_iter().chain(FEW).chain(sets).collect()
}

/// A rank that is killed when the test ends, however it ends.
struct Rank(Option<Child>);

impl Rank {
    fn wait(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.iter_mut().for_each(|child| drop(child.kill()));
    }
}

/// Starts two ranks on the cards 0 and 1 as torchrun does. They give up after `limit` seconds without an answer, in which
/// the emulated device computes too.
fn started(lab: &Lab, args: &[&str], limit: &str, settings: &[(&str, &str)]) -> Option<[Rank; 2]> {
    static STARTED: AtomicU32 = AtomicU32::new(0);
    // Below the ports that systems give to connections. NCCL meets one port above torchrun's own.
    let port = 15_000 + 2 * ((std::process::id() * 13 + STARTED.fetch_add(1, Relaxed)) % 8_000);
    let folder = driver()?;
    let start = |rank: usize| {
        let rank = rank.to_string();
        let mut program = lab.program(args);
        program.env("LD_LIBRARY_PATH", folder).env("FAKECUDA_DEVICES", "2").env("FAKECUDA_REPORT", "1");
        program.env("TORCHELASTIC_RUN_ID", "none");
        program.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        program
            .env("RANK", &rank)
            .env("LOCAL_RANK", &rank)
            .env("WORLD_SIZE", "2")
            .env("LOCAL_WORLD_SIZE", "2");
        program.env("DFKA_RANK_TIMEOUT", limit).envs(settings.iter().copied());
        let child = program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Rank(Some(child))
    };
    Some([start(0), start(1)])
}

/// Two ranks to their end.
fn torchrun(lab: &Lab, args: &[&str], limit: &str, settings: &[(&str, &str)]) -> Option<[Output; 2]> {
    Some(started(lab, args, limit, settings)?.map(Rank::wait))
}

fn alone(lab: &Lab, args: &[&str]) -> Option<Output> {
    Some(lab.program(args).env("LD_LIBRARY_PATH", driver()?).output().unwrap())
}

/// In f32 the gradients are added in the order of one card. In bf16 one card rounds each sum to bf16, and several ranks the
/// whole sum, so there the results differ in the last digits.
#[test]
fn two_cards_give_the_bits_of_one() {
    let lab = Lab::new();
    let sets = ["precision=f32", "baselines.noise=true"];
    let Some(one) = alone(&lab, &arguments("one", "cuda", &sets)) else { return };
    assert!(one.status.success(), "{}", stderr(&one));
    let both = torchrun(&lab, &arguments("two", "cuda", &sets), "300", &[]).unwrap();
    for (rank, done) in both.iter().enumerate() {
        let text = stderr(done);
        assert!(done.status.success() && !text.contains("refused"), "rank {rank}: {text}");
        assert!(calls(&text, "cuGraphLaunch") > 5, "rank {rank}: exchanges are captured: {text}");
        assert!(calls(&text, "cuLaunchHostFunc") > 10, "rank {rank}: {text}");
    }
    for file in ["generator.npz", "student.npz", "student.onnx", "noise.student-block4.npz"] {
        assert!(lab.bytes(&format!("one/{file}")) == lab.bytes(&format!("two/{file}")), "{file}");
    }
    for out in ["first", "second"] {
        let both = torchrun(&lab, &arguments(out, "cuda", &[]), "300", &[]).unwrap();
        assert!(both.iter().all(|done| done.status.success()), "{}", stderr(&both[0]));
    }
    assert!(lab.bytes("first/student.npz") == lab.bytes("second/student.npz"), "bf16");
}

#[test]
fn mpirun_starts_ranks_on_cards_too() {
    let (Some(folder), Some(mpi)) = (driver(), Mpi::first()) else { return };
    let lab = Lab::new();
    let sets = ["precision=f32"];
    let one = alone(&lab, &arguments("one", "cuda", &sets)).unwrap();
    assert!(one.status.success(), "{}", stderr(&one));
    let mut two = mpi.program(&lab, 2, &arguments("two", "cuda", &sets));
    let two = two.env("LD_LIBRARY_PATH", folder).env("FAKECUDA_DEVICES", "2").output().unwrap();
    assert!(two.status.success(), "{}", stderr(&two));
    assert!(lab.bytes("one/student.npz") == lab.bytes("two/student.npz"));
}

/// The first line that begins with `error: `.
fn error(done: &Output) -> String {
    stderr(done).lines().find(|l| l.starts_with("error: ")).unwrap_or_default().to_string()
}

#[test]
fn what_keeps_ranks_from_starting_is_one_line() {
    let lab = Lab::new();
    type Case<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case; 8] = [
        ("cuda", &[], &[("DFKA_NCCL", "/nowhere/libnccl.so.2")], "several ranks on cards need NCCL"),
        ("cuda", &[], &[("DFKA_NCCL", "libcuda.so.1")], "libcuda.so.1: has no function ncclGetVersion"),
        ("cuda", &[], &[("FAKENCCL_VERSION", "2804")], "is NCCL 2.8.4; 2.9.6 or newer is needed"),
        ("cuda", &[], &[("MASTER_PORT", "none")], "torchrun's MASTER_ADDR and MASTER_PORT do not say where"),
        (
            "cuda",
            &[],
            &[("FAKENCCL_FAIL", "ncclCommInitRank@1")],
            "ncclCommInitRank failed: unhandled system error",
        ),
        ("cuda:1", &[], &[], "rank 1 of 2 has a card of its own: --device cuda:2: the driver has 2 devices"),
        ("cpu", &[], &[], "torchrun started 2 processes"),
        ("cuda", &["parallel.split=batch"], &[], "2 ranks divide the batch"),
    ];
    for (device, sets, settings, expected) in cases {
        let Some(both) = torchrun(&lab, &arguments("out", device, sets), "20", settings) else { return };
        // Rank 1 has no card; rank 0 waits for it until its time is over.
        let [first, second] = both.each_ref().map(|done| (done.status.code(), error(done)));
        assert!(second.0 == Some(5) && second.1.contains(expected), "{expected}: {second:?}");
        let is_late = first.0 == Some(8) && first.1.contains("no answer from the other ranks for 20 s");
        assert!(
            first.0 == Some(5) && first.1.contains(expected) || device == "cuda:1" && is_late,
            "{first:?}"
        );
        assert!(!lab.path("out/student.npz").exists());
    }
}

#[test]
fn an_exchange_that_fails_is_an_error_that_names_it() {
    let lab = Lab::new();
    for (nth, name) in [(2, "ncclAllGather"), (1, "ncclGroupEnd")] {
        let fail = format!("{name}@{nth}");
        let args = arguments("out", "cuda", &[]);
        let Some(both) = torchrun(&lab, &args, "300", &[("FAKENCCL_FAIL", &fail)]) else { return };
        for done in &both {
            let (code, text) = (done.status.code(), error(done));
            assert!(matches!(code, Some(1 | 8)), "{fail}: {code:?} {}", stderr(done));
            assert!(text.contains(&format!("{name} failed: unhandled cuda error")), "{fail}: {text}");
        }
    }
}

/// A rank that is gone keeps the device of the other one waiting. The host notices.
#[test]
fn a_rank_that_is_killed_ends_the_other_one() {
    let lab = Lab::new();
    let long = ["generator.steps=100000", "checkpoint_seconds=0"];
    let Some([mut first, mut second]) = started(&lab, &arguments("out", "cuda", &long), "40", &[]) else {
        return;
    };
    let begun = Instant::now();
    while !lab.path("out/checkpoint.npz").exists() {
        assert!(begun.elapsed() < Duration::from_secs(300), "no checkpoint after five minutes");
        let ended = first.0.as_mut().unwrap().try_wait().unwrap();
        assert!(ended.is_none(), "rank 0 ended before its first checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
    second.0.as_mut().unwrap().kill().unwrap();
    let first = first.wait();
    assert_eq!(first.status.code(), Some(8), "{}", stderr(&first));
    assert!(error(&first).contains("no answer from the other ranks for 40 s"), "{}", error(&first));
}
