//! Facts that others have set down, against what the kernels and the emulator compute: how TMA stores a box
//! and walks over windows, what the bits of a wgmma descriptor mean, which thread holds which element of a
//! product, and Philox's known answers. The emulator is our own reading of NVIDIA's manual, so that kernels
//! which agree with it could share its mistakes.
//!
//! The expected values are in `facts/`: literals, and plain formulas from NVIDIA's documentation, checked
//! against CUTLASS headers (ea667d6). What the launches encode is checked next to their code
//! (src/ops/layers/conv2d/hopper.rs, src/device/gpu/tensor_map.rs, src/device/gpu/cuda/tensor_maps.rs).
//!
//! Without g++ a test prints that it is skipped; with `DFKA_REQUIRE_EMU` set it fails.

use super::emulator::{compile, compile_runtime, has_compiler};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds a program of `facts/` and compares what it prints with the facts and the number of values that each
/// must have compared.
fn check(program: &str, flags: &[&str], runtime: &[PathBuf], folder: &Path, expected: &[(&str, usize)]) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/facts").join(program);
    let args = [&[source, "-o".into(), "facts".into()], runtime].concat();
    compile(folder, flags, &args).unwrap();
    let output = Command::new(folder.join("facts")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<String> = expected.iter().map(|(fact, count)| format!("{fact}: {count} equal")).collect();
    assert!(output.status.success() && text.lines().eq(&lines), "expected {lines:#?}, found:\n{text}");
}

#[test]
fn the_emulators_instructions_do_what_nvidia_documents() {
    if !has_compiler() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let runtime = compile_runtime(folder.path(), &[]);
    let expected = [
        ("TMA: where the 128-byte swizzle puts an element of a tile", 40_960),
        ("TMA: the pixels of an im2col box", 1_875_968),
        ("wgmma: bits of the emulator's descriptors", 3),
        ("wgmma: operands through the swizzle, and the accumulators of each thread", 57_344),
        ("ldmatrix: the two elements of each lane's registers", 256),
        ("mma.m16n8k16: the fragments of a, b and the sums", 128),
        ("Philox: known answers", 12),
    ];
    check("instructions.cpp", &[], &runtime, folder.path(), &expected);
}

#[test]
fn the_convolution_gives_wgmma_and_tma_the_operands_that_cutlass_does() {
    if !has_compiler() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let flags = ["-Wno-unknown-pragmas", "-Wno-unused-parameter"];
    let expected = [
        ("wgmma: the convolution's descriptors", 2_894),
        ("TMA: the convolution's coordinates and offsets", 53_757),
    ];
    check("operands.cpp", &flags, &[], folder.path(), &expected);
}
