//! Several ranks, each with a card of its own: NCCL's stand-in (`tests/fakecuda/nccl.cpp`) moves the data. The processes are
//! started as torchrun starts them, and by a launcher of MPI where there is one.

use super::{calls, driver, stderr};
use crate::common::Lab;
use crate::common::mpi::Mpi;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
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

/// Two ranks on the cards 0 and 1, as torchrun starts them. Returns what each has left.
fn torchrun(lab: &Lab, args: &[&str], settings: &[(&str, &str)]) -> Option<[Output; 2]> {
    // NCCL meets one port above torchrun's own.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = driver()?;
    let start = |rank: usize| {
        let rank = rank.to_string();
        let mut program = lab.program(args);
        program.env("LD_LIBRARY_PATH", folder).env("FAKECUDA_DEVICES", "2").env("FAKECUDA_REPORT", "1");
        program.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", (free - 1).to_string());
        program
            .env("RANK", &rank)
            .env("LOCAL_RANK", &rank)
            .env("WORLD_SIZE", "2")
            .env("LOCAL_WORLD_SIZE", "2");
        program.env("DFKA_RANK_TIMEOUT", "20").envs(settings.iter().copied());
        program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let both = [start(0), start(1)];
    Some(both.map(|child| child.wait_with_output().unwrap()))
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
    let both = torchrun(&lab, &arguments("two", "cuda", &sets), &[]).unwrap();
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
        let both = torchrun(&lab, &arguments(out, "cuda", &[]), &[]).unwrap();
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
    let cases: [Case; 7] = [
        ("cuda", &[], &[("DFKA_NCCL", "/nowhere/libnccl.so.2")], "several ranks on cards need NCCL"),
        ("cuda", &[], &[("DFKA_NCCL", "libcuda.so.1")], "libcuda.so.1: has no function ncclGetVersion"),
        ("cuda", &[], &[("FAKENCCL_VERSION", "2408")], "is NCCL 2.4.8; 2.7 or newer is needed"),
        (
            "cuda",
            &[],
            &[("FAKENCCL_FAIL", "ncclCommInitRank@1")],
            "ncclCommInitRank failed: unhandled system error",
        ),
        ("cuda:1", &[], &[], "--device cuda:2: the driver has 2 devices"),
        ("cpu", &[], &[], "torchrun started 2 processes"),
        ("cuda", &["parallel.split=batch"], &[], "2 ranks divide the batch"),
    ];
    for (device, sets, settings, expected) in cases {
        let Some(both) = torchrun(&lab, &arguments("out", device, sets), settings) else { return };
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
        let Some(both) = torchrun(&lab, &args, &[("FAKENCCL_FAIL", &fail)]) else { return };
        for done in &both {
            let (code, text) = (done.status.code(), error(done));
            assert!(matches!(code, Some(1 | 8)), "{fail}: {code:?} {}", stderr(done));
            assert!(text.contains(&format!("{name} failed: unhandled cuda error")), "{fail}: {text}");
        }
    }
}

/// A rank that is gone keeps the device of the other one waiting. The host notices. The emulated device computes the steps
/// between two reads of the losses while the host waits for them, which takes some seconds of the limit.
#[test]
fn a_rank_that_is_killed_ends_the_other_one() {
    let lab = Lab::new();
    let Some(folder) = driver() else { return };
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let long = ["generator.steps=100000", "checkpoint_seconds=0"];
    let args = arguments("out", "cuda", &long);
    let start = |rank: &str| {
        let mut program: Command = lab.program(&args);
        program.env("LD_LIBRARY_PATH", folder).env("FAKECUDA_DEVICES", "2").env("FAKECUDA_QUIET", "1");
        program.env("NCCL_COMM_ID", format!("127.0.0.1:{free}")).env("MASTER_ADDR", "127.0.0.1");
        program
            .env("RANK", rank)
            .env("LOCAL_RANK", rank)
            .env("WORLD_SIZE", "2")
            .env("DFKA_RANK_TIMEOUT", "20");
        program.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let (mut first, mut second) = (start("0"), start("1"));
    let begun = Instant::now();
    while !lab.path("out/checkpoint.npz").exists() {
        assert!(begun.elapsed() < Duration::from_secs(120), "no checkpoint after two minutes");
        assert!(first.try_wait().unwrap().is_none(), "rank 0 ended before its first checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
    second.kill().unwrap();
    second.wait().unwrap();
    let first = first.wait_with_output().unwrap();
    assert_eq!(first.status.code(), Some(8), "{}", stderr(&first));
    assert!(error(&first).contains("no answer from the other ranks for 20 s"), "{}", error(&first));
}
