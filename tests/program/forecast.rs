//! The forecasts of `check`: for the paper's configuration without its weights, and compared with the memory
//! that a machine really allocates.

use crate::common::{LEFT, Lab, network, skipped};
use dfka_engine::autograd::Store;
use dfka_engine::config::{self, Override};
use dfka_engine::device::Choice;
use dfka_engine::pipeline::forecast::forecast;
use dfka_engine::pipeline::spec::{Recipe, RunSpec, Stated};
use dfka_engine::pipeline::stage::Stage;
use dfka_engine::pipeline::stage_one::StageOne;
use dfka_engine::pipeline::stage_two::StageTwo;
use dfka_engine::pipeline::tasks::tasks;
use dfka_engine::pipeline::teachers::{Absent, OpenedTeacher, Teachers};
use dfka_engine::pipeline::{Device, engine_on};
use dfka_engine::tensor::Elem;
use serde_json::Value;
use std::path::Path;

fn opened(spec: &RunSpec) -> Vec<OpenedTeacher> {
    OpenedTeacher::open_all(&spec.teachers, Absent::IsDrawn).unwrap()
}

fn voc() -> String {
    crate::common::root().join("configs/voc.toml").display().to_string()
}

/// Two ResNet-101 at 224 px: nothing is allocated and nothing is run.
#[test]
fn the_papers_teachers_are_forecast_without_their_weights_and_not_run() {
    let lab = Lab::new();
    for card in [&[][..], &["--card", "h200"]] {
        let out = lab.call(&[&["check", &voc(), "--detail"], card].concat());
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        for part in [
            "weights/voc/teacher_a.safetensors: not found, forecast with random weights\n",
            "weights/voc/teacher_b.safetensors: not found, forecast with random weights\n",
            "teacher A2: 10 labels, channels [256, 512, 1024, 2048]; ",
            "(the least that an H200 needs for these launches; nothing was timed)\n",
            "\nGPU memory ",
            // torchvision's ResNet-101 with ten labels has 42.52 M; the student has 27.5 M up to block 3 and
            // block 4's 15.0 M twice.
            "\nparameters 85.04 M in the teachers, 58.52 M in the student\n",
            "conv2d backward, teachers",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
    // The same networks with the losses as the paper prints them.
    let published = voc().replace("voc.toml", "voc-published.toml");
    let text =
        String::from_utf8(lab.call(&["check", &published, "--card", "h200", "--detail"]).stdout).unwrap();
    assert!(text.contains("\nparameters 85.04 M in the teachers, 58.52 M in the student\n"), "{text}");
    let spec = config::load_run(Path::new(&published), &[]).unwrap().spec;
    assert_eq!((spec.loss.alpha, spec.loss.beta, spec.loss.gamma), (1.0, 1.0, 5.0));
    assert_eq!((&spec.loss.recipe, spec.loss.statistics), (&Recipe::Published, 0.0));
    assert!(spec.dual.freeze_earlier && spec.dual.lambda_in == [1.0, 1.0] && spec.dual.feature == 0.0);
    let out = lab.call(&["run", &voc()]);
    let text = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(4), "{text}");
    assert!(text.contains("teacher_a.safetensors: cannot open"), "{text}");
    assert!(!lab.path("runs").exists());
    let out = lab.call(&["check", &voc(), "--card", "b300"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8(out.stderr).unwrap().contains("h200, h100, a100, a100-40gb"));
}

/// Networks of other names, in the place of the paper's.
#[test]
fn other_networks_are_forecast_by_their_names() {
    let (lab, voc) = (Lab::new(), voc());
    for (name, parameters) in [
        ("wide_resnet50_2", "133.71 M in the teachers, 109.86 M in the student"),
        ("wide_resnet101_2", "249.72 M in the teachers, 167.86 M in the student"),
        ("resnet18d", "22.40 M in the teachers, 19.66 M in the student"),
        ("resnet50d", "47.10 M in the teachers, 39.55 M in the student"),
    ] {
        let sets = [0, 1].map(|i| format!("--set=teachers.{i}.network={name}"));
        let out = lab.call(&["check", &voc, "--card", "h200", "--detail", &sets[0], &sets[1]]);
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert!(text.contains(&format!("\nparameters {parameters}\n")), "{name}: {text}");
    }
}

#[test]
fn a_check_begins_with_its_verdict_and_has_a_dozen_lines() {
    let lab = Lab::new();
    let text = String::from_utf8(lab.call(&["check", "c.toml", "--device", "cpu"]).stdout).unwrap();
    let first = text.lines().next().unwrap();
    assert!(first.starts_with("c.toml: matches its teachers; a run takes about "), "{text}");
    assert!(first.contains(" on this CPU and needs ") && first.ends_with(" MB of disk"), "{text}");
    assert!(text.lines().count() <= 12 && text.contains(" in runs/tiny-seed5, where "), "{text}");
    let text = String::from_utf8(lab.call(&["check", &voc(), "--card", "h200"]).stdout).unwrap();
    assert!(text.contains("fits what it states of its teachers; a run takes at least "), "{text}");
    assert!(text.lines().count() <= 12, "{text}");

    // What the run leaves is not more than what was promised.
    // The lab's teachers were not fine-tuned from one backbone, which a note says of the mean of their blocks.
    let init = "student.init=teacher:left";
    let out = lab.call(&["check", "c.toml", "--device", "cpu", "--json", "--set", init]);
    assert!(out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    let all: Value = serde_json::from_slice(&out.stdout).unwrap();
    lab.run("out", &[init]).unwrap();
    let students: u64 = std::fs::read_dir(lab.path("out"))
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("student"))
        .map(|e| e.metadata().unwrap().len())
        .sum();
    let promised = all["forecast"]["disk"]["student_bytes"].as_u64().unwrap();
    // Headers of files are larger than tensors at this scale.
    assert!(promised <= students && students <= promised + (1 << 20), "{promised} {students}");
}

#[test]
fn json_has_every_part_and_op_of_every_stage() {
    let out = Lab::new().call(&["check", &voc(), "--card", "h100", "--json"]);
    let all: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(all["teachers"][0]["is_drawn"], true);
    let f = &all["forecast"];
    assert_eq!((&f["card"]["name"], &f["is_measured"]), (&"h100".into(), &false.into()));
    let stages = f["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["generator", "block1", "block2", "block3", "block4"]);
    let number = |v: &Value, key: &str| v[key].as_f64().unwrap_or_else(|| panic!("no {key} in {v}"));
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs());
    let keys = ["launches", "flops", "bytes_moved", "minimal_bytes", "roofline_ms", "planned_ms"];
    for s in stages {
        let gpu = &s["gpu"];
        let parts = gpu["parts"].as_array().unwrap();
        for key in keys {
            let sum =
                |list: &Value, key| list.as_array().unwrap().iter().map(|v| number(v, key)).sum::<f64>();
            for p in parts {
                assert!(close(number(p, key), sum(&p["ops"], key)), "{key} of {}", p["part"]);
            }
            let whole = if key == "flops" { 2.0 * number(gpu, "macs") } else { number(gpu, key) };
            assert!(close(whole, sum(&gpu["parts"], key)), "{key} of {}", s["name"]);
        }
        for p in parts {
            assert!(["teachers", "generator", "student", "rest"].contains(&p["part"].as_str().unwrap()));
            let (moved, least) = (number(p, "bytes_moved"), number(p, "minimal_bytes"));
            assert!(close(number(p, "ratio"), moved / least));
            // The model has a start for every launch, and less than the whole bandwidth.
            let model = [0, 1].map(|i| p["modelled_ms"][i].as_f64().unwrap());
            assert!(number(p, "planned_ms") < model[0] && model[0] <= model[1], "{p}");
            assert!(number(p, "planned_ms") > 0.0 && number(p, "roofline_ms") > 0.0, "{p}");
            for op in p["ops"].as_array().unwrap() {
                assert!(
                    op["op"].is_string()
                        && ["forward", "backward", "update"].contains(&op["phase"].as_str().unwrap())
                );
            }
        }
        let held = |key: &str| number(&gpu["memory"], key);
        assert!(held("store_bytes") > 2.0 * 4.0 * 42.5e6 && held("copies_bytes") > 2.0 * 2.0 * 42.4e6);
        assert!(close(number(s, "step_ms"), number(gpu, "planned_ms")));
        for i in [0, 1] {
            let of = |v: &Value| v["modelled_ms"][i].as_f64().unwrap();
            assert!(close(of(gpu), parts.iter().map(of).sum()), "{}", s["name"]);
        }
    }
    assert!(number(f, "gpu_peak_bytes") < number(&f["card"], "memory_bytes"));
}

/// The rate of the L2 is assumed, and the write of a tile is held to the machine code (tests/engine/stalls.rs).
#[test]
fn the_generators_step_is_modelled_at_65_percent_of_an_h200s_roofline() {
    let out = Lab::new().call(&["check", &voc(), "--card", "h200", "--json"]);
    let all: Value = serde_json::from_slice(&out.stdout).unwrap();
    let generator = &all["forecast"]["stages"][0];
    let share = generator["gpu"]["roofline_ms"].as_f64().unwrap()
        / generator["gpu"]["modelled_ms"][0].as_f64().unwrap();
    assert!(generator["name"] == "generator" && (0.65..0.9).contains(&share), "{share}");
}

/// Where the file exists it determines the teacher, and the config must agree with it.
#[test]
fn a_teachers_description_must_agree_with_its_file_and_replaces_a_missing_one() {
    let lab = Lab::new();
    let mut spec = lab.spec(&[]);
    let labels = LEFT.map(String::from).to_vec();
    spec.teachers[0].stated =
        Stated { network: Some(network()), labels: labels.clone(), ..Stated::default() };
    let load =
        |spec: &RunSpec, absent| Teachers::load_or(&mut Store::<f32>::default(), &spec.teachers, absent);
    for absent in [Absent::Fails, Absent::IsDrawn] {
        assert!(load(&spec, absent).unwrap().all.iter().all(|t| !t.is_drawn()));
    }
    let mut other = spec.clone();
    other.teachers[0].stated.labels[1] = "cat".into();
    let e = load(&other, Absent::IsDrawn).map(|_| ()).unwrap_err();
    assert_eq!(e.exit_code(), 4);
    for part in ["left.npz", "the config's labels are", "cat", "the file's", "car"] {
        assert!(e.to_string().contains(part), "{e}");
    }
    other = spec.clone();
    other.teachers[0].stated.network.as_mut().unwrap().depths[0] = 2;
    let e = load(&other, Absent::Fails).map(|_| ()).unwrap_err().to_string();
    assert!(e.contains("left.npz") && e.contains("the config's network is"), "{e}");

    std::fs::remove_file(&spec.teachers[0].weights).unwrap();
    assert_eq!(load(&spec, Absent::Fails).map(|_| ()).unwrap_err().exit_code(), 4);
    let [a, b] = [(), ()].map(|()| {
        let mut store = Store::<f32>::default();
        let drawn = Teachers::load_or(&mut store, &spec.teachers, Absent::IsDrawn).unwrap();
        assert_eq!((drawn.all[0].is_drawn(), drawn.all[1].is_drawn()), (true, false));
        store.to_f32(drawn.all[0].net.head.unwrap()[0])
    });
    assert!(a == b && a.iter().any(|v| *v != 0.0), "drawn from a fixed seed");
    // Nothing is measured where a teacher's file is missing, also not from the mean of the teachers.
    spec.student.init = dfka_engine::pipeline::spec::StudentInit::Mean;
    assert!(!forecast(&spec, &opened(&spec), None).unwrap().is_measured);
}

/// Every stage of the demo allocates on a machine as much as was forecast.
#[test]
fn a_machine_allocates_what_was_forecast() {
    if let Err(e) = Choice::Emu.machine(Elem::F32) {
        assert!(std::env::var_os("DFKA_REQUIRE_EMU").is_none(), "{e}");
        return skipped(&e.to_string());
    }
    for precision in ["f32", "bf16"] {
        let sets = [format!("precision={precision:?}"), "generator.batch=8".into(), "dual.batch=8".into()];
        let sets: Vec<Override> = sets.iter().map(|s| Override::set(s).unwrap()).collect();
        let file = crate::common::root().join("configs/demo.toml");
        let spec = config::load_run(&file, &sets).unwrap().spec;
        let expected = forecast(&spec, &opened(&spec), Some(Default::default())).unwrap();
        let mut expected = expected.stages.iter();
        let device = Device { choice: Choice::Emu, ..Device::default() };
        let mut engine = engine_on(&device, spec.precision).unwrap();
        let mut compare = |engine: &mut dfka_engine::autograd::Engine<f32>, stage: Stage| {
            stage.plan.reserve(engine).unwrap();
            let expected = expected.next().unwrap();
            let held = expected.gpu.memory;
            assert_eq!(stage.name, expected.name);
            let found = engine.machine().unwrap().held_bytes();
            assert_eq!(held.total() - held.tables_bytes, found, "{precision}: {}: {held:?}", stage.name);
            assert_eq!(held.copies_bytes > 0, precision == "bf16");
        };
        let teachers = Teachers::load(&mut engine.store, &spec.teachers).unwrap();
        let one = StageOne::new(&mut engine.store, &spec, &teachers);
        let stage = one.stage(&mut engine, &spec, &teachers).unwrap();
        compare(&mut engine, stage);
        let tasks = tasks(&teachers, &spec.student).unwrap();
        let two = StageTwo::new(&mut engine.store, &spec, &teachers, tasks, Some(&one)).unwrap();
        for b in 1..=teachers.network.blocks() {
            let name = format!("block{b}");
            let stage = two.stage(&mut engine, &name, &spec, &teachers, Some(&one), b).unwrap();
            compare(&mut engine, stage);
        }
    }
}

/// With one of three teachers at a time, two, or all, every file that a run exports has the same bits, and a run may
/// change between them.
#[test]
fn teachers_that_take_turns_give_the_same_student_in_less_memory() {
    let lab = Lab::new();
    let third = r#"teachers=[{name="left",weights="left.npz"},{name="right",weights="right.npz"},{name="third",weights="third.npz"}]"#;
    for (at_once, recipe) in [(1, "conditional"), (2, "conditional"), (1, "published")] {
        let sets = [third.to_string(), format!("loss.recipe={recipe}"), "loss.statistics=2".into()];
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        let turns = format!("generator.teachers_at_once={at_once}");
        let by_turns = [&sets[..], &[turns.as_str()]].concat();
        let (together, apart) = (format!("{recipe}-all"), format!("{recipe}-{at_once}"));
        lab.run(&together, &sets).unwrap();
        lab.run(&apart, &by_turns).unwrap();
        for file in ["generator.npz", "student.npz", "student.onnx", "student-block1.npz"] {
            let [a, b] = [&together, &apart].map(|out| lab.bytes(&format!("{out}/{file}")));
            assert!(a == b, "{recipe}, {at_once} at a time: {file} differs");
        }
    }
    let steps = "generator.steps=3";
    let sets: Vec<String> =
        [third, steps].iter().flat_map(|s| ["--set".to_string(), s.to_string()]).collect();
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let run = |args: &[&str]| {
        let out = lab.call(&[&["run", "c.toml", "--out", "changed", "--quiet"], &sets[..], args].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    run(&[]);
    run(&["--set", "generator.teachers_at_once=1", "--resume"]);

    let check = lab.call(&[&["check", "c.toml", "--detail"], &sets[..]].concat());
    let text = String::from_utf8(check.stdout).unwrap();
    assert!(
        text.contains("3 at a time here, 3 on the GPU; one at a time (generator.teachers_at_once = 1)"),
        "{text}"
    );
    let out = lab.call(&["check", "c.toml", "--set", "generator.teachers_at_once=0"]);
    let text = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(3), "{text}");
    assert!(text.contains("generator.teachers_at_once"), "{text}");
}

/// 32 ResNet-101 at 224 px and batch 64 do not fit an 80 GB card together: by itself the plan lets them take turns, in
/// a fraction of its memory.
#[test]
fn thirty_two_teachers_fit_a_card_of_80_gb() {
    let lab = Lab::new();
    let text = std::fs::read_to_string(crate::common::root().join("configs/voc.toml")).unwrap();
    let (before, after) =
        (text.split_once("[[teachers]]").unwrap().0, text.split_once("[student]").unwrap().1);
    let teacher = |i: usize| {
        format!(
            "[[teachers]]\nname = \"T{i}\"\nweights = \"absent{i}.npz\"\nnetwork = \"resnet101\"\nimage_size = 224\n\
             labels = [\"{i}a\", \"{i}b\"]\n"
        )
    };
    let after = after.replacen("[\"bus\", \"diningtable\"]", "[\"0a\", \"31b\"]", 1);
    let after = after.split_once("[evaluation").map_or(after.clone(), |(before, _)| before.to_string());
    let text = format!("{before}{}[student]{after}", (0..32).map(teacher).collect::<String>());
    std::fs::write(lab.path("many.toml"), text).unwrap();
    let peak = |sets: &[&str]| {
        let out = lab.call(&[&["check", "many.toml", "--card", "a100", "--json"], sets].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let json: Value = serde_json::from_slice(&out.stdout).unwrap();
        let at_once = json["forecast"]["stages"][0]["gpu"]["teachers_at_once"].as_u64().unwrap();
        (at_once, json["forecast"]["gpu_peak_bytes"].as_f64().unwrap())
    };
    let (one, chosen) = (peak(&["--set", "generator.teachers_at_once=1"]), peak(&[]));
    assert!(one.0 == 1 && one.1 <= 25e9, "{one:?}");
    assert!(chosen.0 == 16 && (40e9..80e9).contains(&chosen.1), "{chosen:?}");
}

/// On two cards a teacher each: less memory and time than on one, and the exchanges of the gradients that `spread` adds.
#[test]
fn several_cards_are_forecast() {
    let lab = Lab::new();
    let forecast = |args: &[&str]| -> Result<Value, String> {
        let out = lab.call(&[&["check", &voc(), "--card", "h200", "--json"], args].concat());
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.success(), text.is_empty(), "{text}");
        if out.status.success() { Ok(serde_json::from_slice(&out.stdout).unwrap()) } else { Err(text) }
    };
    let number = |v: &Value| v.as_f64().unwrap();
    let whole = forecast(&["--ranks", "2"]).unwrap();
    let (two, one) = (&whole["ranks"], &whole["forecast"]);
    assert_eq!(two["alone_peak_bytes"], one["gpu_peak_bytes"]);
    assert!(number(&two["gpu_peak_bytes"]) < number(&two["alone_peak_bytes"]));
    let efficiency = number(&two["efficiency"]);
    assert!((0.5..1.0).contains(&efficiency), "{efficiency}");
    // The gradients of the images and of level 2, of the rank's own teacher and the sum, of which a half is sent.
    let floats = 64 * (224 * 224 * 3 + 28 * 28 * 512);
    assert_eq!(two["stages"][0]["sent_bytes"], 4 * floats);
    let alone = number(&one["stages"][0]["gpu"]["modelled_ms"][0]);
    assert_eq!(number(&two["stages"][0]["alone_ms"]), alone);
    assert!(number(&two["stages"][0]["step_ms"]) < alone);
    // Eight parts of a batch send the gradients once and their sums once.
    let batch = ["--set", "parallel.split=batch", "--ranks"];
    let eight = &forecast(&[&batch[..], &["8"]].concat()).unwrap()["ranks"];
    let trained = number(&one["stages"][0]["gpu"]["trained_elements"]);
    assert_eq!(number(&eight["stages"][0]["sent_bytes"]), 2.0 * 4.0 * trained * 7.0 / 8.0);
    // The text says what each time is of.
    let said = lab.call(&["check", &voc(), "--card", "h200", "--ranks", "2"]).stdout;
    let said = String::from_utf8(said).unwrap();
    for expected in [
        "\ntime on an H200: generator ",
        "\non 2 ranks with an H200 each, ",
        "\non one H200 it takes ",
        "all times above are of one process",
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    let error = forecast(&["--ranks", "3"]).unwrap_err();
    assert!(error.contains("2 teachers are divided among the ranks"), "{error}");
    let error = forecast(&[&batch[..], &["7"]].concat()).unwrap_err();
    assert!(error.contains("generator.batch is 64, which 7 ranks cannot divide equally"), "{error}");
}
