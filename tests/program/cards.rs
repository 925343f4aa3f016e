//! What a person reads of a result: the model card of a teacher, labels that are numbers, times of a run in several
//! calls, and the captions of generated images.

use crate::common::{Lab, labelled, network, teacher_tensors};
use dfka_engine::labelled::run::run;
use dfka_engine::pipeline::observer::{Observer, Stop};
use dfka_engine::summary::{Captions, Summary};
use dfka_engine::weights::npz;
use serde_json::Value;
use std::time::{Duration, Instant};

fn call(lab: &Lab, args: &[&str]) -> String {
    let out = lab.call(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn text(lab: &Lab, file: &str) -> String {
    String::from_utf8(lab.bytes(file)).unwrap()
}

const TEACH: &str = "name = 'a_teacher'\n[network]\nblock = 'basic'\nwidths = [4, 8]\ndepths = [1, 1]\n\
                     stem = { width = 4, kernel = 3, stride = 1, max_pool = false }\n\
                     [training]\nsteps = 4\nbatch = 8\n[data]\ntrain = 'train.npz'\n";

#[test]
fn a_trained_teacher_has_a_model_card() {
    let lab = Lab::new();
    labelled(24, network().image, &["7", "a|b"], 3).save(lab.path("train.npz")).unwrap();
    std::fs::write(lab.path("t.toml"), TEACH).unwrap();
    let teach = ["teach", "t.toml", "--quiet", "--out", "out", "--device", "cpu"];
    call(&lab, &teach);
    let card = text(&lab, "out/README.md");
    let sum = dfka_engine::weights::sha256(lab.path("out/weights.npz")).unwrap();
    for part in [
        "\n# a\\_teacher\n",
        "with 2 labels, any number of which an image can have",
        "\nTraining: 4 steps of 8 on made up, in ",
        "; the loss over the last tenth of the steps is ",
        "It was not scored: the config names no labelled images",
        "\n| \"7\" |\n| a\\|b |\n",
        "Gray images of 16 x 16 pixels, divided by 255; the normalisation by mean (0.5) and deviation (0.5)",
        "weights = \"weights.npz\"",
        "dfka-engine teach t.toml --quiet --out out --device cpu\n",
        " on cpu with this command",
        &format!("SHA-256 of `weights.npz`: `{sum}`"),
    ] {
        assert!(card.contains(part), "{part:?} is not in\n{card}");
    }
    // What the card says works in its folder.
    call(&lab, &["export", "out/weights.npz", "--to", "teacher.onnx"]);

    let config = format!("{TEACH}[evaluation]\ndata = 'train.npz'\n");
    std::fs::write(lab.path("t.toml"), config).unwrap();
    call(&lab, &[&teach[..], &["--force"]].concat());
    let card = text(&lab, "out/README.md");
    assert!(card.contains("on 24 labelled images that training did not see"), "{card}");
    assert!(
        card.contains("\n| label | AP | AP, 11 points | chance |\n") && card.contains("\n| \"7\" | "),
        "{card}"
    );
    assert!(card.contains("\n| mean | "), "{card}");

    // Someone else's file stays, and another run's is replaced.
    std::fs::write(lab.path("out/README.md"), "mine").unwrap();
    call(&lab, &[&teach[..], &["--force"]].concat());
    assert_eq!(text(&lab, "out/README.md"), "mine");
}

/// A lab whose teachers' labels are digits.
fn digits() -> Lab {
    let lab = Lab::new();
    let all: Vec<String> = (0..10).map(|i| i.to_string()).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    npz::save(lab.path("left.npz"), &teacher_tensors(&network(), &all[..5], 1)).unwrap();
    npz::save(lab.path("right.npz"), &teacher_tensors(&network(), &all[5..], 2)).unwrap();
    labelled(40, network().image, &all, 4).save(lab.path("evaluation.npz")).unwrap();
    lab
}

#[test]
fn labels_that_are_digits_are_not_read_as_numbers() {
    let lab = digits();
    let out = lab.call(&["run", "c.toml", "--out", "out", "--quiet", "--device", "cpu"]);
    let table = String::from_utf8(out.stdout).unwrap();
    let (page, card) = (text(&lab, "out/report.html"), text(&lab, "out/README.md"));
    for digit in 0..10 {
        assert!(table.contains(&format!("\n\"{digit}\" ")), "{digit}: {table}");
        // Once by the label's precision, once by the images that show it, once among all figures.
        let cell = format!("<th scope=\"row\">&quot;{digit}&quot;</th>");
        assert_eq!(page.matches(&cell).count(), 3, "{digit}");
        assert!(!page.contains(&format!("<th scope=\"row\">{digit}</th>")), "{digit}");
        assert!(card.contains(&format!("\n| \"{digit}\" | 0.")), "{digit}: {card}");
    }
    // Sentences that name labels.
    let sentences = ["It loses most on ", "in fewer than half of the images requested with them: "];
    for after in sentences.iter().filter_map(|s| page.split_once(s)).map(|(_, after)| after) {
        assert!(after.starts_with("&quot;"), "{after:.60}");
    }
    // For programs, a label is its name.
    let summary: Summary = serde_json::from_slice(&lab.bytes("out/summary.json")).unwrap();
    assert_eq!(summary.labels, (0..10).map(|i| i.to_string()).collect::<Vec<_>>());
}

#[test]
fn the_page_shows_each_generated_image_with_what_was_asked_and_what_is_seen() {
    let lab = Lab::new();
    call(&lab, &["run", "c.toml", "--out", "out", "--quiet", "--device", "cpu"]);
    let captions: Captions = serde_json::from_slice(&lab.bytes("out/samples.json")).unwrap();
    captions.validate().unwrap();
    assert_eq!((captions.images.len(), captions.predicted_by.as_str()), (16, "teachers"));
    assert!(
        captions.images.iter().all(|i| (1..=3).contains(&i.asked.as_ref().unwrap().len())),
        "{captions:?}"
    );
    let page = text(&lab, "out/report.html");
    assert_eq!(page.matches("<use href=\"#samples\"/>").count(), 16);
    let first = captions.images[0].asked.as_ref().unwrap().join(", ");
    assert!(page.contains(&format!("<span>asked: {first}</span>")), "{first}");
    // `sample` draws the same images, so that they were asked for the same labels. It predicts for whole pixel values,
    // and a logit near zero may change its sign.
    call(&lab, &["sample", "out", "--count", "16", "--captions", "--device", "cpu"]);
    let again: Captions = serde_json::from_slice(&lab.bytes("grid.json")).unwrap();
    assert!(again.images.iter().zip(&captions.images).all(|(a, b)| a.asked == b.asked), "{again:?}");
    let same = again.images.iter().zip(&captions.images).filter(|(a, b)| a.predicted == b.predicted).count();
    assert!(same >= 12 && again.predicted_by == "teachers", "{same} of 16 alike");

    // Without captions, as an earlier version left the folder, the page shows the grid.
    std::fs::remove_file(lab.path("out/samples.json")).unwrap();
    call(&lab, &["report", "out"]);
    assert!(text(&lab, "out/report.html").contains("alt=\"grid of generated images\""));
    std::fs::write(lab.path("out/samples.json"), "{").unwrap();
    assert!(call(&lab, &["report", "out"]).contains("left out: samples.json: "));
}

/// Takes a while over each step, and may ask to stop after some of them.
struct Slow {
    each: Duration,
    left: usize,
}

impl Observer for Slow {
    fn stage(&mut self, _: &str, _: usize) {}
    fn step(&mut self, _: usize, _: &mut dyn Iterator<Item = (&str, f32)>) {
        std::thread::sleep(self.each);
        self.left = self.left.saturating_sub(1);
    }
    fn note(&mut self, _: &str) {}
    fn should_stop(&self) -> Option<Stop> {
        (self.left == 0).then_some(Stop { why: "test", exit_code: 143 })
    }
}

#[test]
fn times_are_sums_over_all_calls() {
    let lab = Lab::new();
    let (spec, out) = (lab.spec(&[]), lab.path("out"));
    // Two calls that stop, of four slow steps each, then one that ends the run.
    for is_resumed in [false, true] {
        let mut observer = Slow { each: Duration::from_millis(100), left: 4 };
        let e = run(&spec, &out, is_resumed, &mut observer).unwrap_err();
        assert_eq!(e.exit_code(), 143, "{e}");
    }
    let began = Instant::now();
    let summary = run(&spec, &out, true, &mut Slow { each: Duration::ZERO, left: 1000 }).unwrap();
    let last = began.elapsed().as_secs_f64();
    let (total, stages) = (summary.seconds["total"], summary.seconds.iter().filter(|(s, _)| *s != "total"));
    let sum: f64 = stages.map(|(_, seconds)| seconds).sum();
    assert!(total >= last + 0.7, "{total} with a last call of {last}");
    assert!(total >= sum && sum >= 0.7, "{total} {sum}");
    assert!(summary.seconds["generator"] >= 0.55, "the generator's six steps: {:?}", summary.seconds);
}

#[test]
fn the_page_of_a_resumed_run_has_the_times_of_all_calls() {
    let lab = Lab::new();
    call(&lab, &["run", "c.toml", "--out", "out", "--quiet", "--device", "cpu"]);
    // As if the run had been stopped after the generator's third step and resumed.
    let lines = text(&lab, "out/metrics.jsonl");
    let changed = lines.lines().map(|line| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        if record["stage"] == "generator" {
            let step = record["step"].as_u64().unwrap();
            record["seconds"] = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0][step as usize].into();
            if step == 3 {
                record["resumed"] = true.into();
            }
        }
        record.to_string() + "\n"
    });
    std::fs::write(lab.path("out/metrics.jsonl"), changed.collect::<String>()).unwrap();
    std::fs::remove_file(lab.path("out/summary.json")).unwrap();
    let mut origin: Value = serde_json::from_slice(&lab.bytes("out/run.json")).unwrap();
    let again = origin["calls"][0].clone();
    origin["calls"].as_array_mut().unwrap().push(again);
    std::fs::write(lab.path("out/run.json"), origin.to_string()).unwrap();
    call(&lab, &["report", "out"]);
    let page = text(&lab, "out/report.html");
    // 30 s before the stop, and 60 s after it.
    assert!(
        page.contains("<th scope=\"row\">generator</th><td>6</td><td>8</td><td>1 min 30 s</td>"),
        "{page}"
    );
    assert!(page.contains("The run was resumed 1 time; the times are sums over all calls of the program."));
}
