//! Whole runs at the smallest scale: what goes in, what comes out, and that it is the same every time.

use dfka_engine::autograd::Store;
use dfka_engine::data::labelled::LabelledSet;
use dfka_engine::data::unlabelled::ImageSet;
use dfka_engine::models::resnet::{BlockKind, Build, ResNet, ResNetSpec, Source, Stem};
use dfka_engine::models::targetnet::{StudentSpec, TaskSpec};
use dfka_engine::pipeline::checkpoint;
use dfka_engine::pipeline::evaluate::evaluate;
use dfka_engine::pipeline::observer::Silent;
use dfka_engine::pipeline::run::{block_file, run};
use dfka_engine::pipeline::spec::*;
use dfka_engine::summary::Summary;
use dfka_engine::weights::{Tensors, npz};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

fn network() -> ResNetSpec {
    let stem = Stem { width: 4, kernel: 3, stride: 2, max_pool: false };
    ResNetSpec {
        block: BlockKind::Basic,
        image: [16, 16, 1],
        stem,
        widths: vec![4, 8, 8],
        depths: vec![1; 3],
    }
}

fn labels(teacher: usize) -> Vec<String> {
    (0..3).map(|i| format!("{}{i}", ["a", "b", "c"][teacher])).collect()
}

/// A folder with three random teachers, labelled images and unlabelled ones.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for m in 0..3 {
        let mut store = Store::<f32>::default();
        let net = network();
        let source = Source::Random(100 + m as u64);
        let t = ResNet::new(&mut store, "t", &net, 1..=3, Some(3), Build::Normed, source).unwrap();
        let mut out = Tensors::new();
        t.export(&store, 1..=3, "", Build::Normed, &mut out).unwrap();
        let [w, b] = t.head.unwrap();
        out.insert("fc.weight", &[3, 8], store.to_f32(w)).unwrap();
        out.insert("fc.bias", &[3], store.to_f32(b)).unwrap();
        out.meta.insert("network".into(), serde_json::to_value(&net).unwrap());
        out.meta.insert("labels".into(), serde_json::to_value(labels(m)).unwrap());
        npz::save(dir.path().join(format!("t{m}.npz")), &out).unwrap();
    }
    let pixels: Vec<u8> = (0..40 * 256).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let images = ImageSet::new(pixels, [40, 16, 16, 1], "noise").unwrap();
    images.save(dir.path().join("images.npz")).unwrap();
    let all: Vec<String> = (0..3).flat_map(labels).collect();
    let targets = (0..40 * 9).map(|i| u8::from(i * 7 % 5 < 2)).collect();
    LabelledSet::new(images, targets, all).unwrap().save(dir.path().join("evaluation.npz")).unwrap();
    dir
}

/// A run of a few steps.
fn spec(dir: &Path, teachers: usize) -> RunSpec {
    let teacher = |m: usize| TeacherSpec { name: format!("T{m}"), weights: dir.join(format!("t{m}.npz")) };
    RunSpec {
        name: "tiny".into(),
        seed: 3,
        checkpoint_seconds: 1000.0,
        teachers: (0..teachers).map(teacher).collect(),
        student: StudentSpecOf::default().0,
        generator: GeneratorSpec {
            groups: 2,
            latent: 6,
            widths: vec![8, 8, 4],
            steps: 6,
            batch: 5,
            learning_rate: 1e-3,
            betas: [0.5, 0.999],
            shift: 1,
        },
        loss: LossSpec {
            recipe: Recipe::Conditional { max_labels: 2 },
            alpha: 0.1,
            beta: 0.1,
            gamma: 0.1,
            statistics: 1.0,
            least_diversity: 0.0,
            least_entropy: 0.0,
        },
        dual: DualSpec {
            images: ImageSource::Generator,
            steps: vec![4, 4, 4],
            batch: 6,
            learning_rate: 1e-3,
            feature: 1.0,
            late_features: 1.0,
            freeze_earlier: false,
            lambda_in: [1.0, 1.0],
            augment: AugmentSpec { shift: 1, flip: 0.5, mix_max: 0.3, cutmix: 0.3 },
            bank: 64,
        },
        evaluation: Some(dir.join("evaluation.npz")),
        baselines: vec![],
    }
}

struct StudentSpecOf(dfka_engine::pipeline::spec::StudentSpec);

impl Default for StudentSpecOf {
    fn default() -> Self {
        StudentSpecOf(dfka_engine::pipeline::spec::StudentSpec {
            labels: vec![],
            init: StudentInit::Mean,
            norm: StudentNorm::Stored,
            branch: Branch::Auto { least: 1 },
            filter_reduction: 4,
        })
    }
}

/// Runs `spec` into a new folder below `dir`.
fn go(dir: &Path, name: &str, spec: &RunSpec) -> (Summary, PathBuf) {
    let out = dir.join(name);
    std::fs::create_dir(&out).unwrap();
    (run(spec, &out, false, &mut Silent).unwrap(), out)
}

fn student(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("student.npz")).unwrap()
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_does_not() {
    let dir = folder();
    let s = spec(dir.path(), 2);
    let (_, a) = go(dir.path(), "a", &s);
    let (_, b) = go(dir.path(), "b", &s);
    let (_, c) = go(dir.path(), "c", &RunSpec { seed: 4, ..s.clone() });
    assert!(student(&a) == student(&b), "one seed, two students");
    assert!(student(&a) != student(&c), "two seeds, one student");
}

/// "Is it really data-free?": the evaluation set changes nothing, present or not.
#[test]
fn the_student_has_the_same_bits_without_the_evaluation_set() {
    let dir = folder();
    let s = spec(dir.path(), 2);
    let (with, a) = go(dir.path(), "with", &s);
    std::fs::remove_file(dir.path().join("evaluation.npz")).unwrap();
    let (without, b) = go(dir.path(), "without", &RunSpec { evaluation: None, ..s });
    assert!(with.student.is_some() && without.student.is_none());
    for block in 1..=3 {
        let file = |out: &Path| std::fs::read(block_file(out, "", block)).unwrap();
        assert!(file(&a) == file(&b), "block {block}");
    }
    assert!(student(&a) == student(&b));
    assert_eq!(with.branch, without.branch);
}

#[test]
fn a_student_file_reloads_and_its_figures_are_the_summarys() {
    let dir = folder();
    let (summary, out) = go(dir.path(), "run", &spec(dir.path(), 2));
    let score = summary.student.unwrap();
    assert_eq!(evaluate(&out.join("student.npz"), &dir.path().join("evaluation.npz")).unwrap(), score.score);
    assert_eq!(score.by_block.len(), 3);
    assert_eq!(score.by_block[summary.branch[0].block - 1], score.score);
    let file = npz::load(out.join("student.npz")).unwrap();
    // A folded filter has a bias of k where PyTorch counts gamma and beta: k fewer for each convolution.
    let elements: usize = file.iter().map(|(_, t)| t.data.len()).sum();
    let biases = file.iter().filter(|(n, _)| n.ends_with(".bias") && !n.contains("fc"));
    assert_eq!(summary.parameters.student, elements + biases.map(|(_, t)| t.data.len()).sum::<usize>());
    assert_eq!(summary.teachers["mean"].ap.len(), 6);
    assert_eq!(score.score.ap.keys().collect::<Vec<_>>(), ["a0", "a1", "a2", "b0", "b1", "b2"]);
}

#[test]
fn any_number_of_teachers_groups_labels_and_every_recipe() {
    let dir = folder();
    let base = spec(dir.path(), 2);
    let with = |f: &dyn Fn(&mut RunSpec)| {
        let mut s = base.clone();
        f(&mut s);
        s
    };
    let (one, _) = go(dir.path(), "one", &spec(dir.path(), 1));
    assert_eq!((one.labels, one.branch.len()), (labels(0), 1));
    let three = RunSpec {
        student: dfka_engine::pipeline::spec::StudentSpec {
            labels: vec!["c1".into(), "a2".into()],
            ..base.student.clone()
        },
        ..spec(dir.path(), 3)
    };
    let (three, out) = go(dir.path(), "three", &three);
    assert_eq!(three.labels, ["c1", "a2"]);
    assert_eq!(
        three.branch.iter().map(|b| b.teacher.as_str()).collect::<Vec<_>>(),
        ["T0", "T2"],
        "T1 has no task"
    );
    assert_eq!(npz::load(out.join("student.npz")).unwrap().get("task0.fc.weight").unwrap().shape, [1, 8]);
    for groups in [1, 3] {
        go(dir.path(), &format!("groups{groups}"), &with(&|s| s.generator.groups = groups));
    }
    let recipes = [("published", Recipe::Published), ("balanced", Recipe::Balanced { share: 0.2 })];
    for (name, recipe) in recipes {
        go(dir.path(), name, &with(&|s| s.loss.recipe = recipe.clone()));
    }
    for norm in [StudentNorm::Folded, StudentNorm::Batch] {
        go(dir.path(), &format!("{norm:?}"), &with(&|s| s.student.norm = norm));
    }
    let (both, _) = go(
        dir.path(),
        "baselines",
        &with(&|s| {
            s.baselines = vec![ImageSource::Noise, ImageSource::Real(dir.path().join("images.npz"))];
        }),
    );
    assert!(both.noise.is_some() && both.ka.is_some() && both.noise != both.ka);
    assert!(
        ["generator", "block3", "noise.block1", "ka.block2", "total"]
            .iter()
            .all(|s| both.seconds.contains_key(*s))
    );
}

/// Published stage two: blocks before b stay as stage b - 1 left them. Ours: they move.
#[test]
fn freezing_earlier_blocks_is_a_choice() {
    let dir = folder();
    for freeze in [true, false] {
        let mut s = spec(dir.path(), 2);
        s.dual.freeze_earlier = freeze;
        let (_, out) = go(dir.path(), &format!("freeze-{freeze}"), &s);
        let trunk = |b: usize, name: &str| {
            npz::load(block_file(&out, "", b)).unwrap().get(&format!("trunk.{name}.weight")).unwrap().clone()
        };
        for name in ["conv1", "layer1.0.conv2"] {
            assert_eq!(trunk(1, name) == trunk(3, name), freeze, "{name}");
        }
        assert_eq!(trunk(2, "layer2.0.conv1") == trunk(3, "layer2.0.conv1"), freeze);
    }
}

#[test]
fn alarms_stop_a_run_and_say_why() {
    let dir = folder();
    let fails = |name: &str, f: &dyn Fn(&mut RunSpec)| {
        let mut s = spec(dir.path(), 2);
        f(&mut s);
        let out = dir.path().join(name);
        std::fs::create_dir(&out).unwrap();
        let e = run(&s, &out, false, &mut Silent).unwrap_err();
        assert!(!out.join("student.npz").exists());
        (e.exit_code(), e.to_string())
    };
    let (code, text) = fails("collapse", &|s| s.loss.least_diversity = 100.0);
    assert!(code == 7 && text.contains("generator: collapsed: diversity"), "{code}: {text}");
    let (code, text) = fails("entropy", &|s| s.loss.least_entropy = 1.5);
    assert!(code == 7 && text.contains("label entropy"), "{code}: {text}");
    let (code, text) = fails("diverge", &|s| {
        s.dual.learning_rate = 1e30;
        s.dual.steps = vec![50; 3];
    });
    assert!(code == 7 && text.contains("block1: ") && text.contains("diverged"), "{code}: {text}");
}

/// A machine that loses power at a random step loses nothing: the resumed run ends in the same bits.
#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let dir = folder();
    let config = dir.path().join("c.toml");
    let text = "name = 'tiny'\nseed = 3\ncheckpoint_seconds = 0\n\
        [[teachers]]\nname = 'T0'\nweights = 't0.npz'\n[[teachers]]\nname = 'T1'\nweights = 't1.npz'\n\
        [student]\ninit = 'mean'\n[generator]\nsteps = 40\nbatch = 8\nlatent = 6\nwidths = [8, 8, 4]\n\
        [loss]\nleast_diversity = 0\nleast_entropy = 0\n[dual]\nsteps = [12, 12, 12]\nbatch = 8\nbank = 64\n\
        [baselines]\nka = 'images.npz'\n";
    std::fs::write(&config, text).unwrap();
    let start = |out: &Path, resume: bool| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_dfka-engine"));
        c.arg("run").arg(&config).arg("--quiet").arg("--out").arg(out);
        c.args(resume.then_some("--resume")).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap()
    };
    let whole = dir.path().join("whole");
    assert!(start(&whole, false).wait().unwrap().success());
    // Five kills, each at its own point of the run; each resumed run is killed again by the next.
    let out = dir.path().join("killed");
    let mut done = 0u64;
    for (i, steps) in [3u64, 31, 55, 78, 105].into_iter().enumerate() {
        let mut child = start(&out, i > 0);
        while done < steps && child.try_wait().unwrap().is_none() {
            done = steps_done(&out);
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = child.kill();
        child.wait().unwrap();
    }
    assert!(!out.join("summary.json").exists(), "the last kill came too late to test anything");
    assert!(start(&out, true).wait().unwrap().success());
    for file in
        ["student.npz", "student-block1.npz", "student-block3.npz", "ka.student.npz", "ka.student-block2.npz"]
    {
        let [a, b] = [&whole, &out].map(|o| std::fs::read(o.join(file)).unwrap());
        assert!(a == b, "{file} differs after {done} steps and five kills");
    }
}

/// Steps taken so far, as the checkpoint tells: it is rewritten after every one.
fn steps_done(out: &Path) -> u64 {
    let Ok(Some(p)) = checkpoint::progress(out) else { return 0 };
    p.step + p.done.keys().map(|stage| if stage == "generator" { 40 } else { 12 }).sum::<u64>()
}

/// METHOD 4 and supplement 1.2 and Table 5, by count.
#[test]
fn parameters_at_paper_scale() {
    let net = ResNetSpec::torchvision(101, 224).unwrap();
    let teacher = net.parameters(1..=4) + net.head_parameters(10);
    assert!((85_000_000..89_000_000).contains(&(2 * teacher)), "two teachers: {}", 2 * teacher);
    let task = |teacher: &str, label: &str| TaskSpec {
        teacher: teacher.into(),
        labels: vec![label.into()],
        block: 3,
    };
    let student = StudentSpec {
        network: net,
        filter_reduction: 4,
        tasks: vec![task("A", "bus"), task("B", "table")],
        labels: vec!["bus".into(), "table".into()],
    };
    let (parameters, filters) = student.parameters();
    assert!((57_000_000..60_000_000).contains(&parameters), "student: {parameters}");
    assert!((filters as f64) < 0.04 * parameters as f64, "filters: {filters}");
}
