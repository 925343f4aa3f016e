//! Kernels for GPUs: NVRTC compiles every source for every target. A result stays in OUT_DIR under the
//! fingerprint of its inputs, so that only sources that changed are compiled.

use crate::nvrtc::{self, Nvrtc};
use crate::parallel;
use crate::sources::{Module, Sources, read, required, write};
use std::env;
use std::path::Path;

/// The results of one module for all targets; empty without NVRTC.
#[derive(Clone, Default)]
pub struct Built {
    /// Each target, and the stem of its files in OUT_DIR.
    pub images: Vec<(String, String)>,
    /// The symbol of each kernel; empty for a kernel that no target gets.
    pub symbols: Vec<String>,
    /// For each target and each kernel: registers, spilled bytes, static shared bytes. Zeros if the target
    /// does not get the kernel.
    pub figures: Vec<Vec<[u32; 3]>>,
}

/// Compiles every module; the results are in the modules' order.
pub fn compile(sources: &Sources, out: &Path) -> Vec<Built> {
    let targets = targets();
    let nvrtc = |version: &str| println!("cargo:rustc-env=DFKA_BUILT_WITH_NVRTC={version}");
    let compiler = match Nvrtc::open() {
        Ok(compiler) => compiler,
        Err(e) if required("DFKA_REQUIRE_NVRTC") => panic!("DFKA_REQUIRE_NVRTC is set, and there is {e}"),
        Err(e) => {
            println!(
                "cargo:warning={e}: kernels will be compiled when they first run on a GPU (touch build.rs once NVRTC \
                 is installed)"
            );
            nvrtc("");
            return vec![Built::default(); sources.modules.len()];
        }
    };
    let version = compiler.version().unwrap_or_else(|e| panic!("{e}"));
    nvrtc(&format!("{}.{}", version.0, version.1));
    parallel::map(&sources.modules, |module| {
        let mut built = Built { symbols: vec![String::new(); module.kernels.len()], ..Built::default() };
        targets.iter().for_each(|target| built.add(&compiler, version, sources, module, target, out));
        built
    })
}

fn targets() -> Vec<String> {
    let list = env::var("DFKA_CUDA_TARGETS").unwrap_or_else(|_| "sm_80,sm_90a".into());
    list.split(',').map(|t| t.trim().to_string()).filter(|t| !t.is_empty()).collect()
}

impl Built {
    /// Adds `module` for one target, from OUT_DIR if the same text was compiled before.
    fn add(
        &mut self,
        compiler: &Nvrtc,
        version: (i32, i32),
        sources: &Sources,
        module: &Module,
        target: &str,
        out: &Path,
    ) {
        let (indices, instances) = module.instances(target);
        if instances.is_empty() {
            return;
        }
        let fingerprint = sources.fingerprint(&module.text, &(&module.name, target, version, nvrtc::OPTIONS));
        let stem = format!("{}.{target}.{fingerprint:016x}", module.stem);
        let at = |extension: &str| out.join(format!("{stem}.{extension}"));
        if !at("log").exists() {
            let c = compiler
                .compile(&module.name, &module.text, &sources.headers, &instances, target)
                .unwrap_or_else(|e| panic!("kernels/{e}"));
            write(&at("cubin"), &c.cubin);
            write(&at("ptx"), &c.ptx);
            write(&at("symbols"), c.symbols.join("\n"));
            write(&at("log"), &c.log); // last: where it exists, the others are complete
        }
        let (log, symbols) = (read(&at("log")), read(&at("symbols")));
        let mut found = vec![[0; 3]; module.kernels.len()];
        for (index, symbol) in indices.into_iter().zip(symbols.lines()) {
            found[index] = figures(&log, symbol);
            self.symbols[index] = symbol.to_string();
        }
        self.figures.push(found);
        self.images.push((target.into(), stem));
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
