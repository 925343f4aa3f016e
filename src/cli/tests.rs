//! The commands with a fake pipeline.

use super::*;
use crate::error::Error;
use crate::labelled::evaluate::Evaluated;
use crate::models::resnet::{BlockKind, ResNetSpec, Stem};
use crate::pipeline::observer::Observer;
use crate::pipeline::teacher_file::Known;
use crate::pipeline::teachers::{Absent, OpenedTeacher};
use crate::report;
use crate::summary::{Score, StudentScore, Summary};
use crate::weights::Tensors;
use serde_json::{Value, json};
use std::sync::Arc;

const CONFIG: &str = "name = 'n'\nteachers = [{ name = 'a', weights = 'a.npz' }]\n\
                      student.labels = ['bus']\ndual.steps = [1, 1]\n";

const FAKE: Commands = Commands {
    open_teachers: |_, absent| {
        let stem = Stem { width: 8, kernel: 3, stride: 1, max_pool: false };
        let network = ResNetSpec::new(BlockKind::Basic, [32, 32, 3], stem, vec![8, 16], vec![1, 1]);
        let known = Known { network, labels: vec!["bus".into(), "car".into()] };
        let tensors = (absent == Absent::Fails).then(|| Arc::new(Tensors::new()));
        Ok(vec![OpenedTeacher { name: "a".into(), file: "a.npz".into(), known, tensors }])
    },
    suspicion: |_| Ok(None),
    check: |_, _| Ok(Vec::new()),
    run: |spec, _, out, is_resumed, observer: &mut dyn Observer| {
        assert!(out.join(report::CONFIG).exists());
        observer.stage(if is_resumed { "again" } else { "first" }, 2);
        for step in 0..2 {
            observer.step(step, &mut [("loss", 0.5)].into_iter());
        }
        std::fs::write(out.join("student.npz"), "a student").unwrap();
        let score = Score { map: 50.0, map_11_point: 50.0, ..Score::default() };
        let student =
            spec.evaluation.is_some().then(|| StudentScore { score: score.clone(), by_block: vec![] });
        let teachers = [("mean".to_string(), score)].into_iter().collect();
        Ok(Summary { name: spec.name.clone(), seed: spec.seed, student, teachers, ..Summary::default() })
    },
    check_teach: |spec| {
        if spec.name == "bad" { Err(Error::data("none.npz", "cannot open")) } else { Ok(Vec::new()) }
    },
    teach: |spec, _, _, _| Ok(json!({ "name": spec.name, "map": 90.5 })),
    score_teacher: |_, _| Ok(Score { map: 60.0, ..Score::default() }),
    evaluate: |_, _, _| {
        let score = Score { map: 50.0, ..Score::default() };
        Ok(Evaluated { score, notes: Vec::new() })
    },
    forecast: |_, _, _| Ok(json!({ "memory": { "bytes": 12 } })),
    forecast_ranks: |_, _, _, _| Ok(json!({})),
};

fn call(args: &[&str]) -> Result<String> {
    let cli = Cli::try_parse_from(["dfka-engine"].iter().chain(args)).unwrap();
    dispatch(&cli.command, &FAKE)
}

#[test]
fn a_run_writes_its_folder_and_is_resumed_refused_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.toml");
    std::fs::write(&config, CONFIG).unwrap();
    let out = dir.path().join("out");
    let (config, out_arg) = (config.to_str().unwrap(), out.to_str().unwrap());
    let base = ["run", config, "--out", out_arg, "--quiet", "--seed", "9"];
    let with = |more: &[&str]| call(&[&base, more].concat());

    with(&[]).unwrap();
    for name in [report::CONFIG, report::METRICS, report::SUMMARY, report::HTML] {
        assert!(out.join(name).exists(), "{name}");
    }
    assert!(std::fs::read_to_string(out.join(report::CONFIG)).unwrap().contains("seed = 9\n"));
    assert_eq!(with(&[]).unwrap_err().exit_code(), 2);
    with(&["--resume"]).unwrap();
    let metrics = || std::fs::read_to_string(out.join(report::METRICS)).unwrap();
    assert_eq!(metrics().lines().count(), 4);
    assert_eq!(with(&["--resume", "--set", "dual.batch=2"]).unwrap_err().exit_code(), 2);
    with(&["--force"]).unwrap();
    assert_eq!(metrics().lines().count(), 2);
}

#[test]
fn a_label_that_no_teacher_has_is_a_config_error_and_creates_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.toml");
    std::fs::write(&config, CONFIG).unwrap();
    let out = dir.path().join("out");
    let args = ["--set", "student.labels=['cat']"];
    let e = call(&[&["run", config.to_str().unwrap(), "--out", out.to_str().unwrap()][..], &args].concat());
    let e = e.unwrap_err();
    assert_eq!(e.exit_code(), 3);
    assert!(e.to_string().ends_with("no teacher predicts the label `cat`; did you mean `car`?"), "{e}");
    assert!(!out.exists());
    let json = call(&["check", config.to_str().unwrap(), "--json"]).unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["forecast"]["memory"]["bytes"], &json["config"]["name"]), (&json!(12), &json!("n")));
    assert!(json["output"]["free_bytes"].as_u64().unwrap() > 0, "{json}");
    let text = call(&["check", config.to_str().unwrap()]).unwrap();
    assert!(text.contains("c.toml: fits what it states of its teachers; a run takes at least "), "{text}");
    assert!(text.contains("teacher a: 2 labels, channels [8, 16]; "), "{text}");
    let text = call(&["check", config.to_str().unwrap(), "--detail"]).unwrap();
    assert!(text.contains("teacher a: 2 labels, channels [8, 16]; "), "{text}");
    assert!(text.ends_with("a.npz: not found, forecast with random weights\nmemory.bytes  12\n"), "{text}");
}

#[test]
fn teach_and_eval_print_their_result() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.toml");
    let text = "name = 't'\ndata.train = 'a.npz'\nnetwork = { block = 'basic', widths = [8], depths = [1], \
                stem = { width = 8, kernel = 3, stride = 1, max_pool = false } }\n";
    std::fs::write(&config, text).unwrap();
    let out = dir.path().join("out");
    let text = call(&["teach", config.to_str().unwrap(), "--quiet", "--out", out.to_str().unwrap()]).unwrap();
    assert_eq!(text, "map   90.5\nname  t\n");
    assert!(out.join(report::CONFIG).exists());
    assert!(call(&["eval", "a.npz", "b.npz"]).unwrap().contains("mAP    50.0"));
    assert!(call(&["eval", "a.npz", "b.npz", "--json"]).unwrap().contains("\"map\": 50.0"));
}

#[test]
fn eval_of_a_run_finds_its_student_and_its_evaluation_data() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().to_str().unwrap();
    let e = call(&["eval", run]).unwrap_err();
    assert!(e.exit_code() == 4 && e.to_string().contains("expected a run's folder with one of"), "{e}");
    std::fs::write(dir.path().join("student.npz"), "").unwrap();
    std::fs::write(dir.path().join(report::CONFIG), CONFIG).unwrap();
    let e = call(&["eval", run]).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("resolved.toml has no table [evaluation]"), "{e}");
    std::fs::write(dir.path().join(report::CONFIG), format!("{CONFIG}evaluation.data = 'e.npz'\n")).unwrap();
    assert!(call(&["eval", run]).unwrap().contains("mAP    50.0"));
    assert!(call(&["eval", run, "b.npz"]).unwrap().contains("mAP    50.0"));
    let student = dir.path().join("student.npz");
    let e = call(&["eval", student.to_str().unwrap()]).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("expected labelled images after it"), "{e}");
}

#[test]
fn every_shell_has_a_script_and_every_command_a_page() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = call(&["completions", shell]).unwrap();
        assert!(script.contains("preset") && script.contains("predict"), "{shell}");
    }
    let page = call(&["man"]).unwrap();
    assert!(page.contains(".TH dfka-engine 1") && page.contains("SUBCOMMANDS"), "{page}");
    for command in Cli::command().get_subcommands() {
        let page = call(&["man", command.get_name()]).unwrap();
        assert!(page.contains(&format!(".TH dfka-engine-{} 1", command.get_name())), "{page}");
    }
    let e = call(&["man", "fly"]).unwrap_err();
    assert!(
        e.exit_code() == 2 && e.to_string().contains("no command `fly`; expected one of: init, run"),
        "{e}"
    );
}

#[test]
fn an_experiment_runs_each_row_once_and_shows_its_command() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    std::fs::write(file("c.toml"), format!("{CONFIG}evaluation.data = 'e.npz'\n")).unwrap();
    std::fs::write(file("e.npz"), "labelled images").unwrap();
    let text = "title = 't'\nsource = 's'\nseeds = [0, 1]\nscales.demo.config = 'c.toml'\n\
                [[rows]]\nname = 'ours'\nrun = 'r'\nset = ['dual.batch=8']\n[[rows]]\nname = 'A'\nteacher = 1\n";
    std::fs::write(file("e.toml"), text).unwrap();
    let (experiment, out) = (file("e.toml"), file("out"));
    let go = |more: &[&str]| {
        let base = ["experiment", experiment.to_str().unwrap(), "--scale", "demo", "--quiet", "--out"];
        call(&[&base[..], &[out.to_str().unwrap(), "--set", "dual.batch=2"], more].concat())
    };
    let text = go(&[]).unwrap();
    assert!(text.contains("ours") && text.contains("published: s"), "{text}");
    let page = std::fs::read_to_string(out.join("demo/e.md")).unwrap();
    assert!(page.contains("--scale demo --set 'dual.batch=2'`") && page.contains("seeds 0, 1"), "{page}");
    let config = std::fs::read_to_string(out.join("demo/r-seed1").join(report::CONFIG)).unwrap();
    assert!(config.contains("batch = 2\n"), "the command line wins:\n{config}");

    let metrics = out.join("demo/r-seed0").join(report::METRICS);
    std::fs::remove_file(&metrics).unwrap();
    go(&[]).unwrap();
    assert!(!metrics.exists(), "a finished run is read, not repeated");
    for (more, expected) in [
        (&["--seeds", "1,1"][..], "seed 1 is listed more than once"),
        (&["--set", "dual.batch=3"], "choose another folder with --out"),
    ] {
        let e = go(more).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains(expected), "{e}");
    }
    std::fs::write(file("a.npz"), "another teacher").unwrap();
    let e = go(&[]).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("this run read a different teacher a"), "{e}");
}

#[test]
fn force_removes_no_input_and_nothing_before_the_data_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (config, out) = (dir.path().join("c.toml"), dir.path().join("out"));
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("weights.npz"), "a teacher").unwrap();
    let (c, o) = (config.to_str().unwrap(), out.to_str().unwrap());
    std::fs::write(&config, CONFIG.replace("a.npz", "out/weights.npz")).unwrap();
    let e = call(&["run", c, "--quiet", "--force", "--out", o]).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("weights.npz, which this command reads"), "{e}");

    let text = "name = 'bad'\ndata.train = 'none.npz'\nnetwork = { block = 'basic', widths = [8], depths = [1], \
                stem = { width = 8, kernel = 3, stride = 1, max_pool = false } }\n";
    std::fs::write(&config, text).unwrap();
    assert_eq!(call(&["teach", c, "--quiet", "--force", "--out", o]).unwrap_err().exit_code(), 4);
    assert_eq!(std::fs::read_to_string(out.join("weights.npz")).unwrap(), "a teacher");
}
