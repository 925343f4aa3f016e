//! Whole runs on teachers of a few thousand parameters: the same seed gives the same bits, whatever happens
//! on the way, and the summary says what is in the files.

use crate::common::{LEFT, Lab, RIGHT, THIRD, load, mapped, network, teacher_tensors};
use dfka_engine::device::philox::{Draws, below};
use dfka_engine::labelled::evaluate::evaluate;
use dfka_engine::models::filter::{FilterKind, FilterSpec};
use dfka_engine::models::resnet::{Normalisation, ResNetSpec, Stem};
use dfka_engine::models::targetnet::{TargetNetSpec, TaskSpec};
use dfka_engine::pipeline::Device;
use dfka_engine::pipeline::fingerprint;
use dfka_engine::pipeline::spec::EvaluationData;
use dfka_engine::summary::{Score, Summary};
use dfka_engine::weights::npz;
use serde_json::Value as Json;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

const ALL_STUDENTS: [&str; 2] = ["baselines.noise=true", "baselines.ka=ka.npz"];

#[test]
fn the_same_seed_gives_the_same_bits_and_another_seed_others() {
    let lab = Lab::new();
    for (out, seed) in [("a", "5"), ("b", "5"), ("c", "6")] {
        lab.run(out, &[&format!("seed={seed}"), ALL_STUDENTS[0], ALL_STUDENTS[1]]).unwrap();
    }
    for name in ["student.npz", "student-block1.npz", "noise.student.npz", "ka.student.npz", "samples.png"] {
        assert!(lab.bytes(&format!("a/{name}")) == lab.bytes(&format!("b/{name}")), "{name} differs");
    }
    assert!(lab.bytes("a/student.npz") != lab.bytes("c/student.npz"), "another seed made the same student");
}

/// The student is a function of the teachers and the config: nothing of the evaluation set reaches it.
#[test]
fn the_student_does_not_depend_on_the_evaluation_set() {
    let lab = Lab::new();
    let spec = lab.spec(&[]);
    let with = lab.run_spec("with", &spec).unwrap();
    assert!(with.student.is_some() && with.teachers.contains_key("mean"));
    let mut without = spec.clone();
    without.evaluation = None;
    let summary = lab.run_spec("without", &without).unwrap();
    assert!(summary.student.is_none() && summary.teachers.is_empty());
    assert_eq!(with.branch, summary.branch);

    // Removed before the run: it fails when it scores, after the student was trained and stored.
    std::fs::remove_file(lab.path("evaluation.npz")).unwrap();
    let e = lab.run_spec("gone", &spec).unwrap_err();
    assert!(e.exit_code() == 4 && e.to_string().contains("evaluation.npz"), "{e}");
    // Other targets, and a file that is no archive.
    std::fs::write(lab.path("evaluation.npz"), b"no zip").unwrap();
    assert_eq!(lab.run_spec("rubbish", &spec).unwrap_err().exit_code(), 4);
    let all: Vec<&str> = LEFT.iter().chain(&RIGHT).copied().collect();
    crate::common::labelled(9, network().image, &all, 1234).save(lab.path("evaluation.npz")).unwrap();
    let other = lab.run_spec("other", &spec).unwrap();
    assert!(other.student.unwrap().score.ap != with.student.unwrap().score.ap);
    for out in ["without", "gone", "rubbish", "other"] {
        assert!(lab.bytes("with/student.npz") == lab.bytes(&format!("{out}/student.npz")), "{out}");
    }
}

/// A run that is killed twice, anywhere, and resumed has the same bits as one that was never killed.
#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let lab = Lab::new();
    // Five steps a stage: every step prints a line, and leaves a checkpoint.
    let sets = [
        "checkpoint_seconds=0",
        "generator.steps=5",
        "dual.steps=[5, 5, 5, 5]",
        ALL_STUDENTS[0],
        ALL_STUDENTS[1],
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|s| ["--set", s]).collect();
    let run = |out: &str, more: &[&str]| {
        let mut c = lab.program(&[&["run", "c.toml", "--out", out], &sets[..], more].concat());
        c.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    };
    let whole = run("whole", &[]).wait_with_output().unwrap();
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    // Those of the training: the evaluation prints lines too, and a note says that the teachers are not alike.
    let is_of_training = |line: &&str| !line.starts_with("evaluation: ") && !line.starts_with("note: ");
    let count = |text: &str| text.lines().filter(is_of_training).count();
    let lines = count(&String::from_utf8(whole.stderr).unwrap());
    assert_eq!(lines, 1 + 5 * (1 + 3 * 4));

    let draws = Draws::new(99, 0, 0);
    // A few lines at random, and those around a change of stage or student: the last line before it and the
    // first after.
    let random = (0..3).map(|i| 1 + below(draws.words(i, 0)[0], lines - 2));
    for (i, first) in random.chain([6, 11, 26, 27, 47]).enumerate() {
        let out = format!("killed{i}");
        let mut left = lines - first;
        let mut kill_after = first;
        for round in 0..2 {
            let more: &[&str] = if round == 0 { &[] } else { &["--resume"] };
            let mut child = run(&out, more);
            let mut err = BufReader::new(child.stderr.take().unwrap());
            for _ in 0..kill_after {
                err.read_line(&mut String::new()).unwrap();
            }
            child.kill().unwrap(); // SIGKILL
            child.wait().unwrap();
            // The second kill comes soon after the first in half of the cases, and much later in the others.
            left = left.saturating_sub(2);
            kill_after = if i % 2 == 0 { 2 } else { 1 + left / 2 };
        }
        let end = run(&out, &["--resume"]).wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&end.stderr);
        assert!(end.status.success(), "killed after line {first}: {text}");
        assert!(count(&text) < lines || first < 4, "killed after line {first}, started over:\n{text}");
        for prefix in ["", "noise.", "ka."] {
            for name in ["student.npz", "student-block1.npz", "student-block4.npz"] {
                let same = lab.bytes(&format!("whole/{prefix}{name}"))
                    == lab.bytes(&format!("{out}/{prefix}{name}"));
                assert!(same, "killed after line {first}: {prefix}{name} differs");
            }
        }
        let branch = |out: &str| {
            let s: Summary = serde_json::from_slice(&lab.bytes(&format!("{out}/summary.json"))).unwrap();
            (s.branch, s.student, s.noise, s.ka, s.label_statistics)
        };
        assert_eq!(branch("whole"), branch(&out), "killed after line {first}");
    }
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let lab = Lab::new();
    lab.run("out", &[]).unwrap();
    let resume = |sets: &[&str]| {
        let spec = lab.spec(sets);
        dfka_engine::labelled::run::run(
            &spec,
            &lab.path("out"),
            true,
            &mut dfka_engine::pipeline::observer::Silent,
        )
    };
    let student = lab.bytes("out/student.npz");
    resume(&["checkpoint_seconds=3"]).unwrap();
    assert_eq!(lab.bytes("out/student.npz"), student);
    for other in ["seed=6", "generator.steps=7"] {
        let e = resume(&[other]).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("another configuration"), "{other}: {e}");
    }
    let teacher = load(&lab.path("left.npz"));
    let louder = mapped(&teacher, |_, shape, v| Some((shape.to_vec(), v.iter().map(|v| v * 1.01).collect())));
    npz::save(lab.path("left.npz"), &louder).unwrap();
    assert_eq!(resume(&[]).unwrap_err().exit_code(), 2, "resumed with another teacher");
}

#[test]
fn one_teacher_three_teachers_and_some_labels() {
    let lab = Lab::new();
    let one = "teachers=[{ name = 'left', weights = 'left.npz' }]";
    let third = "teachers=[{ name = 'left', weights = 'left.npz' }, \
                 { name = 'right', weights = 'right.npz' }, { name = 'third', weights = 'third.npz' }]";
    let labels = |s: &Summary| s.labels.iter().map(|l| l.to_string()).collect::<Vec<_>>();
    let tasks =
        |s: &Summary| s.branch.iter().map(|t| (t.teacher.clone(), t.labels.len())).collect::<Vec<_>>();

    let s = lab.run("one", &[one]).unwrap();
    assert_eq!((labels(&s), tasks(&s)), (LEFT.map(String::from).to_vec(), vec![("left".into(), 3)]));

    let s = lab.run("three", &[third]).unwrap();
    let all: Vec<&str> = LEFT.iter().chain(&RIGHT).chain(&THIRD).copied().collect();
    assert_eq!(labels(&s), all);
    assert_eq!(tasks(&s), [("left".into(), 3), ("right".into(), 2), ("third".into(), 2)]);

    // Tasks are in the order of the chosen labels, across teachers; a teacher without a chosen label gives
    // no task.
    let s = lab.run("some", &[third, "student.labels=['tree', 'car', 'bus']"]).unwrap();
    assert_eq!(labels(&s), ["tree", "car", "bus"]);
    assert_eq!(tasks(&s), [("left".into(), 2), ("third".into(), 1)]);
    assert_eq!(s.student.unwrap().score.ap.len(), 3);
    assert!(!s.teachers.contains_key("right") && s.teachers["left"].ap.len() == 2);
}

#[test]
fn every_number_of_groups_and_every_recipe_runs() {
    let lab = Lab::new();
    let mut students = vec![];
    for sets in [
        &["generator.groups=1"][..],
        &["generator.groups=2"],
        &["generator.groups=4"],
        &["loss.recipe=\"published\""],
        &["loss.recipe=\"balanced\"", "loss.share=0.3"],
        &["student.norm=\"batch\""],
        &["student.norm=\"folded\""],
        &["student.init=\"scratch\""],
        &["student.filter=\"stitch\""],
        &["student.init=\"teacher:right\""],
        &["dual.images=\"noise\""],
        &["dual.images=\"real:ka.npz\""],
        &["generator.shift=0", "dual.lambda_in=[1, 0]"],
    ] {
        let s = lab.run(&format!("run{}", students.len()), sets).unwrap_or_else(|e| panic!("{sets:?}: {e}"));
        let score = s.student.unwrap();
        assert!(score.by_block.len() == 4 && score.score.ap.len() == 5, "{sets:?}: {score:?}");
        assert!(score.score.map > 0.0 && score.score.map <= 100.0, "{sets:?}: {score:?}");
        let chosen = s.branch[0].block;
        assert_eq!(score.score, score.by_block[chosen - 1], "{sets:?}");
        assert!(s.branch.iter().all(|t| t.loss_by_block.iter().all(|l| l.is_finite())), "{sets:?}");
        students.push(lab.bytes(&format!("run{}/student.npz", students.len())));
    }
    for (i, s) in students.iter().enumerate() {
        assert!(
            !students[..i].contains(s),
            "case {i} made the student of an earlier one: its key does nothing"
        );
    }
}

#[test]
fn the_summary_lists_the_baselines() {
    let lab = Lab::new();
    let s = lab.run("out", &ALL_STUDENTS).unwrap();
    let (student, noise, ka) = (s.student.unwrap(), s.noise.unwrap(), s.ka.unwrap());
    assert!(student.by_block.len() == 4 && noise.by_block.len() == 4 && ka.by_block.len() == 4);
    // Three different students, not the same one three times.
    let files =
        ["student.npz", "noise.student.npz", "ka.student.npz"].map(|n| lab.bytes(&format!("out/{n}")));
    assert!(files[0] != files[1] && files[1] != files[2] && files[0] != files[2]);
    let stages = s.seconds.keys().cloned().collect::<Vec<_>>();
    for stage in ["generator", "block4", "noise.block4", "ka.block1", "total"] {
        assert!(stages.iter().any(|s| s == stage), "{stage} is missing among {stages:?}");
    }
}

/// With `freeze_earlier`, stage b leaves the blocks before b as they were.
#[test]
fn frozen_blocks_stay_as_they_were() {
    let lab = Lab::new();
    lab.run("free", &["dual.freeze_earlier=false"]).unwrap();
    lab.run("frozen", &["dual.freeze_earlier=true"]).unwrap();
    let trunk = |out: &str, b: usize, prefix: &str| {
        let t = load(&lab.path(&format!("{out}/student-block{b}.npz")));
        let of =
            t.iter().filter(|(n, _)| n.starts_with(prefix)).map(|(n, t)| (n.to_string(), t.data.clone()));
        let all: Vec<_> = of.collect();
        assert!(!all.is_empty(), "{prefix}");
        all
    };
    for (earlier, prefix) in
        [(1, "trunk.layer1"), (1, "trunk.conv1"), (2, "trunk.layer2"), (3, "trunk.layer3")]
    {
        assert_eq!(trunk("frozen", earlier, prefix), trunk("frozen", earlier + 1, prefix), "{prefix}");
        assert_ne!(trunk("free", earlier, prefix), trunk("free", earlier + 1, prefix), "{prefix}");
    }
    assert_ne!(trunk("frozen", 1, "task0.filter"), trunk("frozen", 2, "task0.filter"));
}

/// Where the blocks are frozen one by one, each task leaves the trunk after the block where its own loss is lowest, and
/// the student is put together from the students of these blocks. Baselines leave it after the same blocks.
#[test]
fn tasks_of_frozen_blocks_branch_where_their_own_loss_is_lowest() {
    let lab = Lab::new();
    // With these steps the losses of the two tasks are lowest after different blocks.
    let sets = ["dual.freeze_earlier=true", "student.branch=auto", "dual.steps=[1,1,12,1]", ALL_STUDENTS[1]];
    let s = lab.run("out", &sets).unwrap();
    let lowest = |losses: &[f64]| 1 + (0..4).min_by(|a, b| losses[*a].total_cmp(&losses[*b])).unwrap();
    let blocks: Vec<usize> = s.branch.iter().map(|t| t.block).collect();
    assert_eq!(blocks, s.branch.iter().map(|t| lowest(&t.loss_by_block)).collect::<Vec<_>>());
    assert_ne!(blocks[0], blocks[1], "the test needs tasks that branch apart: {:?}", s.branch);

    for prefix in ["", "ka."] {
        let student = load(&lab.path(&format!("out/{prefix}student.npz")));
        let spec: TargetNetSpec = student.meta_as("student").unwrap();
        assert_eq!(spec.tasks.iter().map(|t| t.block).collect::<Vec<_>>(), blocks);
        for (name, tensor) in student.iter() {
            let block = match name.split_once('.').unwrap().0 {
                "task0" => blocks[0],
                "task1" => blocks[1],
                _ => *blocks.iter().max().unwrap(),
            };
            let file = load(&lab.path(&format!("out/{prefix}student-block{block}.npz")));
            assert!(file.get(name) == Some(tensor), "{name}");
        }
        if prefix.is_empty() {
            assert_eq!(s.parameters.student, spec.parameters().0);
        }
    }
    // Each label's score is that of the student of its task's block.
    let (student, ka) = (s.student.unwrap(), s.ka.unwrap());
    for (task, block) in s.branch.iter().zip(&blocks) {
        for label in &task.labels {
            assert_eq!(student.score.ap[label], student.by_block[block - 1].ap[label]);
            assert_eq!(ka.score.ap[label], ka.by_block[block - 1].ap[label]);
        }
    }
    let agreement = s.agreement.unwrap();
    assert_eq!(agreement.labels.len(), s.labels.len());
    let thresholds: Vec<f32> = load(&lab.path("out/student.npz")).meta_as("thresholds").unwrap();
    assert_eq!(thresholds.len(), s.labels.len());
}

/// What a run can be resumed with: the spelling of a path does not matter, the contents of the file do.
#[test]
fn the_fingerprint_is_of_contents_and_of_no_paths() {
    let lab = Lab::new();
    let of = |weights: &str| {
        let spec = lab.spec(&[&format!("teachers.0.weights={weights}"), ALL_STUDENTS[1]]);
        fingerprint::of_run(&spec, &[]).unwrap()
    };
    std::fs::create_dir(lab.path("in")).unwrap();
    std::fs::copy(lab.path("left.npz"), lab.path("in/copy.npz")).unwrap();
    let first = of("left.npz");
    assert_eq!(first, of("in/../left.npz"));
    assert_eq!(first, of("in/copy.npz"));
    assert_ne!(first, of("right.npz"));
}

#[test]
fn a_collapsed_generator_stops_the_run() {
    let lab = Lab::new();
    for (set, what) in
        [("loss.least_diversity=2.0", "at least 2 expected"), ("loss.least_information=1.0", "at least 1")]
    {
        let out = format!("runs/{}", set.len());
        let run = lab.call(&["run", "c.toml", "--out", &out, "--quiet", "--set", set]);
        let text = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(7), "{text}");
        assert!(text.starts_with("error: generator: collapsed: ") && text.contains(what), "{text}");
        assert!(!lab.path(&out).join("student.npz").exists());
    }
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run() {
    let lab = Lab::new();
    let teacher = load(&lab.path("left.npz"));
    let huge = mapped(&teacher, |name, shape, v| {
        let v =
            if name == "layer3.0.conv2.weight" { v.iter().map(|v| v * 1e38).collect() } else { v.to_vec() };
        Some((shape.to_vec(), v))
    });
    npz::save(lab.path("left.npz"), &huge).unwrap();
    let out = lab.call(&["run", "c.toml", "--quiet", "--set", "student.init=scratch"]);
    let text = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(7), "{text}");
    assert!(text.starts_with("error: generator: loss is ") && text.contains(" at step 0"), "{text}");
}

/// Equal up to the last digit, which the way through JSON may change.
fn same(a: &Score, b: &Score) {
    let close = |a: &f64, b: &f64| (a - b).abs() < 1e-9;
    assert!(close(&a.map, &b.map) && close(&a.map_11_point, &b.map_11_point), "{a:?}\n{b:?}");
    for (a, b) in [(&a.ap, &b.ap), (&a.ap_11_point, &b.ap_11_point)] {
        assert!(
            a.keys().eq(b.keys()) && a.values().zip(b.values()).all(|(a, b)| close(a, b)),
            "{a:?}\n{b:?}"
        );
    }
}

#[test]
fn the_summary_describes_the_files() {
    let lab = Lab::new();
    let out = lab.call(&["run", "c.toml", "--out", "out", "--quiet", "--set", ALL_STUDENTS[0]]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let s: Summary = serde_json::from_slice(&lab.bytes("out/summary.json")).unwrap();
    let student = s.student.unwrap();

    // The stored student has the scores in the summary, both through the library and through the program.
    let evaluation = EvaluationData::Npz(lab.path("evaluation.npz"));
    same(&evaluate(&lab.path("out/student.npz"), &evaluation, &Device::default()).unwrap(), &student.score);
    same(
        &evaluate(&lab.path("out/noise.student.npz"), &evaluation, &Device::default()).unwrap(),
        &s.noise.unwrap().score,
    );
    for b in 1..=4 {
        let file = lab.path(&format!("out/student-block{b}.npz"));
        same(&evaluate(&file, &evaluation, &Device::default()).unwrap(), &student.by_block[b - 1]);
    }
    let eval = lab.call(&["eval", "out/student.npz", "evaluation.npz", "--json"]);
    let printed: Score = serde_json::from_slice(&eval.stdout).unwrap();
    same(&printed, &student.score);

    // Parameters as PyTorch counts them: a batch norm has gamma and beta, which the student's file holds as
    // one bias.
    let elems = |file: &str, keep: fn(&str) -> bool| -> usize {
        load(&lab.path(file)).iter().filter(|(n, _)| keep(n)).map(|(_, t)| t.data.len()).sum()
    };
    let teachers =
        elems("left.npz", |n| !n.contains("running")) + elems("right.npz", |n| !n.contains("running"));
    assert_eq!(s.parameters.teachers, teachers);
    let is_folded = |n: &str| n.ends_with(".bias") && !n.contains("fc");
    assert_eq!(
        s.parameters.student,
        elems("out/student.npz", |_| true) + elems("out/student.npz", is_folded)
    );
    assert_eq!(s.parameters.filters, elems("out/student.npz", |n| n.contains("filter")));
    assert!(s.parameters.filters > 0 && s.parameters.student < s.parameters.teachers);
}

/// docs/method.md 4: two tasks on ResNet-101 that leave the trunk after block 3.
#[test]
fn the_papers_parameter_counts() {
    let network = ResNetSpec::torchvision(101, 224).unwrap();
    let voc: Vec<String> = (0..20).map(|i| format!("label{i}")).collect();
    let student = |labels: [&[String]; 2]| TargetNetSpec {
        network: network.clone(),
        filter_reduction: 4,
        filter: FilterKind::Gain,
        tasks: labels.iter().map(|l| TaskSpec::new("t", l, 3, &network, &network)).collect(),
        labels: labels.concat(),
    };
    let (parameters, filters) = student([&voc[..1], &voc[1..2]]).parameters();
    assert!((57_000_000..60_000_000).contains(&parameters), "{parameters}");
    let of_teachers = 2 * (network.parameters(1..=4) + network.head_parameters(10));
    assert!((85_000_000..89_000_000).contains(&of_teachers), "{of_teachers}");
    let gain = FilterSpec::new(FilterKind::Gain, 1024, 1024, 4);
    assert!((filters as f64) < 0.04 * parameters as f64 && filters == 2 * gain.parameters());
    // torchvision's ResNet-101 without its head of 1000 classes.
    assert_eq!(network.parameters(1..=4), 44_549_160 - 2049 * 1000);
}

/// Teachers of other depths, widths, stems and normalisations than the student, which share a label.
fn unlike() -> Lab {
    let lab = Lab::new();
    let of = |mean: f32, std: f32| Some(Normalisation { mean: vec![mean], std: vec![std] });
    let deep = ResNetSpec { depths: vec![2, 1, 2, 1], normalisation: of(0.25, 0.5), ..network() };
    let stem = Stem { width: 8, kernel: 5, stride: 1, max_pool: false };
    let wide = ResNetSpec { widths: vec![12, 12, 16, 24], stem, normalisation: of(0.5, 0.25), ..network() };
    npz::save(lab.path("left.npz"), &teacher_tensors(&deep, &LEFT, 1)).unwrap();
    npz::save(lab.path("right.npz"), &teacher_tensors(&wide, &["cat", "bus"], 2)).unwrap();
    lab
}

const UNLIKE: [&str; 2] = [
    "student.init=scratch",
    "student.network={ block = 'basic', widths = [4, 8, 12, 16], depths = [1, 1, 1, 1], \
     stem = { width = 4, kernel = 3, stride = 1, max_pool = false } }",
];

#[test]
fn teachers_that_differ_teach_one_student() {
    let lab = unlike();
    for (out, more) in [("gain", &[][..]), ("stitch", &["student.filter=stitch"][..])] {
        let s = lab.run(out, &[&UNLIKE[..], more].concat()).unwrap();
        assert_eq!(s.labels, ["bus", "car", "dog", "cat"]);
        let tasks: Vec<(&str, usize)> =
            s.branch.iter().map(|t| (t.teacher.as_str(), t.labels.len())).collect();
        assert_eq!(tasks, [("left", 3), ("right", 1)]);
        assert!(s.branch.iter().all(|t| t.loss_by_block.iter().all(|l| l.is_finite())));
        for b in 1..=4 {
            let file = load(&lab.path(&format!("{out}/student-block{b}.npz")));
            let shape = |name: &str| file.get(name).map(|t| t.shape.clone());
            // The left teacher has the student's channels but after block 3, the right one has others.
            let widths = [[4, 4, 12], [8, 8, 12], [12, 8, 16], [16, 16, 24]][b - 1];
            for (task, to) in [(0, widths[1]), (1, widths[2])] {
                let is_stitched = out == "stitch" || to != widths[0];
                let expected = is_stitched.then(|| vec![to, widths[0], 1, 1]);
                assert_eq!(shape(&format!("task{task}.filter.stitch.weight")), expected, "{out} {b} {task}");
                assert_eq!(shape(&format!("task{task}.filter.fc1.weight")), Some(vec![to / 4, to]));
            }
            let spec = TargetNetSpec::of(&file).unwrap();
            assert!(spec.network.normalisation.is_none(), "the teachers have two different ones");
            assert_eq!(spec.tasks[1].network.as_ref().unwrap().widths, [12, 12, 16, 24]);
            let elems = |keep: fn(&str) -> bool| -> usize {
                file.iter().filter(|(n, _)| keep(n)).map(|(_, t)| t.data.len()).sum()
            };
            // As PyTorch counts, a folded batch norm has two numbers for each bias.
            let folded = elems(|n| n.ends_with(".bias") && !n.contains("fc") && !n.contains("filter"));
            assert_eq!(
                spec.parameters(),
                (elems(|_| true) + folded, elems(|n| n.contains("filter"))),
                "{out} {b}"
            );
        }
    }
    // The forecast says what the student has, and which label has two teachers.
    let sets: Vec<&str> = UNLIKE.iter().flat_map(|s| ["--set", s]).collect();
    let check = lab.call(&[&["check", "c.toml", "--device", "cpu", "--json"], &sets[..]].concat());
    let text = String::from_utf8(check.stderr).unwrap();
    assert!(check.status.success(), "{text}");
    assert!(
        text.contains(
            "the teachers left, right all predict the label bus; the student learns the mean of their"
        ),
        "{text}"
    );
    let all: Json = serde_json::from_slice(&check.stdout).unwrap();
    let last = TargetNetSpec::of(&load(&lab.path("gain/student-block4.npz"))).unwrap();
    assert_eq!(all["forecast"]["parameters"]["student"], last.parameters().0);
    let labels: Json = serde_json::from_slice(&lab.bytes("gain/labels.json")).unwrap();
    assert_eq!(labels["teachers"], serde_json::json!(["left and right", "left", "left", "right"]));
}

#[test]
fn the_config_may_name_the_teacher_of_a_shared_label() {
    let lab = unlike();
    let steps = "dual.steps=[1, 1, 1, 1]";
    let mean = lab.run("mean", &[&UNLIKE[..], &[steps]].concat()).unwrap();
    let right = lab.run("right", &[&UNLIKE[..], &[steps, "student.teachers_of.bus=right"]].concat()).unwrap();
    let labels =
        |s: &Summary| s.branch.iter().map(|t| (t.teacher.clone(), t.labels.join(" "))).collect::<Vec<_>>();
    let of = |teacher: &str, labels: &str| (teacher.to_owned(), labels.to_owned());
    assert_eq!(labels(&mean), [of("left", "bus car dog"), of("right", "cat")]);
    assert_eq!(labels(&right), [of("left", "car dog"), of("right", "bus cat")]);
}
