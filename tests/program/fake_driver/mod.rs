//! The program on a CUDA driver without a GPU (`tests/fakecuda/`), which refuses what NVIDIA's refuses, delays
//! work until somebody waits for it, and runs kernels with the emulator. A run must give the emulator's bits.

mod copies;
mod cublaslt;
mod ranks;

use crate::common::{self, Lab, skipped};
use dfka_engine::device::gpu::nvrtc::{Nvrtc, folders};
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
    run_with(lab, out, device, settings, &["generator.steps=3", "dual.steps=[3, 2, 1, 1]"])
}

/// As [`run`], with changes to the config.
fn run_with(
    lab: &Lab,
    out: &str,
    device: &str,
    settings: &[(&str, &str)],
    sets: &[&str],
) -> Option<(Output, String)> {
    let few = ["generator.batch=2", "dual.batch=2", "dual.bank=4"];
    let is_set = |few: &&&str| !sets.iter().any(|s| s.split('=').next() == few.split('=').next());
    let sets = few.iter().filter(is_set).chain(sets).flat_map(|s| ["--set", s]);
    let command = ["run", "c.toml", "--out", out, "--force", "--device", device];
    let args: Vec<&str> = command.into_iter().chain(sets).collect();
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

/// Twice the steps wait once more in each of five stages, for the metrics of 16 steps, and for one more picture of the
/// generator's. No copy comes from or goes to memory that is not pinned.
#[test]
fn a_step_of_training_waits_for_nothing() {
    let lab = Lab::new();
    let waits = |steps: usize| {
        // A checkpoint that is written because 20 seconds have passed would be a wait more.
        let sets = [
            format!("generator.steps={steps}"),
            format!("dual.steps=[{steps}, {steps}, {steps}, {steps}]"),
            "checkpoint_seconds=1e6".into(),
        ];
        let out = steps.to_string();
        let (output, text) =
            run_with(&lab, &out, "cuda", &[], &sets.iter().map(String::as_str).collect::<Vec<_>>())?;
        assert!(output.status.success(), "{text}");
        assert!(text.contains("pageable copies: 0 up, 0 down"), "{text}");
        Some(["cuStreamSynchronize", "cuEventSynchronize", "cuCtxSynchronize"].map(|name| calls(&text, name)))
    };
    let (Some(short), Some(long)) = (waits(16), waits(32)) else { return };
    // The states of steps lie in a ring of pinned memory, which the program waits for once in 32 steps.
    let (stages, pictures, rings) = (5, 1, 5 * 16 / 32 + 1);
    assert_eq!([long[0] - short[0], long[2]], [stages + pictures, short[2]], "{short:?} {long:?}");
    assert!(long[1] - short[1] <= rings, "{short:?} {long:?}");
}

/// A profiler records the steps that `--profile` names, of the stages that have them: only the generator has a step 1.
#[test]
fn a_profiler_records_the_steps_that_it_is_told_to() {
    let lab = Lab::new();
    let Some(folder) = driver() else { return };
    let run = ["run", "c.toml", "--out", "out", "--device", "cuda", "--profile", "1..2", "--quiet"];
    let few = ["generator.steps=3", "dual.steps=[1, 1, 1, 1]", "generator.batch=2", "dual.batch=2"];
    let args: Vec<&str> = run.into_iter().chain(few.iter().flat_map(|s| ["--set", s])).collect();
    let mut program = lab.program(&args);
    let output = program.env("LD_LIBRARY_PATH", folder).env("FAKECUDA_REPORT", "1").output().unwrap();
    let text = stderr(&output);
    assert!(output.status.success() && !text.contains("refused"), "{text}");
    assert_eq!(["cuProfilerStart", "cuProfilerStop"].map(|name| calls(&text, name)), [1, 1], "{text}");
}

/// What `check` forecasts of the GPU's memory with these changes to the config, in MB.
fn forecast(lab: &Lab, sets: &[&str]) -> f64 {
    let json = ["check", "c.toml", "--json", "--card", "h200"].into_iter();
    let args: Vec<&str> = json.chain(sets.iter().flat_map(|s| ["--set", s])).collect();
    let found: serde_json::Value = serde_json::from_slice(&lab.call(&args).stdout).unwrap();
    let peak = &found["forecast"]["gpu_peak_bytes"];
    peak.as_f64().unwrap_or_else(|| panic!("{found}")) / 1e6
}

/// Too little memory names a batch that fits, and leaves a folder that the next run can use.
#[test]
fn too_little_memory_names_a_batch_that_fits() {
    let lab = Lab::new();
    for (megabytes, batch) in [(40, 1000), (400, 10_000)] {
        let both = "generator.teachers_at_once=2";
        let steps = ["generator.steps=1", "dual.steps=[1, 1, 1, 1]", both];
        let (memory, bank) = (megabytes.to_string(), format!("dual.bank={batch}"));
        let try_with = |batch: &str, bank: &str| {
            let batch = format!("generator.batch={batch}");
            let sets = [&steps[..], &[&batch, bank]].concat();
            run_with(&lab, "out", "cuda", &[("FAKECUDA_MEMORY_MB", &memory)], &sets)
        };
        let Some((output, text)) = try_with(&batch.to_string(), &bank) else { return };
        assert_eq!(output.status.code(), Some(6), "{text}");
        let named = text.split_once("--set generator.batch=").expect(&text).1;
        let named: String = named.chars().take_while(char::is_ascii_digit).collect();
        assert!(text.contains(", or one teacher at a time: --set generator.teachers_at_once=1"), "{text}");
        let needed = forecast(&lab, &[&format!("generator.batch={named}"), &bank, both]);
        let megabytes = f64::from(megabytes);
        assert!(needed < megabytes && needed > 0.9 * megabytes, "{named}: {needed} of {megabytes} MB");
        let (output, text) = try_with("8", "dual.bank=8").unwrap();
        assert!(output.status.success(), "{text}");
    }
}

/// What `check` forecasts is what a run needs, to a megabyte. With less, the teachers take turns by themselves.
#[test]
fn a_run_needs_the_memory_that_check_forecasts() {
    let lab = Lab::new();
    let sets = [
        "generator.steps=1",
        "dual.steps=[1, 1, 1, 1]",
        "generator.batch=400",
        "dual.bank=400",
        "precision=\"f32\"",
    ];
    let needed = forecast(&lab, &[&sets[..], &["dual.batch=2"]].concat());
    assert!(needed > 40.0 && needed < 400.0, "{needed} MB");
    let both = [&sets[..], &["generator.teachers_at_once=2"]].concat();
    for (megabytes, code, sets, takes_turns) in
        [(needed - 1.0, 6, &both[..], false), (needed - 1.0, 0, &sets, true), (needed + 1.0, 0, &sets, false)]
    {
        let memory = [("FAKECUDA_MEMORY_MB", &*format!("{megabytes:.0}"))];
        let Some((output, text)) = run_with(&lab, "out", "cuda", &memory, sets) else { return };
        assert_eq!(output.status.code(), Some(code), "{needed} MB forecast, {megabytes} there: {text}");
        assert_eq!(text.contains("generator: 1 of 2 teachers at a time"), takes_turns, "{text}");
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

/// Drivers of CUDA 12 run what an NVRTC of CUDA 12 has compiled, from 12.0 on whatever its minor version. Machine code
/// of CUDA 13 needs a driver of CUDA 13.
#[test]
fn older_drivers_run_the_kernels() {
    let lab = Lab::new();
    let Some(nvrtc) = nvrtc_for(12000) else { return skipped("no NVRTC of CUDA 12") };
    for driver in ["13000", "12080", "12040", "12000"] {
        let settings = [("FAKECUDA_DRIVER", driver), ("DFKA_NVRTC_DIR", &nvrtc)];
        let Some((output, text)) = run(&lab, driver, "cuda", &settings) else { return };
        assert!(output.status.success(), "{driver}: {text}");
        assert!(lab.bytes("13000/student.npz") == lab.bytes(&format!("{driver}/student.npz")), "{driver}");
    }
}

/// The driver refuses an image with each status that the image of another compiler may avoid.
#[test]
fn a_refused_image_is_compiled_by_an_nvrtc_that_the_driver_can_use() {
    let lab = Lab::new();
    let Some((_, text)) = run(&lab, "whole", "cuda", &[]) else { return };
    let cache = lab.path("cache").display().to_string();
    let refused = |code: &str, nvrtc: &str, driver: &str| {
        let fail = format!("cuModuleLoadData@1={code}");
        let settings = [
            ("FAKECUDA_FAIL", fail.as_str()),
            ("FAKECUDA_DRIVER", driver),
            ("DFKA_NVRTC_DIR", nvrtc),
            ("HOME", &cache),
            ("XDG_CACHE_HOME", &cache),
            ("VIRTUAL_ENV", ""),
        ];
        run(&lab, code, "cuda", &settings).unwrap()
    };
    let Some(nvrtc) = nvrtc_for(13000) else { return skipped("no NVRTC of CUDA 12 or 13") };
    for code in ["200", "209", "218", "221", "222", "223"] {
        let (output, found) = refused(code, &nvrtc, "13000");
        assert!(output.status.success(), "{code}: {found}");
        assert!(calls(&found, "cuModuleLoadData") == calls(&text, "cuModuleLoadData") + 1, "{code}: {found}");
        assert!(lab.bytes("whole/student.npz") == lab.bytes(&format!("{code}/student.npz")), "{code}");
    }
    let (output, found) = refused("209", "", "13000");
    let says =
        found.contains("no libnvrtc.so in") && found.contains("update the driver, or install an NVRTC");
    assert!(output.status.code() == Some(5) && says, "{:?} {found}", output.status);
    // An NVRTC of CUDA 13 compiles nothing for a driver of CUDA 12.
    let newer = folders().into_iter().find(|d| d.join("libnvrtc.so.13").is_file());
    let Some(newer) = newer else { return skipped("no NVRTC of CUDA 13") };
    let newer = newer.canonicalize().unwrap().display().to_string();
    let (output, found) = refused("209", &newer, "12080");
    let says = found.contains("found only NVRTC 13.") && found.contains("the driver supports CUDA 12.8");
    assert!(output.status.code() == Some(5) && says, "{:?} {found}", output.status);
}

/// The folder of an NVRTC whose code a driver of this CUDA version runs.
fn nvrtc_for(driver: i32) -> Option<String> {
    let found = Nvrtc::open_for(driver).ok()?;
    Some(found.path.parent()?.canonicalize().unwrap().display().to_string())
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
            // A device that is closed waits for its streams, and drops what it is told.
            let may_succeed = name == "cuStreamSynchronize" && code == Some(0);
            let fits = if succeeds { code == Some(0) } else { may_succeed || matches!(code, Some(1..=9)) };
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
