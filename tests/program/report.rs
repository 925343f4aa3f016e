//! What whole runs write for people: sample images, which do not change the student, the page, and
//! TensorBoard's files, which have the values of `metrics.jsonl` once per step, also after a kill.

use crate::common::{Lab, skipped};
use dfka_engine::autograd::Engine;
use dfka_engine::pipeline::generated::{measure, statistics};
use dfka_engine::pipeline::observer::Silent;
use dfka_engine::pipeline::session::{Extras, Session};
use dfka_engine::pipeline::snapshots::Snapshots;
use dfka_engine::pipeline::stage_one::StageOne;
use dfka_engine::pipeline::teachers::Teachers;
use dfka_engine::report::tensorboard::{Logged, TENSORBOARD, read};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// By tag: the last value of every step in `metrics.jsonl`.
fn expected(lab: &Lab, out: &str) -> BTreeMap<String, BTreeMap<i64, f32>> {
    let mut all: BTreeMap<String, BTreeMap<i64, f32>> = BTreeMap::new();
    let text = String::from_utf8(lab.bytes(&format!("{out}/metrics.jsonl"))).unwrap();
    for record in text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()) {
        for (metric, value) in record["metrics"].as_object().unwrap() {
            let tag = format!("{}/{metric}", record["stage"].as_str().unwrap());
            let step = record["step"].as_i64().unwrap();
            all.entry(tag).or_default().insert(step, value.as_f64().unwrap() as f32);
        }
    }
    all
}

fn check(lab: &Lab, out: &str, logged: &Logged) {
    let expected = expected(lab, out);
    assert!(expected.len() > 15 && logged.scalars.keys().eq(expected.keys()), "{:?}", logged.scalars.keys());
    for (tag, steps) in &expected {
        let found = &logged.scalars[tag];
        assert!(found.is_sorted_by(|a, b| a.0 < b.0), "{tag}: a step comes twice: {found:?}");
        assert!(found.iter().map(|s| (&s.0, &s.1)).eq(steps.iter()), "{tag}: {found:?}\n{steps:?}");
    }
    let images = &logged.images["generator/images"];
    for (step, png) in images {
        assert!(*png == lab.bytes(&format!("{out}/samples-{step}.png")), "the picture of step {step}");
    }
    assert!(images.len() == 5 && images.is_sorted_by(|a, b| a.0 < b.0));
    assert!(logged.texts["config"].contains("    [generator]\n"));
}

/// What TensorBoard itself reads from the files; `None` without a Python that has it.
fn by_tensorboard(folder: &Path) -> Option<Value> {
    const SCRIPT: &str = "import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
a = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0, 'images': 0, 'tensors': 0})
a.Reload()
print(json.dumps({
    'scalars': {t: [[e.step, e.value] for e in a.Scalars(t)] for t in a.Tags()['scalars']},
    'images': {t: [[e.step, e.width, e.height, len(e.encoded_image_string)] for e in a.Images(t)]
               for t in a.Tags()['images']},
    'text': {t: a.Tensors(t)[0].tensor_proto.string_val[0].decode() for t in a.Tags()['tensors']},
    'plugin': a.SummaryMetadata('config').plugin_data.plugin_name,
}))";
    let local = crate::common::root().join(".venv/bin/python");
    let python = std::env::var_os("DFKA_PYTHON")
        .unwrap_or_else(|| if local.exists() { local.into() } else { "python3".into() });
    let call = |script: &str| Command::new(&python).args(["-c", script]).arg(folder).output();
    if !call("import tensorboard").is_ok_and(|o| o.status.success()) {
        assert!(
            std::env::var_os("DFKA_REQUIRE_TENSORBOARD").is_none(),
            "DFKA_REQUIRE_TENSORBOARD is set, and there is none"
        );
        skipped(&format!("{} has no tensorboard", Path::new(&python).display()));
        return None;
    }
    let out = call(SCRIPT).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(serde_json::from_slice(&out.stdout).unwrap())
}

/// The bits of every tensor at the end of stage one.
fn trained(lab: &Lab, out: &str, with_snapshots: bool) -> Vec<(String, Vec<u32>)> {
    let spec = lab.spec(&["generator.steps=12"]);
    let out = lab.path(out);
    std::fs::create_dir_all(&out).unwrap();
    let mut engine = Engine::<f32>::default();
    let teachers = Teachers::load(&mut engine.store, &spec.teachers).unwrap();
    let one = StageOne::new(&mut engine.store, &spec, &teachers);
    let stage = one.stage(&mut engine, &spec, &teachers).unwrap();
    let mut observer = Silent;
    let mut session = Session::open(&out, false, String::new(), 1e6, &mut observer).unwrap();
    let snapshots = with_snapshots.then(|| Snapshots::new(&one, &engine, &spec).unwrap());
    let finish = |engine: &mut Engine<f32>, _: &_| match with_snapshots {
        true => measure(&one, engine, &spec, &teachers, &out).map(|()| Vec::new()),
        false => Ok(Vec::new()),
    };
    session.train_with(&mut engine, stage, Extras { snapshots, ..Extras::default() }, finish).unwrap();
    let bits = |id| engine.store.to_f32(id).iter().map(|v| v.to_bits()).collect();
    engine.store.ids().map(|id| (engine.store.name(id).to_owned(), bits(id))).collect()
}

/// Weights, Adam's moments, running estimates and the bank that stage two draws from are the same with and
/// without snapshots.
#[test]
fn snapshots_of_the_generator_change_no_bit() {
    let lab = Lab::new();
    let (pictured, alone) = (trained(&lab, "pictured", true), trained(&lab, "alone", false));
    assert!(pictured.iter().any(|(name, _)| name.contains("running_mean")));
    for ((name, a), (other, b)) in pictured.iter().zip(&alone) {
        assert!(name == other && a == b, "{name} differs");
    }
    assert_eq!(pictured.len(), alone.len());
    let pictures = [0, 1, 3, 7, 12].map(|step| lab.bytes(&format!("pictured/samples-{step}.png")));
    assert!(pictures.windows(2).all(|p| p[0] != p[1]), "the generator learned nothing that shows");
    assert!(!lab.path("alone/samples-0.png").exists());
}

#[test]
fn label_statistics_count_conditions_and_predictions() {
    let lab = Lab::new();
    let s = lab.run("out", &[]).unwrap();
    let stats = s.label_statistics.clone().unwrap();
    assert_eq!(statistics(&lab.path("out")).unwrap(), s.label_statistics);
    let names: Vec<&str> = stats.labels.iter().map(|l| l.label.as_str()).collect();
    assert_eq!(names, [&crate::common::LEFT[..], &crate::common::RIGHT].concat());
    assert_eq!((stats.images, stats.labels[3].teacher.as_str()), (8, "right"));
    // Each image is conditioned on one to three labels.
    let drawn: usize = stats.labels.iter().map(|l| l.drawn.unwrap()).sum();
    assert!((stats.images..=3 * stats.images).contains(&drawn), "{stats:?}");
    assert!(stats.labels.iter().all(|l| l.shown <= l.predicted.min(l.drawn.unwrap())), "{stats:?}");
    assert!(stats.labels.iter().all(|l| l.predicted <= stats.images), "{stats:?}");

    let s = lab.run("balanced", &["loss.recipe=balanced", "loss.share=0.3"]).unwrap();
    assert!(s.label_statistics.unwrap().labels.iter().all(|l| l.drawn.is_none() && l.shown == 0));
    let s = lab.run("noise", &["dual.images=noise"]).unwrap();
    assert!(s.label_statistics.is_none() && !lab.path("noise/samples.png").exists());
}

#[test]
fn a_killed_and_resumed_run_logs_every_step_once() {
    let lab = Lab::new();
    let args =
        ["run", "c.toml", "--out", "out", "--set", "generator.steps=10", "--set", "checkpoint_seconds=0"];
    let mut child = lab.program(&args).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    // The first line names the device, each further line a step; the run is killed after the eighth step.
    (0..9).for_each(|_| assert!(err.read_line(&mut String::new()).unwrap() > 0));
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    let resumed = lab.call(&[&args[..], &["--resume", "--quiet"]].concat());
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));

    let folder = lab.path("out").join(TENSORBOARD);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
    // The same values, images and counts as without the kill.
    check(&lab, "out", &read(&folder).unwrap());
    run(&lab, "whole", &["--set", "generator.steps=10"]);
    assert_eq!(expected(&lab, "out"), expected(&lab, "whole"));
    for name in ["samples-0.png", "samples-6.png", "samples-10.png", "samples.png", "label_statistics.json"] {
        assert!(lab.bytes(&format!("out/{name}")) == lab.bytes(&format!("whole/{name}")), "{name} differs");
    }
    let origin: Value = serde_json::from_slice(&lab.bytes("out/run.json")).unwrap();
    let calls = origin["calls"].as_array().unwrap();
    assert!(calls.len() == 2 && calls[1]["command"].as_array().unwrap().contains(&"--resume".into()));
    let page = String::from_utf8(lab.bytes("out/report.html")).unwrap();
    assert!(page.contains("resumed (1)") && page.contains("The run was resumed 1 time;"), "{page}");

    // With --force a run starts over and removes everything of the old one.
    run(&lab, "out", &["--force"]);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}

fn run(lab: &Lab, out: &str, more: &[&str]) {
    let args = ["run", "c.toml", "--quiet", "--out", out, "--set", "generator.steps=30"];
    let run = lab.call(&[&args[..], more].concat());
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

#[test]
fn a_run_logs_its_metrics_pictures_and_config() {
    let lab = Lab::new();
    run(&lab, "out", &["--set", "baselines.noise=true"]);
    let folder = lab.path("out").join(TENSORBOARD);
    let logged = read(&folder).unwrap();
    check(&lab, "out", &logged);

    let Some(found) = by_tensorboard(&folder) else { return };
    let scalars = found["scalars"].as_object().unwrap();
    assert!(scalars.keys().eq(logged.scalars.keys()));
    for (tag, values) in &logged.scalars {
        let theirs = scalars[tag].as_array().unwrap().iter();
        let theirs: Vec<_> =
            theirs.map(|e| (e[0].as_i64().unwrap(), e[1].as_f64().unwrap() as f32)).collect();
        assert_eq!(theirs, *values, "{tag}");
    }
    let images = found["images"]["generator/images"].as_array().unwrap();
    assert_eq!(images.len(), logged.images["generator/images"].len());
    for (theirs, (step, png)) in images.iter().zip(&logged.images["generator/images"]) {
        let side = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
        assert_eq!(*theirs, serde_json::json!([step, side(16), side(20), png.len()]));
    }
    assert_eq!(found["text"]["config"], logged.texts["config"]);
    assert_eq!(found["plugin"], "text");
}

#[test]
fn the_report_command_shows_what_a_folder_holds() {
    let lab = Lab::new();
    run(&lab, "out", &[]);
    let page = lab.bytes("out/report.html");
    std::fs::remove_file(lab.path("out/report.html")).unwrap();
    let again = lab.call(&["report", "out"]);
    assert_eq!(String::from_utf8_lossy(&again.stdout), "out/report.html\n");
    assert!(page == lab.bytes("out/report.html"), "the page from the folder is not the run's own");

    std::fs::write(lab.path("out/summary.json"), "{\"name\": 3").unwrap();
    let again = lab.call(&["report", "out"]);
    let text = String::from_utf8_lossy(&again.stdout);
    assert!(
        again.status.success() && text.contains("of an unfinished run\nleft out: summary.json: "),
        "{text}"
    );
    for (folder, why) in [("none", "none"), (".", "expected the folder of a run")] {
        let wrong = lab.call(&["report", folder]);
        let text = String::from_utf8_lossy(&wrong.stderr);
        assert!(wrong.status.code() == Some(4) && text.contains(why), "{folder}: {text}");
    }

    // A run that fails writes a page with the reason.
    let failed =
        lab.call(&["run", "c.toml", "--out", "failed", "--quiet", "--set", "loss.least_diversity=2"]);
    assert_eq!(failed.status.code(), Some(7));
    let page = String::from_utf8(lab.bytes("failed/report.html")).unwrap();
    assert!(page.contains("This run failed: generator: collapsed"), "{page}");
    assert!(page.contains("after 6 steps (100 %)") && page.contains("6 of 18 training steps"), "{page}");
}
