//! The program on a CUDA driver without a GPU (`tests/fakecuda/`), which refuses what NVIDIA's refuses, delays
//! work until somebody waits for it, and runs kernels with the emulator. A run must give the emulator's bits.

use crate::common::{self, Lab, skipped};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The folder of the fake `libcuda.so.1`, built once. None without g++ or NVRTC, which it needs.
fn driver() -> Option<&'static PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fakecuda");
        let script = common::root().join("tests/fakecuda/build.sh");
        let done = Command::new(script).args([Path::new(env!("OUT_DIR")), &folder]).output();
        match done {
            Ok(o) if o.status.success() => Ok(folder),
            Ok(o) if o.status.code() == Some(2) => Err(stderr(&o)), // no NVRTC or no g++
            Ok(o) => panic!("the fake driver does not build: {}", stderr(&o)),
            Err(e) => Err(e.to_string()),
        }
    };
    match BUILT.get_or_init(build) {
        Ok(folder) => Some(folder),
        Err(e) => {
            assert!(std::env::var_os("DFKA_REQUIRE_NVRTC").is_none(), "the fake driver does not build: {e}");
            skipped(&format!("no fake CUDA driver: {e}"));
            None
        }
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A run of a few steps on `device`, and what it and the driver printed.
fn run(lab: &Lab, out: &str, device: &str, settings: &[(&str, &str)]) -> Option<(Output, String)> {
    let sets =
        ["generator.steps=3", "dual.steps=[3, 2, 1, 1]", "generator.batch=2", "dual.batch=2", "dual.bank=4"];
    let sets = sets.iter().flat_map(|s| ["--set", s]);
    let args: Vec<&str> =
        ["run", "c.toml", "--out", out, "--device", device].into_iter().chain(sets).collect();
    let mut program = lab.program(&args);
    program.env("LD_LIBRARY_PATH", driver()?).env("FAKECUDA_REPORT", "1").envs(settings.iter().copied());
    let output = program.output().unwrap();
    let text = stderr(&output);
    Some((output, text))
}

/// How often the driver was called by that name, by its report.
fn calls(text: &str, name: &str) -> usize {
    let count = |line: &str| {
        let mut words = line.strip_prefix("fakecuda: ")?.split_whitespace();
        let count = words.next()?.parse().ok()?;
        (words.next()? == name).then_some(count)
    };
    text.lines().find_map(count).unwrap_or(0)
}

#[test]
fn the_driver_refuses_what_nvidias_refuses() {
    let Some(folder) = driver() else { return };
    let program = folder.join("selftest");
    let source = common::root().join("tests/fakecuda/selftest.cpp");
    let library = folder.join("libcuda.so.1");
    let built =
        Command::new("g++").arg("-std=c++17").args([&source, &library]).arg("-o").arg(&program).output();
    let built = built.unwrap();
    assert!(built.status.success(), "{}", stderr(&built));
    let cubin = |stem: &str| {
        let begins = format!("{stem}.sm_90a.");
        let files = std::fs::read_dir(env!("OUT_DIR")).unwrap().map(|f| f.unwrap().path());
        let is_ours = |p: &PathBuf| {
            p.extension().is_some_and(|e| e == "cubin")
                && p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&begins))
        };
        files.filter(is_ours).max_by_key(|p| p.metadata().unwrap().modified().unwrap()).unwrap()
    };
    let mut command = Command::new(program);
    command.args([cubin("cast"), cubin("conv2d_fwd")]).env("LD_LIBRARY_PATH", folder);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains(" as expected, 0 not"), "{text}{}", stderr(&output));
}

#[test]
fn a_run_gives_the_emulators_bits_and_leaves_nothing_allocated() {
    let lab = Lab::new();
    let Some((on_emu, text)) = run(&lab, "emu", "emu", &[]) else { return };
    assert!(on_emu.status.success(), "{text}");
    let ways = [
        ("graphs", ("FAKECUDA_EAGER", "0")),
        ("eager", ("FAKECUDA_EAGER", "1")),
        ("waits", ("DFKA_SYNC", "1")),
    ];
    for (out, setting) in ways {
        let (_, text) = run(&lab, out, "cuda", &[setting]).unwrap();
        assert!(!text.contains("refused"), "{text}");
        assert!(text.contains("at exit: 0 allocations (0 bytes), 0 pinned, 0 streams"), "{text}");
        assert!(lab.bytes("emu/student.npz") == lab.bytes(&format!("{out}/student.npz")), "{out}");
        let captured = calls(&text, "cuGraphLaunch") > 5 && calls(&text, "cuStreamEndCapture") >= 3;
        assert_eq!(captured, out != "waits", "{text}");
    }
}

/// Compute capability 8.0 and 8.6 get machine code for 8.0, and 10.0 gets assembly. `wgmma` and TMA exist on
/// 9.0 only.
#[test]
fn other_cards_get_kernels_that_they_can_run() {
    let lab = Lab::new();
    for (i, sm) in ["80", "86", "100"].into_iter().enumerate() {
        let Some((output, text)) = run(&lab, sm, "cuda", &[("FAKECUDA_SM", sm)]) else { return };
        assert!(output.status.success() && calls(&text, "cuTensorMapEncodeIm2col") == 0, "{text}");
        assert!(i == 0 || lab.bytes("80/student.npz") == lab.bytes(&format!("{sm}/student.npz")), "{sm}");
    }
}

#[test]
fn a_device_that_cannot_run_the_kernels_is_an_error_that_says_why() {
    let lab = Lab::new();
    let cases = [
        ("FAKECUDA_DEVICES", "0", 5, "no CUDA-capable device"),
        ("FAKECUDA_SM", "75", 5, "the kernels need 8.0"),
        ("FAKECUDA_DRIVER", "12080", 5, "compiled by a newer NVRTC"),
        ("FAKECUDA_MEMORY_MB", "1", 6, "generator: "),
    ];
    for (i, (key, value, code, piece)) in cases.into_iter().enumerate() {
        let Some((output, text)) = run(&lab, &format!("{i}"), "cuda", &[(key, value)]) else { return };
        assert!(
            output.status.code() == Some(code) && text.contains(piece),
            "{key}: {:?} {text}",
            output.status
        );
    }
}

/// Every function of the driver fails once, at its first call and half-way. The program must succeed or end with an
/// error in words, never by a panic (exit code 101) or a signal, and must free its memory.
#[test]
fn a_call_that_fails_is_an_error() {
    let lab = Lab::new();
    let Some((_, whole)) = run(&lab, "whole", "cuda", &[]) else { return };
    let names: Vec<&str> = whole
        .lines()
        .filter_map(|l| l.strip_prefix("fakecuda: ")?.split_whitespace().nth(1))
        .filter(|n| n.starts_with("cu"))
        .collect();
    assert!(names.len() > 30, "{whole}");
    // A capture that fails, for its own reason or for a launch's, is a note, and the steps are launched one by one.
    let captures = ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"];
    // Nobody is told about what fails while memory is given back, or while an error is put in words.
    let silent = ["Destroy", "Free", "ErrorString", "ExportTable"];
    for name in names {
        for nth in [1, calls(&whole, name).div_ceil(2)] {
            let fail = format!("{name}@{nth}=999");
            let (output, text) =
                run(&lab, &format!("{name}-{nth}"), "cuda", &[("FAKECUDA_FAIL", &fail)]).unwrap();
            let code = output.status.code();
            let is_noted = text.contains("could not make a CUDA graph of a step");
            let succeeds = is_noted || silent.iter().any(|s| name.contains(s));
            let fits = if succeeds { code == Some(0) } else { matches!(code, Some(1..=9)) };
            assert!(fits, "{fail}: {:?} {text}", output.status);
            assert!(is_noted || !captures.contains(&name), "{fail}: {text}");
            assert!(code == Some(0) || text.contains("(CUDA error 999)"), "{fail}: {text}");
            // Memory that the driver did not free when it was asked to is still there.
            let is_freed = text.contains("at exit: 0 allocations (0 bytes), 0 pinned");
            assert!(is_freed || name.starts_with("cuMemFree"), "{fail}: {text}");
        }
    }
}

#[test]
fn doctor_names_the_driver_it_opened_and_tries_a_kernel() {
    let (lab, Some(folder)) = (Lab::new(), driver()) else { return };
    let doctor = |setting: (&str, &str)| {
        let mut program = lab.program(&["doctor"]);
        let output = program.env("LD_LIBRARY_PATH", folder).envs([setting]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let text = doctor(("FAKECUDA_SM", "90"));
    assert!(text.contains(&folder.join("libcuda.so.1").display().to_string()), "{text}");
    assert!(text.contains("ran on cuda:0, with the right result"), "{text}");
    let text = doctor(("FAKECUDA_FAIL", "cuLaunchKernel@1=999"));
    assert!(text.contains("failed on cuda:0: "), "{text}");
}

/// A toolkit's stub, and a library that is no driver at all.
#[test]
fn what_is_no_driver_is_named_with_its_file() {
    let lab = Lab::new();
    if Command::new("g++").arg("--version").output().is_err() {
        return skipped("no g++");
    }
    let cases = [(34, "is a CUDA toolkit's stub and no driver"), (0, "has no function cuDriverGetVersion")];
    for (status, message) in cases {
        let library = lab.path("libcuda.so.1");
        let source = format!("extern \"C\" int cuInit(unsigned) {{ return {status}; }}\n");
        std::fs::write(lab.path("stub.cpp"), source).unwrap();
        let mut build = Command::new("g++");
        build.args(["-shared", "-fPIC"]).arg(lab.path("stub.cpp")).arg("-o").arg(&library);
        assert!(build.status().unwrap().success());
        let mut program = lab.program(&["run", "c.toml", "--out", "out", "--device", "cuda"]);
        let output = program.env("LD_LIBRARY_PATH", library.parent().unwrap()).output().unwrap();
        let text = stderr(&output);
        assert!(output.status.code() == Some(5) && text.contains(message), "{:?} {text}", output.status);
        assert!(text.contains(&library.display().to_string()), "{text}");
        assert!(!lab.path("out").exists(), "a folder was made before the device was opened");
    }
}

#[test]
fn a_machine_without_a_driver_is_told_to_install_one() {
    let lab = Lab::new();
    let mut program = lab.program(&["run", "c.toml", "--out", "out", "--device", "cuda"]);
    let output = program.env("LD_LIBRARY_PATH", "").output().unwrap();
    if output.status.code() != Some(5) {
        return skipped("this machine has a CUDA driver");
    }
    let text = stderr(&output);
    assert!(text.contains("no NVIDIA driver: libcuda.so.1 is neither in LD_LIBRARY_PATH"), "{text}");
    assert!(text.contains("install NVIDIA's driver") && text.contains("or use --device cpu"), "{text}");
}
