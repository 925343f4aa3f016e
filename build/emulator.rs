//! Kernels for the CPU: a C++ compiler compiles every source, and the runtime that gives each CUDA thread a
//! fiber. An object stays in OUT_DIR under the fingerprint of its inputs, so that only sources that changed
//! are compiled.

use crate::parallel;
use crate::sources::{Module, Sources, read, required, write};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, iter};

/// One file to compile.
struct Unit {
    stem: String,
    path: PathBuf,
    /// All of the text that is compiled, without the headers.
    text: String,
}

/// Compiles the emulator and links it; false if no compiler builds it, or with `DFKA_EMU=off`.
pub fn build(sources: &Sources, out: &Path) -> bool {
    if env::var("DFKA_EMU").is_ok_and(|v| v == "off") {
        return false;
    }
    if let Err(e) = archive(sources, out) {
        if required("DFKA_REQUIRE_EMU") {
            panic!("DFKA_REQUIRE_EMU is set, and the emulator does not compile: {e}");
        }
        println!("cargo:warning=no C++ compiler that builds the kernel emulator (--device emu): {e}");
        return false;
    }
    println!("cargo:rustc-cfg=has_emulator");
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static=dfka_emu");
    println!("cargo:rustc-link-lib=dylib=stdc++");
    true
}

/// Compiles all sources that have no object yet, and makes `libdfka_emu.a` of all objects. Writes the compiler
/// and its flags to `emulator.flags`, for tests/fakecuda/build.sh.
fn archive(sources: &Sources, out: &Path) -> Result<(), String> {
    let tool = flags(sources).try_get_compiler().map_err(|e| e.to_string())?;
    let version = Command::new(tool.path()).arg("--version").output();
    let version = version.map_err(|e| format!("{}: {e}", tool.path().display()))?.stdout;
    let command = iter::once(tool.path().as_os_str()).chain(tool.args().iter().map(|a| a.as_os_str()));
    let lines: Vec<_> = command.map(|part| part.to_string_lossy()).collect();
    write(&out.join("emulator.flags"), lines.join("\n"));

    let objects = parallel::map(&units(sources, out), |unit| {
        let settings = (tool.path(), tool.args(), &version);
        let fingerprint = sources.fingerprint(&unit.text, &settings);
        let object = out.join(format!("{}.{fingerprint:016x}.o", unit.stem));
        if !object.exists() {
            // The object has another name until it is complete, because a build may be interrupted.
            let partial = object.with_extension("partial");
            let mut command = tool.to_command();
            command.arg("-c").arg(&unit.path).arg("-o").arg(&partial);
            let output = command.output().map_err(|e| format!("{}: {e}", tool.path().display()))?;
            if !output.status.success() {
                // Only the first line that names an error, because cargo shows one line of a warning.
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                let line = text.lines().find(|l| l.contains("error")).unwrap_or(text.trim());
                return Err(format!("{}: {}: {line}", unit.path.display(), output.status));
            }
            fs::rename(&partial, &object).map_err(|e| format!("{}: {e}", object.display()))?;
        }
        Ok(object)
    });
    let objects = objects.into_iter().collect::<Result<Vec<_>, String>>()?;
    let mut archive = cc::Build::new();
    archive.cpp(true).cargo_metadata(false).cargo_warnings(false).objects(objects);
    archive.try_compile("dfka_emu").map_err(|e| e.to_string())
}

fn flags(sources: &Sources) -> cc::Build {
    let mut b = cc::Build::new();
    b.cpp(true).std("c++17").opt_level(2).include(&sources.root);
    b.warnings(false).cargo_metadata(false).cargo_warnings(false);
    // No contraction to fused multiply-add, because Rust has none: the emulator must round as the CPU device
    // does.
    b.flag("-ffp-contract=off").flag("-fno-strict-aliasing").flag("-pthread");
    // A fiber's stack overflow must hit its guard page.
    b.flag("-fstack-clash-protection");
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|a| a == "x86_64") {
        b.flag("-march=x86-64-v3");
    }
    b
}

fn units(sources: &Sources, out: &Path) -> Vec<Unit> {
    let runtime = sources.runtime.iter().map(|path| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        Unit { stem: format!("emu_{stem}"), path: path.clone(), text: read(path) }
    });
    let kernels = sources.modules.iter().map(|module| {
        let (path, wrapper) = (out.join(format!("{}.emu.cpp", module.stem)), wrapper(module));
        write(&path, &wrapper);
        let text = format!("{wrapper}{}", module.text);
        Unit { stem: module.stem.clone(), path, text }
    });
    runtime.chain(kernels).collect()
}

/// The translation unit of a module's emulated kernels: a namespace of its own, because helpers in two files
/// may have the same name, and an entry for every instance.
fn wrapper(module: &Module) -> String {
    let (stem, file) = (&module.stem, module.path.display().to_string());
    let mut text = format!("#include \"emu/emu.h\"\nnamespace kernels_{stem} {{\n#include {file:?}\n");
    for (i, k) in module.kernels.iter().enumerate() {
        let (entry, instance) = (entry(stem, i), &k.instance);
        writeln!(text, "extern \"C\" void {entry}(void** a) {{ emu::call(&{instance}, a); }}").unwrap();
    }
    text.push_str("}\n");
    text
}

/// The C name of an emulated kernel.
pub fn entry(stem: &str, instance: usize) -> String {
    format!("dfka_emu_{stem}_{instance}")
}
