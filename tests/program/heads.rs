//! Teachers that were trained with softmax are recognised, by their files' words or by their logits, and refused; no
//! network that was trained with binary cross-entropy is.

use crate::common::{LEFT, Lab, load, mapped, network, root, teacher_tensors};
use dfka_engine::models::resnet::Normalisation;
use dfka_engine::pipeline::softmax::{MOST_BALANCE, MOST_ROWS_SUM, balance, rows_sum};
use dfka_engine::pipeline::spec::{Stated, TeacherSpec};
use dfka_engine::pipeline::teacher_file::TeacherFile;
use dfka_engine::weights::{Tensors, npz};
use serde_json::json;

/// A network of tests/fixtures/heads_golden.npz, whose five labels are shapes.
fn golden(name: &str) -> Tensors {
    let all = load(&root().join("tests/fixtures/heads_golden.npz"));
    let mut out = Tensors::new();
    for (tensor, t) in all.iter() {
        if let Some(tensor) = tensor.strip_prefix(&format!("{name}.")) {
            out.insert(tensor, &t.shape, t.data.clone()).unwrap();
        }
    }
    out.meta.insert("labels".into(), json!(["disc", "square", "diamond", "triangle", "cross"]));
    out.meta.insert("mean".into(), json!([0.45, 0.45, 0.45]));
    out.meta.insert("std".into(), json!([0.25, 0.25, 0.25]));
    out.meta.insert("image_size".into(), json!(24));
    out
}

/// The balance and the sum of the rows, each in units of the most that softmax has.
fn measured(name: &str, tensors: Tensors) -> [f64; 2] {
    let TeacherFile { known, tensors } = TeacherFile::read(tensors, &Stated::default()).unwrap();
    let (balance, sum) = (balance(&known, &tensors).unwrap(), rows_sum(&tensors).unwrap());
    println!("{name}: balance {balance:.3}, rows {sum:.3}");
    [balance / MOST_BALANCE, sum / MOST_ROWS_SUM]
}

#[test]
fn the_sum_of_the_logits_tells_softmax_from_sigmoid() {
    for name in ["softmax", "softmax_decay", "softmax_smoothed"] {
        let found = measured(name, golden(name));
        assert!(found.iter().all(|share| *share < 0.7), "{name}: {found:?}");
    }
    // One of the limits is exceeded twice.
    for name in ["sigmoid_one", "sigmoid_one_decay", "sigmoid_few", "sigmoid_few_decay"] {
        let found = measured(name, golden(name));
        assert!(found.iter().any(|share| *share > 1.9), "{name}: {found:?}");
    }
    // What `teach` has trained: two multi-label teachers, and a backbone that learnt one label an image.
    for name in ["teacher_a", "teacher_b", "backbone"] {
        let found = measured(name, load(&root().join(format!("weights/demo/{name}.npz"))));
        assert!(found.iter().all(|share| *share > 1.9), "{name}: {found:?}");
    }
}

/// A lab with one teacher, `only.npz`.
fn lab(teacher: &Tensors) -> Lab {
    let lab = Lab::new();
    npz::save(lab.path("only.npz"), teacher).unwrap();
    let config = std::fs::read_to_string(lab.path("c.toml")).unwrap();
    let (_, rest) = config.split_once("\n\n").unwrap();
    let (rest, _) = rest.split_once("[evaluation]").unwrap();
    let blocks = if teacher.get("layer4.0.conv1.weight").is_some() { "[3, 3, 3, 3]" } else { "[3, 3, 3]" };
    let rest = rest.replace("[3, 3, 3, 3]", blocks);
    let config = format!("name = \"t\"\n{rest}\n[[teachers]]\nname = \"only\"\nweights = \"only.npz\"\n");
    std::fs::write(lab.path("c.toml"), config).unwrap();
    lab
}

/// `check` and `run` refuse the teacher with these words, and take it with `head = "sigmoid"`.
fn refused(lab: &Lab, words: &str) {
    for command in [&["check", "c.toml"][..], &["run", "c.toml", "--quiet", "--out", "out"]] {
        let out = lab.call(command);
        let text = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(3), "{command:?}: {text}");
        let place = "c.toml:";
        for part in [place, "teacher `only`: ", "only.npz ", words, "write head = \"sigmoid\" here"] {
            assert!(text.contains(part), "{command:?}: {text}\nexpected {part:?}");
        }
        assert!(!lab.path("out").exists());
    }
    let insisted = lab.call(&["check", "c.toml", "--set", "teachers.0.head=sigmoid"]);
    assert!(insisted.status.success(), "{}", String::from_utf8_lossy(&insisted.stderr));
}

#[test]
fn check_and_run_refuse_a_teacher_that_was_trained_with_softmax() {
    refused(
        &lab(&golden("softmax_decay")),
        "seems to be trained with softmax: the rows of its head sum to almost nothing",
    );
    let accepted = lab(&golden("sigmoid_one")).call(&["check", "c.toml"]);
    assert!(accepted.status.success(), "{}", String::from_utf8_lossy(&accepted.stderr));

    // The words of a file have precedence over its logits.
    let said = |tensors: &Tensors, head: &str| {
        let mut tensors = tensors.clone();
        tensors.meta.insert("head".into(), json!(head));
        lab(&tensors)
    };
    refused(&said(&golden("sigmoid_one"), "softmax"), "was trained with softmax, says its file");
    let accepted = said(&golden("softmax"), "sigmoid").call(&["check", "c.toml"]);
    assert!(accepted.status.success(), "{}", String::from_utf8_lossy(&accepted.stderr));
}

/// Two labels, and files that describe their network as those of `teach` do, are not judged by their logits.
#[test]
fn logits_that_say_nothing_are_not_judged() {
    let opposite = |labels: &[&str]| {
        let teacher = teacher_tensors(&network(), labels, 7);
        let n = labels.len();
        mapped(&teacher, |name, shape, v| {
            let mut v = v.to_vec();
            if name.starts_with("fc.") {
                let columns = v.len() / n;
                for c in 0..columns {
                    let mean = (0..n).map(|k| v[k * columns + c]).sum::<f32>() / n as f32;
                    (0..n).for_each(|k| v[k * columns + c] -= mean);
                }
            }
            Some((shape.to_vec(), v))
        })
    };
    let accepted = lab(&opposite(&LEFT)).call(&["check", "c.toml"]);
    assert!(accepted.status.success(), "{}", String::from_utf8_lossy(&accepted.stderr));
    for (labels, is_refused) in [(&LEFT[..], true), (&LEFT[..2], false)] {
        let mut teacher = opposite(labels);
        teacher.meta.remove("network");
        let stated = Stated {
            image_size: Some(16),
            normalisation: Some(Normalisation::identity(1)),
            ..Stated::default()
        };
        let spec = TeacherSpec { stated, ..TeacherSpec::new("only", "only.npz") };
        let TeacherFile { known, tensors } = TeacherFile::read(teacher.clone(), &spec.stated).unwrap();
        assert!(balance(&known, &tensors).unwrap() < 1e-3);
        let lab = lab(&teacher);
        let out = lab.call(&["check", "c.toml", "--set", "teachers.0.image_size=16"]);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code() == Some(3), is_refused, "{labels:?}: {text}");
        assert_eq!(text.contains("seems to be trained with softmax"), is_refused, "{labels:?}: {text}");
    }
}
