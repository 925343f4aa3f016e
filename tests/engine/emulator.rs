//! The emulator that runs CUDA kernels on a CPU must find the mistakes in the kernels of `emulator/bugs.cu`,
//! and must accept their correct twins. It is built here by g++ without a sanitizer, with AddressSanitizer,
//! and with ThreadSanitizer.
//!
//! Without g++ or a sanitizer's library a test prints that it is skipped; with `DFKA_REQUIRE_EMU` set it
//! fails.

use crate::common::skipped;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// 0: threads run in the order in which they became ready; 1: in reverse; others: at random, with the number
/// as seed.
const ORDERS: [u32; 5] = [0, 1, 2, 3, 4];
const TIME_LIMIT: Duration = Duration::from_secs(120);

const RUNTIME: [&str; 9] =
    ["stack", "scheduler", "warp", "shared", "memory", "launch", "fault", "hopper", "wgmma"];

const RIGHT: [&str; 13] = [
    "arithmetic",
    "again",
    "neighbour_right",
    "neighbour_sync_warp",
    "rounds_right",
    "copies_right",
    "blocks_right",
    "blocks_large",
    "sum_right",
    "sum_large",
    "ballot_right",
    "ballot_partial",
    "matrix_product",
];

/// The correct kernels of products.cu: wgmma fed by TMA, compared element by element with plain loops.
const PRODUCTS: [&str; 15] = [
    "product_64",
    "product_128",
    "product_256",
    "product_64_trans",
    "product_256_trans",
    "product_one_stage",
    "product_stored",
    "handed_right",
    "conv_1x1",
    "conv_1x1_stride_2",
    "conv_3x3",
    "conv_3x3_trans",
    "conv_3x3_stride_2",
    "conv_3x3_no_pad",
    "conv_7x7_stride_2",
];

/// A wrong kernel, and a part of the output that each build must give: without a sanitizer, with ASan and
/// UBSan, with TSan. "ok" marks a mistake that only another build finds. ASan and TSan end the process at a
/// fault with their own message.
const WRONG: [(&str, [&str; 3]); 46] = [
    // Missing barriers: poison in shared memory shows a read that comes before its write; other thread
    // orders show a write that comes before the read of the old value.
    ("neighbour_no_barrier", ["nan, should be", "nan, should be", "data race"]),
    ("rounds_no_second_barrier", ["wrong: element", "wrong: element", "data race"]),
    ("neighbour_hidden_race", ["ok", "ok", "data race"]),
    ("blocks_race", ["ok", "ok", "data race"]),
    ("uninitialised", ["nan, should be"; 3]),
    // cp.async.
    ("copies_no_wait", ["nan, should be"; 3]),
    ("copies_at_exit", ["exited with cp.async still in flight"; 3]),
    ("copy_misaligned", ["bugs.cu:LINE: shared address not a multiple of 16 bytes"; 3]),
    ("copy_overlong", ["bugs.cu:LINE: destination does not lie within one shared array"; 3]),
    (
        "copy_from_beyond",
        ["past the end of a device allocation", "bugs.cu:LINE: source is not within", "SEGV"],
    ),
    // Divergence.
    (
        "barrier_elsewhere",
        ["divergent sync_block: some threads at bugs.cu:LINE, this one at bugs.cu:LINE"; 3],
    ),
    ("barrier_skipped", ["divergent sync_block"; 3]),
    ("collective_skipped", ["divergent warp collective"; 3]),
    ("collective_elsewhere", ["at bugs.cu:LINE, this one at bugs.cu:LINE"; 3]),
    (
        "collective_against_barrier",
        ["no thread can go on: [from thread 0 on: warp collective at bugs.cu:LINE]"; 3],
    ),
    ("matrix_partial", ["bugs.cu:LINE needs a full warp"; 3]),
    ("matrix_misaligned", ["ldmatrix at bugs.cu:LINE: row address not a multiple of 16 bytes"; 3]),
    // TMA and wgmma.
    ("product_no_empty_wait", [STILL_TO_COME; 3]),
    ("product_no_wait", ["nan, should be"; 3]),
    ("product_no_fence", ["wgmma at products.cu:LINE: no wgmma_fence"; 3]),
    ("product_no_init_fence", ["TMA at products.cu:LINE: mbar_init without mbar_fence_init"; 3]),
    (
        "product_too_few_bytes",
        ["mbar_wait at products.cu:LINE of `full`+0: 0 of 1 arrivals and -16 bytes missing"; 3],
    ),
    ("product_too_many_bytes", ["of `full`+0: 0 of 1 arrivals and 16 bytes missing"; 3]),
    ("product_no_last_wait", ["exited with wgmma still in flight"; 3]),
    ("product_loads_left", ["exited without mbar_wait for the last TMA loads"; 3]),
    ("product_other_operands", ["divergent wgmma at products.cu:LINE"; 3]),
    ("product_loaded_early", [OVERWRITTEN; 3]),
    (
        "product_stored_no_fence",
        ["wgmma at products.cu:LINE: an operand was stored without fence_async_shared"; 3],
    ),
    (
        "handed_unawaited",
        ["[from thread 32 on: named barrier at products.cu:LINE]", "named barrier at", "data race"],
    ),
    // Accesses outside memory.
    (
        "shared_out_of_bounds",
        ["behind shared array `s` of 512 bytes", "out of bounds", "behind shared array `s`"],
    ),
    (
        "dynamic_out_of_bounds",
        ["before shared array `dynamic", "use-after-poison", "before shared array `dynamic"],
    ),
    ("global_out_of_bounds", [PAST_END, "heap-buffer-overflow", "SEGV"]),
    ("global_far_out_of_bounds", [PAST_END, "heap-buffer-overflow", "SEGV"]),
    ("global_read_out_of_bounds", [PAST_END, "heap-buffer-overflow", "SEGV"]),
    ("global_just_out_of_bounds", [JUST_PAST, "heap-buffer-overflow", JUST_PAST]),
    ("null_pointer", ["a null pointer", "bugs.cu:LINE", "SEGV"]),
    ("stack_overflow", ["stack overflow", "stack-overflow", "stack-overflow"]),
    // Arithmetic.
    ("divided_by_zero", ["integer division by zero", "division by zero", "FPE"]),
    ("signed_overflow", ["wrong: element", "signed integer overflow", "wrong: element"]),
    // Launches that the driver would refuse.
    ("shared_too_large", ["at most 48 KiB may be static"; 3]),
    ("block_too_large", ["invalid launch: block of 1025x1x1"; 3]),
    ("grid_empty", ["invalid launch: grid of 0x1x1"; 3]),
    ("dynamic_too_large", ["invalid launch: 232449 bytes of shared memory"; 3]),
    ("grid_too_deep", ["invalid launch: grid of 1x1x65536"; 3]),
    ("block_too_deep", ["invalid launch: block of 1x1x65"; 3]),
    ("shared_too_large_together", ["shared memory of 232960 bytes, at most 227 KiB"; 3]),
];
const STILL_TO_COME: &str =
    "mbar_expect_tx at products.cu:LINE: all 1 threads have arrived, and LINE bytes of the phase";
const OVERWRITTEN: &str =
    "TMA at products.cu:LINE: its destination is an operand of the wgmma at products.cu:LINE";

/// Wrong kernels that fail in some orders only, and the messages of which one must appear.
const WRONG_IN_SOME_ORDER: [(&str, [&str; 2]); 5] = [
    ("product_no_full_wait", [OVERWRITTEN, "data race"]),
    ("product_wrong_parity", [OVERWRITTEN, "data race"]),
    ("product_no_last_barrier", [OVERWRITTEN, "data race"]),
    ("product_no_init_barrier", ["mbar_wait at products.cu:LINE: no mbar_init", "no mbar_init"]),
    ("product_released_early", [OVERWRITTEN, "data race"]),
];

const PAST_END: &str = "past the end of a device allocation of";
const JUST_PAST: &str = "out-of-bounds write behind the device allocation of 300 bytes";

struct Driver {
    folder: tempfile::TempDir,
    /// The command line: GCC 12's TSan needs address randomisation switched off on some Linux kernels.
    start: Vec<String>,
}

fn skip(why: &str) -> Option<Driver> {
    assert!(std::env::var_os("DFKA_REQUIRE_EMU").is_none(), "{why}");
    skipped(why);
    None
}

/// Compiles with g++, in `folder`.
pub fn compile(folder: &Path, flags: &[&str], args: &[PathBuf]) -> Result<(), String> {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut c = Command::new("g++");
    c.args(["-std=c++17", "-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-fstack-clash-protection"]);
    c.args(["-Wall", "-Wextra", "-Werror", "-pthread", "-I"]).arg(kernels).args(flags).args(args);
    let out = c.current_dir(folder).output().map_err(|e| format!("g++: {e}"))?;
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
}

/// Whether there is g++.
pub fn has_compiler() -> bool {
    match Command::new("g++").arg("--version").output() {
        Ok(_) => true,
        Err(e) => skip(&format!("no g++: {e}")).is_some(),
    }
}

/// Compiles the emulator's runtime. Returns its object files.
pub fn compile_runtime(folder: &Path, define: &[&str]) -> [PathBuf; RUNTIME.len()] {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/emu");
    let flags = [define, &["-c"]].concat();
    compile(folder, &flags, &RUNTIME.map(|f| sources.join(f).with_extension("cpp"))).unwrap();
    RUNTIME.map(|f| folder.join(f).with_extension("o"))
}

/// Compiles the test program: `define` applies to the runtime and the kernels, `instrument` to the kernels
/// only.
fn build(define: &[&str], instrument: &[&str]) -> Option<Driver> {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    if !has_compiler() {
        return None;
    }
    if !instrument.is_empty() {
        std::fs::write(at.join("empty.cpp"), "int main() {}\n").unwrap();
        if let Err(e) = compile(at, instrument, &["empty.cpp".into(), "-o".into(), "empty".into()]) {
            return skip(&format!("no library for {instrument:?}: {e}"));
        }
    }
    let runtime = compile_runtime(at, define);
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/emulator/bugs_main.cpp");
    let args = [&[program, "-o".into(), "bugs".into()], &runtime[..]].concat();
    compile(at, &[define, instrument].concat(), &args).unwrap();

    let program = at.join("bugs").to_str().unwrap().to_owned();
    let mut driver = Driver { folder, start: vec![program.clone()] };
    if driver.run("neighbour_right", 0).contains("unexpected memory mapping") {
        driver.start = ["setarch", "-R", &program].map(String::from).to_vec();
        let text = driver.run("neighbour_right", 0);
        if text != "ok\n" {
            return skip(&format!("ThreadSanitizer cannot run here: {text}"));
        }
    }
    Some(driver)
}

impl Driver {
    /// Everything that the program printed for one case. Panics after `TIME_LIMIT`.
    fn run(&self, case: &str, order: u32) -> String {
        let path = self.folder.path().join(format!("{case}.{order}"));
        let file = File::create(&path).unwrap();
        let mut c = Command::new(&self.start[0]);
        c.args(&self.start[1..]).arg(case).current_dir(self.folder.path());
        if !ALONE.contains(&case) {
            c.arg(order.to_string());
        }
        // TSan otherwise sleeps for a second at exit.
        c.env("TSAN_OPTIONS", "atexit_sleep_ms=0").env("ASAN_OPTIONS", "detect_leaks=0");
        let mut child = c.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begun.elapsed() > TIME_LIMIT {
                child.kill().unwrap();
                panic!("{case}, order {order}: still running after {TIME_LIMIT:?}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()
    }

    /// Runs cases, several at a time, and hands each case's text to `check`. ThreadSanitizer spends up to two seconds
    /// in a process, mostly in the kernel, on memory for its fibers.
    fn run_all(
        &self,
        cases: impl Iterator<Item = &'static str>,
        orders: &[u32],
        mut check: impl FnMut(&str, u32, &str),
    ) {
        let all = cases.flat_map(|case| {
            let orders = if ALONE.contains(&case) { &orders[..1] } else { orders };
            orders.iter().map(move |order| (case, *order))
        });
        let all: Vec<(&str, u32)> = all.collect();
        for some in all.chunks(AT_ONCE) {
            let texts: Vec<String> = std::thread::scope(|scope| {
                let runs: Vec<_> = some.iter().map(|(c, o)| scope.spawn(|| self.run(c, *o))).collect();
                runs.into_iter().map(|run| run.join().unwrap()).collect()
            });
            some.iter().zip(&texts).for_each(|((case, order), text)| check(case, *order, text));
        }
    }

    fn check(&self, variant: usize) {
        let is_right = |case: &str, order: u32, text: &str| assert_eq!(text, "ok\n", "{case}, order {order}");
        // What a sanitizer has no influence on runs in one order there.
        let orders = if variant == 0 { &ORDERS[..] } else { &[3] };
        self.run_all(RIGHT.into_iter().chain(PRODUCTS), orders, is_right);
        for (case, expected) in WRONG_IN_SOME_ORDER {
            let mut texts = Vec::new();
            self.run_all([case].into_iter(), &ORDERS, |_, _, text| texts.push(text.to_string()));
            let found = texts.iter().any(|t| expected.iter().any(|e| has_pattern(t, e)));
            assert!(found, "{case}: none of `{expected:?}` in:\n{texts:#?}");
        }
        let is_wrong = |case: &str, order: u32, text: &str| {
            let (_, expected) = WRONG.iter().find(|(c, _)| *c == case).unwrap();
            let found = has_pattern(text, expected[variant]);
            assert!(found, "{case}, order {order}: no `{}` in:\n{text}", expected[variant]);
        };
        let (same, other): (Vec<_>, Vec<_>) = WRONG.into_iter().partition(|(_, e)| e[variant] == e[0]);
        self.run_all(same.into_iter().map(|(case, _)| case), orders, is_wrong);
        self.run_all(other.into_iter().map(|(case, _)| case), &[0, 3], is_wrong);
    }
}

/// Cases that run at a time.
const AT_ONCE: usize = 5;

/// Cases that take no order.
const ALONE: [&str; 2] = ["arithmetic", "again"];

/// Whether `text` contains the pattern `piece`, in which LINE stands for any number.
fn has_pattern(text: &str, piece: &str) -> bool {
    let parts: Vec<&str> = piece.split("LINE").collect();
    text.match_indices(parts[0]).any(|(at, first)| {
        let mut rest = &text[at + first.len()..];
        parts[1..].iter().all(|part| {
            let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            let numbered = after.len() < rest.len();
            rest = after.strip_prefix(part).unwrap_or("");
            numbered && after.starts_with(part)
        })
    })
}

/// The instruction set that the build script uses too; the sanitizers' builds keep to the baseline.
const NATIVE: &[&str] = if cfg!(target_arch = "x86_64") { &["-march=x86-64-v3"] } else { &[] };

#[test]
fn finds_bugs_plainly() {
    // The runtime catches faults on x86-64 only.
    if cfg!(target_arch = "x86_64")
        && let Some(driver) = build(NATIVE, &[])
    {
        driver.check(0);
    }
}

/// Processors other than x86-64 switch fibers by `ucontext`.
#[test]
fn switches_with_ucontext() {
    let Some(driver) = build(&["-DEMU_UCONTEXT"], &[]) else { return };
    for case in ["again", "rounds_right", "sum_right", "copies_right"] {
        for order in [0, 1, 2] {
            assert_eq!(driver.run(case, order), "ok\n", "{case}, order {order}");
        }
    }
}

#[test]
fn finds_bugs_with_address_sanitizer() {
    let instrument =
        ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-fno-omit-frame-pointer"];
    if let Some(driver) = build(&["-DEMU_ASAN=1"], &instrument) {
        driver.check(1);
    }
}

#[test]
fn finds_bugs_with_thread_sanitizer() {
    let instrument = ["-fsanitize=thread", "-g", "-fno-omit-frame-pointer"];
    if let Some(driver) = build(&["-DEMU_TSAN=1"], &instrument) {
        driver.check(2);
    }
}
