//! Images that are copied to the GPU while it runs kernels: in a teacher's training and in an evaluation.

use super::{driver, stderr};
use crate::common::{Lab, labelled, network, root};

const TEACHER: &str = r#"name = "t"
precision = "f32"
checkpoint_seconds = 1e6
image_size = 32
[network]
block = "basic"
widths = [4, 8]
depths = [1, 1]
stem = { width = 4, kernel = 3, stride = 2, max_pool = false }
[training]
batch = 4
steps = 16
[data]
labels = ["person", "bus"]
"#;

/// Runs the program with the fake driver, which delays all work (`eager` "0") or all but copies in a stream of their own
/// ("2"), and returns what both printed.
fn call(lab: &Lab, args: &[&str], eager: &str) -> Option<(Vec<u8>, String)> {
    let mut program = lab.program(args);
    program.env("LD_LIBRARY_PATH", driver()?).envs([("FAKECUDA_REPORT", "1"), ("FAKECUDA_EAGER", eager)]);
    let output = program.output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    let text = stderr(&output);
    Some((output.stdout, text))
}

/// Waits of the host after which the device has no kernel left to run, by the driver's report.
fn idle_waits(text: &str) -> usize {
    let (before, _) = text.split_once(" of them left no kernel to run").expect(text);
    before.split_whitespace().last().unwrap().parse().unwrap()
}

/// Photographs are copied as bytes while the kernels of the step before run. The only wait that leaves the device idle
/// is the read of the metrics, once in 16 steps.
#[test]
fn a_teacher_of_photographs_waits_for_its_metrics_only_and_has_the_emulators_bits() {
    let lab = Lab::new();
    let devkit = root().join("tests/fixtures/voc/VOCdevkit");
    std::fs::write(lab.path("t.toml"), format!("{TEACHER}voc = {{ root = {devkit:?}, year = 2007 }}\n"))
        .unwrap();
    let teach = |out: &str, device: &str, steps: &str, eager: &str| {
        let steps = format!("training.steps={steps}");
        let args = ["teach", "t.toml", "--out", out, "--device", device, "--quiet", "--set", &steps];
        call(&lab, &args, eager).map(|(_, text)| text)
    };
    let (Some(_), Some(short), Some(long)) =
        (teach("emu", "emu", "16", "0"), teach("short", "cuda", "16", "0"), teach("long", "cuda", "32", "0"))
    else {
        return;
    };
    assert!(lab.bytes("emu/weights.npz") == lab.bytes("short/weights.npz"), "{short}");
    assert_eq!(idle_waits(&long) - idle_waits(&short), 1, "{short}{long}");
    // No copy may overwrite pixels that a kernel has yet to read.
    let early = teach("early", "cuda", "16", "2").unwrap();
    assert!(lab.bytes("emu/weights.npz") == lab.bytes("early/weights.npz"), "{early}");
    for text in [short, long] {
        assert!(text.contains("pageable copies: 0 up, 0 down"), "{text}");
        assert!(!text.contains("refused"), "{text}");
    }
}

/// Three batches of 128, the last of them not full.
#[test]
fn an_evaluation_reads_the_next_batch_while_the_gpu_works_and_has_the_emulators_scores() {
    let lab = Lab::new();
    labelled(300, network().image, &["bus", "car", "dog"], 8).save(lab.path("many.npz")).unwrap();
    let scores = |device: &str, eager: &str| {
        call(&lab, &["eval", "left.npz", "many.npz", "--device", device, "--json"], eager)
    };
    let (Some((on_emu, _)), Some((on_cuda, text))) = (scores("emu", "0"), scores("cuda", "0")) else {
        return;
    };
    assert!(!on_emu.is_empty() && on_emu == on_cuda, "{}", String::from_utf8_lossy(&on_cuda));
    assert!(text.contains("pageable copies: 0 up, 0 down") && !text.contains("refused"), "{text}");
    let (early, text) = scores("cuda", "2").unwrap();
    assert!(on_emu == early, "{text}");
}
