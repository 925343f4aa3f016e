//! Compiles every `kernels/*.cu` twice: for GPUs through NVRTC, and for the CPU emulator through g++. Neither CUDA nor a
//! GPU is needed: without NVRTC the sources are embedded and compile at first use; without a C++ compiler there is no
//! emulator. `DFKA_REQUIRE_NVRTC=1` and `DFKA_REQUIRE_EMU=1` make their absence an error.
//!
//! `DFKA_CUDA_TARGETS` (default `sm_80,sm_90a`) names the devices to compile for; the first also gives the assembly that
//! newer devices' drivers compile. `DFKA_EMU_SANITIZE=address,undefined` or `thread` instruments the emulated kernels.
//! `DFKA_EMU=off` leaves the emulator out although there is a compiler (scripts/fuzz.sh: half of its build's time).

#[path = "src/device/gpu/nvrtc.rs"]
#[allow(dead_code)] // the program uses more of it
mod nvrtc;
#[path = "src/device/gpu/source.rs"]
mod source;

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{env, fs};

/// Every switch that changes what is built.
const SWITCHES: [&str; 10] = [
    "DFKA_EMU",
    "DFKA_REQUIRE_NVRTC",
    "DFKA_REQUIRE_EMU",
    "DFKA_CUDA_TARGETS",
    "DFKA_EMU_SANITIZE",
    "DFKA_NVRTC_DIR",
    "CUDA_PATH",
    "CUDA_HOME",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
];

/// One `kernels/<stem>.cu`.
struct Module {
    stem: String,
    path: PathBuf,
    text: String,
    kernels: Vec<source::Declared>,
}

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=src/device/gpu/nvrtc.rs");
    println!("cargo:rerun-if-changed=src/device/gpu/source.rs");
    println!("cargo:rustc-check-cfg=cfg(has_emulator)");
    SWITCHES.iter().for_each(|s| println!("cargo:rerun-if-env-changed={s}"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let root = fs::canonicalize("kernels").expect("the folder kernels/");
    let headers: Vec<nvrtc::Header> =
        files(&root.join("lib"), "cuh").iter().map(|p| (format!("lib/{}", name(p)), read(p))).collect();
    // The ladder's rungs beside the kernels themselves: what benches/lab.rs times and tests/lab.rs checks must not rot.
    let folders = ["engine", "layers", "losses", "movement", "optim", "random", "lab/conv2d"];
    let sources = folders.map(|f| files(&root.join(f), "cu")).concat();
    let included: String = headers.iter().map(|(_, text)| text.as_str()).collect();
    let modules: Vec<Module> = sources.iter().map(|p| Module::read(p, &included)).collect();
    let compiled = compile_all(&modules, &headers, &out);
    let emulated = build_emulator(&root, &modules, &out);
    fs::write(out.join("kernels.rs"), table(&root, &modules, &headers, &compiled, emulated))
        .expect("OUT_DIR is writable");
}

impl Module {
    fn read(path: &Path, headers: &str) -> Module {
        let text = read(path);
        let kernels = source::kernels(&text, headers).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(!kernels.is_empty(), "{}: no INSTANCE(...) line, so nothing to launch", path.display());
        Module { stem: name(path).trim_end_matches(".cu").into(), path: path.into(), text, kernels }
    }
    /// The kernels that a target gets, and their places.
    fn instances(&self, target: &str) -> Vec<(usize, String)> {
        let all = self.kernels.iter().enumerate();
        all.filter(|(_, k)| source::runs_on(k.needs_90a, target))
            .map(|(i, k)| (i, k.instance.clone()))
            .collect()
    }
}

fn required(switch: &str) -> bool {
    env::var(switch).is_ok_and(|v| v != "0" && !v.is_empty())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Files of `folder` with this extension, sorted.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut found: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    found.retain(|p| p.extension().is_some_and(|e| e == extension));
    found.sort();
    found
}

fn targets() -> Vec<String> {
    let list = env::var("DFKA_CUDA_TARGETS").unwrap_or_else(|_| "sm_80,sm_90a".into());
    list.split(',').map(|t| t.trim().to_string()).filter(|t| !t.is_empty()).collect()
}

/// What one module became for every target; empty without NVRTC.
#[derive(Clone, Default)]
struct Built {
    /// Target, and the stem of the files in OUT_DIR.
    images: Vec<(String, String)>,
    /// Of each kernel; empty for one that no target gets.
    symbols: Vec<String>,
    /// Of each target, each kernel: registers, spilled bytes, static shared bytes. Zeros where the target lacks it.
    figures: Vec<Vec<[u32; 3]>>,
}

fn compile_all(modules: &[Module], headers: &[nvrtc::Header], out: &Path) -> Vec<Built> {
    let compiler = match nvrtc::Nvrtc::open() {
        Ok(compiler) => compiler,
        Err(e) if required("DFKA_REQUIRE_NVRTC") => panic!("DFKA_REQUIRE_NVRTC is set, and there is {e}"),
        Err(e) => {
            println!(
                "cargo:warning={e}: kernels will be compiled where they first run on a GPU (touch build.rs once NVRTC is there)"
            );
            return vec![Built::default(); modules.len()];
        }
    };
    let version = compiler.version().unwrap_or_else(|e| panic!("{e}"));
    let (targets, next) = (targets(), Mutex::new(0));
    let built = Mutex::new(vec![Built::default(); modules.len()]);
    let work = || {
        loop {
            let i = {
                let mut next = next.lock().unwrap();
                *next += 1;
                *next - 1
            };
            let Some(module) = modules.get(i) else { return };
            let b = module.compile(&compiler, version, headers, &targets, out);
            built.lock().unwrap()[i] = b;
        }
    };
    let threads: usize = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    std::thread::scope(|s| (0..threads.min(8)).for_each(|_| drop(s.spawn(work))));
    built.into_inner().unwrap()
}

impl Module {
    /// For every target, from OUT_DIR if the same text was compiled before.
    fn compile(
        &self,
        compiler: &nvrtc::Nvrtc,
        version: (i32, i32),
        headers: &[nvrtc::Header],
        targets: &[String],
        out: &Path,
    ) -> Built {
        let mut built = Built { symbols: vec![String::new(); self.kernels.len()], ..Built::default() };
        for target in targets {
            let (places, instances): (Vec<usize>, Vec<String>) = self.instances(target).into_iter().unzip();
            if instances.is_empty() {
                continue;
            }
            let mut hash = DefaultHasher::new();
            (&self.text, headers, target, version, nvrtc::OPTIONS).hash(&mut hash);
            let stem = format!("{}.{target}.{:016x}", self.stem, hash.finish());
            let at = |extension: &str| out.join(format!("{stem}.{extension}"));
            if !at("log").exists() {
                let c = compiler
                    .compile(&format!("{}.cu", self.stem), &self.text, headers, &instances, target)
                    .unwrap_or_else(|e| panic!("kernels/{e}"));
                let save = |extension: &str, bytes: &[u8]| {
                    fs::write(at(extension), bytes)
                        .unwrap_or_else(|e| panic!("{}: {e}", at(extension).display()));
                };
                save("cubin", &c.cubin);
                save("ptx", &c.ptx);
                save("symbols", c.symbols.join("\n").as_bytes());
                save("log", c.log.as_bytes()); // last: it says that the others are whole
            }
            let (log, symbols) = (read(&at("log")), read(&at("symbols")));
            let mut found = vec![[0; 3]; self.kernels.len()];
            for (place, symbol) in places.into_iter().zip(symbols.lines()) {
                found[place] = figures(&log, symbol);
                built.symbols[place] = symbol.to_string();
            }
            built.figures.push(found);
            built.images.push((target.clone(), stem));
        }
        built
    }
}

/// Registers, spilled bytes and static shared bytes of one kernel, from ptxas' report.
fn figures(log: &str, symbol: &str) -> [u32; 3] {
    let begin = format!("Compiling entry function '{symbol}'");
    let part = log.split_once(&begin).map_or("", |(_, rest)| rest);
    let part = part.split("Compiling entry function").next().unwrap_or_default();
    let before = |what: &str| -> u32 {
        let at = |(i, _): (usize, &str)| part[..i].split_whitespace().next_back()?.parse::<u32>().ok();
        part.match_indices(what).filter_map(at).sum()
    };
    [
        before(" registers"),
        before(" bytes spill stores") + before(" bytes spill loads"),
        before(" bytes smem"),
    ]
}

/// Compiles the kernels as C++; whether there is an emulator.
fn build_emulator(root: &Path, modules: &[Module], out: &Path) -> bool {
    if env::var("DFKA_EMU").is_ok_and(|v| v == "off") {
        return false;
    }
    let sanitize = env::var("DFKA_EMU_SANITIZE").unwrap_or_default();
    let sanitizers: Vec<&str> = sanitize.split(',').filter(|s| !s.is_empty()).collect();
    let base = || {
        let mut b = cc::Build::new();
        b.cpp(true)
            .std("c++17")
            .opt_level(2)
            .include(root)
            .warnings(false)
            .cargo_metadata(false)
            .cargo_warnings(false);
        // No contraction, as Rust has none: what the emulator rounds, the CPU device rounds.
        b.flag("-ffp-contract=off").flag("-fno-strict-aliasing").flag("-pthread");
        // A fiber's stack overflow must meet its guard page.
        b.flag("-fstack-clash-protection");
        if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|a| a == "x86_64") && sanitizers.is_empty() {
            b.flag("-march=x86-64-v3");
        }
        for (sanitizer, define) in [("address", "EMU_ASAN"), ("thread", "EMU_TSAN")] {
            if sanitizers.contains(&sanitizer) {
                b.define(define, "1");
            }
        }
        b
    };
    let mut runtime = base();
    runtime.files(files(&root.join("emu"), "cpp").iter().filter(|p| !name(p).ends_with("_main.cpp")));
    let mut kernels = base();
    if !sanitizers.is_empty() {
        kernels.flag(format!("-fsanitize={sanitize}")).flag("-fno-sanitize-recover=undefined");
        kernels.flag("-g").flag("-fno-omit-frame-pointer");
    }
    for module in modules {
        let file = out.join(format!("{}.emu.cpp", module.stem));
        let text = module.emulated();
        fs::write(&file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        kernels.file(file);
    }
    let result = runtime.try_compile("dfka_emu").and_then(|()| kernels.try_compile("dfka_emu_kernels"));
    if let Err(e) = result {
        if required("DFKA_REQUIRE_EMU") {
            panic!("DFKA_REQUIRE_EMU is set, and the emulator does not compile: {e}");
        }
        println!("cargo:warning=no C++ compiler that builds the kernel emulator (--device emu): {e}");
        return false;
    }
    println!("cargo:rustc-cfg=has_emulator");
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static=dfka_emu_kernels");
    println!("cargo:rustc-link-lib=static=dfka_emu");
    println!("cargo:rustc-link-lib=dylib=stdc++");
    // rustc links with -nodefaultlibs, so that -fsanitize as a link argument adds nothing: name the runtimes.
    for sanitizer in sanitizers {
        let library = match sanitizer {
            "address" => "asan",
            "thread" => "tsan",
            "undefined" => "ubsan",
            other => panic!("DFKA_EMU_SANITIZE: expected address, undefined or thread, found {other}"),
        };
        println!("cargo:rustc-link-lib=dylib={library}");
    }
    true
}

impl Module {
    /// The translation unit of the emulated kernels: in a namespace of its own, because two files may give two helpers
    /// one name.
    fn emulated(&self) -> String {
        let (stem, file) = (&self.stem, self.path.display().to_string());
        let mut text = format!("#include \"emu/emu.h\"\nnamespace kernels_{stem} {{\n#include {file:?}\n");
        for (i, k) in self.kernels.iter().enumerate() {
            let (entry, instance) = (entry(&self.stem, i), &k.instance);
            writeln!(text, "extern \"C\" void {entry}(void** a) {{ emu::call(&{instance}, a); }}").unwrap();
        }
        text.push_str("}\n");
        text
    }
}

/// The emulated kernel's C name.
fn entry(stem: &str, instance: usize) -> String {
    format!("dfka_emu_{stem}_{instance}")
}

/// The Rust source of the kernel table.
fn table(
    root: &Path,
    modules: &[Module],
    headers: &[nvrtc::Header],
    compiled: &[Built],
    emulated: bool,
) -> String {
    let mut t = String::from("pub static MODULES: &[Module] = &[\n");
    for (module, built) in modules.iter().zip(compiled) {
        let source = &module.path;
        writeln!(t, "Module {{ stem: {:?}, source: include_str!({source:?}), images: &[", module.stem)
            .unwrap();
        for (target, stem) in &built.images {
            let at = |e: &str| format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{stem}.{e}\"))");
            let (cubin, ptx) = (at("cubin"), at("ptx"));
            writeln!(t, "Image {{ target: {target:?}, cubin: {cubin}, ptx: {ptx} }},").unwrap();
        }
        t.push_str("] },\n");
    }
    t.push_str("];\npub static KERNELS: &[Kernel] = &[\n");
    for (m, (module, built)) in modules.iter().zip(compiled).enumerate() {
        for (i, k) in module.kernels.iter().enumerate() {
            let parameters: Vec<String> = k.parameters.iter().map(kind).collect();
            let symbol = built.symbols.get(i).map_or("", String::as_str);
            let figures: Vec<[u32; 3]> = built.figures.iter().map(|f| f[i]).collect();
            let emulated = if emulated { format!("Some({})", entry(&module.stem, i)) } else { "None".into() };
            writeln!(
                t,
                "Kernel {{ name: {:?}, module: {m}, symbol: {symbol:?}, threads: {}, needs_90a: {}, parameters: &[{}], \
                 figures: &{figures:?}, \
                 emulated: {emulated} }},",
                k.instance,
                k.threads,
                k.needs_90a,
                parameters.join(", "),
            )
            .unwrap();
        }
    }
    t.push_str("];\npub static HEADERS: &[(&str, &str)] = &[\n");
    for (name, _) in headers {
        writeln!(t, "({name:?}, include_str!({:?})),", root.join(name)).unwrap();
    }
    t.push_str("];\n");
    if emulated {
        t.push_str("unsafe extern \"C\" {\n");
        for (module, i) in modules.iter().flat_map(|m| (0..m.kernels.len()).map(move |i| (m, i))) {
            writeln!(t, "fn {}(arguments: *mut *mut std::ffi::c_void);", entry(&module.stem, i)).unwrap();
        }
        t.push_str("}\n");
    }
    t
}

/// A parameter as the table spells it.
fn kind(p: &source::Parameter) -> String {
    match p {
        source::Parameter::Structure(name) => format!("Parameter::Structure({name:?})"),
        other => format!("Parameter::{other:?}"),
    }
}
