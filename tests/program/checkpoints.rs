//! Teachers as other programs save them: below a prefix, with a head of another name, with tensors beside the
//! network, in shards, and with metadata of another meaning.

use crate::common::{Lab, RIGHT, load};
use dfka_engine::weights::{self, Tensors};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use std::collections::HashMap;

/// The lab's teachers were not fine-tuned from one backbone, which a note says where the student starts from their mean.
const ALIKE: &str = "student.init=teacher:left";

/// The tensors of `right.npz` in a safetensors file. `rename` gives the new names; `more` are further tensors.
fn saved(
    lab: &Lab,
    name: &str,
    rename: impl Fn(&str) -> Option<String>,
    more: &[(&str, Dtype, &[u8])],
    metadata: &[(&str, &str)],
) {
    let right = load(&lab.path("right.npz"));
    let renamed = |(name, t): (&str, &weights::HostTensor)| {
        let bytes: Vec<u8> = t.data.iter().flat_map(|v| v.to_le_bytes()).collect();
        Some((rename(name)?, t.shape.clone(), bytes))
    };
    let all: Vec<(String, Vec<usize>, Vec<u8>)> = right.iter().filter_map(renamed).collect();
    let mut views: HashMap<&str, TensorView> = HashMap::new();
    for (name, shape, bytes) in &all {
        views.insert(name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap());
    }
    for (name, dtype, bytes) in more {
        views.insert(name, TensorView::new(*dtype, vec![], bytes).unwrap());
    }
    let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    serialize_to_file(views, Some(metadata), &lab.path(name)).unwrap();
}

/// The second teacher's file, with all that the config must state of a file without our metadata.
fn sets(file: &str) -> Vec<String> {
    let more = ["labels=['cat', 'table']", "image_size=16"].map(|set| format!("teachers.1.{set}"));
    let both = more.into_iter().chain([format!("teachers.1.weights={file}")]);
    both.flat_map(|set| ["--set".to_owned(), set]).collect()
}

fn call(lab: &Lab, args: &[&str], file: &str) -> (String, String) {
    let sets = sets(file);
    let args: Vec<&str> = args.iter().copied().chain(sets.iter().map(String::as_str)).collect();
    let out = lab.call(&args);
    let [stdout, stderr] = [out.stdout, out.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(out.status.success(), "{args:?}: {stderr}");
    (stdout, stderr)
}

#[test]
fn what_lies_beside_the_network_is_left_out_and_the_user_is_told() {
    let lab = Lab::new();
    let rename = |name: &str| Some(format!("module.{}", name.replace("fc.", "fc.1.")));
    let labels = [("labels", "[\"cat\", \"table\"]")];
    let more: [(&str, Dtype, &[u8]); 2] = [
        ("n_averaged", Dtype::I64, &[5, 0, 0, 0, 0, 0, 0, 0]),
        ("criterion.pos_weight", Dtype::F32, &f32::NAN.to_le_bytes()),
    ];
    saved(&lab, "a.safetensors", rename, &more, &labels);
    let note = "2 tensors beside the network left out (criterion.pos_weight, n_averaged)";
    for more in [&[][..], &["--json"]] {
        let args = &[&["check", "c.toml", "--device", "cpu", "--set", ALIKE], more].concat();
        let (stdout, stderr) = call(&lab, args, "a.safetensors");
        let notes: Vec<&str> = stderr.lines().filter(|line| line.starts_with("note: ")).collect();
        assert!(notes.len() == 3 && notes[0].ends_with(note), "{stderr}");
        assert!(notes[1].contains("conv1 is 3x3: stride 1 and no max pool are assumed"), "{stderr}");
        assert!(notes[2].ends_with(
            "neither the file nor the config states a normalisation; that of images in [-1, 1] is assumed (mean 0.5 and std 0.5)"
        ), "{stderr}");
        assert!(!stdout.contains("left out"), "{stdout}");
    }
    let out = lab.call(&["export", "a.safetensors", "--to", "copy.npz"]);
    assert!(String::from_utf8(out.stderr).unwrap().contains(note));
    let (copy, right) = (load(&lab.path("copy.npz")), load(&lab.path("right.npz")));
    assert_eq!(copy.len(), right.len());
    assert!(right.iter().all(|(name, tensor)| copy.get(name) == Some(tensor)));
}

#[test]
fn shards_make_the_same_model_as_one_file() {
    let lab = Lab::new();
    let right = load(&lab.path("right.npz"));
    let mut map = serde_json::Map::new();
    for (i, file) in ["model-1-of-2.safetensors", "model-2-of-2.safetensors"].iter().enumerate() {
        let mut shard = Tensors::new();
        shard.meta = right.meta.clone();
        for (name, t) in right.iter().skip(i).step_by(2) {
            shard.insert(name, &t.shape, t.data.clone()).unwrap();
            map.insert(name.into(), (*file).into());
        }
        weights::save(lab.path(file), &shard).unwrap();
    }
    let index = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    std::fs::write(lab.path("model.safetensors.index.json"), index.to_string()).unwrap();
    let from_shards = load(&lab.path("model.safetensors.index.json"));
    assert!(from_shards.iter().eq(right.iter()));
    let run =
        lab.run("out", &["teachers.1.weights=model.safetensors.index.json", "generator.steps=1"]).unwrap();
    assert!(run.labels.iter().any(|label| *label == RIGHT[0]));
    // Every shard counts for the bits of the result.
    let files = weights::files(&lab.path("model.safetensors.index.json"));
    assert_eq!(files.len(), 3);
}

/// A network of one channel takes one mean, which the config may state.
#[test]
fn a_config_states_the_normalisation_of_any_number_of_channels() {
    let lab = Lab::new();
    saved(&lab, "c.safetensors", |name| Some(name.into()), &[], &[]);
    let stated = ["teachers.1.mean=[0.5]", "teachers.1.std=[0.5]", "teachers.1.stem_stride=1", ALIKE];
    let stated = stated.map(|set| ["--set", set]).concat();
    let (_, stderr) =
        call(&lab, &[&["check", "c.toml", "--card", "h200"], &stated[..]].concat(), "c.safetensors");
    assert_eq!(stderr, "");
}

/// The entries of another program's `__metadata__` have meanings of their own, and a config can state what
/// they do not.
#[test]
fn metadata_of_another_program_does_not_stand_in_the_way_of_the_config() {
    let lab = Lab::new();
    for metadata in [
        ("format", "pt"),
        ("labels", "x,y"),
        ("labels", "{\"0\": \"x\", \"1\": \"y\"}"),
        ("labels", "2"),
        ("labels", "[0, 1]"),
        ("mean", "0.5"),
        ("std", "[0.5]"),
        ("thresholds", "0.5"),
    ] {
        saved(&lab, "b.safetensors", |name| Some(name.into()), &[], &[metadata]);
        call(&lab, &["check", "c.toml", "--card", "h200"], "b.safetensors");
    }
}

#[test]
fn a_label_of_two_teachers_is_learnt_from_both_or_from_the_one_that_the_config_names() {
    let lab = Lab::new();
    let mut right = load(&lab.path("right.npz"));
    right.meta.insert("labels".into(), serde_json::json!(["dog", "table"]));
    weights::save(lab.path("right.npz"), &right).unwrap();
    let named = "student.teachers_of.dog=right";
    for (set, learns) in [
        (
            ALIKE,
            "the mean of their probabilities, through the blocks of left; student.teachers_of chooses one of them\n",
        ),
        (named, "it from right, which student.teachers_of names\n"),
    ] {
        let expected =
            format!("note: the teachers left, right all predict the label dog; the student learns {learns}");
        for command in ["check", "run"] {
            let sets = ["--set", "generator.steps=1", "--set", set, "--force"];
            let sets = if command == "check" { &sets[..4] } else { &sets };
            let out = lab.call(&[&[command, "c.toml", "--device", "cpu"], sets].concat());
            let text = String::from_utf8(out.stderr).unwrap();
            assert!(out.status.success() && text.contains(&expected), "{command}: {text}");
        }
    }
    let sets = ["--set", "student.labels=['bus', 'table']", "--set", ALIKE];
    let out = lab.call(&[&["check", "c.toml", "--device", "cpu"][..], &sets].concat());
    assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
}
