//! Checks of the compiled kernels that need no GPU: they fit their targets, spill nothing, and use the
//! tensor cores where they must. And a plan's own list of launches, bytes and operations equals a count by
//! hand.

use crate::common::skipped;
use dfka_engine::autograd::plan::{Optimiser, Phase, Plan};
use dfka_engine::autograd::tape::Learn;
use dfka_engine::autograd::{Engine, Tape};
use dfka_engine::device::gpu::nvrtc::{self, Nvrtc};
use dfka_engine::device::gpu::source::runs_on;
use dfka_engine::device::gpu::target::Target;
use dfka_engine::device::gpu::{HEADERS, KERNELS, Kernel, MODULES};
use dfka_engine::ops::layers::activation::Act;
use dfka_engine::ops::layers::conv2d::Conv2d;
use dfka_engine::ops::losses::feature_loss::FeatureLoss;
use dfka_engine::ops::optim::adam::Adam;
use dfka_engine::ops::random::noise::Noise;
use dfka_engine::tensor::{Elem, Shape};
use std::path::PathBuf;
use std::process::Command;

/// Kernels that may spill, with the reason. None does.
const MAY_SPILL: [(&str, &str); 0] = [];

/// Kernels that may keep something in local memory, with the reason.
const MAY_USE_LOCAL: [(&str, &str); 1] = [(
    "noise_normal",
    "cos and sin of a double reduce arguments above 2^30, which we never have, with a table there",
)];

/// Whether the build had NVRTC; without it, fails if `DFKA_REQUIRE_NVRTC` is set.
pub fn is_compiled() -> bool {
    let compiled = MODULES.iter().all(|m| !m.images.is_empty());
    assert!(compiled || std::env::var_os("DFKA_REQUIRE_NVRTC").is_none(), "the build found no NVRTC");
    if !compiled {
        skipped("the build found no NVRTC, there is no machine code to check");
    }
    compiled
}

/// Whether each warpgroup of the kernel either copies or multiplies, with its own number of registers
/// (`setmaxnreg`). In the ladder's first rung every warpgroup does both.
fn has_roles(kernel: &Kernel) -> bool {
    kernel.needs_90a && kernel.name != "conv2d_rung1"
}

#[test]
fn every_kernel_compiles_for_every_target_without_spills() {
    if !is_compiled() {
        return;
    }
    for kernel in KERNELS {
        let images = MODULES[kernel.module].images;
        assert_eq!(kernel.figures.len(), images.len(), "{}", kernel.name);
        for (image, [registers, spilled, shared]) in images.iter().zip(kernel.figures) {
            let name = format!("{} for {}", kernel.name, image.target);
            if !runs_on(kernel.needs_90a, image.target) {
                assert_eq!([*registers, *spilled, *shared], [0; 3], "{name}: there should be none");
                continue;
            }
            assert!(image.cubin.starts_with(b"\x7fELF") && image.ptx.ends_with(b"\0"), "{name}: no image");
            assert!(*registers > 0 && *registers <= 255, "{name}: {registers} registers");
            // 65536 registers a multiprocessor, given to warps in units of 256.
            let block = (kernel.threads.div_ceil(32) * (registers * 32).next_multiple_of(256)).max(1);
            assert!(block <= 65536, "{name}: a block of {} threads does not fit", kernel.threads);
            if has_roles(kernel) {
                // setmaxnreg redistributes the registers that a block starts with. If it started with fewer
                // than its launch bounds allow, a warpgroup that requests more would wait forever.
                assert_eq!(*registers, 65536 / kernel.threads / 8 * 8, "{name}: registers at entry");
            }
            assert!(*shared <= 48 << 10, "{name}: {shared} bytes of static shared memory");
            let excuse = MAY_SPILL.iter().find(|(k, _)| *k == kernel.name);
            assert!(*spilled == 0 || excuse.is_some(), "{name}: {spilled} bytes spilled");
        }
    }
}

/// NVIDIA's disassembler: in a toolkit or a wheel, beside the folders that may hold NVRTC, or in PATH. Without it the test is
/// skipped, or fails if `DFKA_REQUIRE_SASS` is set.
pub fn nvdisasm() -> Option<PathBuf> {
    let beside = nvrtc::folders().into_iter().map(|d| d.join("../bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = beside.chain(std::env::split_paths(&path)).map(|d| d.join("nvdisasm")).find(|p| p.is_file());
    if found.is_none() {
        assert!(std::env::var_os("DFKA_REQUIRE_SASS").is_none(), "no nvdisasm");
        skipped("no nvdisasm in PATH or beside NVRTC");
    }
    found
}

#[test]
fn machine_code_uses_tensor_cores_and_no_local_memory() {
    if !is_compiled() {
        return;
    }
    let Some(nvdisasm) = nvdisasm() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for (m, module) in MODULES.iter().enumerate() {
        for image in module.images {
            let file = folder.path().join(format!("{}.{}.cubin", module.stem, image.target));
            std::fs::write(&file, image.cubin).unwrap();
            let out = Command::new(&nvdisasm).arg("-c").arg(&file).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            let text = String::from_utf8(out.stdout).unwrap();
            let there = |k: &&Kernel| k.module == m && runs_on(k.needs_90a, image.target);
            for kernel in KERNELS.iter().filter(there) {
                let begin = format!(".text.{}:", kernel.symbol);
                let code = text.split_once(&begin).unwrap_or_else(|| panic!("no {begin}")).1;
                let code = code.split(".section").next().unwrap();
                let has = |op: &str| code.contains(&format!(" {op}"));
                let name = format!("{} for {}", kernel.name, image.target);
                assert!(has("EXIT"), "{name}: no code");
                let excuse = MAY_USE_LOCAL.iter().find(|(k, _)| kernel.name.starts_with(k));
                assert!(excuse.is_some() || !has("STL") && !has("LDL"), "{name}: uses local memory");
                let is_product = ["conv2d_fwd<", "conv2d_dgrad<", "conv2d_wgrad<"]
                    .iter()
                    .any(|p| kernel.name.starts_with(p) && kernel.name.contains("bf16"));
                if is_product {
                    assert!(has("HMMA.16816.F32.BF16"), "{name}: no tensor cores");
                    assert!(has("LDSM"), "{name}: no ldmatrix");
                    assert!(has("LDGSTS"), "{name}: no cp.async");
                    seen += 1;
                }
                if kernel.needs_90a {
                    for word in ["HGMMA.64x", "UTMALDG.2D", "UTMALDG.4D.IM2COL", "SYNCS", "WARPGROUP.ARRIVE"]
                    {
                        assert!(has(word), "{name}: no {word}");
                    }
                    assert_eq!(has("USETMAXREG"), has_roles(kernel), "{name}: registers of the roles");
                    seen += 1;
                }
            }
        }
    }
    assert!(seen >= 6, "only {seen} tensor-core kernels");
}

/// ptxas warns when it ignores setmaxnreg (C7508) or waits for every wgmma separately (C7510 to C7520).
/// Either costs most of a kernel's speed and changes no result, so that no other test would notice.
#[test]
fn ptxas_warns_of_nothing_in_the_kernels_for_sm_90a() {
    let Ok(compiler) = Nvrtc::open() else {
        assert!(std::env::var_os("DFKA_REQUIRE_NVRTC").is_none(), "no NVRTC");
        skipped("no NVRTC");
        return;
    };
    let headers: Vec<_> = HEADERS.iter().map(|(n, t)| (n.to_string(), t.to_string())).collect();
    let mut seen = 0;
    for (m, module) in MODULES.iter().enumerate() {
        let those = KERNELS.iter().filter(|k| k.module == m && k.needs_90a);
        let names: Vec<String> = those.map(|k| k.name.to_string()).collect();
        if names.is_empty() {
            continue;
        }
        let file = format!("{}.cu", module.stem);
        let log = compiler.compile(&file, module.source, &headers, &names, "sm_90a").unwrap().log;
        assert!(log.contains("registers"), "{file}: no report");
        assert!(!log.contains("(C75") && !log.contains("(C76"), "{file}: {log}");
        seen += names.len();
    }
    assert!(seen >= 11, "only {seen} kernels");
}

/// The functions of kernels/lib/hopper.cuh, as used by the kernels of the emulator's tests
/// (tests/engine/emulator/products.cu).
#[test]
fn the_functions_for_sm_90a_become_its_instructions() {
    let (Ok(compiler), Some(nvdisasm)) = (Nvrtc::open(), nvdisasm()) else {
        assert!(std::env::var_os("DFKA_REQUIRE_SASS").is_none(), "no NVRTC, or no nvdisasm");
        skipped("no NVRTC, or no nvdisasm in PATH or beside it");
        return;
    };
    let headers: Vec<_> = HEADERS.iter().map(|(n, t)| (n.to_string(), t.to_string())).collect();
    let source = include_str!("emulator/products.cu");
    let cases: [(&str, &[&str]); 4] = [
        ("product<64, 0, false, Bug::None>", &["HGMMA.64x64x16.F32.BF16", "UTMALDG.2D", "SYNCS.PHASECHK"]),
        ("product<256, 1, true, Bug::None>", &["HGMMA.64x256x16.F32.BF16", ".tnspB", "UTMALDG.4D.IM2COL"]),
        ("product_stored<true>", &["HGMMA.64x64x16.F32.BF16", "FENCE.VIEW.ASYNC"]),
        ("handed_right", &["BAR.ARV", "BAR.SYNC"]),
    ];
    let instances = cases.map(|(name, _)| name.to_string());
    let compiled = compiler.compile("products.cu", source, &headers, &instances, "sm_90a").unwrap();
    assert!(!compiled.log.contains("wgmma.mma_async instructions are serialized"), "{}", compiled.log);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("products.cubin");
    std::fs::write(&file, &compiled.cubin).unwrap();
    let out = Command::new(&nvdisasm).arg("-c").arg(&file).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    for ((name, expected), symbol) in cases.iter().zip(&compiled.symbols) {
        let code =
            text.split_once(&format!(".text.{symbol}:")).unwrap_or_else(|| panic!("no code of {name}")).1;
        let code = code.split(".section").next().unwrap();
        for op in *expected {
            assert!(code.contains(op), "{name}: no {op}");
        }
        assert!(!code.contains(" STL") && !code.contains(" LDL"), "{name}: uses local memory");
    }
}

/// A network small enough to count by hand: noise, one trained convolution, one frozen one, a loss, Adam.
#[test]
fn launches_bytes_and_flops_are_those_counted_by_hand() {
    let mut engine = Engine::<f32>::planning(Target::h200(Elem::Bf16));
    let store = &mut engine.store;
    let w1 = store.add("w1", Shape::new(8, 3, 3, 8));
    let w2 = store.add("w2", Shape::new(16, 1, 1, 8));
    let target = Noise { shape: Shape::new(4, 6, 6, 16), stream: 2 };
    let x = Noise { shape: Shape::new(4, 6, 6, 8), stream: 1 };
    let moments: Vec<_> = ["m", "v"].iter().map(|n| store.add(n, Shape::new(8, 3, 3, 8))).collect();
    let mut t = Tape::default();
    let (w1v, w2v) = (t.leaf(store, w1, Learn::Trainable), t.leaf(store, w2, Learn::Frozen));
    let (x, target) = (t.apply(x, &[]).unwrap(), t.apply(target, &[]).unwrap());
    let a = t.apply(Conv2d { act: Act::Relu, ..Conv2d::new(1, 1) }, &[x, w1v]).unwrap();
    let b = t.apply(Conv2d::new(1, 0), &[a, w2v]).unwrap();
    let loss = t.apply(FeatureLoss, &[b, target]).unwrap();
    t.metric("loss", loss);
    let adam = Adam { lr_slot: 0, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let optimiser = Optimiser { op: adam.into(), tensors: vec![(w1, moments)] };
    let plan = Plan::compile(&t, store, Some(loss), &[optimiser]).unwrap();
    let cost = plan.cost();

    let pixels = 4 * 6 * 6;
    // Both forward products, the first's filter gradient, the second's input gradient; the loss takes two
    // operations per element forward and one backward.
    let (conv1, conv2, elements) = (pixels * 8 * 9 * 8, pixels * 16 * 8, (pixels * 16) as u64);
    assert_eq!(cost.macs, (2 * conv1 + 2 * conv2) as u64 + 3 * elements);

    let names: Vec<&str> = plan.launches().map(|(l, _)| l.kernel.name.split('<').next().unwrap()).collect();
    let expected = [
        "noise_normal",
        "noise_normal",
        "conv2d_fwd",
        "conv2d_fwd",
        "feature_loss_fwd_sums",
        "feature_loss_fwd",
        "fill", // the gradient of the loss itself: 1
        "feature_loss_bwd",
        "conv2d_dgrad", // which also applies the mask of the ReLU before it
        "conv2d_wgrad", // in one part, because there are few pixels
        "adam",
        "push_metrics",
    ];
    assert_eq!(names, expected);
    assert_eq!(cost.launches, expected.len());

    // Feature maps are bf16, filters and the loss f32, the mask one bit per element; scratch memory is added.
    let (map8, map16, filter1, filter2, mask) =
        (pixels * 8 * 2, pixels * 16 * 2, 8 * 9 * 8 * 4, 16 * 8 * 4, pixels);
    let listing: Vec<_> = plan.listing().collect();
    let bytes = |i: usize| listing[i].2 as usize;
    assert_eq!(listing[2], (Phase::Forward, "conv2d", (2 * map8 + filter1 + mask) as u64));
    assert_eq!(bytes(3), map8 + filter2 + map16);
    assert_eq!(listing.last().unwrap(), &(Phase::Update, "adam", 4 * filter1 as u64)); // p, g, m, v
    // The bytes that the launches move: the second convolution reads the bf16 copy of its filter.
    let launch = plan.launches().nth(3).map(|(l, _)| l.operands().iter().map(|p| p.bytes()).sum::<usize>());
    assert_eq!(launch, Some(map8 + filter2 / 2 + map16));
}
