//! Compiles kernels on this machine, when the program was built without NVRTC, and keeps the results.

use crate::device::gpu::kernel::{HEADERS, Kernel, Module};
use crate::device::gpu::nvrtc::{Header, Nvrtc, OPTIONS};
use crate::device::gpu::source::runs_on;
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Compiles a module for a compute capability and a driver's CUDA version (`12080` for 12.8), or reads what an earlier
/// run compiled. Returns the CUBIN and
/// the symbols of `kernels`; a kernel that the target cannot have gets an empty one.
///
/// Errors: no NVRTC whose code the driver runs; what it refuses.
pub(super) fn compile(
    module: &Module,
    kernels: &[&'static Kernel],
    (major, minor): (i32, i32),
    driver: i32,
) -> Result<(Vec<u8>, Vec<String>)> {
    let target = format!("sm_{major}{minor}{}", if major == 9 { "a" } else { "" });
    let none = |e: String| {
        Error::NoDevice(format!("the kernels must be compiled on this machine, which fails: {e}"))
    };
    let compiler = Nvrtc::open_for(driver).map_err(none)?;
    let version = compiler.version().map_err(none)?;
    let (cubin, names) = cached(module, &target, version);
    let there = |k: &&&'static Kernel| runs_on(k.needs_90a, &target);
    let all = |found: Vec<String>| {
        let mut found = found.into_iter();
        let symbol = |k| if there(&k) { found.next().unwrap_or_default() } else { String::new() };
        kernels.iter().map(symbol).collect()
    };
    let instances: Vec<String> = kernels.iter().filter(there).map(|k| k.name.to_string()).collect();
    if let (Ok(cubin), Ok(names)) = (std::fs::read(&cubin), std::fs::read_to_string(&names)) {
        let names: Vec<String> = names.lines().map(str::to_string).collect();
        if names.len() == instances.len() {
            return Ok((cubin, all(names)));
        }
    }
    let headers: Vec<Header> = HEADERS.iter().map(|(n, t)| (n.to_string(), t.to_string())).collect();
    let name = format!("{}.cu", module.stem);
    let compiled = compiler
        .compile(&name, module.source, &headers, &instances, &target)
        .map_err(|e| Error::Run(format!("{}: {e}", compiler.path.display())))?;
    // If the cache cannot be written, the next run spends a second to compile again.
    if std::fs::create_dir_all(cache_folder()).is_ok() {
        let save = |to: &Path, bytes: &[u8]| {
            let partial = to.with_extension(format!("{}.partial", std::process::id()));
            std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, to))
        };
        let _ =
            save(&cubin, &compiled.cubin).and_then(|()| save(&names, compiled.symbols.join("\n").as_bytes()));
    }
    Ok((compiled.cubin, all(compiled.symbols)))
}

/// The files that keep a compiled module and its symbols. Their name is a hash of everything that the result
/// depends on.
fn cached(module: &Module, target: &str, version: (i32, i32)) -> (PathBuf, PathBuf) {
    let mut hash = Sha256::new();
    hash.update(module.source);
    HEADERS.iter().for_each(|(_, text)| hash.update(text));
    hash.update(format!("{target} {version:?} {OPTIONS:?}"));
    let digest: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    let at = |extension: &str| cache_folder().join(format!("{}-{digest}.{extension}", module.stem));
    (at("cubin"), at("symbols"))
}

/// The folder of kernels that were compiled on this machine.
pub fn cache_folder() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
    base.or_else(home).unwrap_or_else(std::env::temp_dir).join("dfka-engine")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_module_has_another_name_for_another_source_target_or_compiler() {
        let module = |source| Module { stem: "fill", source, images: &[] };
        let paths = [
            cached(&module("a"), "sm_80", (13, 0)),
            cached(&module("b"), "sm_80", (13, 0)),
            cached(&module("a"), "sm_90a", (13, 0)),
            cached(&module("a"), "sm_80", (12, 9)),
        ];
        let all: std::collections::BTreeSet<_> = paths.iter().flat_map(|(a, b)| [a, b]).collect();
        assert_eq!(all.len(), 8, "{paths:?}");
    }
}
