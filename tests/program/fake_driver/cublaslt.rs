//! cuBLASLt in place of our kernels for products of matrices (`DFKA_MATMUL=cublaslt`): its stand-in
//! (`tests/fakecuda/cublaslt.cpp`) multiplies. `.ci/run` runs the convolutions' op checks with it.

use super::{calls, run, run_with, stderr};
use crate::common::Lab;

const BY_LIBRARY: (&str, &str) = ("DFKA_MATMUL", "cublaslt");

/// The metrics of the first step of a stage.
fn first_step(lab: &Lab, out: &str, stage: &str) -> serde_json::Map<String, serde_json::Value> {
    let text = String::from_utf8(lab.bytes(&format!("{out}/metrics.jsonl"))).unwrap();
    let lines = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    let mut first = lines.filter(|l| l["stage"] == stage && l["step"] == 0);
    first.next().unwrap()["metrics"].as_object().unwrap().clone()
}

/// The generator's first step agrees but for rounding. Later ones need not, because Adam's first steps are as long for a tiny
/// gradient as for a large one: `.ci/run` compares the losses of whole stages with the CPU's.
#[test]
fn it_computes_what_our_kernels_compute() {
    let lab = Lab::new();
    let sets = ["precision=f32", "generator.steps=3", "dual.steps=[2, 1, 1, 1]"];
    let Some((own, text)) = run_with(&lab, "own", "cuda", &[], &sets) else { return };
    assert!(own.status.success(), "{text}");
    // As captured graphs, and launch by launch.
    for (out, setting) in [("graphs", ("DFKA_SYNC", "0")), ("waits", ("DFKA_SYNC", "1"))] {
        let (done, text) = run_with(&lab, out, "cuda", &[BY_LIBRARY, setting], &sets).unwrap();
        assert!(done.status.success() && !text.contains("refused"), "{text}");
        assert!(text.contains("1x1 convolutions by cuBLASLt 13.1, libcublasLt.so.13"), "{text}");
        assert!(calls(&text, "cuLaunchHostFunc") > 10, "{text}");
        assert_eq!(calls(&text, "cuGraphLaunch") >= 3, out == "graphs", "{text}");
        assert!(text.contains("at exit: 0 allocations (0 bytes)"), "{text}");
    }
    assert!(lab.bytes("graphs/student.npz") == lab.bytes("waits/student.npz"));
    assert!(lab.bytes("graphs/student.npz") != lab.bytes("own/student.npz"), "sums in another order");
    let metrics = first_step(&lab, "own", "generator");
    assert!(metrics.len() > 5, "{metrics:?}");
    for (name, by_library) in first_step(&lab, "graphs", "generator") {
        let [own, by_library] = [&metrics[&name], &by_library].map(|v| v.as_f64().unwrap());
        assert!((own - by_library).abs() <= 1e-5 * own.abs().max(1.0), "{name}: {own}, {by_library}");
    }
}

#[test]
fn what_keeps_it_from_multiplying_is_one_line() {
    let lab = Lab::new();
    let missing = ("DFKA_CUBLASLT", "/nowhere/libcublasLt.so");
    let [unknown, stranger] = [("DFKA_MATMUL", "cublas"), ("DFKA_CUBLASLT", "libcuda.so.1")];
    let fails = |call| ("FAKECUBLASLT_FAIL", call);
    let [create, choose, multiply] =
        ["cublasLtCreate@1", "cublasLtMatmulAlgoGetHeuristic@3", "cublasLtMatmul@2"].map(fails);
    let not_opened = "DFKA_MATMUL=cublaslt: DFKA_CUBLASLT names /nowhere/libcublasLt.so, which does not open";
    let cases = [
        ("cuda", unknown, 2, "DFKA_MATMUL: expected own or cublaslt, found cublas"),
        ("auto", unknown, 2, "DFKA_MATMUL: expected own or cublaslt, found cublas"),
        ("cpu", ("DFKA_SYNC", "0"), 2, "DFKA_MATMUL=cublaslt needs a CUDA device"),
        ("cuda", missing, 5, not_opened),
        ("auto", missing, 5, not_opened),
        ("cuda", stranger, 5, "libcuda.so.1: has no function cublasLtCreate"),
        ("cuda", create, 5, "cublasLtCreate failed: the library was not initialized"),
        (
            "cuda",
            choose,
            1,
            "cublasLtMatmulAlgoGetHeuristic failed: the functionality requested is not supported",
        ),
        ("cuda", multiply, 1, "cublasLtMatmul failed: the GPU program failed to execute"),
    ];
    for (device, setting, code, expected) in cases {
        let Some((done, _)) = run(&lab, "out", device, &[BY_LIBRARY, setting]) else { return };
        let text = stderr(&done);
        let errors: Vec<&str> = text.lines().filter(|l| l.starts_with("error: ")).collect();
        assert!(done.status.code() == Some(code) && errors.len() == 1, "{expected}: {text}");
        assert!(errors[0].contains(expected), "{expected}: {text}");
        assert!(!lab.path("out/student.npz").exists());
    }
}
