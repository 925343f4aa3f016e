use super::*;
use crate::error::Result;
use crate::labelled::spec::*;
use crate::models::filter::FilterKind;
use crate::pipeline::spec::*;

const SMALL: &str = r#"name = "small"
[[teachers]]
name = "left"
weights = "weights/left.npz"
[[teachers]]
name = "right"
weights = "/abs/right.npz"
[dual]
steps = [10, 20]
"#;

const TEACH: &str = r#"name = "t"
[data]
train = "a.npz"
[network]
block = "basic"
widths = [16, 32]
depths = [1, 1]
stem = { width = 16, kernel = 3, stride = 2, max_pool = false }
"#;

fn load_text(text: &str, sets: &[&str]) -> Result<Loaded<RunSpec>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, text).unwrap();
    load_run(&path, &sets.iter().map(|s| Override::set(s).unwrap()).collect::<Vec<_>>())
}

fn teach_text(text: &str, sets: &[&str]) -> Result<Loaded<TeachSpec>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, text).unwrap();
    load_teach(&path, &sets.iter().map(|s| Override::set(s).unwrap()).collect::<Vec<_>>())
}

#[test]
fn missing_keys_get_their_defaults() {
    let spec = load_text(SMALL, &[]).unwrap().spec;
    assert_eq!((spec.name.as_str(), spec.seed, spec.student.labels.len()), ("small", 0, 0));
    assert!(spec.teachers[0].weights.ends_with("weights/left.npz"));
    assert!(spec.teachers[0].weights.is_absolute(), "relative to the config's folder");
    assert_eq!(spec.teachers[1].weights, std::path::Path::new("/abs/right.npz"));
    assert_eq!(spec.student.init, StudentInit::Scratch);
    assert_eq!(spec.student.branch, Branch::Auto { least: 1 });
    assert_eq!(spec.dual.steps, [10, 20]);
    assert_eq!(spec.loss.recipe, Recipe::Conditional { max_labels: 3, positive: 4.0 });
    assert!(spec.baselines.is_empty() && spec.evaluation.is_none());
}

#[test]
fn the_published_recipe_has_the_papers_weights_unless_keys_override_them() {
    let loss = |sets: &[&str]| load_text(SMALL, sets).unwrap().spec.loss;
    let l = loss(&["loss.recipe=published"]);
    assert_eq!((l.alpha, l.beta, l.gamma, l.statistics), (1.0, 1.0, 5.0, 0.0));
    let l = loss(&["loss.recipe=published", "loss.gamma=2.2"]);
    assert_eq!((l.alpha, l.beta, l.gamma, l.statistics), (1.0, 1.0, 2.2, 0.0));
    let l = loss(&["loss.recipe=balanced", "loss.share=0.1"]);
    assert_eq!(l.recipe, Recipe::Balanced { share: 0.1 });
}

#[test]
fn keys_reach_the_spec_and_the_resolved_text_gives_it_again() {
    let sets = [
        "seed=7",
        "student.labels=['b', 'a']",
        "student.init='teacher:right'",
        "student.branch=2",
        "student.filter_reduction=8",
        "student.filter=stitch",
        "student.network={ block='basic', widths=[8, 16], depths=[1, 2], stem={ width=8, kernel=3, stride=1, max_pool=false } }",
        "student.teachers_of={ a='left' }",
        "generator.groups=1",
        "generator.betas=[0, 0.9]",
        "loss.recipe=balanced",
        "dual.images=real:x/y.npz",
        "dual.lambda_in=[1, 0.3]",
        "dual.augment.mix_max=0.3",
        "evaluation.data=eval.npz",
        "baselines.noise=true",
        "baselines.ka=ka.npz",
    ];
    let loaded = load_text(SMALL, &sets).unwrap();
    let spec = &loaded.spec;
    assert_eq!(spec.student.labels, ["b", "a"]);
    assert_eq!(spec.student.init, StudentInit::Teacher(1));
    assert_eq!(spec.student.branch, Branch::Block(2));
    assert_eq!(spec.student.network.as_ref().unwrap().depths, [1, 2]);
    assert_eq!((spec.student.filter, spec.student.teachers_of["a"].as_str()), (FilterKind::Stitch, "left"));
    assert_eq!(spec.dual.lambda_in, [1.0, 0.3]);
    assert_eq!(spec.baselines.len(), 2);
    let floored = load_text(SMALL, &["student.branch_least=2", "student.branch=2"]).unwrap();
    assert_eq!(floored.spec.student.branch, Branch::Block(2), "branch_least has no effect on a named block");
    let again = load_text(&loaded.resolved, &[]).unwrap();
    assert_eq!(serde_json::to_value(&again.spec).unwrap(), serde_json::to_value(spec).unwrap());
    assert_eq!(again.resolved, loaded.resolved);
    assert!(loaded.resolved.contains("learning_rate = 0.001\n"), "{}", loaded.resolved);
}

#[test]
fn a_student_from_scratch_uses_the_batchs_statistics_unless_told_otherwise() {
    let norm = |sets: &[&str]| load_text(SMALL, sets).unwrap().spec.student.norm;
    assert_eq!(norm(&["student.init=scratch"]), StudentNorm::Batch);
    assert_eq!(norm(&["student.init=mean"]), StudentNorm::Stored);
    assert_eq!(norm(&["student.init=scratch", "student.norm=stored"]), StudentNorm::Stored);
}

#[test]
fn values_out_of_range_and_contradictions_are_refused() {
    for (set, expected) in [
        ("generator.learning_rate=0", "expected above 0 and at most 1"),
        ("generator.learning_rate=nan", "`generator.learning_rate` is NaN"),
        ("generator.batch=-3", "`generator.batch` is -3"),
        ("generator.betas=[0.5, 1.0]", "`generator.betas.1` is 1; expected at least 0 and below 1"),
        ("generator.betas=[0.5]", "expected a list of length 2"),
        ("dual.steps=[]", "`dual.steps` is empty"),
        ("dual.steps=[1, 0]", "`dual.steps.1` is 0"),
        ("dual.augment.flip=1.5", "`dual.augment.flip` is 1.5"),
        ("dual.images=genrator", "did you mean `generator`?"),
        ("dual.images='real:'", "is empty"),
        ("loss.recipe=publishd", "did you mean `published`?"),
        ("loss.share=0.1", "`loss.share` applies to recipe = \"balanced\" only"),
        ("student.labels=some", "\"all\" or a list"),
        ("student.labels=3", "found integer `3`, expected \"all\" or a list of labels"),
        ("student.labels=['a','b','a']", "label `a` is listed more than once"),
        ("student.labels=[]", "empty list"),
        ("student.labels=['']", "empty label"),
        ("student.init='teacher:rigth'", "did you mean `right`?"),
        ("student.branch=later", "expected \"auto\" or the number of a block"),
        ("student.branch=1.5", "expected \"auto\" or the number of a block"),
        ("teachers.1.name=left", "two teachers are named `left`"),
        ("teachers=[]", "at least one"),
        ("name='a/b'", "names the output folder"),
        ("name='..'", "names the output folder"),
        ("seed=-1", "`seed` is -1"),
        ("seed=9223372036854775808", "seed"),
        ("baselines.noise=1", "expected true or false"),
    ] {
        let e = load_text(SMALL, &[set]).unwrap_err();
        assert_eq!(e.exit_code(), 3);
        let text = e.to_string();
        assert!(text.contains(expected) && text.starts_with("--set"), "{set}: {text}");
    }
}

#[test]
fn a_config_may_state_what_a_teachers_file_holds() {
    use crate::models::resnet::{Normalisation, StridePlace};
    let text = SMALL.replace(
        "weights = \"weights/left.npz\"",
        "weights = \"none.npz\"\nnetwork = \"resnet101\"\nlabels = [\"bus\", \"car\"]",
    );
    let stated = |sets: &[&str]| load_text(&text, sets).unwrap().spec.teachers[0].stated.clone();
    let sets = [
        "teachers.0.image_size=64",
        "teachers.0.mean=[0.5, 0.25, 1]",
        "teachers.0.std=[0.001, 1, 0.5]",
        "teachers.0.stride=1x1",
    ];
    let loaded = load_text(&text, &sets).unwrap();
    let all = &loaded.spec.teachers[0].stated;
    let network = all.network.clone().unwrap();
    assert_eq!((network.image, &network.depths[..]), ([64, 64, 3], &[3, 4, 23, 3][..]));
    assert_eq!((network.stride, all.stride), (StridePlace::First, Some(StridePlace::First)));
    let n = Normalisation { mean: vec![0.5, 0.25, 1.0], std: vec![0.001, 1.0, 0.5] };
    assert_eq!((&network.normalisation, &all.normalisation), (&Some(n.clone()), &Some(n)));
    assert_eq!((&all.labels[..], all.image_size), (&["bus".into(), "car".into()][..], Some(64)));
    let again = load_text(&loaded.resolved, &[]).unwrap().spec;
    assert_eq!(&again.teachers[0].stated, all);

    assert_eq!(loaded.spec.teachers[1].stated, Stated::default());
    let plain = stated(&[]).network.unwrap();
    assert_eq!((plain.image, plain.normalisation), ([224, 224, 3], Some(Normalisation::imagenet())));
    let half = stated(&["teachers.0.mean=[0.5,0.5,0.5]", "teachers.0.std=[0.5,0.5,0.5]"]);
    assert!(half.normalisation.is_some() && half.network.unwrap().normalisation.is_none());
    let labels = load_text(&text, &["teachers.1.labels=['a']", "teachers.1.image_size=32"]).unwrap();
    let labels = &labels.spec.teachers[1].stated;
    assert_eq!(
        (&labels.labels[..], labels.image_size, &labels.network),
        (&["a".into()][..], Some(32), &None)
    );
    for (set, expected) in [
        ("teachers.0.network=resnet102", "did you mean `resnet101`?"),
        ("teachers.0.network=vgg", "expected one of: resnet18, resnet34"),
        ("teachers.0.image_size=4", "`teachers.0.image_size` is 4; expected at least 8"),
        ("teachers.0.labels=[]", "`teachers.0.labels` is empty"),
        ("teachers.0.labels=['a', 'a']", "label `a` is listed more than once"),
        ("teachers.0.mean=[0.5, 0.5, 0.5]", "`teachers.0.mean` and `teachers.0.std` must be given together"),
        (
            "teachers.0={name='l', weights='w', mean=[123.7, 0, 0], std=[1, 1, 1]}",
            "`teachers.0.mean.0` is 123.7",
        ),
        (
            "teachers.0={name='l', weights='w', mean=[0, 0, 0], std=[1, 1, 0]}",
            "`teachers.0.std.2` is 0; expected at least 0.001",
        ),
        ("teachers.0={name='l', weights='w', mean=[0.5], std=[1, 1]}", "`teachers.0.mean` has 1 numbers and"),
        ("teachers.0={name='l', weights='w', mean=[], std=[]}", "expected one of each for every channel"),
        (
            "teachers.0={name='l', weights='w', network='resnet18', labels=['a'], mean=[0.5], std=[1]}",
            "`teachers.0.mean` has 1 numbers; expected 3, one for each channel that resnet18 takes",
        ),
        ("teachers.0.stride=2x2", "`3x3` or `1x1`"),
    ] {
        let e = load_text(&text, &[set]).unwrap_err();
        assert!(e.exit_code() == 3 && e.to_string().contains(expected), "{set}: {e}");
    }
}

#[test]
fn a_teachers_network_may_be_a_table() {
    use crate::models::resnet::Stem;
    let table = "network={ block = 'bottleneck', widths = [8, 16], depths = [1, 2], variant = { inner_widths = [4, 8] }, \
                 stem = { width = 4, kernel = 3, stride = 2, max_pool = false } }";
    let set = |key: &str| format!("teachers.0.{key}");
    let sets = [set(table), set("image_size=16"), set("mean=[0.5]"), set("std=[0.25]")];
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let loaded = load_text(SMALL, &sets).unwrap();
    let stated = &loaded.spec.teachers[0].stated;
    let network = stated.network.clone().unwrap();
    assert_eq!(
        (network.image, &network.widths[..], &network.depths[..]),
        ([16, 16, 1], &[8, 16][..], &[1, 2][..])
    );
    assert_eq!(network.stem, Stem { width: 4, kernel: 3, stride: 2, max_pool: false });
    assert_eq!((&network.variant.inner_widths[..], stated.stem_stride), (&[4, 8][..], Some(2)));
    assert_eq!(network.normalisation, stated.normalisation);
    let again = load_text(&loaded.resolved, &[]).unwrap().spec;
    assert_eq!(&again.teachers[0].stated, stated);
    let colour = load_text(SMALL, &sets[..1]).unwrap().spec.teachers[0].stated.network.clone().unwrap();
    assert_eq!(colour.image, [224, 224, 3]);
    for (more, expected) in [
        ("network.depths=[1]", "`teachers.0.network.depths` has 1 entries"),
        ("network.stem.kernel=4", "`teachers.0.network.stem.kernel` is 4; expected an odd number"),
        ("network.variant.inner_widths=[4]", "`teachers.0.network`: inner_widths: expected 2 sizes"),
        ("stem_stride=2", "`teachers.0.stem_stride` applies to a `network` that is not a table only"),
        ("network=7", "expected a name such as \"resnet101\" or a table"),
    ] {
        let more = set(more);
        let e = load_text(SMALL, &[&sets[..], &[more.as_str()]].concat()).unwrap_err();
        assert!(e.exit_code() == 3 && e.to_string().contains(expected), "{more}: {e}");
    }
}

#[test]
fn evaluation_takes_exactly_one_kind_of_data() {
    let with = |table: &str, sets: &[&str]| load_text(&format!("{SMALL}{table}"), sets);
    let voc = "[evaluation.voc]\nroot = \"/data/VOCdevkit\"\n";
    let loaded = with(voc, &[]).unwrap();
    let of = |year: &str, split: &str| {
        let folder = std::path::Path::new("/data/VOCdevkit").join(year);
        Some(EvaluationData::Voc { folder, split: split.into() })
    };
    assert_eq!(loaded.spec.evaluation, of("VOC2007", "test"));
    assert_eq!(load_text(&loaded.resolved, &[]).unwrap().spec.evaluation, of("VOC2007", "test"));
    let sets = ["evaluation.voc.year=2012", "evaluation.voc.split=val"];
    assert_eq!(with(voc, &sets).unwrap().spec.evaluation, of("VOC2012", "val"));
    let coco = "[evaluation.coco]\nimages = \"/c/val2017\"\nannotations = \"/c/instances.json\"\n";
    let expected =
        EvaluationData::Coco { images: "/c/val2017".into(), annotations: "/c/instances.json".into() };
    assert_eq!(with(coco, &[]).unwrap().spec.evaluation, Some(expected));
    for (table, set, expected) in [
        ("[evaluation]\n", "seed=1", "`evaluation` takes one of `data"),
        (voc, "evaluation.data=a.npz", "`evaluation` takes one of `data"),
        (voc, "evaluation.voc.year=2013", "`evaluation.voc.year` is 2013; expected at least 2007 and at"),
        (voc, "evaluation.voc.split=../x", "`evaluation.voc.split` is \"../x\""),
        (voc, "evaluation.voc.root=''", "`evaluation.voc.root` is empty"),
        (voc, "evaluation.voc.yeer=2007", "did you mean `year`?"),
        ("[evaluation.coco]\nimages = 'x'\n", "seed=1", "missing key `evaluation.coco.annotations`"),
    ] {
        let e = with(table, &[set]).unwrap_err();
        assert!(e.exit_code() == 3 && e.to_string().contains(expected), "{set}: {e}");
    }
}

#[test]
fn checks_against_the_teachers_name_the_line() {
    let text = SMALL.to_owned()
        + "[student]\nlabels = [\n  \"bus\",\n  \"tabel\",\n]\nfilter_reduction = 3\n[generator]\ngroups = 3\n";
    let l = load_text(&text, &[]).unwrap();
    let of = |names: &[&str]| names.iter().map(|s| s.to_string()).collect::<Vec<_>>();
    check_labels(&l.spec, &[of(&["bus"]), of(&["tabel"])], &l.source).unwrap();
    let e = check_labels(&l.spec, &[of(&["bus", "car"]), of(&["table"])], &l.source).unwrap_err().to_string();
    assert!(e.ends_with("c.toml:13: no teacher predicts the label `tabel`; did you mean `table`?"), "{e}");

    let network = |sets: &[&str], channels: &[usize]| {
        let l = load_text(&text, sets).unwrap();
        check_network(&l.spec, channels, &l.source).map_err(|e| e.to_string())
    };
    let e = network(&[], &[6, 16]).unwrap_err();
    assert!(e.contains("c.toml:15: `student.filter_reduction` is 3, which does not divide the 16"), "{e}");
    let e = network(&[], &[6, 12]).unwrap_err();
    assert!(e.contains("c.toml:17: `generator.groups` is 3; the teachers have 2 blocks"), "{e}");
    let e = network(&["dual.steps=[1]"], &[6, 6, 12]).unwrap_err();
    assert!(e.starts_with("--set dual.steps=[1]: `dual.steps` has 1 entries; expected 3"), "{e}");
    let e = network(&["generator.groups=1", "student.branch=4"], &[6, 12]).unwrap_err();
    assert!(e.contains("`student.branch` is 4"), "{e}");
    network(&["dual.steps=[1, 1, 1]"], &[6, 6, 12]).unwrap();
}

#[test]
fn a_teachers_config_loads_and_its_resolved_text_gives_it_again() {
    let loaded = teach_text(TEACH, &["training.steps=7", "init=b.npz"]).unwrap();
    assert_eq!((loaded.spec.training.steps, &loaded.spec.widths[..]), (7, &[16, 32][..]));
    let again = teach_text(&loaded.resolved, &[]).unwrap();
    assert_eq!(serde_json::to_value(&again.spec).unwrap(), serde_json::to_value(&loaded.spec).unwrap());
    for (set, expected) in [
        ("network.depths=[1]", "`network.depths` has 1 entries"),
        ("network.stem.kernel=4", "expected an odd number"),
        ("network.block=basci", "expected `basic` or `bottleneck`"),
        ("data.scenes={archives='x', count=5}", "either `train"),
        ("training.bacth=9", "did you mean `batch`?"),
        ("network=resnet102", "unknown `network` \"resnet102\"; did you mean `resnet101`?"),
        ("network=5", "expected a name such as \"resnet101\" or a table"),
        ("network.widht=[5]", "did you mean `widths`?"),
        ("image_size=2", "`image_size` is 2; expected at least 8"),
        ("data.voc={root='x'}", "either `train"),
        ("training.norm=stored", "there is no `init`"),
        ("training.optimiser=sdg", "expected `adam` or `sgd`"),
        ("training.momentum=0.9", "`training.momentum` applies to `optimiser = \"sgd\"` only"),
        ("training.warm_up=5", "`training.warm_up` applies to `schedule = \"cosine\"` only"),
        ("training.step_factor=5", "`training.step_factor` applies to `schedule = \"step\"` only"),
        ("training.layer_decay=0", "`training.layer_decay` is 0; expected above 0 and at most 1"),
    ] {
        let e = teach_text(TEACH, &[set]).unwrap_err().to_string();
        assert!(e.contains(expected), "{set}: {e}");
    }
    let e = teach_text(&TEACH.replace(", max_pool = false", ""), &[]).unwrap_err().to_string();
    assert!(e.ends_with("c.toml:8: missing key `network.stem.max_pool`"), "{e}");
    let scenes = TEACH.replace("train = \"a.npz\"", "scenes = { archives = \"raw\", count = 100 }");
    let spec = teach_text(&scenes, &[]).unwrap().spec;
    assert!(matches!(spec.data, TrainingData::Scenes { objects: [1, 3], side: [11, 15], count: 100, .. }));
    let e = teach_text(&scenes, &["data.scenes.side=[9, 5]"]).unwrap_err().to_string();
    assert!(e.contains("`data.scenes.side.1` is 5; expected at least 9"), "{e}");
}

#[test]
fn the_config_of_a_teacher_on_photographs_needs_few_keys() {
    let text = r#"name = "t"
init = "resnet50.safetensors"
network = "resnet50"
[data.voc]
root = "VOCdevkit"
year = 2007
"#;
    let sets = ["training.optimiser=sgd", "training.schedule=cosine", "training.warm_up=100"];
    let loaded = teach_text(text, &sets).unwrap();
    let spec = &loaded.spec;
    assert_eq!((spec.image_size, spec.widths[3], spec.depths[2]), (Some(224), 2048, 6));
    let wide = teach_text(text, &["network=wide_resnet50_2"]).unwrap().spec;
    assert_eq!((&wide.widths, &wide.variant.inner_widths[..]), (&spec.widths, &[128, 256, 512, 1024][..]));
    let TrainingData::Voc { folder, split, crop } = &spec.data else { panic!("{:?}", spec.data) };
    assert!(folder.ends_with("VOCdevkit/VOC2007") && split == "trainval" && crop.scale == [0.08, 1.0]);
    let t = &spec.training;
    assert_eq!(t.optimiser, OptimiserSpec::Sgd { momentum: 0.9, weight_decay: 0.0 });
    assert_eq!(t.schedule, crate::pipeline::schedule::Schedule::Cosine { warm_up: 100 });
    assert_eq!((t.backbone_learning_rate, t.layer_decay), (t.learning_rate, 1.0));
    let again = teach_text(&loaded.resolved, &[]).unwrap();
    assert_eq!(serde_json::to_value(&again.spec).unwrap(), serde_json::to_value(spec).unwrap());
    let coco = text.replace(
        "[data.voc]\nroot = \"VOCdevkit\"\nyear = 2007",
        "[data.coco]\nimages = \"i\"\nannotations = \"a.json\"\nscale = [0.5, 1.0]",
    );
    let TrainingData::Coco { crop, .. } = teach_text(&coco, &[]).unwrap().spec.data else { panic!() };
    assert_eq!((crop.scale, crop.flip), ([0.5, 1.0], 0.5));
    for (set, expected) in [
        ("data.voc.year=1999", "`data.voc.year` is 1999; expected at least 2007"),
        ("data.voc.scale=[0.9, 0.1]", "`data.voc.scale.1` is 0.1; expected at least 0.9"),
        ("data.voc.split='../x'", "`data.voc.split`"),
        ("data.voc.flip=2", "`data.voc.flip` is 2"),
    ] {
        let e = teach_text(text, &[set]).unwrap_err().to_string();
        assert!(e.contains(expected), "{set}: {e}");
    }
}

#[test]
fn a_damaged_config_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    let whole = load_text(SMALL, &["student.labels=['a']", "evaluation.data=e"]).unwrap().resolved;
    let set = Override::set("generator.steps=3").unwrap();
    let mut state = 1u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let pieces = ["[", "]", "\"", "'", "=", ".", "\n", "#", "1e999", "-", "nan", "{", "}", "é", "[[", "\\u"];
    let mut accepted = 0;
    for round in 0..500 {
        let mut text: Vec<char> = whole.chars().collect();
        for _ in 0..=below(3) {
            let at = below(text.len());
            let end = (at + below(8)).min(text.len());
            text.splice(at..end, pieces[below(pieces.len())].chars().take(round % 4));
        }
        std::fs::write(&path, text.iter().collect::<String>()).unwrap();
        match load_run(&path, std::slice::from_ref(&set)) {
            Ok(_) => accepted += 1,
            Err(e) => assert_eq!(e.exit_code(), 3, "{e}"),
        }
    }
    assert!((1..400).contains(&accepted), "{accepted} of 500: the damage is too mild or too harsh");
}
