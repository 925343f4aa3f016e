//! The Rust source of the kernel table, which `src/device/gpu/kernel.rs` includes.

use crate::emulator::entry;
use crate::gpu::Built;
use crate::source::Parameter;
use crate::sources::Sources;
use std::fmt::{Result, Write};

pub fn table(sources: &Sources, compiled: &[Built], emulated: bool) -> String {
    let mut t = String::new();
    let written = modules(&mut t, sources, compiled)
        .and_then(|()| kernels(&mut t, sources, compiled, emulated))
        .and_then(|()| headers(&mut t, sources))
        .and_then(|()| if emulated { entries(&mut t, sources) } else { Ok(()) });
    written.expect("writing to a string does not fail");
    t
}

fn modules(t: &mut String, sources: &Sources, compiled: &[Built]) -> Result {
    t.push_str("pub static MODULES: &[Module] = &[\n");
    for (module, built) in sources.modules.iter().zip(compiled) {
        writeln!(
            t,
            "Module {{ stem: {:?}, source: include_str!({:?}), images: &[",
            module.stem, module.path
        )?;
        for (target, stem) in &built.images {
            let at = |e: &str| format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{stem}.{e}\"))");
            let (cubin, ptx) = (at("cubin"), at("ptx"));
            writeln!(t, "Image {{ target: {target:?}, cubin: {cubin}, ptx: {ptx} }},")?;
        }
        t.push_str("] },\n");
    }
    t.push_str("];\n");
    Ok(())
}

fn kernels(t: &mut String, sources: &Sources, compiled: &[Built], emulated: bool) -> Result {
    t.push_str("pub static KERNELS: &[Kernel] = &[\n");
    for (m, (module, built)) in sources.modules.iter().zip(compiled).enumerate() {
        for (i, k) in module.kernels.iter().enumerate() {
            let parameters: Vec<String> = k.parameters.iter().map(parameter).collect();
            let symbol = built.symbols.get(i).map_or("", String::as_str);
            let figures: Vec<[u32; 3]> = built.figures.iter().map(|f| f[i]).collect();
            let emulated = if emulated { format!("Some({})", entry(&module.stem, i)) } else { "None".into() };
            writeln!(
                t,
                "Kernel {{ name: {:?}, module: {m}, symbol: {symbol:?}, threads: {}, needs_90a: {}, parameters: &[{}], \
                 figures: &{figures:?}, emulated: {emulated} }},",
                k.instance,
                k.threads,
                k.needs_90a,
                parameters.join(", "),
            )?;
        }
    }
    t.push_str("];\n");
    Ok(())
}

fn headers(t: &mut String, sources: &Sources) -> Result {
    t.push_str("pub static HEADERS: &[(&str, &str)] = &[\n");
    for (name, _) in &sources.headers {
        writeln!(t, "({name:?}, include_str!({:?})),", sources.root.join(name))?;
    }
    t.push_str("];\n");
    Ok(())
}

/// Declarations of the emulated kernels.
fn entries(t: &mut String, sources: &Sources) -> Result {
    t.push_str("unsafe extern \"C\" {\n");
    for module in &sources.modules {
        for i in 0..module.kernels.len() {
            writeln!(t, "fn {}(arguments: *mut *mut std::ffi::c_void);", entry(&module.stem, i))?;
        }
    }
    t.push_str("}\n");
    Ok(())
}

/// A parameter as Rust source.
fn parameter(p: &Parameter) -> String {
    match p {
        Parameter::Structure(name) => format!("Parameter::Structure({name:?})"),
        other => format!("Parameter::{other:?}"),
    }
}
