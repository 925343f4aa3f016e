//! The committed configs at the paper's scale, from end to end at 224 px: one step each turns a backbone of
//! random weights into two teachers, and one step per stage turns these into a student, which is scored on
//! photographs. ResNet-50 replaces ResNet-101: the same blocks at half the work.

use crate::common::{Lab, load, mapped, root, teacher_tensors};
use dfka_engine::models::resnet::ResNetSpec;
use dfka_engine::summary::Summary;
use dfka_engine::weights::safetensors;

/// Runs the program on a committed config with overrides.
fn call(lab: &Lab, command: &str, config: &str, out: &str, sets: &[String]) {
    let config = root().join("configs").join(config).display().to_string();
    let mut args = vec![command, &config, "--out", out, "--device", "cpu", "--quiet"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    let out = lab.call(&args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn a_backbone_two_teachers_and_a_student_of_photographs() {
    let lab = Lab::new();
    let file = |name: &str| format!("{:?}", lab.path(name).display().to_string());
    let drawn = teacher_tensors(&ResNetSpec::torchvision(50, 224).unwrap(), &["any"], 11);
    // Small residual branches, as in trained networks: sixteen of random size make logits of thousands,
    // whose losses are 0.
    let mut backbone = mapped(&drawn, |name, shape, data| {
        let gain = if name.ends_with("bn3.weight") { 0.2 } else { 1.0 };
        Some((shape.to_vec(), data.iter().map(|v| gain * v).collect()))
    });
    backbone.meta = Default::default(); // torchvision's files have no metadata
    safetensors::save(lab.path("resnet50.safetensors"), &backbone).unwrap();
    let devkit = root().join("tests/fixtures/voc/VOCdevkit");

    for teacher in ["a", "b"] {
        let sets = [
            format!("init={}", file("resnet50.safetensors")),
            "network=resnet50".into(),
            format!("data.voc.root={devkit:?}"),
            format!("evaluation.voc.root={devkit:?}"),
            "training.steps=1".into(),
            "training.batch=2".into(),
            "training.warm_up=0".into(),
        ];
        call(&lab, "teach", &format!("voc/teacher_{teacher}.toml"), teacher, &sets);
        let weights = load(&lab.path(&format!("{teacher}/weights.npz")));
        assert_eq!(weights.get("fc.weight").unwrap().shape, [10, 2048]);
        let (was, is) = (backbone.get("layer4.2.conv3.weight"), weights.get("layer4.2.conv3.weight"));
        assert_ne!(was.unwrap().data, is.unwrap().data, "the step moves the last block");
    }

    let mut sets = vec![
        format!("evaluation.voc={{ root = {devkit:?}, year = 2007, split = \"test\" }}"),
        "generator.steps=1".into(),
        "generator.batch=2".into(),
        "generator.widths=[16, 8, 8, 8, 4, 4]".into(),
        "loss.least_diversity=0".into(),
        "loss.least_information=0".into(),
        "loss.least_found=0".into(),
        "dual.steps=[1, 1, 1, 1]".into(),
        "dual.batch=2".into(),
        "dual.bank=2".into(),
    ];
    for (i, teacher) in ["a", "b"].iter().enumerate() {
        sets.push(format!("teachers.{i}.weights={}", file(&format!("{teacher}/weights.npz"))));
        sets.push(format!("teachers.{i}.network=resnet50"));
    }
    call(&lab, "run", "voc.toml", "student", &sets);
    let summary: Summary = serde_json::from_slice(&lab.bytes("student/summary.json")).unwrap();
    assert_eq!(summary.labels, ["bus", "diningtable"]);
    // torchvision's ResNet-50 with ten labels has 23.53 M parameters. The student: 8.54 M up to block 3,
    // block 4's 14.96 M twice, and filters of 1.05 M.
    let millions = |count: usize| (count as f64 / 1e4).round() / 100.0;
    let p = &summary.parameters;
    assert_eq!([p.teachers, p.student, p.filters].map(millions), [47.06, 39.53, 1.05]);
    assert_eq!(summary.branch.iter().map(|task| task.block).collect::<Vec<_>>(), [3, 3]);
    for task in &summary.branch {
        let losses = &task.loss_by_block;
        assert!(losses.len() == 4 && losses.iter().all(|l| l.is_finite() && *l > 0.0), "{task:?}");
    }
    let student = summary.student.unwrap();
    assert_eq!(
        (student.score.ap.len(), student.by_block.len()),
        (2, 4),
        "both labels are in the photographs"
    );
    assert!(lab.path("student/student.onnx").exists() && lab.path("student/report.html").exists());
}
