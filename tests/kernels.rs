//! What can be known of the compiled kernels without a GPU: they fit their targets, spill nothing, and use the tensor
//! cores where they must; and what a plan says it will launch is what a count by hand gives.

mod common;

use common::skipped;
use dfka_engine::autograd::plan::{Optimiser, Phase, Plan};
use dfka_engine::autograd::tape::Learn;
use dfka_engine::autograd::{Engine, Tape};
use dfka_engine::device::gpu::nvrtc::Nvrtc;
use dfka_engine::device::gpu::{KERNELS, MODULES};
use dfka_engine::ops::activation::Act;
use dfka_engine::ops::adam::Adam;
use dfka_engine::ops::conv2d::Conv2d;
use dfka_engine::ops::feature_loss::FeatureLoss;
use dfka_engine::ops::noise::{Noise, NoiseKind};
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

/// Whether the build had NVRTC; `DFKA_REQUIRE_NVRTC` forbids to skip.
fn is_compiled() -> bool {
    let compiled = MODULES.iter().all(|m| !m.images.is_empty());
    assert!(compiled || std::env::var_os("DFKA_REQUIRE_NVRTC").is_none(), "the build found no NVRTC");
    if !compiled {
        skipped("the build found no NVRTC, there is no machine code to look at");
    }
    compiled
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
            assert!(image.cubin.starts_with(b"\x7fELF") && image.ptx.ends_with(b"\0"), "{name}: no image");
            assert!(*registers > 0 && *registers <= 255, "{name}: {registers} registers");
            // 65536 registers a multiprocessor, given to warps in units of 256.
            let block = (kernel.threads.div_ceil(32) * (registers * 32).next_multiple_of(256)).max(1);
            assert!(block <= 65536, "{name}: a block of {} threads does not fit", kernel.threads);
            assert!(*shared <= 48 << 10, "{name}: {shared} bytes of static shared memory");
            let excuse = MAY_SPILL.iter().find(|(k, _)| *k == kernel.name);
            assert!(*spilled == 0 || excuse.is_some(), "{name}: {spilled} bytes spilled");
        }
    }
}

/// NVIDIA's disassembler: in PATH, or in the wheel beside NVRTC's.
fn nvdisasm() -> Option<PathBuf> {
    let beside = Nvrtc::open().ok().and_then(|n| Some(n.path.parent()?.join("../bin/nvdisasm")));
    let in_path = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|d| d.join("nvdisasm"))
        .collect::<Vec<_>>();
    beside.into_iter().chain(in_path).find(|p| p.is_file())
}

#[test]
fn machine_code_uses_tensor_cores_and_no_local_memory() {
    if !is_compiled() {
        return;
    }
    let Some(nvdisasm) = nvdisasm() else {
        assert!(std::env::var_os("DFKA_REQUIRE_SASS").is_none(), "no nvdisasm");
        skipped("no nvdisasm in PATH or beside NVRTC");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for (m, module) in MODULES.iter().enumerate() {
        for image in module.images {
            let file = folder.path().join(format!("{}.{}.cubin", module.stem, image.target));
            std::fs::write(&file, image.cubin).unwrap();
            let out = Command::new(&nvdisasm).arg("-c").arg(&file).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            let text = String::from_utf8(out.stdout).unwrap();
            for kernel in KERNELS.iter().filter(|k| k.module == m) {
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
            }
        }
    }
    assert!(seen >= 6, "only {seen} tensor-core kernels");
}

/// A net small enough to count on paper: noise, one trained convolution, one frozen one, a loss, Adam.
#[test]
fn launches_bytes_and_flops_are_those_counted_by_hand() {
    let mut engine = Engine::<f32>::planning(Elem::Bf16);
    let store = &mut engine.store;
    let w1 = store.add("w1", Shape::new(8, 3, 3, 8));
    let w2 = store.add("w2", Shape::new(16, 1, 1, 8));
    let target = Noise { shape: Shape::new(4, 6, 6, 16), stream: 2, kind: NoiseKind::Normal };
    let x = Noise { shape: Shape::new(4, 6, 6, 8), stream: 1, kind: NoiseKind::Normal };
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
    // Forward of both, the filter's gradient of the first, the input's of the second; the loss's two and one an element.
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
        "fill", // the loss's gradient, 1
        "feature_loss_bwd",
        "conv2d_dgrad", // and the slope of the ReLU in front
        "conv2d_wgrad",
        "conv2d_sum_parts", // of the filter's gradient: the pixels are split over blocks
        "adam",
        "push_metrics",
    ];
    assert_eq!(names, expected);
    assert_eq!(cost.launches, expected.len());

    // Maps are bf16, filters and the loss f32, the mask a bit an element; scratch comes on top.
    let (map8, map16, filter1, filter2, mask) =
        (pixels * 8 * 2, pixels * 16 * 2, 8 * 9 * 8 * 4, 16 * 8 * 4, pixels);
    let listing: Vec<_> = plan.listing().collect();
    let bytes = |i: usize| listing[i].2 as usize;
    assert_eq!(listing[2], (Phase::Forward, "conv2d", (2 * map8 + filter1 + mask) as u64));
    assert_eq!(bytes(3), map8 + filter2 + map16);
    assert_eq!(listing.last().unwrap(), &(Phase::Update, "adam", 4 * filter1 as u64)); // p, g, m, v
    assert_eq!(cost.bytes_moved, listing.iter().map(|l| l.2).sum::<u64>());
}
