//! Faults that appear only after a run has begun.

use super::{Case, Lab, edit, nothing, put};
use crate::common::{load, mapped};
use dfka_engine::weights::npz;

/// Finite weights whose sums are not finite.
fn immense(lab: &Lab) {
    let changed = mapped(&load(&lab.path("right.npz")), |name, shape, v| {
        Some((shape.to_vec(), if name == "fc.weight" { vec![3e38; v.len()] } else { v.to_vec() }))
    });
    npz::save(lab.path("right.npz"), &changed).unwrap();
}

/// A grey picture `a.png`.
fn picture(lab: &Lab) {
    let mut encoder = png::Encoder::new(std::fs::File::create(lab.path("a.png")).unwrap(), 16, 16);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.write_header().unwrap().write_image_data(&[128; 256]).unwrap();
}

/// A run that has ended.
fn begun(lab: &Lab) {
    let out = lab.call(&["run", "c.toml", "--out", "out", "--quiet", "--device", "cpu"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[rustfmt::skip] // one line per case
pub const CASES: &[Case] = &[
    Case { what: "a generator that collapsed", spoil: |l| edit(l, "least_diversity = 0", "least_diversity = 2"), args: "run c.toml --quiet --device cpu", code: 7, words: &["generator: collapsed: the diversity of its images", "at least 2 expected", "--resume --set loss.least_diversity=0"] },
    Case { what: "a generator whose images tell nothing", spoil: |l| edit(l, "least_information = 0", "least_information = 1"), args: "run c.toml --quiet --device cpu", code: 7, words: &["generator: collapsed", "bits about the image", "at least 1 expected"] },
    Case { what: "a teacher whose predictions overflow", spoil: immense, args: "run c.toml --quiet --device cpu", code: 7, words: &["training diverged; lower the learning rate of this stage"] },
    Case { what: "a model to score whose predictions overflow", spoil: immense, args: "eval right.npz evaluation.npz --device cpu", code: 4, words: &["right.npz: computes ", " for the label \"", " of image 0 of evaluation.npz; expected a number"] },
    Case { what: "a model whose predictions overflow", spoil: |l| { immense(l); picture(l) }, args: "predict right.npz a.png --device cpu", code: 4, words: &["right.npz: computes ", " for the label \"cat\" of a.png; expected a number"] },
    Case { what: "a picture with a wrong checksum", spoil: |l| { picture(l); let mut bytes = l.bytes("a.png"); let at = bytes.len() - 14; bytes[at] ^= 1; put(l, "a.png", bytes) }, args: "predict right.npz a.png --device cpu", code: 4, words: &["a.png: not a whole PNG: a part of it has another checksum than its bytes"] },
    Case { what: "a folder that cannot be made", spoil: nothing, args: "run c.toml --quiet --device cpu --out /proc/none", code: 1, words: &["cannot make the output folder /proc/none"] },
    Case { what: "a checkpoint of nonsense", spoil: |l| { begun(l); ["checkpoint", "checkpoint-previous"].iter().for_each(|name| put(l, &format!("out/{name}.npz"), "PK")) }, args: "run c.toml --quiet --device cpu --out out --resume", code: 4, words: &["out: no checkpoint to resume from: out/checkpoint.npz is damaged", "checkpoint-previous.npz is damaged"] },
    Case { what: "a bank beyond this machine's memory", spoil: |l| edit(l, "bank = 32", "bank = 90000000"), args: "run c.toml --quiet --device cpu --set generator.steps=90000000", code: 6, words: &["`dual.bank`: needs", "GB are available"] },
    Case { what: "a batch beyond this machine's memory", spoil: nothing, args: "run c.toml --quiet --device cpu --set generator.batch=65536 --set dual.bank=65536 --set generator.widths=[8192,8192,8192]", code: 6, words: &["GB", "available", "--set generator.batch="] },
];
