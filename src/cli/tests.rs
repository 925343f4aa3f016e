//! The commands with a pipeline that only pretends.

use super::*;
use crate::pipeline::observer::Observer;
use crate::summary::{Score, Summary};

const CONFIG: &str = "name = 'n'\nteachers = [{ name = 'a', weights = 'a.npz' }]\n\
                      student.labels = ['bus']\ndual.steps = [1, 1]\n";

const FAKE: Engine = Engine {
    open_teachers: |_, absent| {
        let labels = vec!["bus".into(), "car".into()];
        Ok(vec![TeacherFacts { labels, channels: vec![8, 16], is_drawn: absent == Absent::IsDrawn }])
    },
    check: |_, _| Ok(()),
    run: |spec, out, is_resumed, observer: &mut dyn Observer| {
        assert!(out.join(report::CONFIG).exists());
        observer.stage(if is_resumed { "again" } else { "first" }, 2);
        for step in 0..2 {
            observer.step(step, &mut [("loss", 0.5)].into_iter());
        }
        Ok(Summary { name: spec.name.clone(), seed: spec.seed, ..Summary::default() })
    },
    check_teach: |_| Ok(()),
    teach: |spec, _, _, _| Ok(json!({ "name": spec.name, "map": 90.5 })),
    score_teacher: |_, _| Ok(Score { map: 60.0, ..Score::default() }),
    evaluate: |_, _, _| Ok(Score { map: 50.0, ..Score::default() }),
    forecast: |_, _| Ok(json!({ "memory": { "bytes": 12 } })),
};

fn call(args: &[&str]) -> Result<String> {
    let cli = Cli::try_parse_from(["dfka-engine"].iter().chain(args)).unwrap();
    answer(&cli.command, &FAKE)
}

#[test]
fn a_run_leaves_its_folder_and_is_resumed_refused_and_replaced() {
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
fn what_the_teachers_lack_is_a_config_error_before_any_folder_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.toml");
    std::fs::write(&config, CONFIG).unwrap();
    let out = dir.path().join("out");
    let args = ["--set", "student.labels=['cat']"];
    let e = call(&[&["run", config.to_str().unwrap(), "--out", out.to_str().unwrap()][..], &args].concat());
    let e = e.unwrap_err();
    assert_eq!(e.exit_code(), 3);
    assert!(e.to_string().ends_with("no teacher knows the label `cat`; did you mean `car`?"), "{e}");
    assert!(!out.exists());
    let json = call(&["check", config.to_str().unwrap(), "--json"]).unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["forecast"]["memory"]["bytes"], &json["config"]["name"]), (&json!(12), &json!("n")));
    let text = call(&["check", config.to_str().unwrap()]).unwrap();
    assert!(
        text.contains(
            "teacher a: 2 labels, channels [8, 16]
"
        ) && text.ends_with(
            "a.npz: not there; forecast with random weights
memory.bytes  12
"
        ),
        "{text}"
    );
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
fn results_print_as_lines() {
    let text = lines(&json!({ "a": { "bytes": 12 }, "note": "x", "list": [1, 2] }));
    assert_eq!(text, "a.bytes  12\nlist     [1,2]\nnote     x\n");
}
